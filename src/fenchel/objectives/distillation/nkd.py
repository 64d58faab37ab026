"""Normalised knowledge distillation: the target's term, and a cross-entropy among the other classes, both renormalised to sum to one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...checks import check_positive, check_weight
from ...generators import generator
from .objective import RowObjective, divergence_rows, entropy_rows, given, log_softmax, log_softmax_others

__all__ = ["NKD"]


@dataclass(frozen=True)
class NKD:
    """-t_y log s_y - gamma sum_{j != y} N(t)_j log N(s)_j,  N(p)_j = p_j / (1 - p_y) of softmax(logits / T).

    The first term is at T = 1, whatever T is. The cross-entropy -sum_j t_j log s_j of plain distillation has the first term and then
    -sum_{j != y} t_j log s_j, where neither side sums to one: that mismatch is what NKD removes. It is a cross-entropy: the entropies of the teacher are
    part of the value, and the first term alone pulls s_y to one, so it is not smallest at s = t.

    Attributes:
        gamma: >= 0: pass gamma * T**2 for the authors' scaling.
        temperature: T > 0, for the second term.
        factor: > 0, multiplies. The authors add the loss to a cross-entropy, which is not mixed in here.

    Example:
        >>> t, s = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> NKD(gamma=1.0).rows(t, s, torch.tensor([0]))  # 0.5 log 2 + log 2
        tensor([1.0397])

    Source: Yang et al., arXiv 2303.13005; the authors use gamma = 1.5 and T = 1.
    """

    gamma: float = 1.5
    temperature: float = 1.0
    factor: float = 1.0
    needs_target: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weight("gamma", self.gamma)
        check_positive("temperature", self.temperature)
        check_positive("factor", self.factor)

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None) -> Tensor:
        """The loss of each row [N]; logits [N, V], classes [N]."""
        y = given(target)
        log_t, log_s = (log_softmax(z).gather(-1, y.unsqueeze(-1)).squeeze(-1) for z in (teacher, student))
        t, s, some = log_softmax_others(teacher, student, y, self.temperature)
        # KL + H is the cross-entropy, infinite only where it is: 0 log 0 = 0
        other_part = torch.where(some, divergence_rows(t, s, generator("kl")) + entropy_rows(t), 0.0)
        return self.factor * (self.gamma * other_part - log_t.exp() * log_s)


OBJECTIVES: dict[str, Callable[..., RowObjective]] = {"nkd": NKD}
