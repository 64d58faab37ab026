"""Label adaptation: the teacher's soft label where it can be trusted, a softened hard label where it cannot, nothing where there is nothing to learn."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...checks import check_positive, check_weight
from ...generators import generator
from .objective import RowObjective, divergence_rows, given, log_softmax

__all__ = ["FerKD"]


@dataclass(frozen=True)
class FerKD:
    """factor KL(label||s) with one of three labels for each row, by the teacher's confidence c = max_j t_j:

        c < low            mixed:    (1 - smoothing) onehot(y) + smoothing uniform
        low <= c <= high   soft:     t
        c > high           dropped:  the loss and its gradient are 0

    A row is a region of an image in the paper (a crop), a token in a language model. The uniform part is over the teacher's classes with a finite logit.

    Attributes:
        low, high: 0 <= low <= high <= 1. (0, 1) is KL(t||s).
        smoothing: in [0, 1].
        temperature: T > 0, divides both models' logits where labels are compared; the confidence is taken at T = 1.
        factor: > 0, multiplies. A "mean" counts dropped rows: they are zeros in it.

    Example:
        >>> t = torch.tensor([[0.4, 0.3, 0.3], [0.7, 0.2, 0.1], [0.98, 0.01, 0.01]]).log()
        >>> loss = FerKD(low=0.5, high=0.95, smoothing=0.0)
        >>> loss.rows(t, torch.full((3, 3), 1 / 3).log(), torch.tensor([1, 0, 0]))  # log 3, KL(t||uniform), dropped
        tensor([1.0986, 0.2968, 0.0000])

    Source: Shen, arXiv 2312.17473 (ICCV 2023). Its abstract has the softened hard labels for regions of low confidence and the choice of hard regions; the
    measure of confidence and the two thresholds as a rule of this form are derived here. SelfMix, a mixing of images, is no objective and not here.
    """

    low: float
    high: float
    smoothing: float = 0.1
    temperature: float = 1.0
    factor: float = 1.0
    needs_target: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("low", "high", "smoothing"):
            check_weight(name, getattr(self, name))
        if not self.low <= self.high <= 1:
            raise ValueError(f"low, high: got {self.low} and {self.high}; pass 0 <= low <= high <= 1")
        if self.smoothing > 1:
            raise ValueError(f"smoothing: got {self.smoothing}; pass a number in [0, 1]")
        check_positive("temperature", self.temperature)
        check_positive("factor", self.factor)

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None) -> Tensor:
        """The loss of each row [N]; logits [N, V], classes [N]."""
        confidence = log_softmax(teacher.detach()).max(-1, keepdim=True).values.exp()
        dropped = confidence > self.high
        # dropped rows take no part, whatever their logits are
        t, s = (log_softmax(torch.where(dropped, 0.0, z), self.temperature) for z in (teacher, student))
        label = torch.where(confidence < self.low, self._mixed(t, given(target)), t)
        rows = self.factor * divergence_rows(label, s, generator("kl"))
        return torch.where(dropped.squeeze(-1), 0.0, rows)

    def _mixed(self, log_t: Tensor, target: Tensor) -> Tensor:
        there = (log_t > -math.inf).to(log_t.dtype)
        uniform = self.smoothing / there.sum(-1, keepdim=True) * there
        return (uniform + torch.zeros_like(there).scatter(-1, target.unsqueeze(-1), 1 - self.smoothing)).log()


OBJECTIVES: dict[str, Callable[..., RowObjective]] = {"ferkd": FerKD}
