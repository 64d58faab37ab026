"""Distil at the frontier of what the student can do: a weight for each problem, and forward KL before reverse KL.

    w(p) = p^alpha (1 - p)^beta,    p the share of the student's own answers to the problem that are correct

A problem that is always solved has no gradient left, one that never is has gradients that disagree: the signal-to-noise
ratio vanishes at both ends, and the Beta kernel is its leading order. The largest weight is at alpha/(alpha + beta).

Laws (tested): alpha = beta = 0 weighs all problems the same, also at p = 0 and 1; weights are never negative and their
mean is 1; w(p; a, b) = w(1 - p; b, a).

Source: PACED, arXiv 2603.11178. alpha = beta = 1 is its default (third version). Normalising to a mean of 1, so that
the learning rate keeps its meaning, is ours; so is the place of the switch.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ...checks import check_floating

__all__ = ["TwoStage", "pass_rate_weight"]

T = TypeVar("T")


def pass_rate_weight(rate: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """w(p) = p^alpha (1 - p)^beta of each problem, scaled to a mean of 1.

    Args:
        rate: [...], pass rates in [0, 1].
        alpha, beta: >= 0; 0^0 = 1, so that (0, 0) is uniform.

    Returns:
        [...], all zero where no problem is at the frontier: nothing is to be learned from such a batch.

    Raises:
        ValueError: a rate outside [0, 1] or NaN, a negative exponent.
        TypeError: rate not floating.

    Example:
        >>> pass_rate_weight(torch.tensor([0.0, 0.25, 0.5, 1.0]))
        tensor([0.0000, 1.7143, 2.2857, 0.0000])

    Source: arXiv 2603.11178.
    """
    check_floating("rate", rate, "[...]")
    for name, exponent in (("alpha", alpha), ("beta", beta)):
        if not 0 <= exponent < float("inf"):
            raise ValueError(f"{name}: got {exponent}; pass a finite number >= 0")
    if not bool(((rate >= 0) & (rate <= 1)).all()):
        raise ValueError("rate: got a value outside [0, 1] or NaN; pass the share of correct answers")
    weight = rate**alpha * (1 - rate) ** beta
    total = weight.sum()
    return weight * torch.where(total > 0, weight.numel() / total, 0.0)


@dataclass(frozen=True)
class TwoStage:
    """Forward KL first, to cover what the teacher does, then reverse KL, to settle on the best of it.

    The schedule says which distribution comes first; any divergence follows, plain or fused, since D(p||q) is p first.

    Fields:
        switch: the share of training that has the teacher first, in [0, 1].

    Raises:
        ValueError: switch outside [0, 1].

    Example:
        >>> stages = TwoStage(0.5)
        >>> stages.orient("teacher", "student", 0.2), stages.orient("teacher", "student", 0.7)
        (('teacher', 'student'), ('student', 'teacher'))

    Use: `divergence(*stages.orient(teacher_logits, student_logits, step / steps))`, or the same with `linear_divergence`
    and pairs of (hidden, weight).

    Source: arXiv 2603.11178, two-stage schedule.
    """

    switch: float = 0.5

    def __post_init__(self) -> None:
        """Check the field."""
        if not 0 <= self.switch <= 1:
            raise ValueError(f"switch: got {self.switch}; pass a number in [0, 1]")

    def orient(self, teacher: T, student: T, progress: float) -> tuple[T, T]:
        """(teacher, student) while progress < switch, then (student, teacher); progress in [0, 1].

        Raises:
            ValueError: progress outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress: got {progress}; pass step / steps, a number in [0, 1]")
        return (teacher, student) if progress < self.switch else (student, teacher)
