"""Soft top-k: sigmoids with a shift per row that makes them sum to k, and the loss that has all labels among the k."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_positive
from .objective import SET, LabelObjective, present, softplus, weighed

__all__ = ["SoftTopK", "soft_top_k_shift"]

# of the search for the shift: every other one halves the bracket, so that gaps of any size between logits are found
STEPS = 40


@dataclass(frozen=True)
class SoftTopK:
    """(1/|P|) sum_(y in P) -log s_y,  s_j = sigmoid(alpha (z_j + t)),  t such that sum_j s_j = k. P the labels of a row.

    s tends to the indicator of the k largest logits as alpha grows. A vocabulary of k classes or fewer has s = 1.

    Attributes:
        k: > 0.
        alpha: > 0.

    Example:
        >>> SoftTopK(k=1.0).rows(torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))     # s = 1/4
        tensor([1.3863])

    Source: Gupta et al., arXiv 2310.10636 (DEXML), whose code bisects for t.
    """

    k: float = 5.0
    alpha: float = 2.0
    takes = SET

    def __post_init__(self) -> None:
        check_positive("k", self.k)
        check_positive("alpha", self.alpha)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits [N, V], target [N, V] of zeros and ones."""
        x = self.alpha * logits
        t = soft_top_k_shift(x, self.k)
        return weighed(softplus, -(x + t), target) / target.sum(-1)


def soft_top_k_shift(x: Tensor, k: float) -> Tensor:
    """t [N, 1] with sum_j sigmoid(x_j + t) = k; +inf for rows of k classes or fewer. Differentiable once.

    Newton's steps on log S, which is nearly linear in t while few sigmoids are near 1, in turn with bisections. The last step, from the solution, carries the
    derivative.

    Example:
        >>> x = torch.randn(3, 50)
        >>> torch.allclose(torch.sigmoid(x + soft_top_k_shift(x, 5.0)).sum(1), torch.full((3,), 5.0), atol=1e-4)
        True
    """
    there, finite = present(x)
    count = there.to(x.dtype).sum(-1, keepdim=True)
    enough = count > k
    odds = (
        math.log(k) - torch.where(enough, count - k, 1.0).log()
    )  # of k in count: what each sigmoid is if all are alike
    with torch.no_grad():
        best = x.amax(-1, keepdim=True)
        least = -torch.where(there, -x, -torch.inf).amax(-1, keepdim=True)
        low, high = odds - best, odds - least
        t = low
        for number in range(STEPS):
            s = torch.where(there, torch.sigmoid(finite + t), 0.0)
            total = s.sum(-1, keepdim=True)
            slope = (s * (1 - s)).sum(-1, keepdim=True)
            low, high = torch.where(total < k, t, low), torch.where(total < k, high, t)
            middle, step = (low + high) / 2, t - (total / k).log() * total / slope
            t = middle if number % 2 else torch.where((step >= low) & (step <= high), step, middle)
    s = torch.where(there, torch.sigmoid(finite + t), 0.0)
    slope = (s * (1 - s)).sum(-1, keepdim=True).detach()
    t = t - (s.sum(-1, keepdim=True) - k) / torch.where(slope > 0, slope, 1.0)
    return torch.where(enough, t, torch.inf)


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"soft_top_k": SoftTopK}
