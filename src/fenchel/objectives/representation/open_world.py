"""Open-world adaptation from an imbalanced source: contrast with every class alike, reliable pseudo-labels, and updates only where they are needed.

    contrast    mean over classes of the mean over their samples i of  -mean_{j: y_j = y_i} log softmax_{a != i}( cos(x_i, x_a)/T )_j
    reliable    a sample whose largest probability is among the top share of its predicted class
    activate    the batch's mean confidence is more than `tolerance` standard errors from the source's

Source: OASIS, the abstract alone ("contrastive-based pre-training for underrepresented classes", "reliable pseudo-labels", "selective activation
criteria"); each of the three forms is derived. The contrast is that of Khosla et al., arXiv 2004.11362, averaged over classes.
"""

import math

import torch
from torch import Tensor

from ...checks import check_floating, check_positive
from .batch import check_features, check_labels, pairs
from .hyperspherical import unit

__all__ = ["balanced_contrast", "needs_update", "reliable"]


def balanced_contrast(features: Tensor, target: Tensor, *, temperature: float = 0.1) -> Tensor:
    """The supervised contrastive loss of a batch, the mean over its classes of the mean over their samples, a scalar.

    Args:
        features: [N, D], of any length.
        target: [N] int64.
        temperature: T > 0.

    Returns:
        A scalar; samples without a partner do not count, and a batch without any gives a zero with a gradient of zero.

    Raises:
        ValueError: shapes that do not fit, T not positive.
        TypeError: features not floating, target not int64.

    Example:
        >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
        >>> balanced_contrast(x, y, temperature=1.0)  # log(1 + e^-2)
        tensor(0.1269)
    """
    x = unit(check_features("features", features))
    check_labels("target", target, len(x))
    same, _ = pairs(target)
    s = (x @ x.T / check_positive("temperature", temperature)).fill_diagonal_(-math.inf)
    if len(x) == 1:
        return (x * 0.0).sum()
    log_p = torch.where(same, s.log_softmax(1), 0.0)
    partners = same.sum(1)
    rows = -log_p.sum(1) / partners.clamp_min(1)
    _, which = target.unique(return_inverse=True)
    counted = torch.where(partners > 0, 1.0, 0.0).to(rows.dtype)
    size = torch.bincount(which, weights=counted).to(rows.dtype)
    sums = torch.zeros_like(size).index_add(0, which, rows)
    return (sums / size.clamp_min(1)).sum() / (size > 0).sum().clamp_min(1)


def reliable(logits: Tensor, share: float) -> Tensor:
    """Which rows to take the predicted class of: the surest `share` of each predicted class, at least one of each; bool [N], constant.

    One threshold for all classes would pass none of the rare ones, of which an imbalanced model is never sure.

    Args:
        logits: [N, V].
        share: in (0, 1].

    Raises:
        ValueError: logits that are not [N, V], share outside (0, 1].
        TypeError: logits not floating.

    Example:
        >>> logits = torch.tensor([[9.0, 0.0], [8.0, 0.0], [7.0, 0.0], [6.0, 0.0], [0.0, 1.0]])
        >>> reliable(logits, 0.5)
        tensor([ True,  True, False, False,  True])
    """
    check_features("logits", logits)
    if not 0 < share <= 1:
        raise ValueError(f"share: got {share}; pass a number in (0, 1]")
    p, guess = logits.detach().softmax(-1).max(-1)
    chosen = torch.zeros(len(p), dtype=torch.bool, device=p.device)
    for name in guess.unique():
        mine = (guess == name).nonzero().squeeze(1)
        top = p[mine].argsort(descending=True, stable=True)[: max(1, round(share * len(mine)))]
        chosen[mine[top]] = True
    return chosen


def needs_update(confidence: Tensor, source_mean: float, source_deviation: float, *, tolerance: float = 3.0) -> bool:
    """Whether a batch looks shifted: its mean confidence is off the source's by more than chance would have it.

    Args:
        confidence: [N], the largest probability of each sample.
        source_mean, source_deviation: of one sample's confidence on held-out source data.
        tolerance: > 0, in standard errors of a batch of N.

    Raises:
        ValueError: no samples, a number outside its domain.
        TypeError: confidence not floating.

    Example:
        >>> needs_update(torch.full((100,), 0.9), 0.91, 0.1), needs_update(torch.full((100,), 0.7), 0.91, 0.1)
        (False, True)
    """
    check_floating("confidence", confidence, "[N]")
    if confidence.dim() != 1 or len(confidence) == 0:
        raise ValueError(f"confidence: got shape {list(confidence.shape)}; pass [N], N >= 1")
    error = check_positive("source_deviation", source_deviation) / math.sqrt(len(confidence))
    return abs(float(confidence.detach().mean()) - source_mean) > check_positive("tolerance", tolerance) * error
