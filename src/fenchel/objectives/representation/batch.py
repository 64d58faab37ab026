"""Checks that functions of a batch of features share, and which of its pairs belong together."""

import torch
from torch import Tensor

from ...checks import check_floating

__all__: list[str] = []


def check_features(name: str, x: Tensor) -> Tensor:
    """x [N, D] as it is.

    Raises:
        TypeError: not floating.
        ValueError: not two-dimensional, or empty.
    """
    check_floating(name, x, "[N, D]")
    if x.dim() != 2 or 0 in x.shape:
        raise ValueError(f"{name}: got shape {list(x.shape)}; pass [N, D] with N, D >= 1")
    return x


def check_labels(name: str, y: Tensor, n: int, classes: int | None = None) -> None:
    """Refuse labels that are not [n] int64, or not in [0, classes)."""
    if y.dtype != torch.int64:
        raise TypeError(f"{name}: got dtype {y.dtype}; pass int64")
    if tuple(y.shape) != (n,):
        raise ValueError(f"{name}: got shape {list(y.shape)} for {n} rows; pass [{n}]")
    if classes is not None and not bool(((y >= 0) & (y < classes)).all()):
        raise ValueError(f"{name}: got a class outside [0, {classes}); pass classes of the {classes}")


def pairs(y: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs i != j of a batch are of one class, and which of two: [N, N] bool each."""
    same = y.unsqueeze(1) == y
    apart = ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    return same & apart, ~same


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen entries; a zero with a gradient of zero where none is."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp_min(1)
