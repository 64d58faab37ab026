"""Dual-head distillation: the loss of probabilities on the student's head, the loss of logits on an auxiliary head of the same backbone.

On one head the two losses' gradients contradict each other: probabilities do not know a constant added to all logits, and logits do. On two heads both
reach the backbone, and the auxiliary head is thrown away after training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...checks import check_positive
from ...generators import generator
from .objective import RowObjective, divergence_rows

__all__ = ["BinaryKL", "BinaryKLNorm", "dual_head"]


def dual_head(
    probabilities: RowObjective,
    of_logits: RowObjective,
    teacher: Tensor,
    student: Tensor,
    auxiliary: Tensor,
    target: Tensor | None = None,
) -> Tensor:
    """probabilities(teacher, student) + of_logits(teacher, auxiliary), one number per row.

    The authors' total is cross-entropy on the student's head, which is not mixed in here, and T**2 `BinaryKLNorm` on the auxiliary head.

    Args:
        probabilities, of_logits: row objectives, the second one without a target.
        teacher, student, auxiliary: logits [N, V] of the teacher and of the student's two heads. Detach the teacher's.
        target: class indices [N], if `probabilities` needs them.

    Returns:
        [N].

    Raises:
        ValueError: an objective of logits that needs a target, or a target that is missing or not used.

    Example:
        >>> from fenchel.objectives.distillation import distillation_objective
        >>> t, s, a = torch.randn(3, 4, 10)
        >>> dual_head(distillation_objective("kl"), BinaryKLNorm(temperature=2.0, factor=4.0), t, s, a).shape
        torch.Size([4])

    Source: Yang et al., arXiv 2411.08937 (DHKD).
    """
    if of_logits.needs_target:
        raise ValueError(f"of_logits: got {type(of_logits).__name__}, which needs a target; pass one that does not")
    if probabilities.needs_target != (target is not None):
        raise ValueError(
            f"target: got {'one' if target is not None else 'None'}; {type(probabilities).__name__} {'needs one' if target is None else 'does not use it'}"
        )
    return probabilities.rows(teacher, student, target) + of_logits.rows(teacher, auxiliary, None)


@dataclass(frozen=True)
class BinaryKL:
    """factor sum_v KL(b(t_v/T)||b(s_v/T)),  b(z) = (sigmoid(z), sigmoid(-z)): each class against nothing, so a constant added to all logits counts.

    Attributes:
        temperature: T > 0, divides both models' logits.
        factor: > 0, multiplies.

    Example:
        >>> BinaryKL().rows(torch.zeros(1, 2), torch.full((1, 2), 3.0).log())  # twice log(2 / sqrt 3)
        tensor([0.2877])

    Source: Yang et al., arXiv 2411.08937.
    """

    temperature: float = 1.0
    factor: float = 1.0
    needs_target: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        check_positive("factor", self.factor)

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None = None) -> Tensor:
        """The loss of each row [N]; logits [N, V]."""
        return self.factor * _binary(teacher / self.temperature, student / self.temperature)


@dataclass(frozen=True)
class BinaryKLNorm:
    """factor sum_v KL(b(0)||b((s_v - t_v)/T)) = factor sum_v log cosh((s_v - t_v)/(2T)): `BinaryKL` with the teacher's logits taken as the origin.

    Its gradient, tanh(.)/(2T), depends on the difference alone, and is bounded by 1/(2T). A class that both exclude (-inf) adds 0.

    Attributes:
        temperature: T > 0.
        factor: > 0, multiplies: the authors' is T**2, at T = 2.

    Example:
        >>> BinaryKLNorm().rows(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))  # log cosh 1
        tensor([0.4338])

    Source: Yang et al., arXiv 2411.08937; the identity with log cosh is derived here.
    """

    temperature: float = 1.0
    factor: float = 1.0
    needs_target: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        check_positive("factor", self.factor)

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None = None) -> Tensor:
        """The loss of each row [N]; logits [N, V]."""
        excluded = (teacher == -math.inf) & (student == -math.inf)
        t, s = (torch.where(excluded, 0.0, z) for z in (teacher, student))
        gap = (s - t) / self.temperature
        return self.factor * _binary(torch.zeros_like(gap), gap)


def _binary(t: Tensor, s: Tensor) -> Tensor:
    """sum_v KL(b(t_v)||b(s_v)) [N]."""
    log_p, log_q = (torch.cat((logsigmoid(z), logsigmoid(-z)), -1) for z in (t, s))
    return divergence_rows(log_p, log_q, generator("kl"))


OBJECTIVES: dict[str, Callable[..., RowObjective]] = {"binary_kl": BinaryKL, "binary_kl_norm": BinaryKLNorm}
