"""The two loops over a tile that every Fenchel-Young head is made of, compiled where the machine has a compiler.

Both are the scalar functions of `generators` and nothing else; torch.compile fuses them into one pass over memory each (measured on two cores: 15 to 60
times faster than the separate torch operations, which is what runs without a compiler).
"""

import itertools
import logging
import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import solve
from ..generators import INF, Generator, operator_of
from ..operators import excess_of
from . import kernels, native
from .kernels import Rows

log = logging.getLogger("fenchel")
_numbers = itertools.count()
# entries of logits below which compiling costs more than it saves
LARGE = 2**21


def finish_(d: Tensor, top: Tensor, shift: Tensor, q: Tensor, c: Tensor, g: Generator) -> Tensor:
    """Turns distances d into c p in place, and returns value - best [N]. shift: the last Newton step, (1 - S) / (dS/dtop)."""
    op = operator_of(g)
    u = op.unlink(top - d)
    excess = excess_of(d, u, d < INF if g.f0 == INF else None, top, q, g)
    d.copy_((q * (u + op.spread(u) * shift)).clamp_min(0.0) * c)
    return excess


def value(d: Tensor, top: Tensor, q: Tensor, g: Generator) -> Tensor:
    """value - best [N]."""
    return excess_of(d, operator_of(g).unlink(top - d), d < INF if g.f0 == INF else None, top, q, g)


def tile_function(fn: Callable[..., Any], g: Any, entries: int) -> Callable[..., Any]:
    """`fn` for one generator, compiled if a compiler is there and the work is large. FENCHEL_COMPILE=0 turns it off, =1 compiles for any size."""
    return _compiled(fn, g) if compiles(entries) else lambda *args: fn(*args, g)


def compiles(entries: int) -> bool:
    """Whether `tile_function` compiles."""
    wanted = os.environ.get("FENCHEL_COMPILE", "")
    return wanted != "0" and (wanted == "1" or entries >= LARGE) and _compiler()


@cache
def _compiled(fn: Callable[..., Any], g: Any) -> Callable[..., Any]:
    def bound(*args: Tensor) -> Any:
        return fn(*args, g)

    # the compiler counts recompilations by code object, and gives up after eight: each function has its own
    bound.__code__ = bound.__code__.replace(co_name=f"{fn.__name__}_{next(_numbers)}")
    return torch.compile(bound, dynamic=True)


@cache
def _compiler() -> bool:
    found = torch.cuda.is_available() or any(
        shutil.which(c) for c in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if c
    )
    if not found:
        log.warning(
            "fenchel: no C++ compiler found; the fused heads run uncompiled, several times slower (install g++ or clang++)"
        )
    return bool(found)


def solved(d: Tensor, q: Tensor, g: Generator, entries: int) -> solve.Threshold:
    """`solve.threshold` with compiled sums and native compaction."""
    sums = tile_function(solve.sums, g, entries)
    return solve.threshold(d, q, g, lambda d, top, q, _: sums(d, top, q), compact, share=0.125)


def solved_relative(r: Tensor, q: Tensor, g: Generator, entries: int) -> solve.Threshold:
    """`solved` for logits less their row's best [n, V]; native where S is a moment of them."""
    if g.power in (1.0, 2.0) and q.dim() == 0 and native.handles(r) and not g.double:
        return native.powers(r, int(g.power), float(q), solve.tolerance_of(r.dtype, g))
    return solved(-r.to(q.dtype), q, g, entries)


def compact(d: Tensor, q: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """`solve.compacted` by the row kernels."""
    rows = kernels.above(-d, -window.squeeze(1))
    return -packed(rows, rows.vals, -torch.inf), q if q.dim() == 0 else packed(rows, measure_of(q, rows), 1.0)


def packed(rows: Rows, vals: Tensor, fill: float) -> Tensor:
    """CSR rows as a matrix [n, widest row], padded."""
    counts, index = rows.row_ptr.diff(), rows.row_index()
    place = torch.arange(len(index), device=vals.device) - rows.row_ptr[index]
    out = vals.new_full((len(counts), int(counts.max()) if len(counts) else 0), fill)
    out[index, place] = vals
    return out


def measure_of(q: Tensor, rows: Rows) -> Tensor:
    """q at the entries of CSR rows."""
    columns = rows.cols.long()
    return q if q.dim() == 0 else q[columns] if q.dim() == 1 else q[rows.row_index(), columns]
