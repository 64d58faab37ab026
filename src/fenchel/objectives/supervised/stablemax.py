"""Cross-entropy under StableMax, whose exponential is replaced by a function that grows linearly: no softmax collapse when logits grow."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .objective import DISTRIBUTION, LabelObjective
from .shares import share_loss

__all__ = ["StableMax"]


@dataclass(frozen=True)
class StableMax:
    """-log p_y, p_j = s(z_j) / sum_k s(z_k),  s(z) = z + 1 for z >= 0 and 1 / (1 - z) below.

    Example:
        >>> StableMax().rows(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 0.0]]))     # log 2.5/2
        tensor([0.2231])

    Source: Prieto et al., arXiv 2501.04697; their code sums in float64.
    """

    takes = DISTRIBUTION

    def score(self, logits: Tensor) -> Tensor:
        """s(z)."""
        return torch.where(logits >= 0, logits + 1, 1 / (1 - logits.clamp_max(0.0)))

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return share_loss(self.score, logits, target)


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"stablemax": StableMax}
