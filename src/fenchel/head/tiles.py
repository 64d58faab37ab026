"""The loops over a tile of logits, compiled where the machine has a compiler.

They are the scalar functions of `generators` and nothing else. On a CPU they are written as row programs in C (`programs`): all passes over a row run while
it lies in the core's own cache. What has no row program (a function of a user's that takes an unusual operation), and other devices, go through
torch.compile; without a compiler the separate torch operations run, many times slower.
"""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import solve
from ..generators import INF, Generator, operator_of
from ..operators import excess_of
from ..vocab import LOCAL, Vocabulary
from . import kernels, native, programs
from .kernels import Rows
from .lowered import Unwritable
from .stages import in_stages, vocabulary_of
from .trace import EXPM1, POWER, expm1, power, sample_of, traced

log = logging.getLogger("fenchel")
# the compiler stores an intermediate result that took more operations, or has more readers, than this; here each costs a pass over memory
FUSE: dict[str, Any] = {"realize_opcount_threshold": 1000, "realize_reads_threshold": 1000}
# entries of logits below which compiling costs more than it saves: a row program, which takes a second once, and torch.compile, which takes ten and more
SMALL, LARGE = 2**17, 2**21


@dataclass(frozen=True)
class Operator:
    """A generator's operator on tiles that are a shard of a vocabulary."""

    g: Generator
    vocab: Vocabulary = LOCAL


def distances_(z: Tensor, vocab: Vocabulary) -> Tensor:
    """Turns logits into distances below their row's largest in place, and returns that, [N, 1]."""
    best = vocab.amax(z)
    z.copy_(best - z)
    return best


def closed_(z: Tensor, q: Tensor, c: Tensor, of: Operator) -> tuple[Tensor, Tensor]:
    """Turns logits into c p in place where unlink(a + b) = unlink(a) unlink(b), and returns each row's largest logit [N, 1] and value - best [N]."""
    best, excess, p = _closed(z, q, of)
    z.copy_(p * c)
    return best, excess


def closed(z: Tensor, q: Tensor, of: Operator) -> tuple[Tensor, Tensor]:
    """`closed_` without p."""
    best, excess, _ = _closed(z, q, of)
    return best, excess


def _closed(z: Tensor, q: Tensor, of: Operator) -> tuple[Tensor, Tensor, Tensor]:
    g, op = of.g, operator_of(of.g)
    best = of.vocab.amax(z)
    d = best - z
    below = op.unlink(-d)
    top = -torch.log(of.vocab.sum(q * below))
    u = below * op.unlink(top)
    return best, excess_of(d, u, None, top, q, g, of.vocab), q * u


def finish_(d: Tensor, top: Tensor, shift: Tensor, q: Tensor, c: Tensor, of: Operator) -> Tensor:
    """Turns distances d into c p in place, and returns value - best [N]. shift: the last Newton step, (1 - S) / (dS/dtop)."""
    g = of.g
    return _finished(d, operator_of(g).unlink(top - d), top, shift, q, c, of)


def land_(d: Tensor, top: Tensor, q: Tensor, c: Tensor, of: Operator) -> Tensor:
    """`finish_` from a threshold that was solved for in less precision than d has: the last step is summed here."""
    u = operator_of(of.g).unlink(top - d)
    shift, less = _last_step(u, q, of)
    return _finished(d, u, top, shift, q, c, of) - less


def landed(d: Tensor, top: Tensor, q: Tensor, of: Operator) -> Tensor:
    """`value` from such a threshold."""
    _, less = _last_step(operator_of(of.g).unlink(top - d), q, of)
    return value(d, top, q, of) - less


def pulled_(d: Tensor, top: Tensor, shift: Tensor, q: Tensor, c: Tensor, g: Generator) -> None:
    """`finish_` of some of a row's classes, without the value."""
    d.copy_(probability(operator_of(g).unlink(top - d), shift, q, g) * c)


def _last_step(u: Tensor, q: Tensor, of: Operator) -> tuple[Tensor, Tensor]:
    """Newton's step of the threshold, [N, 1], and what it takes off the value, [N], which shows where little is left of the value's terms: f(0) = inf."""
    mass, spread = of.vocab.sums(q * u, q * operator_of(of.g).spread(u))
    shift = (1 - mass) / spread
    return shift, ((1 - mass) * shift / 2).squeeze(-1)


def _finished(d: Tensor, u: Tensor, top: Tensor, shift: Tensor, q: Tensor, c: Tensor, of: Operator) -> Tensor:
    g = of.g
    excess = excess_of(d, u, d < INF if g.f0 == INF else None, top, q, g, of.vocab)
    d.copy_(probability(u, shift, q, g) * c)
    return excess


def probability(u: Tensor, shift: Tensor, q: Tensor, g: Generator) -> Tensor:
    """p after the last Newton step, taken on p itself; elementwise."""
    return (q * (u + operator_of(g).spread(u) * shift)).clamp_min(0.0)


def value(d: Tensor, top: Tensor, q: Tensor, of: Operator) -> Tensor:
    """value - best [N]."""
    g = of.g
    return excess_of(d, operator_of(g).unlink(top - d), d < INF if g.f0 == INF else None, top, q, g, of.vocab)


