"""Embeddings on the unit sphere: logits that are scaled cosines, margins on them, and prototypes for classes that were not trained on.

    z_k = scale <x/|x|, w_k/|w_k|>,    with a margin m the target's cosine is lowered by m

Any Fenchel-Young loss of these logits trains directions alone: what is learned is where classes lie on the sphere, and a class that was never seen has a
place there too, the mean direction of a few of its samples. No pairs are formed.

Fused, without [N, K] logits: linear_fenchel_young(unit(x), unit(w), target, scale=scale).

Laws (tested): cosines in [-1, 1] whatever the lengths; the loss does not change when features or prototypes are scaled, so its gradient is orthogonal
to them; margin 0 is the plain softmax, and the loss grows with the margin.
"""

import torch
from torch import Tensor

from ...checks import check_floating, check_positive
from .batch import check_features, check_labels

__all__ = ["class_prototypes", "cosine_logits", "lower_target", "unit"]


def unit(x: Tensor) -> Tensor:
    """x / |x| along the last dimension, [..., D]; a zero vector stays zero, with a gradient of zero.

    Raises:
        TypeError: not floating.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    check_floating("x", x, "[..., D]")
    # the largest entry goes first: squares of 1e20 would overflow
    top = x.detach().abs().amax(-1, keepdim=True)
    empty = top == 0
    near = torch.where(empty, 1.0, x / torch.where(empty, 1.0, top))
    return torch.where(empty, 0.0, near / near.square().sum(-1, keepdim=True).sqrt())


def cosine_logits(features: Tensor, prototypes: Tensor, *, scale: float) -> Tensor:
    """scale * cosine of each feature with each prototype.

    Args:
        features: [N, D].
        prototypes: [K, D], trained, fixed (`equiangular_basis`) or means (`class_prototypes`).
        scale: > 0; the logits lie in [-scale, scale]. Too small a scale cannot tell classes apart: softmax reaches 1 - eps for K classes from log(K/eps)/2 on.

    Returns:
        [N, K].

    Raises:
        ValueError: shapes that do not fit, scale not positive.
        TypeError: not floating.

    Example:
        >>> cosine_logits(torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 0.0], [0.0, 1.0], [-3.0, 0.0]]), scale=16.0)
        tensor([[ 16.,   0., -16.]])

    Source: Wang et al. 2017 (NormFace), which "Hyperspherical embedding for novel class classification" (arXiv 2102.03243) builds on.
    """
    check_features("features", features)
    check_features("prototypes", prototypes)
    if features.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"prototypes: got {list(prototypes.shape)} for features {list(features.shape)}; pass [K, D] and [N, D]"
        )
    return check_positive("scale", scale) * unit(features) @ unit(prototypes).T


def lower_target(logits: Tensor, target: Tensor, by: float) -> Tensor:
    """The logits [N, K] with the target's lowered: an additive margin; on scaled cosines pass scale * margin.

    Raises:
        ValueError: shapes that do not fit, a class outside [0, K), `by` negative.
        TypeError: logits not floating, target not int64.

    Example:
        >>> lower_target(torch.tensor([[4.0, 1.0]]), torch.tensor([0]), 1.5)
        tensor([[2.5000, 1.0000]])

    Source: Wang et al., arXiv 1801.05599 (additive margin softmax).
    """
    check_features("logits", logits)
    check_labels("target", target, len(logits), logits.shape[1])
    if not 0 <= by < float("inf"):
        raise ValueError(f"by: got {by}; pass a finite number >= 0")
    return logits - by * torch.nn.functional.one_hot(target, logits.shape[1]).to(logits.dtype)


def class_prototypes(features: Tensor, target: Tensor, classes: int) -> Tensor:
    """The mean direction of each class, [classes, D], of unit length; of a class without samples a zero, whose cosines are 0.

    Raises:
        ValueError: shapes that do not fit, a class outside [0, classes).
        TypeError: features not floating, target not int64.

    Example:
        >>> class_prototypes(torch.tensor([[3.0, 0.0], [0.0, 0.1], [0.0, 9.0]]), torch.tensor([0, 1, 1]), 3)
        tensor([[1., 0.],
                [0., 1.],
                [0., 0.]])
    """
    x = unit(check_features("features", features))
    check_labels("target", target, len(x), classes)
    return unit(x.new_zeros(classes, x.shape[1]).index_add(0, target, x))
