"""Penalties on logits and probabilities, of no label: to be added, as in "cross_entropy + 0.1*confidence_penalty"."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .ldr import classes_of
from .objective import EVERY, LabelObjective, entropy_of, present

__all__ = ["ConfidencePenalty", "EntropyPenalty", "LogPartition", "LogitPenalty"]


@dataclass(frozen=True)
class LogPartition:
    """(log sum_j exp z_j)^2: keeps the logits' free constant at zero.

    Example:
        >>> LogPartition().rows(torch.zeros(1, 4), torch.eye(4)[:1])     # (log 4)^2
        tensor([1.9218])

    Source: "z-loss" of Chowdhery et al., arXiv 2204.02311 (PaLM), with the weight 1e-4; after Devlin et al. 2014.
    """

    takes = EVERY

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The penalty of each row [N]; logits [N, V]."""
        return torch.logsumexp(logits, -1).square()


@dataclass(frozen=True)
class EntropyPenalty:
    """H(p), the entropy of softmax(z): makes predictions surer.

    Example:
        >>> EntropyPenalty().rows(torch.zeros(1, 4), torch.eye(4)[:1])
        tensor([1.3863])

    Source: Grandvalet & Bengio 2005.
    """

    takes = EVERY

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The penalty of each row [N]; logits [N, V]."""
        return entropy_of(torch.log_softmax(logits, -1))


@dataclass(frozen=True)
class ConfidencePenalty:
    """log K - H(p) = KL(p||uniform) >= 0 over the K classes in the vocabulary: makes predictions less sure.

    Example:
        >>> ConfidencePenalty().rows(torch.zeros(1, 4), torch.eye(4)[:1])
        tensor([0.])

    Source: Pereyra et al., arXiv 1701.06548, who penalise -H(p): the same less a constant.
    """

    takes = EVERY

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The penalty of each row [N]; logits [N, V]."""
        return classes_of(logits).squeeze(-1).log() - entropy_of(torch.log_softmax(logits, -1))


@dataclass(frozen=True)
class LogitPenalty:
    """sum_j z_j^2 / 2 over the classes in the vocabulary: spectral decoupling, where it replaces weight decay.

    Example:
        >>> LogitPenalty().rows(torch.tensor([[1.0, 2.0]]), torch.eye(2)[:1])
        tensor([2.5000])

    Source: Pezeshki et al., arXiv 2011.09468 (Gradient starvation).
    """

    takes = EVERY

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The penalty of each row [N]; logits [N, V]."""
        return present(logits)[1].square().sum(-1) / 2


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {
    "log_partition": LogPartition,
    "entropy_penalty": EntropyPenalty,
    "confidence_penalty": ConfidencePenalty,
    "logit_penalty": LogitPenalty,
}
