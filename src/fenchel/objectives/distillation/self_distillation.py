"""Self-distillation in kernel ridge regression, solved: what repeated distillation does to a model, and the best share of the true targets.

Step 0 fits the targets y. Step t fits w y + (1 - w) f_{t-1}, with f_{t-1} the previous step's fit. In the eigenbasis of the kernel matrix each
coordinate of y is multiplied by a number c_t of its own, which has a closed form.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...checks import check_floating, check_positive

__all__ = ["limit_penalty", "optimal_weight", "self_distilled", "shrinkage"]


def shrinkage(eigenvalues: Tensor, penalty: float, weight: float, steps: float) -> Tensor:
    """What is left of y along each eigenvector after a number of steps, c_t = r^t a + w a (1 - r^t)/(1 - r), a = d/(d + penalty), r = (1 - w) a.

    w = 0 is a^(t+1): without the true targets the penalty grows until nothing is left. For w > 0 the limit is d/(d + penalty/w), ridge regression with
    `limit_penalty`.

    Args:
        eigenvalues: d [n] >= 0, of the kernel matrix.
        penalty: > 0.
        weight: w in [0, 1], the share of the true targets in each step.
        steps: t = 0, 1, ..., or math.inf.

    Returns:
        [n], in the dtype of eigenvalues.

    Raises:
        ValueError, TypeError: an argument outside its domain.

    Example:
        >>> shrinkage(torch.tensor([4.0, 1.0]), penalty=1.0, weight=0.0, steps=1)  # a squared
        tensor([0.6400, 0.2500])
        >>> import math
        >>> shrinkage(torch.tensor([4.0, 1.0]), penalty=1.0, weight=0.5, steps=math.inf)  # a penalty of 2
        tensor([0.6667, 0.3333])

    Source: Borup & Andersen, arXiv 2102.13088; for w = 0 Mobahi et al., arXiv 2002.05715.
    """
    d = check_floating("eigenvalues", eigenvalues, "[n]")
    weight = _check_share(weight)
    if not (steps == math.inf or (float(steps).is_integer() and steps >= 0)):
        raise ValueError(f"steps: got {steps}; pass 0, 1, 2, ... or math.inf")
    a = d / (d + check_positive("penalty", penalty))
    r = (1 - weight) * a
    left = torch.zeros_like(r) if steps == math.inf else r**steps
    return left * a + weight * a * (1 - left) / (1 - r)


def limit_penalty(penalty: float, weight: float) -> float:
    """The penalty of the ridge regression that infinitely many steps end in: penalty / w.

    Example:
        >>> limit_penalty(0.1, 0.25)
        0.4

    Source: Borup & Andersen, arXiv 2102.13088.
    """
    if _check_share(weight) == 0:
        raise ValueError("weight: got 0; without true targets everything is regularised away: pass a weight in (0, 1]")
    return check_positive("penalty", penalty) / weight


def self_distilled(
    kernel: Tensor, target: Tensor, penalty: float, weights: Sequence[float], *, cross: Tensor | None = None
) -> Tensor:
    """The predictions of the last step, f_t = K_cross (K + penalty I)^-1 (w_t y + (1 - w_t) f_{t-1}).

    Args:
        kernel: [n, n], the kernel matrix of the training points, symmetric and positive semidefinite.
        target: [n] or [n, k], the true targets y.
        penalty: > 0.
        weights: w_1, w_2, ..., the share of the true targets in each step of distillation; none for the first fit.
        cross: [m, n], the kernel between the points to predict at and the training points; the training points without it.

    Returns:
        [m] or [m, k].

    Raises:
        ValueError, TypeError: shapes or numbers that do not fit.

    Example:
        >>> x = torch.linspace(0, 1, 20, dtype=torch.float64)
        >>> kernel = (-(x[:, None] - x).square() / 0.02).exp()
        >>> y = (6 * x).sin()
        >>> once, often = (self_distilled(kernel, y, 0.1, [0.0] * t) for t in (1, 20))
        >>> bool(often.norm() < once.norm())  # without true targets it shrinks
        True

    Source: Borup & Andersen, arXiv 2102.13088.
    """
    check_floating("kernel", kernel, "[n, n]")
    check_floating("target", target, "[n] or [n, k]")
    n = len(kernel)
    if kernel.shape != (n, n) or target.dim() not in (1, 2) or len(target) != n:
        raise ValueError(f"kernel, target: got {list(kernel.shape)} and {list(target.shape)}; pass [n, n] and [n(, k)]")
    if cross is not None and (cross.dim() != 2 or cross.shape[1] != n):
        raise ValueError(f"cross: got {list(cross.shape)}; pass [m, {n}]")
    penalty = check_positive("penalty", penalty)
    d, basis = torch.linalg.eigh(kernel)
    d = d.clamp_min(0.0)
    # the coordinates of the labels that the last step fits, relative to those of y
    share = torch.ones_like(d)
    for w in weights:
        share = _check_share(w) + (1 - w) * share * d / (d + penalty)
    along = basis.T @ target
    coefficients = basis @ (along * (share / (d + penalty)).view(-1, *[1] * (target.dim() - 1)))
    return (kernel if cross is None else cross) @ coefficients


def optimal_weight(from_targets: Tensor, from_teacher: Tensor, truth: Tensor) -> Tensor:
    """The share w of the true targets for which a step's predictions w a + (1 - w) b have the least squared error, <a - b, y - b> / |a - b|^2.

    A fit is linear in its labels, so two fits are enough for all w: no search. w may fall outside [0, 1]; the error is convex in w, so the best w in
    [0, 1] is it, clamped.

    Args:
        from_targets: a, predictions of the model fitted to the true targets.
        from_teacher: b, predictions of the model fitted to the previous step's predictions; the shape of a.
        truth: y at the points of the predictions, held out ones; the shape of a.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes that differ, or a = b, where any w is as good.

    Example:
        >>> optimal_weight(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), torch.tensor([0.25, 5.0]))
        tensor(0.2500)

    Source: Borup & Andersen, arXiv 2102.13088, for which data the error is taken on is the caller's choice.
    """
    if not from_targets.shape == from_teacher.shape == truth.shape:
        raise ValueError(
            f"from_targets, from_teacher, truth: got {list(from_targets.shape)}, {list(from_teacher.shape)}, {list(truth.shape)}; pass one shape"
        )
    step = from_targets - from_teacher
    size = step.square().sum()
    if not bool(size > 0):
        raise ValueError("from_targets, from_teacher: got the same predictions; any weight is as good")
    return (step * (truth - from_teacher)).sum() / size


def _check_share(weight: float) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise TypeError(f"weight: got {type(weight).__name__}; pass a number in [0, 1]")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight: got {weight}; pass a number in [0, 1]")
    return float(weight)
