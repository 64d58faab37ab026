"""A tile of the Fenchel-Young head by Triton: losses, and the gradient in place or, where few entries are left of it, sparse.

The way is chosen as in `young_kernel`, from what is measured on the tile; only the share at which sparse products pay is another on a GPU.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...generators import INF, Generator
from ...losses.fenchel_young import one_hot_divergence
from ...operators import excess_at
from ..kernels import Rows
from ..sweep import Sparse
from ..tiles import measure_of, positive
from . import sparse, threshold
from .launch import GATHERED
from .threshold import Found

if TYPE_CHECKING:
    from ..young_kernel import YoungKernel

__all__ = ["excess", "gradient_", "solved_rows", "young_tile"]


def young_tile(kernel: "YoungKernel", z: Tensor, y: Tensor, c: Tensor | None) -> tuple[Tensor, Sparse | None]:
    """Losses of a tile of logits [n, V], and with c [n] the gradient: in place of the logits, or sparse."""
    may_skip = kernel.g.sparse and kernel.may_skip and kernel.smoothing == 0
    own = z.gather(1, y.unsqueeze(1)).squeeze(1)
    if may_skip and kernel.few_inside(z, GATHERED):
        best = z.amax(1, keepdim=True)
        entries = sparse.above(z, _below(best - kernel.window(z, best)).squeeze(1))
        found = threshold.solve(entries, measure_of(kernel.q, entries), kernel.g)
        return _by_entries(kernel, entries, found, own, y, c)
    found = threshold.solve(z, kernel.q, kernel.g)
    if may_skip and c is not None and float(found.support.sum()) < GATHERED * z.numel():
        entries = sparse.above(z, _below((found.best + (kernel.g.edge - found.top)).to(z.dtype)))
        return _by_entries(kernel, entries, found, own, y, c)
    return _finished(kernel, z, found, own, y, c), None


def solved_rows(kernel: "YoungKernel", z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Of each row of a tile, [n]: the loss, the largest logit, the threshold, S and dS/dtop there, and how many logits are finite."""
    found = threshold.solve(z, kernel.q, kernel.g)
    own = z.gather(1, y.unsqueeze(1)).squeeze(1)
    losses = _finished(kernel, z, found, own, y, None)
    return losses, found.best, found.top, found.mass, found.spread, found.count


def gradient_(kernel: "YoungKernel", z: Tensor, q: Tensor, y: Tensor, known: Tensor, c: Tensor) -> None:
    """Logits of some classes become c (p - y) in place. q: of these; y: counted from the first of these; known: `solved_rows` but for the losses, [5, n]."""
    best, top, mass, spread, count = known
    found = Found(best, top, mass, spread, torch.zeros_like(top), count, torch.ones_like(top))
    threshold.finish(z, found, q, kernel.g, c, y, kernel.smoothing)


def _finished(kernel: "YoungKernel", z: Tensor, found: Found, own: Tensor, y: Tensor, c: Tensor | None) -> Tensor:
    """Losses of a tile at its thresholds; with c, the logits become c (p - y)."""
    wide = None if c is None else c.to(kernel.q.dtype)
    gain, below = threshold.finish(z, found, kernel.q, kernel.g, wide, y, kernel.smoothing)
    gap = found.best - own
    if kernel.smoothing > 0:
        gap, offset = kernel.smoothed(gap, below, found.count)
    else:
        offset = one_hot_divergence(y, kernel.q, kernel.g)
    return gap + excess(kernel.g, gain, found) + offset


def _by_entries(
    kernel: "YoungKernel", entries: Rows, found: Found, own: Tensor, y: Tensor, c: Tensor | None
) -> tuple[Tensor, Sparse | None]:
    """`young_tile` from CSR rows that hold the support."""
    wide = None if c is None else c.to(found.top.dtype)
    gain, _ = threshold.finish(entries, found, measure_of(kernel.q, entries), kernel.g, wide)
    losses = (found.best - own) + excess(kernel.g, gain, found) + one_hot_divergence(y, kernel.q, kernel.g)
    if c is None:
        return losses, None
    each = torch.arange(len(y) + 1, device=y.device)
    return losses, Sparse(positive(entries), Rows(each, y.to(torch.int32), -c, entries.columns), sparse)


def excess(g: Generator, gain: Tensor, found: Found) -> Tensor:
    """value - best, [n], from the sum of the gains."""
    if g.f0 < INF:
        return excess_at(gain, None, found.top, None, g)
    return excess_at(gain, found.mass, found.top, 1 / found.total, g)


def _below(limit: Tensor) -> Tensor:
    """The next smaller number: an entry at the limit is above it."""
    return torch.nextafter(limit, torch.full_like(limit, -INF))