def tile_function(fn: Callable[..., Any], of: Any, entries: int) -> Callable[..., Any]:
    """`fn` for one `of`, compiled if a compiler is there and the work is large. FENCHEL_COMPILE=0 turns it off, =1 compiles for any size."""
    if not compiles(entries):
        return lambda *args: fn(*args, of)
    large = _large(entries)
    if vocabulary_of(of).group:
        return in_stages(fn, of, lambda stage: _compiled(stage, large))
    return _compiled(_bound(fn, of), large)


def compiles(entries: int) -> bool:
    """Whether `tile_function` compiles."""
    if _wanted() == "0":
        return False
    large = _large(entries)
    return (large or entries >= SMALL) and (native.available() or (large and _compiler()))


def _large(entries: int) -> bool:
    """Whether torch.compile is worth its time, where there is no row program."""
    return entries >= LARGE or _wanted() == "1"


def _wanted() -> str:
    return os.environ.get("FENCHEL_COMPILE", "")


@cache
def _bound(fn: Callable[..., Any], of: Any) -> Callable[..., Any]:
    """One object for all calls: what is compiled for it is found by it."""
    return lambda *args: fn(*args, of)


@cache
def _compiled(fn: Callable[..., Any], large: bool) -> Callable[..., Any]:
    made: dict[Any, Callable[..., Any]] = {}

    def call(*args: Tensor) -> Any:
        if min(args[0].shape) < 2:
            return fn(*args)
        layout = tuple((x.dtype, x.device.type, _pattern(x, args)) for x in args)
        if layout not in made:
            made[layout] = _made(fn, args, large)
        return made[layout](*args)

    return call


def _made(fn: Callable[..., Any], args: tuple[Tensor, ...], large: bool) -> Callable[..., Any]:
    if programs.handles(*args):
        try:
            return programs.program(fn, args)
        except Unwritable as why:
            log.info("fenchel: no row program (%s)", why)
    return torch.compile(_traced(fn, args), dynamic=True, options=FUSE) if large and _compiler() else fn


def _traced(fn: Callable[..., Any], args: tuple[Tensor, ...]) -> Callable[..., Any]:
    """fn as a graph of elementary operations, for torch.compile.

    A compiler that traces fn itself reads the constants of a generator at run time and cannot follow what users write; and it would turn expm1(t) into
    exp(t) - 1, which is nothing but rounding near t = 0.
    """
    return traced(fn, sample_of(args), {EXPM1: expm1, POWER: power}, "symbolic")


def _pattern(x: Tensor, args: tuple[Tensor, ...]) -> tuple[int, ...]:
    """Which of the first argument's dimensions each dimension is, negative where it is a constant."""
    sizes = args[0].shape
    return tuple(sizes.index(n) if n > 1 and n in sizes else -n for n in x.shape)


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


def solved(d: Tensor, q: Tensor, g: Generator, entries: int, vocab: Vocabulary = LOCAL) -> solve.Threshold:
    """`solve.threshold`: compiled row by row where rows are whole, or with compiled sums and native compaction."""
    native_solver = _solver(d, q, g) if compiles(entries) and not vocab.group else None
    if native_solver is not None:
        return native_solver(d, q)
    sums = tile_function(solve.sums, g, entries)
    return solve.threshold(d, q, g, lambda d, top, q, _: sums(d, top, q), compact, 0.125, vocab)


def _solver(d: Tensor, q: Tensor, g: Generator) -> Callable[[Tensor, Tensor], solve.Threshold] | None:
    if g.multiplicative or solve.is_steep(g) or not programs.handles(d, q):
        return None
    try:
        return programs.solver(g, d.dtype, q.dim() > 0)
    except Unwritable:
        return None


def compact(d: Tensor, q: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """`solve.compacted` by the row kernels."""
    rows = kernels.above(-d, -window.squeeze(1))
    return -packed(rows, rows.vals, -torch.inf), q if q.dim() == 0 else packed(rows, measure_of(q, rows), 1.0)


def packed(rows: Rows, vals: Tensor, fill: float) -> Tensor:
    """CSR rows as a matrix [n, widest row], padded."""
    counts, index = rows.row_ptr.diff(), rows.row_index()
    place = torch.arange(len(index), device=vals.device) - rows.row_ptr[index]
    # one column at least: a shard may have no entry in any row
    out = vals.new_full((len(counts), max(1, int(counts.max())) if len(counts) else 0), fill)
    out[index, place] = vals
    return out


def measure_of(q: Tensor, rows: Rows) -> Tensor:
    """q at the entries of CSR rows."""
    columns = rows.cols.long()
    return q if q.dim() == 0 else q[columns] if q.dim() == 1 else q[rows.row_index(), columns]


def positive(p: Rows) -> Rows:
    """CSR rows without entries that are exactly 0 (NaN is kept)."""
    kept = p.vals != 0
    if bool(kept.all()):
        return p
    total = torch.cat((p.row_ptr.new_zeros(1), kept.cumsum(0)))
    return Rows(total[p.row_ptr], p.cols[kept], p.vals[kept], p.columns)
