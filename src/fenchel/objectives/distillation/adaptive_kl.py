"""Adaptive KL: forward and reverse KL, weighted by how far the student is off in the teacher's head and in its tail."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...checks import check_positive
from ...generators import generator
from .objective import RowObjective, divergence_rows, log_softmax

__all__ = ["AdaptiveKL"]


@dataclass(frozen=True)
class AdaptiveKL:
    """factor [ h KL(t||s) + (1 - h) KL(s||t) ],  h = sum_{j in head} |t_j - s_j| / sum_j |t_j - s_j|.

    The head is the most probable classes of the teacher whose probabilities sum to at most mu, and always its first one. The weights are constants: no
    gradient flows through them. At s = t, where h is 0/0, it is a half; the loss and its gradient are exactly 0.

    Attributes:
        mu: in (0, 1].
        temperature: T > 0, divides both models' logits.
        factor: > 0, multiplies.

    Example:
        >>> t, s = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.6, 0.1, 0.3]]).log()
        >>> AdaptiveKL().rows(t, s)  # they differ in the tail alone: KL(s||t) = 0.2 log 3
        tensor([0.2197])

    Source: Wu et al., arXiv 2404.02657, section 4; mu = 0.5 is theirs.
    """

    mu: float = 0.5
    temperature: float = 1.0
    factor: float = 1.0
    needs_target: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not check_positive("mu", self.mu) <= 1:
            raise ValueError(f"mu: got {self.mu}; pass a number in (0, 1]")
        check_positive("temperature", self.temperature)
        check_positive("factor", self.factor)

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None = None) -> Tensor:
        """The loss of each row [N]; logits [N, V]."""
        log_t, log_s = log_softmax(teacher, self.temperature), log_softmax(student, self.temperature)
        h = self._head_share(log_t.detach().exp(), log_s.detach().exp())
        kl = generator("kl")
        return self.factor * (h * divergence_rows(log_t, log_s, kl) + (1 - h) * divergence_rows(log_s, log_t, kl))

    def _head_share(self, t: Tensor, s: Tensor) -> Tensor:
        ordered, index = t.sort(dim=-1, descending=True, stable=True)
        gap = (ordered - s.gather(-1, index)).abs()
        before = ordered.cumsum(-1) - ordered
        head = (ordered.cumsum(-1) <= self.mu) | (before == 0)
        total = gap.sum(-1)
        near = total == 0
        return torch.where(near, 0.5, (gap * head).sum(-1) / torch.where(near, 1.0, total))


OBJECTIVES: dict[str, Callable[..., RowObjective]] = {"adaptive_kl": AdaptiveKL}
