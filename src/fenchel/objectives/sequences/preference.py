"""Preference-oriented fine-tuning: the model is to prefer the data more than aligned models do."""

import torch
from torch import Tensor

from ...checks import check_positive

__all__ = ["preference_sft"]


def preference_sft(logp: Tensor, reference: Tensor, *, beta: float = 1.0) -> Tensor:
    """-log sigmoid(beta (logp - reference)) [...]: a Bradley-Terry preference for the model over aligned ones, on the same sequence.

    The gradient is beta sigmoid(beta (reference - logp)) times that of -logp: a sequence that aligned models hold to be unlikely, as a corrupted one is,
    counts less.

    Args:
        logp: [B], log-probabilities of sequences, over their lengths if these differ (`length_normalised`).
        reference: [B], or [M, B] of M aligned models, over which the loss is a mean; a constant.
        beta: > 0.

    Raises:
        ValueError: shapes that do not fit, a beta that is not positive.

    Example:
        >>> preference_sft(torch.tensor([-1.0]), torch.tensor([-1.0]))     # log 2
        tensor([0.6931])

    Source: Fan et al. 2024, Preference-oriented supervised fine-tuning, from its abstract: lengths, beta and several models are as derived here.
    """
    check_positive("beta", beta)
    if reference.shape[-logp.dim() :] != logp.shape or reference.dim() > logp.dim() + 1:
        raise ValueError(
            f"reference: got shape {list(reference.shape)}; pass {list(logp.shape)}, or [M, ...] of M models"
        )
    loss = torch.nn.functional.softplus(beta * (reference.detach() - logp), threshold=40.0)
    return loss if reference.dim() == logp.dim() else loss.mean(0)
