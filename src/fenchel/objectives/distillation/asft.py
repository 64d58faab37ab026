"""Anchored supervised fine-tuning: dynamic fine-tuning, held near the model that it began from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...checks import check_weight
from ...generators import generator
from .objective import RowObjective, divergence_rows, given, log_softmax

__all__ = ["ASFT"]


@dataclass(frozen=True)
class ASFT:
    """-s_y' log s_y + weight KL(t||s), s_y' = s_y a constant; the teacher t is the model that fine-tuning began from.

    The first part is the objective `dft` of `fenchel.supervised`, whose gradient is that of 1 - s_y.

    Attributes:
        weight: >= 0, of the anchor.

    Example:
        >>> import torch
        >>> s = torch.tensor([[0.5, 0.5]]).log()
        >>> ASFT().rows(s, s, torch.tensor([0]))     # no drift yet: log 2 / 2
        tensor([0.3466])

    Source: Anchored Supervised Fine-Tuning, 2025, and the authors' code, whose weight is 0.1 (0.05 in their instructions).
    """

    weight: float = 0.1
    needs_target: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None) -> Tensor:
        """The loss of each row [N]; logits [N, V], classes [N]."""
        log_t, log_s = log_softmax(teacher), log_softmax(student)
        own = log_s.gather(-1, given(target).unsqueeze(-1)).squeeze(-1)
        return -own.detach().exp() * own + self.weight * divergence_rows(log_t, log_s, generator("kl"))


OBJECTIVES: dict[str, Callable[..., RowObjective]] = {"asft": ASFT}
