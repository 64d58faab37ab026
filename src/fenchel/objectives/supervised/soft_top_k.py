"""Soft top-k: sigmoids with a shift per row that makes them sum to k, and the loss that has all labels among the k."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_positive
from .objective import SET, LabelObjective, present, softplus, weighed

__all__ = ["SoftTopK", "soft_top_k_shift"]

# of the search for the shift: 23 were needed at most, for logits of a standard deviation of 1000 and k = 50
STEPS = 28
# a step of t after which nothing is left to search for: the last one takes its square
SETTLED = 1e-4


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

    k - S is summed from the sigmoids below a half and what those above lack of 1, so that it keeps its digits where a gap between logits makes S flat. Each
    step takes both to grow and shrink exponentially in t, at the rate that their slopes say, as they do far from a half; one that leaves k - S larger than
    half of what it was is followed by a bisection. The last step, from the solution, carries the derivative.

    Example:
        >>> x = torch.randn(3, 50)
        >>> torch.allclose(torch.sigmoid(x + soft_top_k_shift(x, 5.0)).sum(1), torch.full((3,), 5.0), atol=1e-4)
        True
    """
    there, finite = present(x)
    count = there.to(x.dtype).sum(-1, keepdim=True)
    enough = count > k
    # of k in count: what each sigmoid is if all are alike
    odds = math.log(k) - torch.where(enough, count - k, 1.0).log()
    with torch.no_grad():
        best = x.amax(-1, keepdim=True)
        least = -torch.where(there, -x, -torch.inf).amax(-1, keepdim=True)
        t, low, high, done, last = odds - best, odds - best, odds - least, ~enough, torch.full_like(odds, torch.inf)
        for _ in range(STEPS):
            lack, below, above, slope = _balance(there, finite, t, k)
            low, high = torch.where(lack > 0, t, low), torch.where(lack > 0, high, t)
            # e^step of: below e^step - above e^-step = what the smaller sides have to make up
            rest = lack + below - above
            root = (rest.square() + 4 * below * above).sqrt()
            growth = torch.where(rest > 0, (rest + root) / (2 * below), 2 * above / (root - rest))
            step = growth.log() * (below + above) / slope
            good = (t + step > low) & (t + step < high) & (lack.abs() <= last / 2)
            last = torch.where(good, lack.abs(), torch.inf)
            t, done = (
                torch.where(done, t, torch.where(good, t + step, (low + high) / 2)),
                done | (good & (step.abs() <= SETTLED)),
            )
    lack, _, _, slope = _balance(there, finite, t, k)
    t = t + lack / torch.where(slope > 0, slope, 1.0).detach()
    return torch.where(enough, t, torch.inf)


def _balance(there: Tensor, finite: Tensor, t: Tensor, k: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """k - S; the sum of the sigmoids below a half, of what those above lack of 1, and of their slopes, [N, 1] each."""
    upper = there & (finite + t > 0)
    small = torch.where(there, torch.sigmoid(torch.where(upper, -(finite + t), finite + t)), 0.0)
    below = torch.where(upper, 0.0, small).sum(-1, keepdim=True)
    above = torch.where(upper, small, 0.0).sum(-1, keepdim=True)
    slope = (small * (1 - small)).sum(-1, keepdim=True)
    return k - upper.to(small.dtype).sum(-1, keepdim=True) + above - below, below, above, slope


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"soft_top_k": SoftTopK}
