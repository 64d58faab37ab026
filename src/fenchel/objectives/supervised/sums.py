"""Weighted sums of objectives: "gce:0.7 + 0.1*entropy_penalty"."""

from dataclasses import dataclass, field
from functools import reduce

from torch import Tensor

from ...checks import check_number
from .fenchel_young import FenchelYoung
from .objective import EVERY, LabelObjective

__all__ = ["Sum"]


@dataclass(frozen=True)
class Sum:
    """sum_k w_k L_k.

    Attributes:
        terms: pairs of a weight (a finite number) and an objective, one or more.
        others: the sum of those that are no Fenchel-Young losses, which have kernels of their own; None if there are none.

    Example:
        >>> import torch
        >>> from fenchel.objectives.supervised import CompSum
        >>> both = Sum(((0.5, CompSum(1.0)), (0.5, CompSum(2.0))))
        >>> both.rows(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))     # (log 2 + 1/2) / 2
        tensor([0.5966])
    """

    terms: tuple[tuple[float, LabelObjective], ...]
    # made once: a compiler that meets the sum cannot follow how another one is made
    others: "Sum | None" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("terms: got none; pass one pair of a weight and an objective or more")
        for weight, objective in self.terms:
            check_number("terms: weight", weight)
            if not isinstance(objective, LabelObjective):
                raise TypeError(f"terms: got {type(objective).__name__}; pass pairs of a weight and an objective")
        rest = tuple((w, o) for w, o in self.terms if not isinstance(o, FenchelYoung))
        object.__setattr__(self, "others", self if rest == self.terms else Sum(rest) if rest else None)

    @property
    def takes(self) -> frozenset[str]:
        """The targets that every term takes."""
        return reduce(frozenset.intersection, (objective.takes for _, objective in self.terms), EVERY)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum of each row [N]; logits and target [N, V]."""
        parts = [weight * objective.rows(logits, target) for weight, objective in self.terms]
        return sum(parts[1:], parts[0])
