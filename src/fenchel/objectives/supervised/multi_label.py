"""Multi-label losses: a yes or no for each class, focused apart for the two, and the recall of labels that are missing."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_number, check_weight
from .objective import LABELS, LabelObjective, present, softplus

__all__ = ["Binary", "multi_focal", "recalled"]


@dataclass(frozen=True)
class Binary:
    """sum_j of -(1 - s_j)^gamma_positive log s_j over the labels, -s_j^gamma_negative log(1 - s_j) over the others, s_j = sigmoid(z_j).

    Binary cross-entropy, summed over the classes in the vocabulary, at both gammas 0; focal loss where they are equal; asymmetric where the many
    negatives are to be focused more than the few positives. For a gamma per class (head and tail apart) call `multi_focal`.

    Attributes:
        gamma_positive, gamma_negative: >= 0.

    Example:
        >>> Binary().rows(torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 0.0]]))     # 3 log 2
        tensor([2.0794])

    Source: Lin et al., arXiv 1708.02002; two gammas: Ridnik et al., arXiv 2009.14119.
    """

    gamma_positive: float = 0.0
    gamma_negative: float = 0.0
    takes = LABELS

    def __post_init__(self) -> None:
        check_weight("gamma_positive", self.gamma_positive)
        check_weight("gamma_negative", self.gamma_negative)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits [N, V], target [N, V] of zeros and ones."""
        return multi_focal(logits, target, self.gamma_positive, self.gamma_negative)


def multi_focal(
    logits: Tensor, target: Tensor, gamma_positive: float | Tensor, gamma_negative: float | Tensor
) -> Tensor:
    """The formula of `Binary` with a gamma per class: the multi-focal modifier for long-tailed labels [N].

    Args:
        logits: [N, V].
        target: zeros and ones [N, V].
        gamma_positive, gamma_negative: >= 0, numbers or [V]; rare classes take a smaller positive one, so that their few labels count in full.

    Example:
        >>> z, y = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
        >>> multi_focal(z, y, torch.tensor([1.0, 0.0]), 0.0)     # log 2 / 2 + log 2
        tensor([1.0397])

    Source: Zhang et al. 2023, Learning in imperfect environment (COMIC), from its abstract.
    """
    there, z = present(logits)
    sign = 1 - 2 * target
    miss = softplus(sign * z)  # -log of the probability of what is so
    gamma = target * gamma_positive + (1 - target) * gamma_negative
    # the probability of what is not so, to the gamma
    focus = torch.exp(-gamma * softplus(-sign * z))
    return torch.where(there, focus * miss, 0.0).sum(-1)


@torch.no_grad()
def recalled(logits: Tensor, labels: Tensor, threshold: float | Tensor) -> Tensor:
    """The labels [N, V] (bool) and those that the model is convinced are missing: sigmoid(z_j) above the class's threshold.

    Args:
        logits: [N, V].
        labels: bool [N, V].
        threshold: in [0, 1], a number or [V]: aware of the class, for a rare one is predicted lower.

    Raises:
        TypeError: labels that are not bool.
        ValueError: shapes that do not fit, a threshold outside [0, 1].

    Example:
        >>> recalled(torch.tensor([[3.0, -3.0]]), torch.tensor([[False, False]]), 0.9)
        tensor([[ True, False]])

    Source: Zhang et al. 2023, Learning in imperfect environment (COMIC), from its abstract.
    """
    if labels.dtype != torch.bool:
        raise TypeError(f"labels: got {labels.dtype}; pass bool {list(logits.shape)}")
    if labels.shape != logits.shape:
        raise ValueError(f"labels: got shape {list(labels.shape)}; pass {list(logits.shape)}, as the logits")
    for x in (torch.as_tensor(threshold).amin(), torch.as_tensor(threshold).amax()):
        check_number("threshold", float(x), 0, 1)
    return labels | (torch.sigmoid(logits) > threshold)


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"binary": Binary}
