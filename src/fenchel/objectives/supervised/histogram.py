"""Regression by classification: numbers as distributions over bins or levels, for any objective that takes probabilities."""

import math
from typing import Any

import torch
from torch import Tensor

from ...checks import check_positive

__all__ = ["binned", "binned_mean", "fidelity", "hl_gauss", "score_distribution", "thurstone"]


def binned(mean: Tensor, std: float | Tensor, edges: Tensor) -> Tensor:
    """The masses [..., B] of a normal distribution in bins, over its mass in all of them.

    Args:
        mean: [...], within the edges.
        std: > 0, a number or [...].
        edges: [B + 1], rising.

    Raises:
        ValueError: edges that do not rise, a mean outside them, a std that is not positive.

    Example:
        >>> binned(torch.tensor([0.0]), 1.0, torch.tensor([-9.0, 0.0, 9.0]))
        tensor([[0.5000, 0.5000]])

    Source: Imani & White, arXiv 1806.04613; Farebrother et al., arXiv 2403.03950.
    """
    if edges.dim() != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
        raise ValueError(f"edges: got shape {list(edges.shape)}; pass a rising vector [B + 1], two edges or more")
    if not bool(((mean >= edges[0]) & (mean <= edges[-1])).all()):
        raise ValueError(
            f"mean: got numbers in [{float(mean.min()):g}, {float(mean.max()):g}] for edges from {float(edges[0]):g} to {float(edges[-1]):g}; "
            "pass edges that hold all of them"
        )
    std = torch.as_tensor(std, dtype=mean.dtype, device=mean.device)
    if not bool((std > 0).all()):
        raise ValueError("std: got a number that is not positive; pass positive ones")
    below = torch.erf((edges.to(mean.dtype) - mean.unsqueeze(-1)) / (math.sqrt(2) * std.unsqueeze(-1)))
    mass = below.diff(dim=-1)
    return mass / mass.sum(-1, keepdim=True)


def hl_gauss(numbers: Tensor, edges: Tensor, *, ratio: float) -> Tensor:
    """HL-Gauss targets [..., B]: numbers as normal distributions over bins, whose std is `ratio` bins wide.

    There is no default: what is called HL-Gauss has been run at 0.75 and at 2, which are different targets.

    Args:
        numbers: [...], within the edges.
        edges: [B + 1], evenly spaced.
        ratio: > 0, the std over the width of a bin.

    Raises:
        ValueError: as `binned`; edges that are not evenly spaced.

    Example:
        >>> p = hl_gauss(torch.tensor([0.5]), torch.linspace(0, 1, 6), ratio=0.75)
        >>> p, binned_mean(p, torch.linspace(0, 1, 6))
        (tensor([[0.0223, 0.2299, 0.4954, 0.2299, 0.0223]]), tensor([0.5000]))

    Source: Farebrother et al., arXiv 2403.03950.
    """
    check_positive("ratio", ratio)
    width = edges.diff()
    if not bool((width - width[0]).abs().max() <= 1e-3 * width[0].abs()):
        raise ValueError("edges: got bins of different widths; pass evenly spaced edges, or call `binned` with a std")
    return binned(numbers, ratio * float(width.mean()), edges)


def binned_mean(p: Tensor, edges: Tensor) -> Tensor:
    """The mean [...] of distributions p [..., B] over bins, each at its centre.

    Example:
        >>> binned_mean(torch.tensor([[0.5, 0.5]]), torch.tensor([0.0, 1.0, 2.0]))
        tensor([1.])
    """
    centres = (edges[1:] + edges[:-1]) / 2
    return (p * centres.to(p.dtype)).sum(-1)


def score_distribution(mean: Tensor, std: Tensor, levels: Tensor) -> Tensor:
    """Scores of several raters as distributions [..., B] over levels, such as the words for bad to excellent.

    The mass of N(mean, std^2) nearest to each level. A one-hot label keeps neither the mean nor the spread.

    Args:
        mean, std: [...], of each item's ratings.
        levels: [B], what each level is worth, evenly spaced and rising.

    Raises:
        ValueError: as `binned`; a single level.

    Example:
        >>> score_distribution(torch.tensor([3.0]), torch.tensor([0.5]), torch.arange(1.0, 6.0))
        tensor([[0.0013, 0.1573, 0.6827, 0.1573, 0.0013]])

    Source: You et al. 2025, Teaching large language models to regress accurate image quality scores; the authors also adjust what is left of the mean.
    """
    if levels.dim() != 1 or len(levels) < 2:
        raise ValueError(f"levels: got shape {list(levels.shape)}; pass a rising vector [B] of two levels or more")
    half = (levels[1] - levels[0]) / 2
    edges = torch.cat((levels[:1] - half, (levels[1:] + levels[:-1]) / 2, levels[-1:] + half))
    return binned(mean, std, edges)


def thurstone(mean: Tensor, other: Tensor, variance: Any = 1.0, other_variance: Any = 1.0) -> Tensor:
    """The probability [...] that the first of two items is the better one, Phi((m - m') / sqrt(v + v')).

    Example:
        >>> thurstone(torch.tensor([1.0]), torch.tensor([1.0]))
        tensor([0.5000])

    Source: Thurstone 1927.
    """
    spread = torch.as_tensor(variance + other_variance, dtype=mean.dtype, device=mean.device).sqrt()
    return torch.special.ndtr((mean - other) / spread)


def fidelity(p: Tensor, q: Tensor) -> Tensor:
    """1 - sqrt(p q) - sqrt((1 - p)(1 - q)) [...]: the squared Hellinger distance of two Bernoulli variables, in [0, 1].

    With `thurstone` for p and q it compares the order of items within a data set, whatever its scale.

    Example:
        >>> fidelity(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.0]))
        tensor([0., 1.])

    Source: Tsai et al. 2007 (FRank).
    """
    least = torch.finfo(p.dtype).tiny  # the slope of a root at 0 is infinite
    return 1 - (p * q).clamp_min(least).sqrt() - ((1 - p) * (1 - q)).clamp_min(least).sqrt()
