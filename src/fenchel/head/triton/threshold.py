"""The threshold of rows of logits, and what is made of it: `solve.threshold` with its loop inside a kernel.

Rows are dense, or CSR entries whose other logits are known to have probability 0. Both kernels evaluate in float32 or float64, whatever is stored.
"""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from ...generators import Generator
from ...solve import EVALUATIONS
from ..kernels import Rows
from .functions import solver
from .launch import jit, launch, row_shape
from .maths import log

__all__ = ["Found", "finish", "solve"]

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


@dataclass(frozen=True)
class Found:
    """What is known of each row, [n]: `solve.Threshold`, the largest logit, and number and measure of the finite ones."""

    best: Tensor
    top: Tensor
    mass: Tensor
    spread: Tensor
    support: Tensor
    count: Tensor
    total: Tensor


def solve(z: Tensor | Rows, q: Tensor, g: Generator) -> Found:
    """The thresholds of logits [n, V], or of CSR rows that hold every token with p > 0.

    q: [] or [V], or for CSR rows one number per entry; its dtype is what is computed in.
    """
    values, pointers, n, v = _layout(z)
    out = torch.empty(7, n, dtype=q.dtype, device=q.device)
    f, shape = solver(g, q.dtype), row_shape(n, v)
    if n:
        launch(
            _solve,
            shape.over(n),
            shape,
            values,
            pointers,
            q,
            out,
            n,
            v,
            0 if isinstance(z, Rows) else z.stride(0),
            bracket=f.bracket,
            shares=f.shares,
            advance=f.advance,
            MULTIPLICATIVE=g.multiplicative,
            MANY_Q=q.dim() > 0,
            CSR=isinstance(z, Rows),
            EVALUATIONS=EVALUATIONS,
            WIDE=TYPES[q.dtype],
        )
    return Found(*out)


