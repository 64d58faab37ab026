"""The loop over tiles of two heads' logits: values, and the gradient in place.

Where tiles are compiled, the row mathematics of `terms` is traced once for each generator into a flat graph of elementary
operations, which torch.compile fuses (it cannot follow the making of generators, nor what users write). In the graph expm1
is replaced: the compiler would make it exp(t) - 1, and near p = q the whole divergence would be rounding.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

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
    fn = _function(g, skew, needed if c is not None else (False, False), zp.dtype, zq.dtype, compiles(entries))
    rows, *found = tile_function(_run, fn, entries)(zp, zq)
    if c is None:
        return rows
    finish = tile_function(_finish_, None, entries)
    for z, wanted in ((zp, needed[0]), (zq, needed[1])):
        if wanted:
            (grad, total, best, spread), found = found[:4], found[4:]
            finish(z, grad, total, best, spread, c)
    return rows


def _run(zp: Tensor, zq: Tensor, fn: Callable[[Tensor, Tensor], list[Tensor]]) -> list[Tensor]:
    return fn(zp, zq)


def _finish_(z: Tensor, grad: Tensor, total: Tensor, best: Tensor, spread: Tensor, c: Tensor, _: None) -> None:
    """Turns logits into c times the gradient in them, from that in their log-probabilities."""
    z.copy_(c * (grad - torch.exp(z - best - spread) * total))


@lru_cache(maxsize=128)
def _function(
    g: Generator, skew: float, needed: tuple[bool, bool], of_p: torch.dtype, of_q: torch.dtype, traced: bool
) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """Two tiles of logits -> the divergences and, for each head that needs it, what its gradient is made of.

    That is the derivative in its log-probabilities, its sum, the largest logit and logsumexp less it. One object for all calls: what is compiled for it is
    found by it.
    """
    f, wide = scalars(skewed(g, skew)), torch.promote_types(of_p, of_q)

    def rows(zp: Tensor, zq: Tensor) -> list[Tensor]:
        logs, scales = [], []
        for z in (zp, zq):
            best = z.amax(1, keepdim=True)
            spread = (z - best).exp().sum(1, keepdim=True).log()
            logs.append((z - best - spread).to(wide))
            scales.append((best, spread))
        out, *grads = row_divergence(logs[0], logs[1], f, grad_p=needed[0], grad_q=needed[1])
        found = [out]
        for grad, scale in zip(grads, scales, strict=True):
            if grad is not None:
                found += [grad, grad.sum(1, keepdim=True), *scale]
        return found

    if not traced:
        return rows
    with torch.no_grad():
        sample = torch.zeros(5, 7, dtype=of_p), torch.zeros(5, 7, dtype=of_q)
        return make_fx(rows, {torch.ops.aten.expm1.default: _expm1}, tracing_mode="symbolic")(*sample)


def _expm1(t: Tensor) -> Tensor:
    # for t <= 0, which most terms are made of, 2 h / (1 - h) with h = tanh(t/2); exp(t) times its negative at -t for the others
    half = torch.tanh(t / 2)
    return 2 * half / (1 + half.abs()) * torch.relu(t).exp()
