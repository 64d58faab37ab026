"""A row program in C from the torch function that states it.

A function of tiles [n, V] is traced to elementary operations (`trace`) and written as a C function of one row. Each reduction over the row ends a
loop; later loops compute again what is cheap and read back what took an elementary function, which the first loop to compute it keeps in a scratch row.
All passes over a row run while it lies in the core's own cache, and nothing of size [n, V] is made beside what the function writes. A pass that nothing needs
once a condition holds is left out where it does (`skipped`).

Numbers that a row has one of are computed in double; entries in REAL, by `vector.h`. What cannot be written raises `Unwritable`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Graph

from .lowered import Loop, Lowered, Unwritable, Value, broadcast, kind_of, lowered
from .skipped import skipped

__all__ = ["Program", "emit", "emit_scalar"]


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
    lines = [f"    {text}".replace("(double)in[0][0]", "x") for _, text in of.between]
    result = value.text.replace("(double)in[0][0]", "x")
    return "\n".join([f"static double {name}(double x) {{", "    (void)x;", *lines, f"    return {result};", "}"])


def _body(of: Lowered, loops: list[Loop], skip: dict[int, Value]) -> tuple[list[str], int]:
    """The statements, and how many scratch rows they use."""
    first: dict[str, int] = {}  # the loop that computes an entry first
    kept: dict[str, int] = {}  # scratch rows
    needs: list[dict[str, bool]] = []  # what a loop uses: computed there (True) or read back
    for number, loop in enumerate(loops):
        used: dict[str, bool] = {}
        for _, value in (*loop.sums, *loop.tops, *loop.writes):
            _need(of, value, number, used, first, kept)
        if number in skip:  # what may not be computed there is not to be read back
            first = {name: at for name, at in first.items() if at != number}
        needs.append(used)
    lines: list[str] = []
    done: set[int] = set()
    for number, loop in enumerate(loops):
        lines += _numbers(of, number, done)
        lines += _loop(of, number, loop, needs[number], first, kept, skip.get(number))
    lines += _numbers(of, len(loops), done)
    return lines, len(kept)


def _need(
    of: Lowered, x: Value, number: int, used: dict[str, bool], first: dict[str, int], kept: dict[str, int]
) -> None:
    if not x.entry or x.text in used:
        return
    if x.text in of.heavy and first.get(x.text, number) < number and not x.truth:
        kept.setdefault(x.text, len(kept))
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


def _loop(
    of: Lowered,
    number: int,
    loop: Loop,
    used: dict[str, bool],
    first: dict[str, int],
    kept: dict[str, int],
    skip: Value | None,
) -> list[str]:
    names = [(n, v) for n, v in loop.sums]
    lines = [f"    {'int64_t' if v.truth else 'double'} {n} = 0;" for n, v in names]
    lines += [f"    Vec {n}_v = splat(-INFINITY); Mask {n}_nan = {{0}};" for n, _ in loop.tops]
    # short sums in REAL, added up in double
    lines.append(f"    {'' if skip is None else f'if (!{skip.text}) '}for (int64_t b = 0; b < v; b += 1024) {{")
    lines.append("        const int64_t end = b + 1024 < v ? b + 1024 : v;")
    lines += [f"        {'Mask' if v.truth else 'Vec'} {n}_v = {{0}};" for n, v in names]
    lines.append("        int64_t j = b;")
    for tail in (False, True):
        lines.append("        if (j < end) {" if tail else "        for (; j + LANES <= end; j += LANES) {")
        if tail:
            lines.append("            const int64_t rest = end - j; const Mask live = lanes(rest); (void)live;")
        for text, computed in used.items():
            definition, value = of.definitions[text]
            kind = "Mask" if value.truth else "Vec"
            if not computed:
                definition = f"READ(scratch + {kept[text]} * (v + 80))"
            lines.append(f"            const {kind} {text} = {_access(definition, tail)};")
            if computed and text in kept and first[text] == number:
                lines.append("            " + _write(f"scratch + {kept[text]} * (v + 80) + j", text, tail))
        for n, v in names:
            if v.truth:
                lines.append(f"            {n}_v -= {v.text}{' & live' if tail else ''};")
            else:
                lines.append(f"            {n}_v += {f'choose(live, {v.text}, splat(0))' if tail else v.text};")
        for n, v in loop.tops:
            inside = f"choose(live, {v.text}, splat(-INFINITY))" if tail else v.text
            lines.append(f"            {n}_v = vlargest({inside}, {n}_v); {n}_nan |= (Mask)({inside} != {inside});")
        for where, v in loop.writes:
            lines.append("            " + _write(f"{where} + j", v.text if v.entry else broadcast(v), tail))
        lines.append("        }")
    lines += [f"        {n} += {'counted' if v.truth else 'total'}({n}_v);" for n, v in names]
    lines.append("    }")
    lines += [f"    const double {n} = largest({n}_v, {n}_nan);" for n, _ in loop.tops]
    return lines


def _access(definition: str, tail: bool) -> str:
    """IN(k) and READ(p) as loads."""
    if definition.startswith("IN("):
        at = f"in[{definition[3:-1]}] + j"
    elif definition.startswith("READ("):
        at = f"{definition[5:-1]} + j"
    else:
        return definition
    return f"take({at}, rest)" if tail else f"*(const Vec *)({at})"


def _write(at: str, text: str, tail: bool) -> str:
    return f"put({at}, {text}, rest);" if tail else f"*(Vec *)({at}) = {text};"
