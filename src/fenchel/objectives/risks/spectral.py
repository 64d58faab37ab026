"""Spectral risks: a weight for each rank of loss, so that the worst ones count more; CVaR and the average of the k largest losses among them.

    R(l) = sum_i sigma_i l_(i) = max_{w in P(sigma)} <w, l>,    l_(1) <= ... <= l_(N),    0 <= sigma_1 <= ... <= sigma_N,  sum sigma = 1

P(sigma), the permutahedron, is the convex hull of the permutations of sigma. With smoothing T > 0

    R_T(l) = max_{w in P(sigma)} <w, l> - T (1/N) sum_i (N w_i - 1)^2 / 2

the risk has one gradient everywhere, a Lipschitz one, which is what gradients with reduced variance need (`prospect`).

Laws (tested): those of `dro`; R is positively homogeneous; CVaR is min_t t + mean(relu(l - t)) / share; sigma uniform gives the mean, sigma = (0, ..., 1) the
maximum; R_T rises to R as T -> 0.
"""

import math

import torch
from torch import Tensor

from ...checks import check_floating, check_positive
from .sample import SUM_TOLERANCE, check_losses

__all__ = ["cvar", "cvar_spectrum", "exponential_spectrum", "extremile_spectrum", "spectral_risk"]


def cvar(losses: Tensor, share: float, *, smoothing: float = 0.0) -> Tensor:
    """The conditional value at risk: the mean of the worst `share` of the losses; the loss at the border counts in part.

    Args:
        losses: [N].
        share: in (0, 1]; 1 is the mean, up to 1/N the maximum, k/N the average of the k largest.
        smoothing: as `spectral_risk`.

    Returns, Raises: as `spectral_risk`.

    Example:
        >>> losses = torch.tensor([4.0, 1.0, 2.0, 3.0])
        >>> [float(cvar(losses, share)) for share in (1.0, 0.5, 0.375, 0.1)]
        [2.5, 3.5, 3.6667, 4.0]

    Source: Rockafellar & Uryasev 2000.
    """
    wide = check_losses(losses)
    return spectral_risk(losses, cvar_spectrum(len(wide), share), smoothing=smoothing)


