"""The logarithm of what is left of a probability."""

import math

import torch
from torch import Tensor

__all__ = ["log_complement"]


def log_complement(log_p: Tensor) -> Tensor:
    """log(1 - p) from log p <= 0, elementwise, accurate at both ends; -inf, without a gradient, where p = 1.

    log(-expm1(x)) for p > 1/2 and log1p(-exp(x)) below: each loses its digits where the other keeps them.

    Example:
        >>> log_complement(torch.tensor([0.0, -1e-6, -20.0]))
        tensor([     -inf, -1.3816e+01, -2.0612e-09])

    Source: Maechler, Accurately computing log(1 - exp(-|a|)), 2012.
    """
    all_of_it = log_p == 0
    x = torch.where(all_of_it, -1.0, log_p)
    high = x > -math.log(2)
    near = torch.log(-torch.expm1(torch.where(high, x, -0.5)))
    far = torch.log1p(-torch.exp(torch.where(high, -1.0, x)))
    return torch.where(all_of_it, -torch.inf, torch.where(high, near, far))
