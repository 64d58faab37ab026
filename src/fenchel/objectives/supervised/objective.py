"""What a supervised objective is: logits and a target in, one number per row out.

A row objective is a frozen dataclass. Its fields are its hyper-parameters, and its one method is pure, treats rows independently, and is all there is to
write: `supervised` evaluates it on logits, `linear_supervised` on hidden states, a tile of logits at a time. Nothing is gathered or scattered: the target is
a table, so that a row is a few sums over its classes, in which all of a fused head's arithmetic can be done while the row lies in cache.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["CLASS", "DISTRIBUTION", "EVERY", "LABELS", "SET", "CostObjective", "LabelObjective", "ShareObjective"]

# the kinds of target beside a class index, which every objective takes
CLASS: frozenset[str] = frozenset()
DISTRIBUTION = frozenset({"probabilities"})
SET = frozenset({"set"})  # with one class at least
LABELS = frozenset({"set", "empty set"})
EVERY = DISTRIBUTION | LABELS


@runtime_checkable
class LabelObjective(Protocol):
    """One number per row from logits and a target."""

    @property
    def takes(self) -> frozenset[str]:
        """The kinds of target that it takes beside a class index: CLASS (none), DISTRIBUTION, SET, LABELS or EVERY."""
        ...

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The objective of each row [N].

        Args:
            logits: [N, V], float32 or float64; -inf for a class outside the vocabulary.
            target: [N, V] in the dtype of logits: the one-hot row of a class, a row of zeros and ones for a set, or probabilities.
        """
        ...


@runtime_checkable
class CostObjective(Protocol):
    """A loss of the label's probability alone."""

    def cost(self, log_p: Tensor) -> Tensor:
        """What each class costs if it is the label, elementwise in log p <= 0; finite at log p = 0."""
        ...


@runtime_checkable
class ShareObjective(LabelObjective, Protocol):
    """A loss -log p_y of probabilities of its own, p_j = s_j / sum_k s_k: what a model that was trained with it predicts with."""

    def score(self, logits: Tensor) -> Tensor:
        """The score s > 0 of each class, elementwise in its logit; finite at finite logits."""
        ...


def expected(cost: Callable[[Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    """sum_j y_j cost(log p_j) [N], p = softmax(logits): the cost of the label, in expectation over the target."""
    return weighed(cost, torch.log_softmax(logits, -1), target)


def weighed(cost: Callable[[Tensor], Tensor], x: Tensor, target: Tensor) -> Tensor:
    """sum_j y_j cost(x_j) [N] over the classes with y_j > 0, whatever x is at the others."""
    return (target * cost(torch.where(target > 0, x, 0.0))).sum(-1)


def own(x: Tensor, target: Tensor) -> Tensor:
    """sum_j y_j x_j [N] over the classes with y_j > 0: for a class index, its entry of x [N, V]."""
    return weighed(lambda x: x, x, target)


def present(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Which classes are in the vocabulary, bool [N, V], and the logits with 0 at the others."""
    there = logits != -torch.inf  # NaN is there, to be seen
    return there, torch.where(there, logits, 0.0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp x), to the last digit in float64 too."""
    return torch.nn.functional.softplus(x, threshold=40.0)


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1, whose derivative exp(x) keeps its digits where it is small; torch's is the value plus 1."""
    near = x.clamp_min(-1.0).expm1()
    return torch.where(x > -1, near, x.exp() - 1)


def entropy_of(log_p: Tensor) -> Tensor:
    """The Shannon entropy [N] of log-probabilities [N, V]."""
    there, finite = present(log_p)
    return -torch.where(there, log_p.exp() * finite, 0.0).sum(-1)
