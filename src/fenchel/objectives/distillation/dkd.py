"""Decoupled knowledge distillation: the KL of the target against the rest, and the KL among the rest, each with a weight of its own."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from ...checks import check_positive, check_weight
from ...generators import generator
from .objective import RowObjective, divergence_rows, given, log_softmax_others, others

__all__ = ["DKD"]


@dataclass(frozen=True)
class DKD:
    """factor [ alpha KL(b(t)||b(s)) + beta KL(t^||s^) ],  b(p) = (p_y, 1 - p_y),  p^_j = p_j / (1 - p_y) for j != y.

    t, s = softmax(logits / T), y the target. KL(t||s) itself has alpha = 1 and beta = 1 - t_y in each row: a sure teacher mutes what it knows of the
    other classes, and a constant beta undoes that.

    Attributes:
        alpha, beta: >= 0.
        temperature: T > 0, divides both models' logits.
        factor: > 0, multiplies: pass T**2 for the authors' scaling. They also add cross-entropy, which is not mixed in here.

    Example:
        >>> t, s = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.6, 0.1, 0.3]]).log()
        >>> DKD(alpha=1.0, beta=0.0).rows(t, s, torch.tensor([0]))  # they agree on the target
        tensor([0.])
        >>> DKD(alpha=0.0, beta=0.4).rows(t, s, torch.tensor([0]))  # so this is KL(t||s) = 0.2 log 3
        tensor([0.2197])

    Source: Zhao et al., arXiv 2203.08679; the authors use T = 4, factor = 16, alpha = 1, beta = 8 on CIFAR-100.
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 1.0
    factor: float = 1.0
    needs_target: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for field in fields(self):
            check_weight(field.name, getattr(self, field.name))
        check_positive("temperature", self.temperature)
        check_positive("factor", self.factor)

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None) -> Tensor:
        """The loss of each row [N]; logits [N, V], classes [N]."""
        y, kl, temperature = given(target), generator("kl"), self.temperature
        t, s = against_rest(teacher, y, temperature), against_rest(student, y, temperature)
        target_part = divergence_rows(t, s, kl)
        t, s, _ = log_softmax_others(teacher, student, y, temperature)
        other_part = divergence_rows(t, s, kl)
        return self.factor * (self.alpha * target_part + self.beta * other_part)


def against_rest(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """(log p_y, log(1 - p_y)) [N, 2], neither of them by subtraction from one."""
    z = logits if temperature == 1 else logits / temperature
    two = torch.cat((z.gather(-1, target.unsqueeze(-1)), others(z, target).logsumexp(-1, keepdim=True)), -1)
    return two.log_softmax(-1)


OBJECTIVES: dict[str, Callable[..., RowObjective]] = {"dkd": DKD}
