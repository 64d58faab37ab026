"""The loop over tiles of two heads' logits: values, and the gradient in place.

Where tiles are compiled, all of the row mathematics of `terms` for a generator becomes a few loops.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ..generators import Generator
from ..terms import row_divergence, scalars, skewed
from .tiles import compiles, tile_function

__all__ = ["divergence_"]


def divergence_(
    zp: Tensor, zq: Tensor, c: Tensor | None, needed: tuple[bool, bool], g: Generator, skew: float, entries: int
) -> Tensor:
    """D_f(p||q) [n] of two tiles of logits.

    Given c [n, 1], zp and zq become c times its gradient where needed.
    """
    wide = torch.promote_types(zp.dtype, zq.dtype)
    needed = needed if c is not None else (False, False)
    fn = tile_function(_rows_(g, skew, needed, wide, compiles(entries)), None, entries)
    return fn(zp, zq, zp.new_ones(len(zp), 1) if c is None else c)


@lru_cache(maxsize=128)
def _rows_(
    g: Generator, skew: float, needed: tuple[bool, bool], wide: torch.dtype, fused: bool
) -> Callable[..., Tensor]:
    """Two tiles of logits and c [n, 1] -> the divergences; the tiles that need it become c times their gradient.

    One object for all calls: what is compiled for it is found by it.
    """
    f = scalars(skewed(g, skew))

    def rows(zp: Tensor, zq: Tensor, c: Tensor, _: None) -> Tensor:
        logs, scales = [], []
        for z in (zp, zq):
            best = z.amax(1, keepdim=True)
            spread = (z - best).exp().sum(1, keepdim=True).log()
            logs.append((z - best - spread).to(wide))
            scales.append((best, spread))
        out, *grads = row_divergence(logs[0], logs[1], f, grad_p=needed[0], grad_q=needed[1], fused=fused)
        new = [
            None if grad is None else c * (grad - torch.exp(z - best - spread) * grad.sum(1, keepdim=True))
            for z, grad, (best, spread) in zip((zp, zq), grads, scales, strict=True)
        ]
        for z, x in zip((zp, zq), new, strict=True):
            if x is not None:
                z.copy_(x)
        return out

    return rows
