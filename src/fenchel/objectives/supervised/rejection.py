"""Learning when not to answer: a rejector for a predictor that is fixed."""

import torch
from torch import Tensor

from ...checks import check_number

__all__ = ["rejection_loss"]


def rejection_loss(score: Tensor, wrong: Tensor, cost: float, *, alpha: float = 1.0) -> Tensor:
    """1[wrong] exp(alpha s) + cost exp(-alpha s) [...], for a rejector that answers where its score s is positive.

    It is never below what it stands for, 1[wrong and s > 0] + cost 1[s <= 0]. Where the predictor errs with probability eta its minimiser is
    s = log(cost / eta) / (2 alpha): positive, so that the predictor answers, exactly where eta < cost.

    Args:
        score: [...], of the rejector.
        wrong: bool [...], where the fixed predictor errs.
        cost: in (0, 1), of not answering, against 1 of a wrong answer.
        alpha: > 0.

    Raises:
        TypeError: wrong is not bool.
        ValueError: shapes that do not fit, a cost outside (0, 1).

    Example:
        >>> rejection_loss(torch.tensor([0.0, 0.0]), torch.tensor([True, False]), 0.25)
        tensor([1.2500, 0.2500])

    Source: Mohri et al. 2023, Learning to reject with a fixed predictor, from its abstract: the exponential surrogate and its minimiser are derived here.
    """
    if wrong.dtype != torch.bool:
        raise TypeError(f"wrong: got {wrong.dtype}; pass bool {list(score.shape)}, True where the predictor errs")
    if wrong.shape != score.shape:
        raise ValueError(f"wrong: got shape {list(wrong.shape)}; pass {list(score.shape)}, as the scores")
    check_number("alpha", alpha)
    if not 0 < cost < 1 or alpha <= 0:
        raise ValueError(f"got cost = {cost}, alpha = {alpha}; pass a cost in (0, 1) and alpha > 0")
    return torch.where(wrong, torch.exp(alpha * score), 0.0) + cost * torch.exp(-alpha * score)
