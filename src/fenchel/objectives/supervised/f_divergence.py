"""The f-divergence of the target from the softmax of the logits: cross-entropy for KL, bounded and milder losses for others."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...generators import Generator
from ...generators import generator as named
from .objective import DISTRIBUTION, LabelObjective, weighed

__all__ = ["FDivergence"]


@dataclass(frozen=True)
class FDivergence:
    """D_f(y||p), p = softmax(z). For a class index, p_y f(1/p_y) + (1 - p_y) f(0).

    kl: -log p_y. hellinger: 2 (1 - sqrt(p_y)). js:B: the generalised Jensen-Shannon loss for noisy labels. tv: 1 - p_y. Where f(0) is infinite (reverse_kl,
    ...) so is the divergence: those generators are refused. Unlike with the Fenchel-Young loss of f, the model predicts with softmax.

    Supervised fine-tuning is KL from the demonstrations, and this is the same with another f, token by token: derived so from the abstract of "Implicit reward
    as the bridge" (2025), whose own formulas were not seen.

    Attributes:
        generator: f, a name or a Generator with finite f(0).

    Example:
        >>> z, y = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[1.0, 0.0]])
        >>> FDivergence("kl").rows(z, y), FDivergence("hellinger").rows(z, y), FDivergence("tv").rows(z, y)
        (tensor([1.3863]), tensor([1.0000]), tensor([0.7500]))

    Source: js: Englesson & Azizpour, arXiv 2105.04522.
    """

    generator: str | Generator = "kl"
    takes = DISTRIBUTION

    def __post_init__(self) -> None:
        if named(self.generator).f0 == torch.inf:
            raise ValueError(
                f"generator {named(self.generator).name!r}: D_f of a label from any other distribution is infinite; pass one with finite f(0)"
            )

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The divergence of each row [N]; logits and target [N, V]."""
        g = named(self.generator)
        log_p = torch.log_softmax(logits, -1)
        # p f(y/p) = y f(p/y) with the adjoint's f; where y = 0 it is p f(0)
        away = log_p - torch.log(torch.where(target > 0, target, 1.0))
        rest = torch.where(target > 0, 0.0, log_p.exp()).sum(-1)
        return weighed(g.adjoint.of_log_ratio, away, target) + g.f0 * rest


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"f_divergence": FDivergence}
