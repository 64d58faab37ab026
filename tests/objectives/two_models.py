"""A teacher and a student of different widths, with what the tests of objectives compare them by."""

from collections.abc import Callable

import torch
from torch import Tensor

N, V = 13, 37
Function = Callable[..., Tensor]


def heads(dtype: torch.dtype = torch.float64, n: int = N, v: int = V, seed: int = 0) -> list[Tensor]:
    """Hidden states, weight and bias of the teacher, then of the student; all require gradients."""
    made = torch.Generator().manual_seed(seed)
    shapes = ((n, 5), (v, 5), (v,), (n, 6), (v, 6), (v,))
    return [(torch.randn(s, generator=made, dtype=torch.float64) * 0.7).to(dtype).requires_grad_() for s in shapes]


def logits(x: list[Tensor] | tuple[Tensor, ...], v: int | None = None) -> tuple[Tensor, Tensor]:
    (ht, wt, bt, hs, ws, bs) = x
    return ht @ wt[:v].T + bt[:v], hs @ ws[:v].T + bs[:v]


def derivatives(f: Function, tensors: list[Tensor], upstream: Tensor | float = 1.0) -> list[Tensor]:
    """f's value, and the gradients of <upstream, value>."""
    out = f(*tensors)
    return [out.detach(), *torch.autograd.grad((out * upstream).sum(), tensors)]


def same(f: Function, g: Function, tensors: list[Tensor], upstream: Tensor | float = 1.0, tol: float = 1e-10) -> None:
    """Values and every gradient agree."""
    for got, want in zip(derivatives(f, tensors, upstream), derivatives(g, tensors, upstream), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=tol)
