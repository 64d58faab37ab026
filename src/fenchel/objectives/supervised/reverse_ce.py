"""Reverse cross-entropy, and symmetric cross-entropy that adds it to the usual one."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...checks import check_positive, check_weight
from .comp_sum import cross_entropy
from .objective import DISTRIBUTION, LabelObjective, expected, expm1
from .sums import Sum

__all__ = ["ReverseCE", "sce"]


@dataclass(frozen=True)
class ReverseCE:
    """A (1 - p_y): the cross-entropy -sum_j p_j log y_j of a one-hot label with log 0 read as -A.

    Symmetric: its sum over all labels is A (V - 1), whatever the model says.

    Attributes:
        A: > 0.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]])
        >>> ReverseCE(4.0).rows(z, y)
        tensor([2.])

    Source: Wang et al., arXiv 1908.06112.
    """

    A: float = 4.0
    takes = DISTRIBUTION

    def __post_init__(self) -> None:
        check_positive("A", self.A)

    def cost(self, log_p: Tensor) -> Tensor:
        """A (1 - p)."""
        return -self.A * expm1(log_p)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return expected(self.cost, logits, target)


def sce(alpha: float = 0.5, beta: float = 0.5, A: float = 4.0) -> Sum:
    """Symmetric cross-entropy, alpha (-log p_y) + beta A (1 - p_y).

    Raises:
        ValueError: negative weights, or A not positive.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]])
        >>> sce(1.0, 0.5).rows(z, y)     # log 2 + 1
        tensor([1.6931])

    Source: Wang et al., arXiv 1908.06112.
    """
    return Sum(((check_weight("alpha", alpha), cross_entropy()), (check_weight("beta", beta), ReverseCE(A))))


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"rce": ReverseCE, "sce": sce}