def finish(
    z: Tensor | Rows,
    found: Found,
    q: Tensor,
    g: Generator,
    c: Tensor | None = None,
    y: Tensor | None = None,
    smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Per row: the sum of `operators.gains`, and of the finite logits' distances below the best.

    c: [n], with which logits become c (p - y) in place, y the labels smoothed; entries of CSR rows become c p.
    """
    values, pointers, n, v = _layout(z)
    out = torch.empty(2, n, dtype=q.dtype, device=q.device)
    shift = (1 - found.mass) / found.spread
    flat = 1 / found.total
    each = out if c is None else c
    own, rest = (each, each) if c is None else ((1 - smoothing) * c, smoothing * c / found.count)
    shape = row_shape(n, v)
    if n:
        launch(
            _finish,
            shape.over(n),
            shape,
            values,
            pointers,
            q,
            found.best,
            found.top,
            shift,
            flat,
            each,
            own,
            rest,
            out if y is None else y,
            out,
            n,
            v,
            0 if isinstance(z, Rows) else z.stride(0),
            finish=solver(g, q.dtype).finish,
            GRADIENT=c is not None,
            TARGET=y is not None,
            SMOOTHED=smoothing > 0,
            MANY_Q=q.dim() > 0,
            CSR=isinstance(z, Rows),
            WIDE=TYPES[q.dtype],
        )
    gain, below = out
    return gain, below


def _layout(z: Tensor | Rows) -> tuple[Tensor, Tensor, int, int]:
    """Values, row pointers (anything for dense rows), rows and columns (for CSR rows: about as many as one has)."""
    if isinstance(z, Rows):
        n = z.shape[0]
        return z.vals, z.row_ptr, n, -(-z.vals.numel() // max(1, n))
    return z, z, z.shape[0], z.shape[1]


@jit
def _place(pointers, rows, present, v, stride, CSR: tl.constexpr):
    """Where each row begins, how many entries it has, and the most that one has."""
    if CSR:
        begin = tl.load(pointers + rows, mask=present, other=0)
        length = tl.load(pointers + rows + 1, mask=present, other=0) - begin
        longest = tl.max(length).to(tl.int32)
    else:
        begin = rows.to(tl.int64) * stride
        length = tl.where(present, v, 0)
        longest = v
    return begin, length, longest


@jit
def _measure(q, begin, columns, inside, MANY_Q: tl.constexpr, CSR: tl.constexpr):
    """The reference measure of a block, or the one number that it is."""
    if not MANY_Q:
        measure = tl.load(q)
    elif CSR:
        measure = tl.load(q + begin + columns, mask=inside, other=1.0)
    else:
        measure = tl.load(q + columns, mask=inside, other=1.0)
    return measure


@jit
def _solve(
    z,
    pointers,
    q,
    out,
    n,
    v,
    stride,
    bracket: tl.constexpr,
    shares: tl.constexpr,
    advance: tl.constexpr,
    MULTIPLICATIVE: tl.constexpr,
    MANY_Q: tl.constexpr,
    CSR: tl.constexpr,
    EVALUATIONS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    present = rows < n
    lanes = tl.arange(0, BLOCK)[None, :]
    begin, length, longest = _place(pointers, rows, present, v, stride, CSR)
    zero = tl.zeros([ROWS, 1], WIDE)

    best = tl.full([ROWS, 1], float("-inf"), WIDE)
    best_q = zero + 1.0
    counts = tl.zeros([ROWS, BLOCK], tl.int32)
    totals = tl.zeros([ROWS, BLOCK], WIDE)
    online = tl.zeros([ROWS, BLOCK], WIDE)
    for start in range(0, longest, BLOCK):
        columns = start + lanes
        inside = columns < length
        logits = tl.load(z + begin + columns, mask=inside, other=float("-inf")).to(WIDE)
        measure = _measure(q, begin, columns, inside, MANY_Q, CSR)
        live = logits > float("-inf")
        counts += live.to(tl.int32)
        totals += tl.where(live, measure, 0.0)
        # NaN takes no part here: it reaches the result through its distance
        known = tl.where(logits == logits, logits, float("-inf"))
        here = tl.max(known, 1, keep_dims=True)
        if MANY_Q:
            best_q = tl.where(here > best, tl.max(tl.where(known == here, measure, 0.0), 1, keep_dims=True), best_q)
        else:
            best_q = zero + measure
        higher = tl.maximum(best, here)
        if MULTIPLICATIVE:
            # S so far, at the best so far: unlink(a + b) = unlink(a) unlink(b)
            anchor = tl.where(higher > float("-inf"), higher, 0.0)
            rise = tl.where(best > float("-inf"), anchor - best, float("inf"))
            kept, _, _ = shares(rise, zero, zero + 1.0)
            added, _, _ = shares(anchor - logits, zero, measure)
            online = online * kept + tl.where(inside, added, 0.0)
        best = higher
    total = tl.sum(totals, 1, keep_dims=True)

    mass = zero + 1.0
    spread = zero + 1.0
    support = zero
    if MULTIPLICATIVE:
        top = -log(tl.sum(online, 1, keep_dims=True))
    else:
        low, high = bracket(total, best_q)
        target = low
        top = high
        following = high
        step = 0
        alive = 1
        while (step < EVALUATIONS) & (alive > 0):
            top = following
            masses = tl.zeros([ROWS, BLOCK], WIDE)
            spreads = tl.zeros([ROWS, BLOCK], WIDE)
            supports = tl.zeros([ROWS, BLOCK], tl.int32)
            for start in range(0, longest, BLOCK):
                columns = start + lanes
                inside = columns < length
                logits = tl.load(z + begin + columns, mask=inside, other=float("-inf")).to(WIDE)
                measure = _measure(q, begin, columns, inside, MANY_Q, CSR)
                of_mass, of_spread, holds = shares(best - logits, top, measure)
                masses += tl.where(inside, of_mass, 0.0)
                spreads += tl.where(inside, of_spread, 0.0)
                supports += (inside & holds).to(tl.int32)
            mass = tl.sum(masses, 1, keep_dims=True)
            spread = tl.sum(spreads, 1, keep_dims=True)
            support = tl.sum(supports, 1, keep_dims=True).to(WIDE)
            following, low, high, done = advance(top, low, high, mass, spread, total, target)
            alive = tl.sum((present & ~done).to(tl.int32))
            step += 1

    out += rows
    tl.store(out, best, mask=present)
    tl.store(out + n, top, mask=present)
    tl.store(out + 2 * n, mass, mask=present)
    tl.store(out + 3 * n, spread, mask=present)
    tl.store(out + 4 * n, support, mask=present)
    tl.store(out + 5 * n, tl.sum(counts, 1, keep_dims=True).to(WIDE), mask=present)
    tl.store(out + 6 * n, total, mask=present)


@jit
def _finish(
    z,
    pointers,
    q,
    best,
    top,
    shift,
    flat,
    c,
    own,
    rest,
    y,
    out,
    n,
    v,
    stride,
    finish: tl.constexpr,
    GRADIENT: tl.constexpr,
    TARGET: tl.constexpr,
    SMOOTHED: tl.constexpr,
    MANY_Q: tl.constexpr,
    CSR: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    present = rows < n
    lanes = tl.arange(0, BLOCK)[None, :]
    begin, length, longest = _place(pointers, rows, present, v, stride, CSR)
    best = tl.load(best + rows, mask=present, other=0.0)
    top = tl.load(top + rows, mask=present, other=0.0)
    shift = tl.load(shift + rows, mask=present, other=0.0)
    flat = tl.load(flat + rows, mask=present, other=1.0)

    gains = tl.zeros([ROWS, BLOCK], WIDE)
    below = tl.zeros([ROWS, BLOCK], WIDE)
    for start in range(0, longest, BLOCK):
        columns = start + lanes
        inside = columns < length
        logits = tl.load(z + begin + columns, mask=inside, other=float("-inf")).to(WIDE)
        measure = _measure(q, begin, columns, inside, MANY_Q, CSR)
        live = logits > float("-inf")
        d = best - logits
        gain, p = finish(d, top, shift, measure, flat)
        gains += tl.where(inside, gain, 0.0)
        below += tl.where(live, d, 0.0)
        if GRADIENT:
            gradient = tl.load(c + rows, mask=present, other=0.0) * p
            if TARGET:
                target = columns == tl.load(y + rows, mask=present, other=-1)
                gradient -= tl.where(target, tl.load(own + rows, mask=present, other=0.0), 0.0)
            if SMOOTHED:
                gradient -= tl.where(live, tl.load(rest + rows, mask=present, other=0.0), 0.0)
            tl.store(z + begin + columns, gradient.to(z.dtype.element_ty), mask=inside)
    tl.store(out + rows, tl.sum(gains, 1, keep_dims=True), mask=present)
    tl.store(out + n + rows, tl.sum(below, 1, keep_dims=True), mask=present)
