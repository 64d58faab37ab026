"""Threshold consistency: one threshold of similarity that works alike for every class.

    TCM  = w+ mean_{same class, s <= m+} (m+ - s)  +  w- mean_{other class, s >= m-} (s - m-)
    OPIS = mean over thresholds and classes of (U_c(t) - mean_c U_c(t))^2

TCM is added to any metric loss: it moves the hard pairs alone, those on the wrong side of a margin that is the same for all classes. U_c(t) is how well the
threshold t serves class c, the harmonic mean of the accepted share of its own pairs and the rejected share of its pairs with others.

Laws (tested): TCM is 0 if all pairs keep the margins, and each gradient then too; OPIS is 0 if all classes have the same similarities, never negative,
and does not change when classes are renamed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_floating
from .batch import check_features, check_labels, mean_where, pairs
from .hyperspherical import unit

__all__ = ["TCM", "opis", "utilities"]


@dataclass(frozen=True)
class TCM:
    """The threshold-consistent margin loss of a batch.

    Attributes:
        positive, negative: m+ and m-, cosines in [-1, 1]; a pair of one class should be above m+, one of two classes below m-.
        positive_weight, negative_weight: w+ and w- >= 0.

    Example:
        >>> x, y = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> TCM(positive=0.9, negative=0.5)(x, y)  # (0.9 - 0.6) + (0.8 - 0.5); the pair at right angles is no hard one
        tensor(0.6000)

    Source: Zhang et al., arXiv 2307.04047. Margins 0.8 and 0.5 and weights 1 are those of a third party's code; the paper's were not seen.
    """

    positive: float = 0.8
    negative: float = 0.5
    positive_weight: float = 1.0
    negative_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            if not -1 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; pass a cosine in [-1, 1]")
        for name in ("positive_weight", "negative_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: got {getattr(self, name)}; pass a finite number >= 0")

    def __call__(self, features: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar; 0 where it has no hard pair.

        Args:
            features: [N, D], of any length.
            target: [N] int64.

        Raises:
            ValueError: shapes that do not fit.
            TypeError: features not floating, target not int64.
        """
        x = unit(check_features("features", features))
        check_labels("target", target, len(x))
        s = x @ x.T
        same, other = pairs(target)
        below = mean_where(self.positive - s, same & (s <= self.positive))
        above = mean_where(s - self.negative, other & (s >= self.negative))
        return self.positive_weight * below + self.negative_weight * above


def utilities(features: Tensor, target: Tensor, thresholds: Tensor) -> Tensor:
    """U_c(t) of each class and threshold: 2 a r / (a + r), a the share of the class's own pairs with cosine >= t, r that of its pairs with others below t.

    Args:
        features: [N, D].
        target: [N] int64.
        thresholds: [T], cosines.

    Returns:
        [C, T] in [0, 1], a row for each class that has two samples and some of another class, in the order of their numbers; constant.

    Raises:
        ValueError: shapes that do not fit, or fewer than two such classes: consistency is between classes.
        TypeError: features or thresholds not floating, target not int64.

    Example:
        >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([0, 0, 1, 1])
        >>> utilities(x, y, torch.tensor([0.5, 0.9]))  # at 0.9 the pair of class 1, at cosine 0.8, is rejected
        tensor([[0.6667, 1.0000],
                [0.6667, 0.0000]])
    """
    x = unit(check_features("features", features.detach()))
    check_labels("target", target, len(x))
    check_floating("thresholds", thresholds, "[T]")
    if thresholds.dim() != 1 or len(thresholds) == 0:
        raise ValueError(f"thresholds: got shape {list(thresholds.shape)}; pass [T], T >= 1")
    names, count = target.unique(return_counts=True)
    kept = names[(count >= 2) & (count < len(target))]
    if len(kept) < 2:
        raise ValueError(f"target: got {len(kept)} classes with two samples; pass two such classes at least")
    s = x @ x.T
    same, other = pairs(target)
    rows = []
    for name in kept:
        mine = target == name
        own, cross = s[mine][same[mine]], s[mine][other[mine]]
        accepted = (own >= thresholds.unsqueeze(1)).to(x.dtype).mean(1)
        rejected = (cross < thresholds.unsqueeze(1)).to(x.dtype).mean(1)
        rows.append(2 * accepted * rejected / (accepted + rejected).clamp_min(torch.finfo(x.dtype).tiny))
    return torch.stack(rows)


def opis(features: Tensor, target: Tensor, thresholds: Tensor) -> Tensor:
    """The operating-point inconsistency score: the variance of the utilities over classes, averaged over thresholds; a constant scalar.

    Args and errors: as `utilities`. Take thresholds from the range that would be deployed.

    Example:
        >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([0, 0, 1, 1])
        >>> opis(x, y, torch.tensor([0.5, 0.9]))  # 0 at the first threshold, 0.25 at the second
        tensor(0.1250)

    Source: Zhang et al., arXiv 2307.04047. The abstract says that it is the variance in the operating characteristics across classes; the utility and the
    average over thresholds are derived.
    """
    return utilities(features, target, thresholds).var(0, unbiased=False).mean()
