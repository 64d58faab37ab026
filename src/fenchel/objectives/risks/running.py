"""KL-robust risk of a data set, a batch at a time.

The weight of a sample, exp(l_i/T) over its mean, needs the mean over the whole data set: that of a batch is biased, the more the smaller the batch.
A running estimate u of the mean removes it:

    u <- (1 - rate) u + rate mean_batch exp(l/T),    w_i = exp(l_i/T) / (B u)

sum_i w_i l_i then has, in expectation, the gradient of T log mean exp(l/T) over the data set once u is its mean: a compositional gradient. Held as
log u, so that nothing overflows.

Laws (tested): rate 1 on all samples is `dro`; with the parameters at rest u tends to the mean over the data; weights of a batch sum to mean_batch / u.
"""

import math

import torch
from torch import Tensor

from ...checks import check_positive
from .sample import check_losses

__all__ = ["running_log_mean", "running_weights"]


def running_log_mean(losses: Tensor, log_mean: Tensor | None, *, temperature: float, rate: float) -> Tensor:
    """log u after a batch, a scalar in float64: pass it to `running_weights`, and back here with the next batch.

    Args:
        losses: [B].
        log_mean: log u before the batch; None for the first one, which sets it.
        temperature: T > 0.
        rate: in (0, 1]; 1 forgets all earlier batches.

    Raises:
        ValueError: a number outside its domain, losses that are not [B].
        TypeError: losses not floating.

    Example:
        >>> first = running_log_mean(torch.zeros(2), None, temperature=1.0, rate=0.5)
        >>> round(float(running_log_mean(torch.full((2,), 3.0).log(), first, temperature=1.0, rate=0.5).exp()), 4)
        2.0

    Source: Wang, Fang & Liu 2017 (compositional gradients).
    """
    scaled = check_losses(losses).detach() / check_positive("temperature", temperature)
    if not 0 < rate <= 1:
        raise ValueError(f"rate: got {rate}; pass a number in (0, 1]")
    now = scaled.logsumexp(0) - math.log(len(scaled))
    if log_mean is None or rate == 1:
        return now
    return torch.logaddexp(log_mean + math.log1p(-rate), now + math.log(rate))


def running_weights(losses: Tensor, log_mean: Tensor, *, temperature: float) -> Tensor:
    """exp(l_i/T) / (B u) [B], constant: (running_weights(l, log_u, temperature=T) * l).sum() is what to differentiate.

    Raises:
        ValueError, TypeError: as `running_log_mean`.

    Example:
        >>> losses = torch.tensor([0.0, 0.6931472])
        >>> log_u = running_log_mean(losses, None, temperature=1.0, rate=0.1)
        >>> running_weights(losses, log_u, temperature=1.0)
        tensor([0.3333, 0.6667])

    Source: as `running_log_mean`.
    """
    scaled = check_losses(losses).detach() / check_positive("temperature", temperature)
    return (scaled - log_mean).exp().div(len(scaled)).to(losses.dtype)
