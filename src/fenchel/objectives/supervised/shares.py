"""Losses -log p_y of probabilities of their own: the shares p_j = s_j / sum_k s_k of positive scores, a function of each logit."""

from collections.abc import Callable

import torch
from torch import Tensor

from .objective import present, weighed

Score = Callable[[Tensor], Tensor]


def scores(score: Score, logits: Tensor) -> Tensor:
    """s = score(z) > 0 of the classes in the vocabulary, 0 of the others; [..., V], as the logits."""
    there, z = present(logits)
    return torch.where(there, score(z), 0.0)


def shares(score: Score, logits: Tensor) -> Tensor:
    """p_j = s_j / sum_k s_k [..., V]."""
    s = scores(score, logits)
    return s / s.sum(-1, keepdim=True)


def share_loss(score: Score, logits: Tensor, target: Tensor) -> Tensor:
    """sum_j y_j (log sum_k s_k - log s_j) [N]; logits and target [N, V]."""
    total = scores(score, logits).sum(-1).log()
    there, z = present(logits)
    label = weighed(lambda z: torch.log(score(z)), z, target)
    # a label outside the vocabulary has the share 0
    missing = weighed(lambda out: out, torch.where(there, 0.0, torch.inf), target)
    return target.sum(-1) * total - label + missing
