"""Row programs, compiled and called: what `emit` writes, on the user's own C compiler."""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..generators import Generator, operator_of
from ..solve import Threshold, sums, tolerance_of
from . import native_build
from .decompositions import DECOMPOSED
from .emit import Program, emit, emit_scalar
from .lowered import Unwritable
from .trace import COLUMNS, ROWS, numbers_of, sample_of, traced

__all__ = ["REALS", "handles", "program", "solver"]

# the dtypes that there is C for, and its names of an entry and of an integer as wide
REALS = {torch.float32: ("float", "int32_t"), torch.float64: ("double", "int64_t")}
# what tells a row program's source apart from another's is its text: it is the key of the build
_HEAD = '#define REAL {0}\n#define INTEGER {1}\n#include "vector.h"\n{2}\n#include "rows.h"\n'
_RUN = """
int fenchel_run(int64_t n, int64_t v, int64_t ins, REAL *const *in, const int64_t *in_step, int64_t stores, REAL *const *store,
                const int64_t *store_step, int64_t outs, double *out, int threads) {{
    return run({name}, n, v, ins, in, in_step, stores, store, store_step, outs, out, {scratch}, threads);
}}
"""


def handles(*args: Tensor) -> bool:
    """Whether row programs take these tensors: on the CPU, float32 or float64, more than one row and column; and whether there is a C compiler."""
    first = args[0]
    return (
        all(x.device.type == "cpu" and x.dtype == first.dtype for x in args)
        and first.dtype in REALS
        and min(first.shape) > 1
        and native_build.library() is not None
    )


def program(fn: Callable[..., Any], args: tuple[Tensor, ...]) -> Callable[..., Any]:
    """fn for tensors laid out like these, as a compiled row program.

    Raises:
        Unwritable: fn has none.
    """
    made = _written(fn, sample_of(args), "row")
    code = _head(args[0].dtype, made.code) + _RUN.format(name="row", scratch=made.scratch)
    run = _built(code, "row").fenchel_run
    run.argtypes = [ctypes.c_int64] * 3 + [ctypes.c_void_p] * 2 + [ctypes.c_int64] + [ctypes.c_void_p] * 2
    run.argtypes += [ctypes.c_int64, ctypes.c_void_p, ctypes.c_int]
    return lambda *given: _call(run, made, given)


def _head(dtype: torch.dtype, code: str) -> str:
    return _HEAD.format(*REALS[dtype], code)


def _built(code: str, name: str) -> ctypes.CDLL:
    try:
        return native_build.load(code.encode(), name)
    except (native_build.NoNative, OSError) as why:
        raise Unwritable(str(why)) from why


def _written(fn: Callable[..., Any], sample: list[Tensor], name: str) -> Program:
    graph, wider = (traced(fn, [_widened(x, by) for x in sample], DECOMPOSED, "fake") for by in (0, 4))
    if numbers_of(graph) != numbers_of(wider):
        raise Unwritable("a number in it depends on V")
    return emit(graph.graph, sample, lambda n: getattr(graph, n), name)


def _widened(x: Tensor, by: int) -> Tensor:
    return x.new_zeros([s + by if s == COLUMNS else s for s in x.shape])


def _call(run: Any, made: Program, given: tuple[Tensor, ...]) -> Any:
    n, v = given[0].shape
    args = [x if kind in ("entry", "column") else x.contiguous() for x, kind in zip(given, made.kinds, strict=True)]
    if any(
        x.dim() and x.stride(-1) != 1 for x, kind in zip(args, made.kinds, strict=True) if kind in ("entry", "column")
    ):
        raise ValueError("a row program got entries that are not next to each other in memory; pass contiguous rows")
    tables = [torch.empty(n, v, dtype=given[0].dtype) for kind in made.outputs if kind == "entry"]
    written = [args[i] for i in made.stores] + tables
    numbers = [kind for kind in made.outputs if kind != "entry"]
    out = (
        torch.empty(len(numbers), dtype=torch.float64)
        if not numbers
        else torch.empty(n, len(numbers), dtype=torch.float64)
    )
    step = [x.stride(0) if kind in ("entry", "row") else 0 for x, kind in zip(args, made.kinds, strict=True)]
    failed = run(
        *(n, v, len(args), _pointers(args), _integers(step)),
        *(len(written), _pointers(written), _integers([x.stride(0) for x in written])),
        *(len(numbers), out.data_ptr(), torch.get_num_threads()),
    )
    if failed:
        raise MemoryError("a row program got no memory for its scratch")
    for i in made.stores:
        torch.autograd.graph.increment_version(given[i])  # written behind autograd's back: its check must see it
    results, column, table = [], 0, iter(tables)
    for kind, shape in zip(made.outputs, made.shapes, strict=True):
        if kind == "entry":
            results.append(next(table))
            continue
        x = out[:, column].to(torch.int64 if kind == "count" else given[0].dtype)
        results.append(x.view([n if s == -2 else s for s in shape]))
        column += 1
    return results[0] if len(results) == 1 else results


def _pointers(tensors: list[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))


def _integers(numbers: list[int]) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


@cache
def solver(g: Generator, dtype: torch.dtype, each: bool) -> Callable[[Tensor, Tensor], Threshold]:
    """`solve.threshold` for distances [n, V] and q [] or (each) [V] or [n, V], row by row in cache.

    Raises:
        Unwritable: the generator has no row program.
    """
    sample = [torch.zeros(s, dtype=dtype) for s in ((ROWS, COLUMNS), (ROWS, 1), (COLUMNS,) if each else ())]
    made = _written(lambda d, top, q: sums(d, top, q, g), sample, "sums")
    if made.scratch:
        raise Unwritable("sums that need more than one pass")
    op = operator_of(g)
    scalars = {"link_of": g.link, "unlink_of": op.unlink, "spread_of": op.spread}
    one = [torch.zeros((), dtype=torch.float64)]
    parts = [made.code]
    for name, fn in scalars.items():
        graph = traced(fn, one, DECOMPOSED, "fake")
        parts.append(emit_scalar(graph.graph, lambda n, graph=graph: getattr(graph, n), name))
    code = _head(dtype, "\n".join(parts)) + '#include "solver.h"\n'
    solve = _built(code, "solve").fenchel_solve
    solve.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 4 + [ctypes.c_int] * 2 + [ctypes.c_double] * 2
    solve.argtypes += [ctypes.c_void_p] * 4 + [ctypes.c_int]

    def threshold(d: Tensor, q: Tensor) -> Threshold:
        n, v = d.shape
        q = q.contiguous()
        top, mass, spread = (torch.empty(n, 1, dtype=dtype) for _ in range(3))
        support = torch.empty(n, 1, dtype=torch.int64)
        found = [x.data_ptr() for x in (top, mass, spread, support)]
        steps = (d.stride(0), q.stride(0) if q.dim() == 2 else 0)
        edge = g.edge if g.sparse else 0.0
        numbers = (tolerance_of(dtype, g), edge)
        if solve(d.data_ptr(), q.data_ptr(), n, v, *steps, each, g.sparse, *numbers, *found, torch.get_num_threads()):
            raise MemoryError("the solver got no memory for its scratch")
        return Threshold(top, mass, spread, support, 0, 0)

    return threshold
