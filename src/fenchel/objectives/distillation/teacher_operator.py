"""A teacher whose probabilities are not the softmax of its logits: one that was trained with another generator, sparse ones above all."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...generators import Generator, operator_of
from ...generators import generator as named
from ...operators import softargmax
from .objective import RowObjective

__all__ = ["TeacherOperator"]


@dataclass(frozen=True)
class TeacherOperator:
    """objective(log softargmax_f(t), s) of the teacher's logits t and the student's s.

    The softmax of log-probabilities is the probabilities, so every objective applies; -inf says zero. A temperature of the objective divides the teacher's
    log-probabilities. The teacher is a constant here.

    Attributes:
        objective: between the two distributions; one without a target.
        generator: f, a name or a Generator.

    Raises:
        ValueError: a generator without an operator; an objective with a target, which the teacher's zeros may exclude.

    Example:
        >>> import torch
        >>> from fenchel.objectives.distillation import distillation_objective
        >>> objective = TeacherOperator(distillation_objective("tv"), "alpha:2")
        >>> objective.rows(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([[0.0, 0.0, -9e9]]))  # (1, 0, 0) and (1/2, 1/2, 0)
        tensor([0.5000])
    """

    objective: RowObjective
    generator: str | Generator
    needs_target: ClassVar[bool] = False

    def __post_init__(self) -> None:
        operator_of(named(self.generator))
        if self.objective.needs_target:
            kind = type(self.objective).__name__
            raise ValueError(
                f"objective: {kind} needs a target, which a teacher with zeros may exclude; pass a divergence"
            )

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None = None) -> Tensor:
        """The objective of each row [N]; logits [N, V]."""
        return self.objective.rows(softargmax(teacher.detach(), self.generator).log(), student, None)
