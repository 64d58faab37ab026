"""Boundary checks that public functions share: what was got, what to pass."""

import math
from numbers import Real

import torch
from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")


def check_floating(name: str, x: object, shape: str) -> Tensor:
    """x as a floating tensor.

    Raises:
        TypeError: not a tensor, or not floating.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: got {type(x).__name__}; pass a floating tensor {shape}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: got dtype {x.dtype}; pass a floating tensor {shape}")
    return x


def check_vocabulary(name: str, x: Tensor) -> None:
    """Raise ValueError unless the last dimension of x holds at least one class."""
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}; pass [..., V] with at least one class")


def check_positive(name: str, x: object) -> float:
    """x as a positive finite float.

    Raises:
        TypeError: not a number.
        ValueError: not positive and finite.
    """
    if isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{name}: got {type(x).__name__}; pass a positive number")
    if not 0 < float(x) < math.inf:
        raise ValueError(f"{name}: got {x}; pass a positive finite number")
    return float(x)


def check_weight(name: str, x: object) -> float:
    """x as a finite number >= 0.

    Raises:
        TypeError: not a number.
        ValueError: negative or not finite.
    """
    if isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{name}: got {type(x).__name__}; pass a number >= 0")
    if not 0 <= float(x) < math.inf:
        raise ValueError(f"{name}: got {x}; pass a finite number >= 0")
    return float(x)


def check_number(name: str, x: object, low: float = -math.inf, high: float = math.inf) -> float:
    """x as a finite float in [low, high].

    Raises:
        TypeError: not a number.
        ValueError: not finite, or outside.
    """
    if isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{name}: got {type(x).__name__}; pass a number")
    if not math.isfinite(float(x)) or not low <= float(x) <= high:
        wanted = "number" if (low, high) == (-math.inf, math.inf) else f"number in [{low:g}, {high:g}]"
        raise ValueError(f"{name}: got {x}; pass a finite {wanted}")
    return float(x)


def check_flag(name: str, x: object) -> None:
    """Raise TypeError unless x is a bool."""
    if not isinstance(x, bool):
        raise TypeError(f"{name}: got {x!r}; pass True or False")


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless the reduction is known."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}; pass one of {', '.join(map(repr, REDUCTIONS))}")


def check_smoothing(label_smoothing: float) -> float:
    """Raise ValueError unless label_smoothing is in [0, 1]."""
    if (
        isinstance(label_smoothing, bool)
        or not isinstance(label_smoothing, Real)
        or not 0 <= float(label_smoothing) <= 1
    ):
        raise ValueError(f"label_smoothing: got {label_smoothing!r}; pass a number in [0, 1]")
    return float(label_smoothing)


def reference(q: float | Tensor | None, logits: Tensor, dtype: torch.dtype) -> Tensor:
    """The reference measure q as a constant [], [V] or [N, V] tensor (N: the rows of logits, flattened). Values are checked by the solver.

    Raises:
        TypeError: q is neither a number nor a floating tensor.
        ValueError: a number that is not positive, a shape that does not fit, a device that differs, or a q that requires a gradient.
    """
    if q is None:
        return torch.ones((), dtype=dtype, device=logits.device)
    if not isinstance(q, Tensor):
        return torch.full((), check_positive("q", q), dtype=dtype, device=logits.device)
    check_floating("q", q, "[], [V] or the shape of the logits")
    v = logits.shape[-1]
    if q.requires_grad:
        raise ValueError(
            "q: got a tensor that requires a gradient; the reference measure is a constant: pass q.detach()"
        )
    if q.device != logits.device:
        raise ValueError(
            f"q: got device {q.device}, the logits are on {logits.device}; pass q.to({str(logits.device)!r})"
        )
    if q.dim() == 0 or tuple(q.shape) == (v,):
        return q.to(dtype)
    if q.shape == logits.shape:
        return q.reshape(-1, v).to(dtype)
    raise ValueError(f"q: got shape {tuple(q.shape)}; pass a number, [V] = [{v}] or {list(logits.shape)}")
