"""Balanced divergences: forward and reverse KL, weighted for each row by which of the two models is surer of itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...checks import check_positive, check_weight
from ...generators import generator
from .objective import RowObjective, divergence_rows, entropy_rows, log_softmax

__all__ = ["BDKD"]


@dataclass(frozen=True)
class BDKD:
    """factor [ (1 - r) KL(t||s) + r KL(s||t) ],  r / (1 - r) = (reverse / forward) exp(sharpness (H(s) - H(t))), H the entropy in nats.

    A student that is surer than its teacher (H(s) < H(t)) is drawn by the forward KL, which spreads it over what the teacher holds possible; one that is
    less sure by the reverse KL, which gathers it. The weights are constants: no gradient flows through them. Loss and gradient are exactly 0 at s = t.

    In online distillation the teacher learns as well, from a loss of its own: this one is the student's, and the teacher is a constant in it.

    Attributes:
        forward, reverse: the odds at equal entropies, >= 0 and not both 0: (1, 0) is KL(t||s), (0, 1) is KL(s||t).
        sharpness: >= 0; 0 gives the same weights to all rows, and the larger it is, the more r is a switch.
        temperature: T > 0, divides both models' logits, in the entropies too.
        factor: > 0, multiplies.

    Example:
        >>> flat, sure = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
        >>> bool(BDKD(sharpness=1e3).rows(flat, sure) == BDKD(reverse=0.0).rows(flat, sure))  # a student that is too sure: KL(t||s)
        True

    Source: Amara et al., arXiv 2212.12965, whose abstract has the per-sample weights between the two divergences, set by the models' confidence, without
    a formula. Derived here: the entropies as the measure of confidence, and the logistic form in which (1, 0) and (0, 1) are the two divergences.
    """

    forward: float = 1.0
    reverse: float = 1.0
    sharpness: float = 1.0
    temperature: float = 1.0
    factor: float = 1.0
    needs_target: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("forward", "reverse", "sharpness"):
            check_weight(name, getattr(self, name))
        if self.forward == self.reverse == 0:
            raise ValueError("forward, reverse: got 0 and 0; pass at least one that is positive")
        check_positive("temperature", self.temperature)
        check_positive("factor", self.factor)

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None = None) -> Tensor:
        """The loss of each row [N]; logits [N, V]."""
        log_t, log_s = log_softmax(teacher, self.temperature), log_softmax(student, self.temperature)
        kl = generator("kl")
        if self.reverse == 0:
            return self.factor * divergence_rows(log_t, log_s, kl)
        if self.forward == 0:
            return self.factor * divergence_rows(log_s, log_t, kl)
        r = self.reverse_weight(log_t, log_s)
        return self.factor * ((1 - r) * divergence_rows(log_t, log_s, kl) + r * divergence_rows(log_s, log_t, kl))

    def reverse_weight(self, log_t: Tensor, log_s: Tensor) -> Tensor:
        """r [N], a constant, from log-probabilities [N, V]; forward and reverse positive."""
        gap = entropy_rows(log_s.detach()) - entropy_rows(log_t.detach())
        odds = torch.tensor(self.reverse / self.forward, dtype=gap.dtype, device=gap.device)
        return torch.sigmoid(self.sharpness * gap + odds.log())


OBJECTIVES: dict[str, Callable[..., RowObjective]] = {"bd_kd": BDKD}
