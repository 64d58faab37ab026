"""Direct coverage: the chance that one of N samples is the answer, for models that are sampled N times."""

import math

import torch
from torch import Tensor

__all__ = ["coverage"]

# n x below which the loss is summed as a series: the next term is this cubed / 24
SMALL = 1e-4


def coverage(logp: Tensor, n: int) -> Tensor:
    """-log(1 - (1 - x)^n) [...], x = exp(logp): the negative log of the chance that one of n samples is the answer.

    n = 1 is -logp. Its gradient is that of -logp times n (1 - x)^(n-1) x / (1 - (1 - x)^n) <= 1: a sequence that n samples will hit anyway is left alone, and
    confidence beyond need is not trained for.

    Args:
        logp: [...], <= 0: log-probabilities of whole sequences, `linear_logp(...).logp.sum(-1)`.
        n: >= 1, how many samples are drawn.

    Raises:
        TypeError: n is no integer.
        ValueError: n below 1.

    Example:
        >>> coverage(torch.tensor([0.25]).log(), 2)     # -log(1 - 9/16)
        tensor([0.8267])

    Source: Chen et al. 2025, Rethinking fine-tuning when scaling test-time compute, and the authors' code.
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n: got {n!r}; pass a whole number >= 1")
    if n < 1:
        raise ValueError(f"n: got {n}; pass a whole number >= 1")
    if n == 1:
        return -logp
    small = logp < math.log(SMALL / n)
    # the branch that is not taken must have a gradient too
    x = torch.where(small, logp, -1.0e3).exp()
    series = -logp - math.log(n) - torch.log1p(-(n - 1) * x / 2 + (n - 1) * (n - 2) * x * x / 6)
    near_one = -(torch.finfo(logp.dtype).tiny ** 0.5)
    missed = n * _log_complement(torch.where(small, -1.0, logp).clamp_max(near_one))
    return torch.where(small, series, -_log_complement(missed.clamp_max(near_one)))


def _log_complement(logp: Tensor) -> Tensor:
    """log(1 - exp(logp)), logp < 0."""
    near = logp > -math.log(2)
    return torch.where(
        near, torch.log(-torch.expm1(torch.where(near, logp, -1.0))), torch.log1p(-torch.where(near, -1.0, logp).exp())
    )
