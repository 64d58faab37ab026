"""Focal loss and Poly-1: cross-entropy with another weight on what is nearly right."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_number, check_weight
from .objective import DISTRIBUTION, LabelObjective, expected, expm1

__all__ = ["Focal", "Poly"]


@dataclass(frozen=True)
class Focal:
    """-(1 - p_y)^gamma log p_y.

    Attributes:
        gamma: >= 0; 0 is cross-entropy.

    Example:
        >>> z, y = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]])
        >>> Focal(2.0).rows(z, y)     # log 2 / 4
        tensor([0.1733])

    Source: Lin et al., arXiv 1708.02002.
    """

    gamma: float = 2.0
    takes = DISTRIBUTION

    def __post_init__(self) -> None:
        check_weight("gamma", self.gamma)

    def cost(self, log_p: Tensor) -> Tensor:
        """-(1 - p)^gamma log p."""
        # 1 - p = 0 would have no slope for gamma < 1
        return -((-expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny) ** self.gamma) * log_p

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return expected(self.cost, logits, target)


@dataclass(frozen=True)
class Poly:
    """-log p_y + epsilon (1 - p_y): cross-entropy with another first coefficient in its expansion in powers of 1 - p_y.

    Attributes:
        epsilon: >= -1; 0 is cross-entropy.

    Example:
        >>> z, y = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]])
        >>> Poly(2.0).rows(z, y)     # log 2 + 1
        tensor([1.6931])

    Source: Leng et al., arXiv 2204.12511 (Poly-1).
    """

    epsilon: float = 1.0
    takes = DISTRIBUTION

    def __post_init__(self) -> None:
        check_number("epsilon", self.epsilon, -1)

    def cost(self, log_p: Tensor) -> Tensor:
        """-log p + epsilon (1 - p)."""
        return -log_p - self.epsilon * expm1(log_p)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return expected(self.cost, logits, target)


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"focal": Focal, "poly": Poly}
