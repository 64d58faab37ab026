"""Distributionally robust risk: the mean loss under the worst distribution over the sample, near the undisturbed one by any f-divergence.

    penalised    R(l) = max_w <w, l> - T D_f(w||q)
    in a ball    R(l) = max_w { <w, l> : D_f(w||q) <= radius } = min_{T >= 0} T radius + max_w <w, l> - T D_f(w||q)

over distributions w on the N samples; q is uniform unless given. The penalised risk is the value of the operator of f at the losses, and the worst
distribution its softargmax: nothing is defined here a second time. The gradient of a risk in the losses is the worst distribution.

Laws (tested): mean <= R <= max; R(l + c) = R(l) + c; monotone and convex in l; the gradient is a distribution; T -> inf and radius 0 give the mean,
T -> 0 and a large radius the maximum. With f = (u - 1)^2/2 and a radius that leaves all weights positive, R = mean + sqrt(2 radius variance).
"""

import math

from torch import Tensor

from ...checks import check_positive
from ...generators import Generator
from ...generators import generator as named
from ...operators import softargmax, softmax_value, weights
from .sample import check_losses, nominal

__all__ = ["dro", "dro_ball"]

# of log D - log radius or of the bracket of log T, and the most steps that the iteration is given
TOLERANCE, STEPS = 1e-13, 200
# a ball of this radius moves no weight by more than float64 can hold
RESOLVED = 1e-30


def dro(losses: Tensor, generator: str | Generator = "kl", *, temperature: float, q: Tensor | None = None) -> Tensor:
    """The penalised risk max_w <w, l> - T D_f(w||q); for KL, T log mean exp(l/T).

    Args:
        losses: [N].
        generator: a name or a Generator; sparse ones (chi-square among them) give weight zero to small losses.
        temperature: T > 0, in the units of the losses: the mean as T -> inf, the maximum as T -> 0.
        q: [N], positive and summing to one, constant; None: uniform.

    Returns:
        A scalar in the dtype of losses; derivatives of any order. NaN where a loss is NaN or infinite.

    Raises:
        ValueError: losses that are not [N] with N >= 1, T not positive, q no distribution, a generator without an operator.
        TypeError: losses or q not floating.

    Example:
        >>> import torch
        >>> losses = torch.tensor([0.0, 1.0, 5.0])
        >>> [round(float(dro(losses, temperature=t)), 3) for t in (1e6, 1.0, 1e-3)]
        [2.0, 3.926, 4.999]
        >>> round(float(dro(losses, "chi2", temperature=100.0)), 3)  # mean + variance / (2 T)
        2.023

    Source: Ben-Tal et al. 2013 (phi-divergence uncertainty sets); that it is the value of the operator is derived.
    """
    wide = check_losses(losses)
    value = softmax_value(wide, generator, q=nominal(q, wide), temperature=check_positive("temperature", temperature))
    return value.to(losses.dtype)


def dro_ball(losses: Tensor, generator: str | Generator = "kl", *, radius: float, q: Tensor | None = None) -> Tensor:
    """The risk of a ball, max_w { <w, l> : D_f(w||q) <= radius }, exactly.

    The multiplier T of the ball is where D_f(w_T||q) = radius, found by Newton steps on logarithms within a bracket: D_f falls in T. Derivatives are
    those of the solution, to the second order. A radius that admits all weight on the largest loss gives the maximum.

    Args:
        losses: [N].
        generator: a name or a Generator; chi2 is f(u) = (u - 1)^2/2.
        radius: >= 0, in the units of the divergence.
        q: [N], positive and summing to one, constant; None: uniform.

    Returns:
        A scalar in the dtype of losses. NaN where a loss is NaN or infinite. Reads values: not under vmap or a compiler.

    Raises:
        ValueError: losses that are not [N] with N >= 1, a negative radius, q no distribution, a generator without an operator.
        TypeError: losses or q not floating.

    Example:
        >>> import torch
        >>> losses = torch.tensor([0.0, 1.0, 5.0])
        >>> [round(float(dro_ball(losses, "chi2", radius=r)), 3) for r in (0.0, 0.01, 10.0)]  # the second: 2 + sqrt(0.02 * 14/3)
        [2.0, 2.306, 5.0]

    Source: Ben-Tal et al. 2013; Namkoong & Duchi, arXiv 1610.02581 (chi-square and the variance); the derivative by the implicit function theorem.
    """
    wide, g = check_losses(losses), named(generator)
    q = nominal(q, wide)
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius: got {radius}; pass a finite number >= 0")
    if radius <= RESOLVED:
        return (q * wide).sum().to(losses.dtype)
    fixed = wide.detach()
    if not bool(fixed.isfinite().all()):
        return (wide * math.nan).sum().to(losses.dtype)
    if radius >= _farthest(fixed, q, g):
        return wide.amax().to(losses.dtype)
    start, slope = _multiplier(fixed, q, g, radius)
    # one Newton step from the solution: its value is the solution's, its derivative the implicit one
    t = start - (_distance(softargmax(wide / start, g, q=q), q, g) - radius) / slope
    return (t * (radius + softmax_value(wide / t, g, q=q))).to(losses.dtype)


def _distance(p: Tensor, q: Tensor, g: Generator) -> Tensor:
    """D_f(p||q); not by the operator's entropy, which near p = q is a small difference of large terms."""
    return (q * g.f(p / q)).sum()


def _farthest(losses: Tensor, q: Tensor, g: Generator) -> float:
    """D_f(w||q) of the nearest w that has all its weight on the largest losses."""
    mass = q[losses == losses.amax()].sum().clamp_max(1.0)
    left = float(1 - mass)
    return float(mass * g.f(1 / mass)) + (left * g.f0 if left > 0 else 0.0)


def _multiplier(losses: Tensor, q: Tensor, g: Generator, radius: float) -> tuple[Tensor, Tensor]:
    """T with D_f(w_T||q) = radius, and dD_f/dT there; log D_f is nearly linear in log T, with slope -2 for large T."""
    low, high = -math.inf, math.inf
    x = math.log(float(losses.max() - losses.min()))
    t = slope = losses.new_ones(())
    for _ in range(STEPS):
        t = losses.new_tensor(x).exp()
        p = softargmax(losses / t, g, q=q)
        slope = -_spread(losses, p, q, g) / t**3
        distance = float(_distance(p, q, g))
        gap = math.log(distance / radius) if distance > 0 else -math.inf
        low, high = (x, high) if gap > 0 else (low, x)
        if abs(gap) <= TOLERANCE or high - low <= TOLERANCE:
            break
        turn = float(slope) * math.exp(x) / distance if distance > 0 else 0.0
        step = x - gap / turn if turn < 0 else math.nan
        x = step if low < step < high else _between(low, high)
    return t, slope


def _spread(losses: Tensor, p: Tensor, q: Tensor, g: Generator) -> Tensor:
    """l' J l, with J the Jacobian of softargmax at p: -d <p, l> / d(1/T)."""
    w = weights(p / q, q, g)
    return (w * (losses - (w * losses).sum() / w.sum()).square()).sum()


def _between(low: float, high: float) -> float:
    """A point within the bracket, which may have one end alone."""
    if low == -math.inf:
        return high - 2.0
    return low + 2.0 if high == math.inf else (low + high) / 2
