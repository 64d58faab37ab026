"""The two loops over a tile that every Fenchel-Young head is made of, compiled where the machine has a compiler.

Both are the scalar functions of `generators` and nothing else; torch.compile fuses them into one pass over memory each (measured on two cores: 15 to 60
times faster than the separate torch operations, which is what runs without a compiler).
"""

import logging
import math
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
# the compiler stores an intermediate result that took more operations, or has more readers, than this; here each costs a pass over memory
FUSE: dict[str, Any] = {"realize_opcount_threshold": 1000, "realize_reads_threshold": 1000}
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
    made: dict[Any, Callable[..., Any]] = {}

    def call(*args: Tensor) -> Any:
        layout = tuple((x.dtype, x.device.type, _pattern(x, args)) for x in args)
        if layout not in made:
            made[layout] = torch.compile(_traced(lambda *x: fn(*x, g), args), dynamic=True, options=FUSE)
        return made[layout](*args)

    return call


def _pattern(x: Tensor, args: tuple[Tensor, ...]) -> tuple[int, ...]:
    """Which of the first argument's dimensions each dimension is, negative where it is a constant."""
    sizes = args[0].shape
    return tuple(sizes.index(n) if n > 1 and n in sizes else -n for n in x.shape)


def _traced(fn: Callable[..., Any], args: tuple[Tensor, ...]) -> Callable[..., Any]:
    """fn as a graph of elementary operations for tensors laid out like these, of any size.

    A compiler that traces fn itself reads the constants of a generator at run time and cannot follow what users write. Two operations are replaced: it would
    turn expm1(t) into exp(t) - 1, which is nothing but rounding near t = 0, and pow is ten times slower than square roots.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # imports a compiler

    known = {torch.ops.aten.expm1.default: _expm1, torch.ops.aten.pow.Tensor_Scalar: _pow}
    # zeros, and not one tensor twice: it would be traced as one
    sample = [
        torch.zeros([(5, 7)[n] if n >= 0 else -n for n in _pattern(x, args)], dtype=x.dtype, device=x.device)
        for x in args
    ]
    with torch.no_grad():
        return make_fx(fn, known, tracing_mode="symbolic")(*sample)


# terms of the series of exp(t) - 1 on |t| < 1/2: to 2^-30 and 2^-60 of it
_SERIES = {torch.float32: 9, torch.float64: 16}


def _expm1(t: Tensor) -> Tensor:
    # its series where exp(t) - 1 would cancel; elsewhere the exponential that other terms use too
    near = torch.full_like(t, 1 / math.factorial(_SERIES[t.dtype]))
    for k in range(_SERIES[t.dtype] - 1, 0, -1):
        near = near * t + 1 / math.factorial(k)
    return torch.where(t.abs() < 0.5, t * near, t.exp() - 1)


def _pow(x: Tensor, k: float) -> Tensor:
    # x^k = (square roots of x) exp(r log x), 0 <= r < 1/4: the logarithm's rounding is multiplied by r and not by k
    if k < 0:
        return 1 / _pow(x, -k)
    quarters = math.floor(4 * k)
    if quarters > 32:
        return NotImplemented
    factors = [x] * (quarters // 4)
    if quarters % 4:
        half = torch.sqrt(x)
        factors += [half] * (quarters // 2 % 2) + [torch.sqrt(half)] * (quarters % 2)
    if quarters != 4 * k:
        factors.append(torch.exp((k - quarters / 4) * torch.log(x)))
    return math.prod(factors[1:], start=factors[0]) if factors else torch.ones_like(x)


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
