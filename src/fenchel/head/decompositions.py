"""Operations of rows, and the backward operations that autograd records, as elementary ones: what row programs are told of them.

Each takes the last dimension alone; for another it is NotImplemented, and has no row program.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .trace import POWER, power

__all__ = ["DECOMPOSED"]

aten = torch.ops.aten


def _last(x: Tensor, dim: Any) -> bool:
    dims = dim if isinstance(dim, (list, tuple)) else [dim]
    return [d % x.dim() for d in dims] == [x.dim() - 1]


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    if not _last(x, dim):
        return NotImplemented
    away = x - x.amax(dim, keepdim=True)
    return away - away.exp().sum(dim, keepdim=True).log()


def _log_softmax_backward(grad: Tensor, out: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return grad - out.exp() * grad.sum(dim, keepdim=True) if _last(out, dim) else NotImplemented


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    if not _last(x, dim):
        return NotImplemented
    share = (x - x.amax(dim, keepdim=True)).exp()
    return share / share.sum(dim, keepdim=True)


def _softmax_backward(grad: Tensor, out: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return out * (grad - (grad * out).sum(dim, keepdim=True)) if _last(out, dim) else NotImplemented


def _logsumexp(x: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    if not _last(x, dim):
        return NotImplemented
    best = x.amax(-1, keepdim=True)
    # a row of -inf has the value -inf, and no distance to its largest
    best = torch.where(best.abs() == torch.inf, 0.0, best)
    out = (x - best).exp().sum(-1, keepdim=True).log() + best
    return out if keepdim else out.squeeze(-1)


def _softplus_backward(grad: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.where(x * beta > threshold, grad, grad * torch.sigmoid(x * beta))


def _sigmoid_backward(grad: Tensor, out: Tensor) -> Tensor:
    return grad * (out * (1 - out))


def _tanh_backward(grad: Tensor, out: Tensor) -> Tensor:
    return grad * (1 - out * out)


def _threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    return torch.where(x <= threshold, 0.0, grad)


def _lerp(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    return start + weight * (end - start)


DECOMPOSED: dict[Any, Callable[..., Any]] = {
    POWER: power,
    aten.lerp.Tensor: _lerp,
    aten.lerp.Scalar: _lerp,
    aten._log_softmax.default: _log_softmax,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
    aten._softmax.default: _softmax,
    aten._softmax_backward_data.default: _softmax_backward,
    aten.logsumexp.default: _logsumexp,
    aten.softplus_backward.default: _softplus_backward,
    aten.sigmoid_backward.default: _sigmoid_backward,
    aten.tanh_backward.default: _tanh_backward,
    aten.threshold_backward.default: _threshold_backward,
}
