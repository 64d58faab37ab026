"""Equiangular basis vectors: fixed classifiers that are all alike, unit vectors as nearly orthogonal as the dimension allows.

The head has no parameters. An embedding is brought to its class's vector by the angle between them, and predicts the vector at the smallest angle.

Laws (tested): up to D vectors are orthonormal; more than D keep |cosine| <= the bound asked for, which cannot be below Welch's,
sqrt((K - D) / (D (K - 1))); the angle is in [0, pi], accurate at both ends, and has a finite gradient there.
"""

import math

import torch
from torch import Tensor

from ...checks import check_positive
from .batch import check_features
from .hyperspherical import unit

__all__ = ["angles", "equiangular_basis", "welch_bound"]

# the most steps, and what rounding to float32 may add to a cosine
STEPS, ROUNDING = 3000, 2e-7


def welch_bound(classes: int, dim: int) -> float:
    """The least that the largest |cosine| between K unit vectors in D dimensions can be; 0 for K <= D.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> round(welch_bound(10, 4), 4)
        0.4082

    Source: Welch 1974.
    """
    if classes < 1 or dim < 1:
        raise ValueError(f"got classes = {classes}, dim = {dim}; pass numbers >= 1")
    return 0.0 if classes <= dim else math.sqrt((classes - dim) / (dim * (classes - 1)))


def equiangular_basis(classes: int, dim: int, *, bound: float | None = None, seed: int = 0) -> Tensor:
    """K unit vectors in D dimensions with |cosine| <= bound between any two, [K, D] float32.

    K <= D: the first K rows of a random rotation. K > D: a random start, from which gradient steps push apart the pairs above the bound until none is.

    Args:
        classes, dim: K, D.
        bound: in (0, 1), for K > D; None: 1.2 times Welch's bound, plus 0.02. Few pairs of numbers K, D reach Welch's own.
        seed: of the start; torch's global state is neither used nor changed.

    Raises:
        ValueError: numbers below 1, a bound outside (0, 1) or below Welch's.
        RuntimeError: the bound was not reached: pass a larger one, or a larger dim.

    Example:
        >>> basis = equiangular_basis(20, 8, bound=0.4)
        >>> basis.shape, bool(((basis @ basis.T).fill_diagonal_(0).abs() <= 0.4).all())
        (torch.Size([20, 8]), True)

    Source: Shen et al., arXiv 2303.11637. The abstract states what the vectors have to be; how they are found is derived.
    """
    least = welch_bound(classes, dim)
    bound = 1.2 * least + 0.02 if bound is None else check_positive("bound", bound)
    if not least <= bound < 1:
        raise ValueError(
            f"bound: got {bound:.4g} for {classes} vectors in {dim} dimensions; pass a number in [{least:.4g}, 1): Welch's bound"
        )
    made = torch.Generator().manual_seed(seed)
    start = torch.randn(max(classes, dim), dim, dtype=torch.float64, generator=made)
    if classes <= dim:
        return torch.linalg.qr(start).Q.T[:classes].float().contiguous()
    return _apart(start, bound, least).float()


def _apart(start: Tensor, bound: float, least: float) -> Tensor:
    """Unit vectors whose cosines keep the bound: gradient steps on the squared excesses over a slightly tighter one, projected to the sphere."""
    x, worst = unit(start), math.inf
    tighter = bound - 0.1 * (bound - least)
    rate = min(0.5, 2 * x.shape[1] / len(x))
    for _ in range(STEPS):
        s = (x @ x.T).fill_diagonal_(0.0)
        over = (s.abs() - tighter).clamp_min(0)
        worst = tighter + float(over.max())
        if worst <= bound - ROUNDING:
            return x
        x = unit(x - rate * (over * s.sign()) @ x)
    raise RuntimeError(
        f"equiangular_basis: |cosine| <= {bound:.4g} was missed by {worst - bound:.1e}; pass a larger bound or dimension"
    )


def angles(features: Tensor, basis: Tensor) -> Tensor:
    """The angle between each feature and each basis vector, in radians: the spherical distance to train on and to predict by.

    The loss of the paper is angles(x, basis)[i, y_i]; -angles(x, basis) / T are logits for any loss.

    Args:
        features: [N, D], of any length.
        basis: [K, D], of any length.

    Returns:
        [N, K] in [0, pi]; pi/2 for a feature that is zero.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: not floating.

    Example:
        >>> angles(torch.tensor([[1.0, 1.0]]), torch.eye(2)) / torch.pi
        tensor([[0.2500, 0.2500]])

    Source: Shen et al., arXiv 2303.11637; 2 atan2(|u - v|, |u + v|) is Kahan's.
    """
    u, v = unit(check_features("features", features)), unit(check_features("basis", basis))
    if u.shape[1] != v.shape[1]:
        raise ValueError(f"basis: got {list(basis.shape)} for features {list(features.shape)}; pass [K, D] and [N, D]")
    u, v = u.unsqueeze(1), v.unsqueeze(0)
    return 2 * torch.atan2(_length(u - v), _length(u + v))


def _length(x: Tensor) -> Tensor:
    # the gradient of a norm at zero is any vector of length one at most: zero here
    square = x.square().sum(-1)
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
