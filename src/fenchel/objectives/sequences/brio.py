"""Ranking of candidate sequences: better ones are to be likelier, by a margin that grows with the distance in rank."""

import torch
from torch import Tensor

from ...checks import check_number, check_weight

__all__ = ["length_normalised", "ranking_loss"]


def length_normalised(logp: Tensor, length: Tensor, alpha: float = 1.0) -> Tensor:
    """logp / length^alpha [...].

    Example:
        >>> length_normalised(torch.tensor([-4.0]), torch.tensor([4]), 0.5)
        tensor([-2.])
    """
    check_number("alpha", alpha)
    return logp / length.to(logp.dtype) ** alpha


def ranking_loss(scores: Tensor, margin: float) -> Tensor:
    """sum_(i < j) max(0, s_j - s_i + (j - i) margin) [...]: 0 where the candidates are ordered by their quality, with that much room.

    To be added to the likelihood of the reference, whose mass it would spread otherwise.

    Args:
        scores: [..., K], length-normalised log-probabilities of K candidates, the best one first.
        margin: >= 0.

    Raises:
        ValueError: no candidates, a negative margin.

    Example:
        >>> ranking_loss(torch.tensor([-1.0, -2.0, -1.5]), 0.25)     # the third is half above the second: 0.5 + 0.25
        tensor(0.7500)

    Source: Liu et al., arXiv 2203.16804 (BRIO).
    """
    check_weight("margin", margin)
    if scores.dim() == 0 or scores.shape[-1] == 0:
        raise ValueError(f"scores: got shape {list(scores.shape)}; pass [..., K] with one candidate or more")
    rank = torch.arange(scores.shape[-1], device=scores.device, dtype=scores.dtype)
    distance = rank - rank.unsqueeze(-1)  # j - i
    over = scores.unsqueeze(-2) - scores.unsqueeze(-1) + margin * distance
    return torch.where(distance > 0, over, 0.0).clamp_min(0.0).sum((-1, -2))
