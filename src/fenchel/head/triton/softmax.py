"""Softmax rows: the largest logit, logsumexp and entropy in one pass over a tile, and the gradient of the token log-probability head in another."""

import triton.language as tl
from torch import Tensor

from .functions import logp_gradient
from .launch import jit, launch, row_shape
from .maths import exp, log
from .threshold import TYPES

__all__ = ["logp_gradient_", "softmax_rows"]


def softmax_rows(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits [n, V]: the largest, logsumexp less it, and the entropy, each [n]."""
    n, v = z.shape
    out, shape = z.new_empty(3, n), row_shape(n, v)
    if n:
        launch(_softmax, shape.over(n), shape, z, out, n, v, z.stride(0), WIDE=TYPES[z.dtype])
    best, spread, entropy = out
    return best, spread, entropy


def logp_gradient_(z: Tensor, best: Tensor, spread: Tensor, entropy: Tensor, y: Tensor, c: Tensor) -> None:
    """Logits [n, V] to the gradient of c's three columns times log-probability of y, entropy and logsumexp, in place."""
    n, v = z.shape
    shape = row_shape(n, v)
    if n:
        launch(
            _gradient,
            shape.over(n),
            shape,
            z,
            best,
            spread,
            entropy,
            y,
            c.contiguous(),
            n,
            v,
            z.stride(0),
            pulled=logp_gradient(z.dtype),
            WIDE=TYPES[z.dtype],
        )


@jit
def _softmax(z, out, n, v, stride, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    present = rows < n
    lanes = tl.arange(0, BLOCK)[None, :]
    begin = rows.to(tl.int64) * stride
    best = tl.full([ROWS, 1], float("-inf"), WIDE)
    # sums of e^(z - best), and of it times best - z: both non-negative, so the entropy is no difference
    sums = tl.zeros([ROWS, BLOCK], WIDE)
    falls = tl.zeros([ROWS, BLOCK], WIDE)
    for start in range(0, v, BLOCK):
        columns = start + lanes
        inside = present & (columns < v)
        logits = tl.load(z + begin + columns, mask=inside, other=float("-inf")).to(WIDE)
        known = tl.where(logits == logits, logits, float("-inf"))
        higher = tl.maximum(best, tl.max(known, 1, keep_dims=True))
        anchor = tl.where(higher > float("-inf"), higher, 0.0)
        rise = tl.where(best > float("-inf"), anchor - best, 0.0)
        kept = exp(-rise)
        d = anchor - logits
        e = exp(-d)
        # a class that is excluded adds 0, not 0 inf; a class far below it would add 0 anyway
        falls = (falls + rise * sums) * kept + tl.where(d == float("inf"), 0.0, e * d)
        sums = sums * kept + e
        best = higher
    total = tl.sum(sums, 1, keep_dims=True)
    spread = log(total)
    tl.store(out + rows, best, mask=present)
    tl.store(out + n + rows, spread, mask=present)
    tl.store(out + 2 * n + rows, spread + tl.sum(falls, 1, keep_dims=True) / total, mask=present)


@jit
def _gradient(
    z,
    best,
    spread,
    entropy,
    y,
    c,
    n,
    v,
    stride,
    pulled: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    present = rows < n
    lanes = tl.arange(0, BLOCK)[None, :]
    begin = rows.to(tl.int64) * stride
    best = tl.load(best + rows, mask=present, other=0.0)
    spread = tl.load(spread + rows, mask=present, other=0.0)
    entropy = tl.load(entropy + rows, mask=present, other=0.0)
    target = tl.load(y + rows, mask=present, other=-1)
    of_own = tl.load(c + 3 * rows, mask=present, other=0.0).to(WIDE)
    of_entropy = tl.load(c + 3 * rows + 1, mask=present, other=0.0).to(WIDE)
    of_lse = tl.load(c + 3 * rows + 2, mask=present, other=0.0).to(WIDE)
    for start in range(0, v, BLOCK):
        columns = start + lanes
        inside = present & (columns < v)
        logits = tl.load(z + begin + columns, mask=inside, other=0.0).to(WIDE)
        gradient = pulled(logits - best - spread, entropy, of_own, of_entropy, of_lse)
        gradient += tl.where(columns == target, of_own, 0.0)
        tl.store(z + begin + columns, gradient.to(z.dtype.element_ty), mask=inside)
