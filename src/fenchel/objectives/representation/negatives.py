"""Unified negative pairs: a softmax over classes whose negatives are those of the classes and those within the batch.

    l_i = -log e^{z_iy} / ( e^{z_iy} + sum_{k != y} e^{z_ik} + sum_{(a,b) kept} e^{scale cos(x_a, x_b)} )

z are scaled cosines with prototypes, the target's lowered by a margin. The second sum is over the pairs of two classes in the batch, the same for all rows;
pairs outside Tukey's fences of their similarities are taken for mislabelled or trivial, and dropped.

Laws (tested): a batch of one class has the margin softmax alone; a pair outside the fences changes nothing; more negatives raise the loss.

Source: UNPG, arXiv 2203.11593; the formula and the fences are those of the authors' code, whose default is whiskers of 1 interquartile range.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_positive
from ...generators import Generator
from ...losses.fenchel_young import fenchel_young
from .batch import check_features, check_labels, pairs
from .hyperspherical import cosine_logits, lower_target, unit

__all__ = ["UNPG", "within_fences"]


def within_fences(values: Tensor, whiskers: float) -> Tensor:
    """Which values [M] lie in [Q1 - w IQR, Q3 + w IQR], bool [M]; constant.

    Raises:
        ValueError: a negative w.

    Example:
        >>> within_fences(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.9]), 1.5)
        tensor([ True,  True,  True,  True, False])

    Source: Tukey 1977.
    """
    if not whiskers >= 0:
        raise ValueError(f"whiskers: got {whiskers}; pass a number >= 0, inf for no fences")
    fixed = values.detach()
    if len(fixed) == 0 or whiskers == float("inf"):
        return torch.ones_like(fixed, dtype=torch.bool)
    # by sorting: torch's quantile takes 2^24 values at most
    first, third = (_quantile(fixed.sort().values, p) for p in (0.25, 0.75))
    reach = whiskers * (third - first)
    return (fixed >= first - reach) & (fixed <= third + reach)


def _quantile(ordered: Tensor, p: float) -> Tensor:
    place = p * (len(ordered) - 1)
    low = int(place)
    return torch.lerp(ordered[low], ordered[min(low + 1, len(ordered) - 1)], place - low)


@dataclass(frozen=True)
class UNPG:
    """The loss of each row, over classes and the negative pairs of its batch.

    Attributes:
        scale: > 0, of the cosines.
        margin: >= 0, by which the target's cosine is lowered.
        whiskers: >= 0, in interquartile ranges; inf keeps every pair.
        generator: of the Fenchel-Young loss; kl is the softmax.

    Example:
        >>> x, prototypes, y = torch.randn(6, 4), torch.randn(3, 4), torch.tensor([0, 1, 2, 0, 1, 2])
        >>> UNPG(scale=16.0, margin=0.2).rows(x, prototypes, y).shape
        torch.Size([6])

    Source: arXiv 2203.11593.
    """

    scale: float = 32.0
    margin: float = 0.0
    whiskers: float = 1.5
    generator: str | Generator = "kl"

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)
        if not 0 <= self.margin <= 2:
            raise ValueError(f"margin: got {self.margin}; pass a difference of cosines in [0, 2]")
        within_fences(torch.zeros(1), self.whiskers)

    def rows(self, features: Tensor, prototypes: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N].

        Args:
            features: [N, D].
            prototypes: [K, D].
            target: [N] int64 in [0, K).

        Raises:
            ValueError: shapes that do not fit, a class outside [0, K).
            TypeError: not floating, target not int64.
        """
        x = unit(check_features("features", features))
        check_labels("target", target, len(x))
        classes = lower_target(cosine_logits(features, prototypes, scale=self.scale), target, self.scale * self.margin)
        _, other = pairs(target)
        # each pair once
        s = (x @ x.T)[other.triu(1)]
        negatives = self.scale * s[within_fences(s, self.whiskers)]
        logits = torch.cat((classes, negatives.expand(len(x), -1)), 1)
        return fenchel_young(logits, target, self.generator, reduction="none")
