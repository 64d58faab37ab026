"""The loop over tiles of two heads' logits: values, and the gradient in place.

Where tiles are compiled, all of the row mathematics of `terms` for a generator becomes a few loops.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..generators import Generator
from ..terms import Scalars, row_divergence, scalars, skewed
from ..vocab import LOCAL, Vocabulary
from .tiles import compiles, tile_function

__all__ = ["Divergence", "divergence_", "rows_", "scalars_of"]


@dataclass(frozen=True)
class Divergence:
    """A divergence of two tiles that are a shard of a vocabulary.

    Attributes:
        f: its scalar functions.
        needed: whose gradient is: p's, q's.
        wide: what it is computed in.
        fused: for a compiler that fuses elementwise work.
    """

    f: Scalars
    needed: tuple[bool, bool]
    wide: torch.dtype
    fused: bool
    vocab: Vocabulary = LOCAL


def divergence_(
    zp: Tensor,
    zq: Tensor,
    c: Tensor | None,
    needed: tuple[bool, bool],
    g: Generator,
    skew: float,
    entries: int,
    vocab: Vocabulary,
) -> Tensor:
    """D_f(p||q) [n] of two tiles of logits.

    Given c [n, 1], zp and zq become c times its gradient where needed.
    """
    wide = torch.promote_types(zp.dtype, zq.dtype)
    needed = needed if c is not None else (False, False)
    fn = tile_function(rows_, Divergence(scalars_of(g, skew), needed, wide, compiles(entries), vocab), entries)
    return fn(zp, zq, zp.new_ones(len(zp), 1) if c is None else c)


def rows_(zp: Tensor, zq: Tensor, c: Tensor, of: Divergence) -> Tensor:
    """Two tiles of logits and c [n, 1] -> the divergences; the tiles that need it become c times their gradient."""
    best = of.vocab.maxima(zp, zq)
    spread = [s.log() for s in of.vocab.sums((zp - best[0]).exp(), (zq - best[1]).exp())]
    logs = [(z - b - s).to(of.wide) for z, b, s in zip((zp, zq), best, spread, strict=True)]
    grad_p, grad_q = of.needed
    out, *grads = row_divergence(logs[0], logs[1], of.f, grad_p=grad_p, grad_q=grad_q, fused=of.fused)
    kept = [(z, d, b, s) for z, d, b, s in zip((zp, zq), grads, best, spread, strict=True) if d is not None]
    total, *totals = of.vocab.across(out.unsqueeze(1), *(d.sum(1, keepdim=True) for _, d, _, _ in kept))
    new = [pulled(d, z - b - s, t, c) for (z, d, b, s), t in zip(kept, totals, strict=True)]
    for (z, *_), x in zip(kept, new, strict=True):
        z.copy_(x)
    return total.squeeze(1)


def pulled(grad: Tensor, log_p: Tensor, total: Tensor, c: Tensor) -> Tensor:
    """c times the gradient in a logit, from that in its log-probability and the row's sum of these; elementwise."""
    return c * (grad - torch.exp(log_p) * total)


@lru_cache(maxsize=128)
def scalars_of(g: Generator, skew: float) -> Scalars:
    """The scalar functions of a generator's skewed form: one object for all calls, by which what is compiled for it is found."""
    return scalars(skewed(g, skew))
