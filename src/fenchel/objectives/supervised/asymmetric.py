"""Asymmetric losses for noisy labels, AGCE and AUL: bounded, and robust where the clean label is the likelier one."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...checks import check_number, check_positive
from .objective import DISTRIBUTION, LabelObjective, expected

__all__ = ["AGCE", "AUL"]


@dataclass(frozen=True)
class AGCE:
    """Asymmetric generalised cross-entropy, ((a + 1)^q - (a + p_y)^q) / q.

    Attributes:
        a: >= 0; at a = 0 it is generalised cross-entropy.
        q: > 0; a linear function of p_y at q = 1.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]])
        >>> AGCE(a=1.0, q=2.0).rows(z, y)     # (4 - 2.25) / 2
        tensor([0.8750])

    Source: Zhou et al., Asymmetric loss functions for learning with noisy labels, arXiv 2106.03110; the defaults are those of arXiv 2112.14869's code.
    """

    a: float = 1.0
    q: float = 2.0
    takes = DISTRIBUTION

    def __post_init__(self) -> None:
        check_number("a", self.a, 0)
        check_positive("q", self.q)

    def cost(self, log_p: Tensor) -> Tensor:
        """((a + 1)^q - (a + p)^q) / q."""
        base = (self.a + log_p.exp()).clamp_min(1e-30)  # at a = p = 0 the slope of a power is infinite
        return ((self.a + 1) ** self.q - base**self.q) / self.q

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return expected(self.cost, logits, target)


@dataclass(frozen=True)
class AUL:
    """The asymmetric unhinged loss, ((a - p_y)^q - (a - 1)^q) / q.

    Attributes:
        a: > 1.
        q: > 0; a linear function of p_y at q = 1.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]])
        >>> AUL(a=2.0, q=1.0).rows(z, y)
        tensor([0.5000])

    Source: Zhou et al., arXiv 2106.03110.
    """

    a: float = 1.5
    q: float = 0.9
    takes = DISTRIBUTION

    def __post_init__(self) -> None:
        check_number("a", self.a)
        check_positive("q", self.q)
        if self.a <= 1:
            raise ValueError(f"a: got {self.a}; pass a number > 1")

    def cost(self, log_p: Tensor) -> Tensor:
        """((a - p)^q - (a - 1)^q) / q."""
        return ((self.a - log_p.exp()) ** self.q - (self.a - 1) ** self.q) / self.q

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return expected(self.cost, logits, target)


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"agce": AGCE, "aul": AUL}
