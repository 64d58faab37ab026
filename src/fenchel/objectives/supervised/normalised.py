"""Normalised losses: a loss over the sum of what it would be under every label; symmetric, hence robust to symmetric label noise."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .comp_sum import cross_entropy
from .names import supervised_objective
from .objective import DISTRIBUTION, CostObjective, LabelObjective, present, weighed

__all__ = ["Normalised", "nce", "normalised"]


@dataclass(frozen=True)
class Normalised:
    """L(y) / sum_k L(k), for a loss L of the label's probability alone.

    Within [0, 1], and its sum over all labels is 1. Active-passive losses add a passive loss to it: "nce + rce", "3*nce + 1.5*agce", "6*nce + 1.5*aul".

    Attributes:
        of: an objective with a `cost`: comp-sum losses, focal, poly, AGCE, AUL, ...

    Example:
        >>> z, y = torch.zeros(1, 4), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
        >>> Normalised(cross_entropy()).rows(z, y)
        tensor([0.2500])

    Source: Ma et al., arXiv 2006.13554.
    """

    of: CostObjective
    takes = DISTRIBUTION

    def __post_init__(self) -> None:
        if not isinstance(self.of, CostObjective):
            raise ValueError(
                f"normalised: got {type(self.of).__name__}; pass a loss of the label's probability alone (with a `cost`)"
            )

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        log_p = torch.log_softmax(logits, -1)
        there, _ = present(logits)
        every = weighed(self.of.cost, log_p, there.to(logits.dtype))
        return weighed(self.of.cost, log_p, target) / every.clamp_min(torch.finfo(logits.dtype).tiny)


def nce() -> Normalised:
    """Normalised cross-entropy, log p_y / sum_k log p_k.

    Example:
        >>> nce().rows(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        tensor([0.5000])

    Source: Ma et al., arXiv 2006.13554.
    """
    return Normalised(cross_entropy())


def normalised(name: str = "cross_entropy", *more: str | float) -> Normalised:
    """The normalised form of a loss by name: "normalised:focal:2", "normalised:agce:1,2".

    Raises:
        ValueError: an unknown name, or a loss that is not one of the label's probability alone.

    Example:
        >>> normalised("gce:0.7").of
        CompSum(tau=1.7)
    """
    return Normalised(supervised_objective(",".join(map(str, (name, *more)))))  # pyright: ignore[reportArgumentType]  # it checks


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"nce": nce, "normalised": normalised}
