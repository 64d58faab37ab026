"""What risks take: the losses of a sample, and the distribution over it that counts as undisturbed."""

import torch
from torch import Tensor

from ...checks import check_floating

__all__: list[str] = []

# how far the sum of a distribution may be from one
SUM_TOLERANCE = 1e-5


def check_losses(losses: Tensor, name: str = "losses") -> Tensor:
    """The losses [N] in float64: there are few of them, and a risk is a small difference of large terms at both ends of its parameter.

    Raises:
        TypeError: not a floating tensor.
        ValueError: not one-dimensional, or empty.
    """
    check_floating(name, losses, "[N]")
    if losses.dim() != 1 or len(losses) == 0:
        raise ValueError(f"{name}: got shape {list(losses.shape)}; pass [N], one loss per sample, N >= 1")
    return losses.double()


def check_distribution(name: str, w: Tensor, n: int) -> Tensor:
    """w [n] in float64, normalised; constant.

    Raises:
        TypeError: not a floating tensor.
        ValueError: another shape, an entry that is not positive, a sum that is not one, a tensor that requires a gradient.
    """
    check_floating(name, w, f"[{n}]")
    if tuple(w.shape) != (n,):
        raise ValueError(f"{name}: got shape {list(w.shape)} for {n} losses; pass one probability per loss")
    if w.requires_grad:
        raise ValueError(f"{name}: got a tensor that requires a gradient; it is a constant: pass {name}.detach()")
    wide = w.double()
    if not bool((wide > 0).all()) or abs(float(wide.sum()) - 1) > SUM_TOLERANCE:
        raise ValueError(f"{name}: got entries that are not positive or do not sum to one; pass probabilities > 0")
    return wide / wide.sum()


def nominal(q: Tensor | None, losses: Tensor) -> Tensor:
    """q, or the uniform distribution over the losses [N]."""
    n = len(losses)
    return torch.full_like(losses, 1 / n).detach() if q is None else check_distribution("q", q, n)
