"""Selective mixup: which classes to mix so that fine-tuning the last layer improves a measure of the whole confusion matrix.

    gain_ij = - <grad_W psi(C(W)), grad_W l(W' z_ij, i)>,     z_ij = mix z_i + (1 - mix) z_j of the classes' mean features, labelled i
    P_ij = softargmax(sharpness * gain)                        the distribution over pairs (i, j) to mix

psi is any function of the confusion matrix, such as the least recall: no sum over samples. C_kl is the mean probability of class l over the validation
samples of class k, differentiable in the classifier. gain_ij is the first-order change of psi by a step on that mixture.

Laws (tested): the gain is the derivative of the metric along the step; sharpness 0 is uniform mixup; the pair of the largest gain has the largest share.

Source: Ramasubramanian et al., arXiv 2403.18301 (SelMix). The abstract says that a sampling distribution over class pairs optimises the objective; the
gain is derived.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...checks import check_floating
from ...generators import Generator
from ...operators import softargmax

__all__ = ["pair_distribution", "pair_gains", "soft_confusion"]


def soft_confusion(logits: Tensor, target: Tensor) -> Tensor:
    """C_kl, the mean probability of class l over the samples of class k, [V, V]: rows sum to one, the diagonal holds recalls.

    Args:
        logits: [N, V].
        target: [N] int64, with every class present.

    Raises:
        ValueError: shapes that do not fit, a class that is outside [0, V) or absent.
        TypeError: logits not floating, target not int64.

    Example:
        >>> soft_confusion(torch.tensor([[0.0, 0.0], [0.0, 99.0], [0.0, 0.0]]), torch.tensor([0, 1, 1]))
        tensor([[0.5000, 0.5000],
                [0.2500, 0.7500]])
    """
    check_floating("logits", logits, "[N, V]")
    if target.dtype != torch.int64:
        raise TypeError(f"target: got dtype {target.dtype}; pass int64")
    if logits.dim() != 2 or target.shape != logits.shape[:1]:
        raise ValueError(f"logits, target: got {list(logits.shape)} and {list(target.shape)}; pass [N, V] and [N]")
    return _class_means(logits.softmax(-1), target, logits.shape[1])


def pair_gains(
    metric: Callable[[Tensor], Tensor], classifier: Tensor, features: Tensor, target: Tensor, *, mix: float = 0.5
) -> Tensor:
    """The first-order change of a metric by a gradient step of unit rate on each pair of classes, [V, V], constant.

    Args:
        metric: from the confusion matrix [V, V] (`soft_confusion`) to a scalar, larger is better, differentiable.
        classifier: W [D, V], the last layer: logits are features @ W.
        features: [N, D], of validation samples.
        target: [N] int64, with every class present.
        mix: in [0, 1], the share of the first class of a pair, whose label the mixture has.

    Raises:
        ValueError: shapes that do not fit, a class that is absent, mix outside [0, 1].
        TypeError: not floating, target not int64.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> w = torch.tensor([[3.0, 0.0], [1.0, 0.0]])  # class 1 is never recognised
        >>> gains = pair_gains(lambda c: c.diagonal().amin(), w, x, y)
        >>> bool((gains[1] > gains[0]).all())  # label mixtures as class 1
        True

    Source: arXiv 2403.18301.
    """
    check_floating("classifier", classifier, "[D, V]")
    check_floating("features", features, "[N, D]")
    if classifier.dim() != 2 or features.dim() != 2 or features.shape[1] != len(classifier):
        raise ValueError(
            f"features: got {list(features.shape)} for classifier {list(classifier.shape)}; pass [N, D], [D, V]"
        )
    if not 0 <= mix <= 1:
        raise ValueError(f"mix: got {mix}; pass a number in [0, 1]")
    v = classifier.shape[1]
    x = features.detach()
    with torch.enable_grad():
        w = classifier.detach().requires_grad_()
        (slope,) = torch.autograd.grad(metric(soft_confusion(x @ w, target)), w)
    w = classifier.detach()
    means = _class_means(x, target, v)
    mixed = mix * means.unsqueeze(1) + (1 - mix) * means  # [V, V, D]
    residual = (mixed @ w).softmax(-1) - torch.eye(v, dtype=w.dtype, device=w.device).unsqueeze(1)
    # the gradient of cross-entropy in W is the outer product of z and p - y
    return -((mixed @ slope) * residual).sum(-1)


def pair_distribution(gains: Tensor, sharpness: float, generator: str | Generator = "kl") -> Tensor:
    """P [V, V] over pairs, softargmax of sharpness * gains: sums to one over all of them.

    Args:
        gains: [V, V].
        sharpness: >= 0; 0 is uniform.
        generator: kl gives all pairs a share; sparse ones leave pairs that harm out.

    Raises:
        ValueError: gains that are not [V, V], a negative sharpness.
        TypeError: not floating.

    Example:
        >>> pair_distribution(torch.tensor([[0.0, 0.0], [0.6931472, 0.0]]), 1.0)
        tensor([[0.2000, 0.2000],
                [0.4000, 0.2000]])

    Source: arXiv 2403.18301.
    """
    check_floating("gains", gains, "[V, V]")
    if gains.dim() != 2 or gains.shape[0] != gains.shape[1] or len(gains) == 0:
        raise ValueError(f"gains: got shape {list(gains.shape)}; pass [V, V]")
    if not 0 <= sharpness < float("inf"):
        raise ValueError(f"sharpness: got {sharpness}; pass a finite number >= 0")
    return softargmax(sharpness * gains.flatten(), generator).view_as(gains)


def _class_means(x: Tensor, target: Tensor, classes: int) -> Tensor:
    """The mean row of each class [V, ...]."""
    if not bool(((target >= 0) & (target < classes)).all()):
        raise ValueError(f"target: got a class outside [0, {classes})")
    count = torch.bincount(target, minlength=classes)
    if not bool((count > 0).all()):
        raise ValueError(f"target: got no sample of class {int((count == 0).nonzero()[0])}; pass some of every class")
    return x.new_zeros(classes, x.shape[1]).index_add(0, target, x) / count.unsqueeze(1)
