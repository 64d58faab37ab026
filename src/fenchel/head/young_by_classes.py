"""The Fenchel-Young head by blocks of classes: a row's threshold is all that its gradient needs of the other classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import solve
from ..generators import INF
from ..vocab import Vocabulary
from .tiles import distances_, pulled_, tile_function
from .young_kernel import YoungKernel

__all__ = ["YoungByClasses"]


@dataclass(frozen=True)
class YoungByClasses:
    """`by_classes.ByClasses` of what `kernel` does to a tile of rows. The loss of a row is its only value.

    After it come the largest logit, the threshold, S and dS/dtop there, how many logits are finite (for smoothing), and the class weight of the label.
    """

    kernel: YoungKernel
    values = 1

    def solve(self, logits: list[Tensor], rows: slice, c: Tensor | None) -> tuple[Tensor, None]:
        """`ByClasses.solve`."""
        k = self.kernel
        z, y = logits[0], k.y[rows]
        if k.temperature != 1:
            z /= k.temperature
        if k.triton:
            from .triton.young import solved_rows  # imports triton

            losses, *found = solved_rows(k, z, y)
        else:
            losses, *found = (torch.cat(x) for x in zip(*self._solved(z, y), strict=True))
        importance = k.importance(y)
        importance = torch.ones_like(losses) if importance is None else importance.to(losses.dtype)
        columns = (losses * importance * k.temperature, *found, importance)
        return torch.stack([x.to(k.q.dtype) for x in columns], 1), None

    def _solved(self, z: Tensor, y: Tensor) -> list[tuple[Tensor, ...]]:
        """Losses and what else is known of the rows of each block, [n]."""
        k, out = self.kernel, [(z.new_zeros(0),) * 6]
        for b in k.blocks(z):
            best = tile_function(distances_, k.vocab, k.entries)(z[b])
            wide, found = k.solved(z[b])
            losses = k.at_threshold(wide, found, y[b], None)
            top = found.top.to(wide.dtype)
            mass, spread = found.mass, found.spread
            if found.top.dtype != wide.dtype:
                # solved for in less precision than p is made in: the last step is summed here, as in `land_`
                mass, spread = k.vocab.across(*tile_function(solve.sums, k.g, k.entries)(wide, top, k.q)[:2])
            count = k.finite(wide)[0] if k.smoothing > 0 else torch.ones_like(top)
            out.append((losses, *(x.squeeze(1) for x in (best, top, mass, spread, count))))
        return out

    def gradient_(self, z: Tensor, block: Vocabulary, numbers: Tensor, c: Tensor) -> None:
        """`ByClasses.gradient_`."""
        k, start = self.kernel, block.offset - self.kernel.vocab.offset
        if k.temperature != 1:
            z /= k.temperature
        _, *known, importance = numbers.T.contiguous()
        best, top, mass, spread, count = known
        q = k.q if k.q.dim() == 0 else k.q[start : start + z.shape[1]]
        c = c.to(numbers.dtype) * importance
        # another product has rounded these logits: one that was the largest may lie above itself
        torch.minimum(z, best.to(z.dtype).unsqueeze(1), out=z)
        if k.triton:
            from .triton.young import gradient_  # imports triton

            gradient_(k, z, q, k.y - block.offset, torch.stack(known), c)
            return
        shift = (1 - mass) / spread
        best, top, shift, count, c = (x.unsqueeze(1) for x in (best, top, shift, count, c))
        for b in k.blocks(z):
            d = z[b].neg_().add_(best[b].to(z.dtype))
            wide = d.to(numbers.dtype)
            live = wide < INF if k.smoothing > 0 else None
            tile_function(pulled_, k.g, k.entries)(wide, top[b], shift[b], q, c[b])
            k.less_target_(wide, k.y[b], c[b], live, count[b], block)
            if wide is not d:
                d.copy_(wide)
