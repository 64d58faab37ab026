"""What an objective of distillation is: the logits of two models in, one number per row out.

A row objective is a frozen dataclass. Its fields are its hyper-parameters, and nothing is mixed in that no field names: no cross-entropy, no temperature,
no factor T^2. Its one method is pure, treats rows independently, and is all there is to write: `distillation` evaluates it on logits, and
`linear_distillation` on hidden states, a tile of logits at a time.
"""

import math
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...generators import Generator
from ...terms import FAR, terms

__all__ = ["RowObjective"]


@runtime_checkable
class RowObjective(Protocol):
    """One number per row from the logits of two models.

    Attributes:
        needs_target: whether `rows` takes class indices.
    """

    needs_target: ClassVar[bool]

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None) -> Tensor:
        """The objective of each row.

        Args:
            teacher, student: logits [N, V], float32 or float64; -inf for a class outside the vocabulary. The teacher is not detached here: callers do.
            target: class indices [N] (int64) where `needs_target`, else None.

        Returns:
            [N].
        """
        ...


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / T) [N, V]."""
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, -1)


def divergence_rows(log_p: Tensor, log_q: Tensor, g: Generator) -> Tensor:
    """D_f(p||q) [N] of log-probabilities [N, V]: never negative, exactly 0 with a gradient of exactly 0 at p = q."""
    return terms(log_p, log_q, g).sum(-1)


def entropy_rows(log_p: Tensor) -> Tensor:
    """The Shannon entropy [N] of log-probabilities [N, V]."""
    return -(log_p.exp() * log_p.clamp_min(-FAR)).sum(-1)


def others(logits: Tensor, target: Tensor) -> Tensor:
    """The logits [N, V] with the target's set to -inf: those of the other classes alone."""
    return logits.scatter(-1, target.unsqueeze(-1), -math.inf)


def log_softmax_others(
    teacher: Tensor, student: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """log N(t) and log N(s) [N, V], softmax(logits / T) over the classes other than the target; and whether there are any, bool [N].

    A row without any (V = 1, or all masked) is made uniform: its divergences are 0, and so are its gradients.
    """
    t, s = others(teacher, target), others(student, target)
    some = ((t > -math.inf) | (s > -math.inf)).any(-1)
    t, s = (log_softmax(torch.where(some.unsqueeze(-1), z, 0.0), temperature) for z in (t, s))
    return t, s, some


def given(target: Tensor | None) -> Tensor:
    """The target, which the front doors have checked to be there."""
    assert target is not None, "this objective needs a target"
    return target
