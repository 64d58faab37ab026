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
    fn = _rows(g, skew, needed if c is not None else (False, False), wide, compiles(entries))
    rows, *found = tile_function(fn, None, entries)(zp, zq)
    if c is None:
        return rows
    finish = tile_function(_finish_, None, entries)
    for z, wanted in ((zp, needed[0]), (zq, needed[1])):
        if wanted:
            (grad, total, best, spread), found = found[:4], found[4:]
            finish(z, grad, total, best, spread, c)
    return rows


def _finish_(z: Tensor, grad: Tensor, total: Tensor, best: Tensor, spread: Tensor, c: Tensor, _: None) -> None:
    """Turns logits into c times the gradient in them, from that in their log-probabilities."""
    z.copy_(c * (grad - torch.exp(z - best - spread) * total))


@lru_cache(maxsize=128)
def _rows(
    g: Generator, skew: float, needed: tuple[bool, bool], wide: torch.dtype, fused: bool
) -> Callable[[Tensor, Tensor, None], list[Tensor]]:
    """Two tiles of logits -> the divergences and, for each head that needs it, what its gradient is made of.

    That is the derivative in its log-probabilities, its sum, the largest logit and logsumexp less it. One object for all calls: what is compiled for it is
    found by it.
    """
    f = scalars(skewed(g, skew))

    def rows(zp: Tensor, zq: Tensor, _: None) -> list[Tensor]:
        logs, scales = [], []
        for z in (zp, zq):
            best = z.amax(1, keepdim=True)
            spread = (z - best).exp().sum(1, keepdim=True).log()
            logs.append((z - best - spread).to(wide))
            scales.append((best, spread))
        out, *grads = row_divergence(logs[0], logs[1], f, grad_p=needed[0], grad_q=needed[1], fused=fused)
        found = [out]
        for grad, scale in zip(grads, scales, strict=True):
            if grad is not None:
                found += [grad, grad.sum(1, keepdim=True), *scale]
        return found

    return rows
