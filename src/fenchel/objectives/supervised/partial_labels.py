"""Partial labels: a row's candidates, one of which is its label, and their purification as the model learns."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_number
from .objective import SET, LabelObjective

__all__ = ["Candidates", "purified"]


@dataclass(frozen=True)
class Candidates:
    """-log sum_(j in S) p_j, S the candidates of a row: the likelihood that the label is one of them.

    Cross-entropy for one candidate. The gradient of a candidate's logit is p_j less its share p_j / sum_S p among them, so that the model's own belief
    decides between candidates.

    Example:
        >>> Candidates().rows(torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
        tensor([0.6931])

    Source: Jin & Ghahramani 2002; the loss "CC" of Feng et al., arXiv 2007.08929.
    """

    takes = SET

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits [N, V], target [N, V] of zeros and ones."""
        inside = torch.where(target > 0, logits, -torch.inf)
        return torch.logsumexp(logits, -1) - torch.logsumexp(inside, -1)


@torch.no_grad()
def purified(logits: Tensor, candidates: Tensor, margin: float) -> Tensor:
    """The candidates [N, V] (bool) without those whose probability trails that of the row's likeliest candidate by more than `margin`.

    The likeliest always stays. Call it once an epoch with a margin that shrinks (the schedule is the caller's), and train on what is left.

    Args:
        logits: [N, V].
        candidates: bool [N, V], one or more per row.
        margin: in [0, 1], a difference of probabilities.

    Raises:
        TypeError: candidates that are not bool.
        ValueError: shapes that do not fit, a row without candidates, a margin outside [0, 1].

    Example:
        >>> z = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> purified(z, torch.tensor([[True, True, True]]), 0.25)
        tensor([[ True,  True, False]])

    Source: Xu et al., arXiv 2206.00830 (progressive purification), of whose procedure the abstract was seen: the rule and its margin are derived from that.
    """
    check_number("margin", margin, 0, 1)
    if candidates.dtype != torch.bool:
        raise TypeError(f"candidates: got {candidates.dtype}; pass bool {list(logits.shape)}")
    if candidates.shape != logits.shape:
        raise ValueError(f"candidates: got shape {list(candidates.shape)}; pass {list(logits.shape)}, as the logits")
    if not bool(candidates.any(-1).all()):
        raise ValueError("candidates: got a row without any; pass one candidate or more per row")
    p = torch.softmax(logits, -1).masked_fill(~candidates, -1.0)
    best = p.amax(-1, keepdim=True)
    return candidates & (p >= best - margin)


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"candidates": Candidates}
