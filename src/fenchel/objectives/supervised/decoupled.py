"""Decoupled softmax: cross-entropy of several labels, none of which competes with another."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .objective import SET, LabelObjective, softplus, weighed

__all__ = ["Decoupled"]


@dataclass(frozen=True)
class Decoupled:
    """(1/|P|) sum_(y in P) -log[ exp z_y / (exp z_y + sum_(n not in P) exp z_n) ], P the labels of a row.

    Cross-entropy for one label. For several, cross-entropy of the uniform distribution on them has each pull the others down, and this has not.

    Example:
        >>> z, both = torch.tensor([[9.0, 9.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]])
        >>> Decoupled().rows(z, both)     # log 2: each has one competitor
        tensor([0.6931])

    Source: Gupta et al., arXiv 2310.10636 (DEXML).
    """

    takes = SET

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits [N, V], target [N, V] of zeros and ones."""
        rest = torch.logsumexp(torch.where(target > 0, -torch.inf, logits), -1, keepdim=True)
        return weighed(softplus, rest - logits, target) / target.sum(-1)


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"decoupled": Decoupled}
