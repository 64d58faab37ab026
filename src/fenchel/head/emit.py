"""A row program in C from the torch function that states it.

A function of tiles [n, V] is traced to elementary operations (`trace`) and written as a C function of one row. Each reduction over the row ends a
loop; later loops compute again what is cheap and read back what took an elementary function, which the first loop to compute it keeps in a scratch row, as few
of them as will do.
All passes over a row run while it lies in the core's own cache, and nothing of size [n, V] is made beside what the function writes. A pass that nothing needs
once a condition holds is left out where it does (`skipped`).

Numbers that a row has one of are computed in double; entries in REAL, by `vector.h`. What cannot be written raises `Unwritable`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Graph

from .loops import written
from .lowered import Loop, Lowered, Unwritable, Value, kind_of, lowered
from .skipped import skipped

__all__ = ["Program", "emit", "emit_scalar"]

# operations that cost less than a row more of scratch, written and read back: rows of two or three numbers an entry leave a core's own cache
CHEAP = 8


@dataclass(frozen=True)
class Program:
    """A row program.

    Attributes:
        code: the C function `static void NAME(int64_t v, REAL *const *in, REAL *const *store, double *out, REAL *scratch)`, of one row.
        kinds: of each argument: "entry" ([n, V]), "column" ([V]), "row" ([n, k]) or "one" ([]).
        outputs: of each result, "entry", "row" or "count" (int64); rows and counts are written to `out` in this order.
        stores: the arguments that are written, by place; results of kind "entry" follow them in `store`.
        shapes: the shapes of the results, -1 for V and -2 for n.
        scratch: rows of scratch that it needs.
    """

    code: str
    kinds: tuple[str, ...]
    outputs: tuple[str, ...]
    stores: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    scratch: int


def emit(graph: Graph, inputs: list[Tensor], constants: Callable[[str], Tensor], name: str) -> Program:
    """The row program of a graph that was traced at n = ROWS and V = COLUMNS.

    Args:
        inputs: what it was traced with; matrices [n, V] or [n, k], a vector [V], numbers.
        constants: a tensor constant of the graph.

    Raises:
        Unwritable: an operation, shape or dtype that no row program has.
    """
    of = lowered(graph, inputs, constants)
    tables = [v for kind, v, _ in of.result if kind == "entry"]
    stores = [v for _, v in of.stores] + tables
    last = max([len(of.loops) - 1] + [v.level for v in stores])
    loops = of.loops + [Loop() for _ in range(last + 1 - len(of.loops))]
    loops[last:] = [replace(x, writes=[(f"store[{i}]", v) for i, v in enumerate(stores)]) for x in loops[last:]]
    numbers = [v for kind, v, _ in of.result if kind != "entry"]
    body, scratch = _body(of, loops, skipped(of, loops, numbers))
    code = "\n".join(
        [
            f"static void {name}(int64_t v, REAL *const *in, REAL *const *store, double *out, REAL *scratch) {{",
            "    (void)in, (void)store, (void)out, (void)scratch;",
            *(f"    const double {name} = (double){place}; (void){name};" for name, place in of.given.items()),
            *body,
            *(f"    out[{i}] = {v.text};" for i, v in enumerate(numbers)),
            "}",
        ]
    )
    return Program(
        code,
        tuple(kind_of(x) for x in inputs),
        tuple(kind for kind, _, _ in of.result),
        tuple(place for place, _ in of.stores),
        tuple(shape for _, _, shape in of.result),
        scratch,
    )


def emit_scalar(graph: Graph, constants: Callable[[str], Tensor], name: str) -> str:
    """The C function `static double NAME(double)` of a graph that was traced with one number."""
    of = lowered(graph, [torch.zeros((), dtype=torch.float64)], constants)
    [(_, value, _)] = of.result
    if of.loops or value.entry:
        raise Unwritable("a scalar function with a reduction")
    lines = [*(f"const double {name} = x;" for name in of.given), *(text for _, text in of.between)]
    return "\n".join(
        [
            f"static double {name}(double x) {{",
            "    (void)x;",
            *("    " + x for x in lines),
            f"    return {value.text};",
            "}",
        ]
    )


def _body(of: Lowered, loops: list[Loop], skip: dict[int, Value]) -> tuple[list[str], int]:
    """The statements, and how many scratch rows they use."""
    first: dict[str, int] = {}  # the loop that computes an entry first
    kept: dict[str, int] = {}  # scratch rows
    needs: list[dict[str, bool]] = []  # what a loop uses: computed there (True) or read back
    for number, loop in enumerate(loops):
        used: dict[str, bool] = {}
        wanted = [value for _, value in (*loop.sums, *loop.tops, *loop.writes)]
        _keep(of, wanted, number, first, kept)
        for value in wanted:
            _need(of, value, number, used, first, kept)
        if number in skip:  # what may not be computed there is not to be read back
            first = {name: at for name, at in first.items() if at != number}
        needs.append(used)
    lines: list[str] = []
    done: set[int] = set()
    for number, loop in enumerate(loops):
        lines += _numbers(of, number, done)
        lines += written(of, number, loop, needs[number], first, kept, skip.get(number))
    lines += _numbers(of, len(loops), done)
    return lines, len(kept)


def _keep(of: Lowered, wanted: list[Value], number: int, first: dict[str, int], kept: dict[str, int]) -> None:
    """Adds to `kept` what a loop reads back of those before it: what took an elementary function, unless it is cheap to make of others that are kept."""
    found: dict[str, Value] = {}

    def collect(x: Value) -> None:
        if not x.entry or x.text in found:
            return
        _, value = of.definitions[x.text]
        if x.text in of.heavy and first.get(x.text, number) < number and not x.truth:
            found[x.text] = value
            return
        for part in value.parts:
            collect(part)

    for x in wanted:
        collect(x)
    # in the order of their definitions, so that what others are made of comes first
    for name in (name for name in of.definitions if name in found):
        if name not in kept and _effort(of, found[name], kept, set()) > CHEAP:
            kept[name] = len(kept)


def _effort(of: Lowered, x: Value, kept: dict[str, int], counted: set[str]) -> float:
    """What it costs to compute an entry from those that are kept."""
    if not x.entry or x.text in kept or x.text in counted:
        return 0
    counted.add(x.text)
    return of.efforts[x.text] + sum(_effort(of, part, kept, counted) for part in of.definitions[x.text][1].parts)


def _need(
    of: Lowered, x: Value, number: int, used: dict[str, bool], first: dict[str, int], kept: dict[str, int]
) -> None:
    if not x.entry or x.text in used:
        return
    if x.text in kept and first[x.text] < number:
        used[x.text] = False
        return
    _, value = of.definitions[x.text]
    for part in value.parts:
        _need(of, part, number, used, first, kept)
    used[x.text] = True
    first.setdefault(x.text, number)


def _numbers(of: Lowered, number: int, done: set[int]) -> list[str]:
    lines = []
    for i, (level, text) in enumerate(of.between):
        if i not in done and level <= number:
            done.add(i)
            lines.append("    " + text)
    return lines
