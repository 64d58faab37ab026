"""Feasible learning: every sample's loss below a bound, instead of the mean as low as it gets.

    find theta with l_i(theta) <= eps for all i
    Lagrangian    (1/B) sum_i lambda_i (l_i - eps),    lambda_i >= 0, one for each sample of the data set

descends in theta and ascends in lambda. Where no theta is feasible lambda grows without end; the resilient problem lets slack in at a price,

    min_{u >= 0} (alpha/2) |u|^2  with l_i <= eps + u_i,    whose u = lambda / alpha

which turns the ascent direction l_i - eps into l_i - eps - lambda_i/alpha: a multiplier comes to rest at alpha (l_i - eps)_+.

Laws (tested): multipliers never negative, those of satisfied samples fall to zero; at rest the slack is lambda / alpha; samples outside the batch are left
alone; alpha = inf is feasible learning itself.

Source: Ramirez et al., arXiv 2501.14912. The abstract names the primal-dual way and slack of minimal norm; the slack in closed form is derived: it
minimises (alpha/2) u^2 - lambda u.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_positive
from .sample import check_losses

__all__ = ["FeasibleLearning"]


@dataclass(frozen=True)
class FeasibleLearning:
    """The bound on each loss, and how the multipliers follow what breaks it.

    Attributes:
        bound: eps, finite.
        rate: > 0, the step of the multipliers.
        alpha: > 0, the price of slack; inf: none.

    Example:
        >>> feasible = FeasibleLearning(bound=0.5, rate=1.0)
        >>> multipliers, index = feasible.start(3), torch.tensor([0, 2])
        >>> losses = torch.tensor([2.0, 0.25])
        >>> multipliers = feasible.ascend(multipliers, losses, index)
        >>> multipliers  # 1.5 above the bound; satisfied; not in the batch
        tensor([1.5000, 0.0000, 0.0000], dtype=torch.float64)
        >>> float(feasible.lagrangian(multipliers, losses, index))  # (1.5 * 1.5) / 2
        1.125

    Source: arXiv 2501.14912.
    """

    bound: float
    rate: float
    alpha: float = math.inf

    def __post_init__(self) -> None:
        check_positive("rate", self.rate)
        if not math.isfinite(self.bound):
            raise ValueError(f"bound: got {self.bound}; pass a finite number")
        if not self.alpha > 0:
            raise ValueError(f"alpha: got {self.alpha}; pass a positive number, or inf for no slack")

    def start(self, n: int) -> Tensor:
        """Multipliers [n] of zero, in float64. A first step of zero gradient follows: ascend before you descend."""
        if n < 1:
            raise ValueError(f"n: got {n}; pass the number of samples, >= 1")
        return torch.zeros(n, dtype=torch.float64)

    def lagrangian(self, multipliers: Tensor, losses: Tensor, index: Tensor) -> Tensor:
        """(1/B) sum_i lambda_i (l_i - eps), a scalar: what the model descends.

        Args:
            multipliers: [n], of the data set.
            losses: [B], of a batch.
            index: [B] int64, which samples these are.

        Raises:
            ValueError: shapes that do not fit.
            TypeError: losses not floating.
        """
        wide = self._check(multipliers, losses, index)
        return (multipliers[index] * (wide - self.bound)).mean().to(losses.dtype)

    def ascend(self, multipliers: Tensor, losses: Tensor, index: Tensor) -> Tensor:
        """The multipliers [n] after a step: [lambda_i + rate (l_i - eps - lambda_i/alpha)]_+ for the samples of the batch.

        Args and errors: as `lagrangian`; each sample at most once in a batch.
        """
        wide = self._check(multipliers, losses, index).detach()
        mine = multipliers[index]
        return multipliers.index_copy(
            0, index, (mine + self.rate * (wide - self.bound - mine / self.alpha)).clamp_min(0)
        )

    def slack(self, multipliers: Tensor) -> Tensor:
        """u = lambda / alpha [n]: by how much the resilient problem lets each bound be missed; zero without slack."""
        return multipliers / self.alpha

    def _check(self, multipliers: Tensor, losses: Tensor, index: Tensor) -> Tensor:
        wide = check_losses(losses)
        if index.dtype != torch.int64 or index.shape != losses.shape:
            raise ValueError(
                f"index: got {index.dtype} {list(index.shape)} for {len(wide)} losses; pass int64, one each"
            )
        if multipliers.dim() != 1 or not bool(((index >= 0) & (index < len(multipliers))).all()):
            raise ValueError(
                f"multipliers: got shape {list(multipliers.shape)}; pass [n], one for each sample of the data"
            )
        return wide