def spectral_risk(losses: Tensor, spectrum: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """The spectral risk of losses, with a chi-square penalty of weight `smoothing`.

    The penalised maximiser is the projection of l/(T N) onto the permutahedron, which one isotonic regression finds: w_i = 1/N + (l_i - c_i)/(T N) with c
    the increasing fit to l_i - T (N sigma_i - 1) in the order of the losses.

    Args:
        losses: [N].
        spectrum: sigma [N], >= 0, not decreasing, summing to one; constant.
        smoothing: T >= 0, in the units of the losses.

    Returns:
        A scalar in the dtype of losses. Its gradient is the worst w; at ties without smoothing, one of them. NaN where a loss is NaN.

    Raises:
        ValueError: losses that are not [N] with N >= 1, a spectrum of another shape or no spectrum, T negative.
        TypeError: losses or spectrum not floating.

    Example:
        >>> losses = torch.tensor([3.0, 0.0, 1.0], requires_grad=True)
        >>> risk = spectral_risk(losses, extremile_spectrum(3, 2.0))
        >>> torch.autograd.grad(risk, losses)[0]  # 1/9 of the smallest, 3/9, 5/9
        tensor([0.5556, 0.1111, 0.3333])

    Source: Acerbi 2002; Mehta et al., arXiv 2310.13863 (with an f-divergence penalty; here f is chi-square); the projection by isotonic regression is of
    Negrinho & Martins 2014.
    """
    wide = check_losses(losses)
    sigma = _check_spectrum(spectrum, wide)
    if not 0 <= smoothing < math.inf:
        raise ValueError(f"smoothing: got {smoothing}; pass a finite number >= 0")
    ordered = wide.sort().values
    if smoothing == 0:
        return (sigma * ordered).sum().to(losses.dtype)
    n = len(wide)
    fitted = ordered - smoothing * (n * sigma - 1)
    block = _isotonic_blocks(fitted.detach())
    sums = fitted.new_zeros(n).index_add(0, block, fitted)
    level = (sums / torch.bincount(block, minlength=n).clamp_min(1))[block]
    u = 1 + (ordered - level) / smoothing
    return ((u * ordered).mean() - smoothing * (u - 1).square().mean() / 2).to(losses.dtype)


def cvar_spectrum(n: int, share: float) -> Tensor:
    """The spectrum of CVaR, [n]: the largest n * share ranks have weight 1/(n * share), the one at the border what is left.

    Raises:
        ValueError: share outside (0, 1], n < 1.

    Example:
        >>> cvar_spectrum(4, 0.375).tolist()
        [0.0, 0.0, 0.3333, 0.6667]
    """
    _check_number("share", share, 0.0, 1.0)
    # ranks from the top: the part of rank r that the worst share covers
    return (n * share - _ranks(n).flip(0) + 1).clamp(0, 1) / (n * share)


def extremile_spectrum(n: int, order: float) -> Tensor:
    """(i/n)^order - ((i - 1)/n)^order, [n]: the expected maximum of `order` draws from the sample.

    Raises:
        ValueError: order < 1, n < 1.

    Example:
        >>> extremile_spectrum(2, 2.0).tolist()
        [0.25, 0.75]

    Source: Daouia et al. 2019.
    """
    _check_number("order", order, 1.0, math.inf)
    ranks = _ranks(n)
    return (ranks / n) ** order - ((ranks - 1) / n) ** order


def exponential_spectrum(n: int, aversion: float) -> Tensor:
    """(exp(a i/n) - exp(a (i - 1)/n)) / (exp(a) - 1), [n], for a risk aversion a > 0; uniform as a -> 0.

    Raises:
        ValueError: a not positive and finite, n < 1.

    Example:
        >>> exponential_spectrum(2, 2 * 0.6931471805599453).tolist()  # powers of 4: (2 - 1)/3, (4 - 2)/3
        [0.3333, 0.6667]

    Source: Cotter & Dowd 2006.
    """
    a = check_positive("aversion", aversion)
    # over exp(a), so that nothing overflows
    return torch.exp(a * (_ranks(n) / n - 1)) * math.expm1(-a / n) / math.expm1(-a)


def _ranks(n: int) -> Tensor:
    if n < 1:
        raise ValueError(f"n: got {n}; pass the number of losses, >= 1")
    return torch.arange(1, n + 1, dtype=torch.float64)


def _check_number(name: str, x: float, above: float, most: float) -> None:
    inside = above < x <= most if above == 0 else above <= x < most
    if isinstance(x, bool) or not inside:
        raise ValueError(f"{name}: got {x}; pass a number in {'(0, 1]' if above == 0 else '[1, inf)'}")


def _check_spectrum(spectrum: Tensor, losses: Tensor) -> Tensor:
    check_floating("spectrum", spectrum, "[N]")
    if spectrum.shape != losses.shape:
        raise ValueError(
            f"spectrum: got shape {list(spectrum.shape)} for {len(losses)} losses; pass one weight per rank"
        )
    sigma = spectrum.detach().double().to(losses.device)
    rising = bool((sigma >= 0).all()) and bool((sigma.diff() >= -SUM_TOLERANCE / len(sigma)).all())
    if not rising or not abs(float(sigma.sum()) - 1) <= SUM_TOLERANCE:
        raise ValueError(
            "spectrum: got weights that are negative, decrease or do not sum to one; pass 0 <= s_1 <= ... <= s_N, sum 1"
        )
    return sigma


def _isotonic_blocks(y: Tensor) -> Tensor:
    """The block [N] of each entry in the increasing least-squares fit to y [N]: neighbours out of order are pooled, until none is."""
    means: list[float] = []
    sizes: list[int] = []
    for value in y.tolist():
        mean, size = value, 1
        while means and means[-1] >= mean:
            before = sizes.pop()
            mean = (means.pop() * before + mean * size) / (before + size)
            size += before
        means.append(mean)
        sizes.append(size)
    return torch.repeat_interleave(torch.arange(len(sizes), device=y.device), torch.tensor(sizes, device=y.device))
