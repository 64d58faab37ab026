"""One class's share of a divergence, q f(p/q), and its derivatives: for `divergences` and for the fused head.

With t = log p - log q and f°(u) = u f(1/u), neither p/q nor q/p is formed:

    term = max(p, q) h(exp -|t|),    h = f where p <= q, f° where p > q,

overflows only if the term itself does, and is >= 0 because f is normalised to f(1) = f'(1) = 0: no divergence is a
small difference of large sums. Its derivatives in log p and log q add up to the term, so one is computed and the
other is what is left. The computed one belongs to the *smaller* probability, which would otherwise drown in the
rounding of the larger one's; only where it does not vanish with the smaller probability (u f'(u) at u = 0: reverse
KL, Neyman, ...) is it the larger one's.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .generators import INF, Generator, Scalar
from .generators import generator as named
from .operators import plain_derivatives

__all__ = ["Scalars", "row_divergence", "scalars", "skewed", "terms", "through_softmax"]

# log 0, but finite: 0 * FAR is 0 and FAR - FAR is 0. No log-probability of finite logits comes near it.
FAR = 1e30
# Slopes are evaluated at log-ratios above this: exp(-FLOOR) is far from overflow, exp(FLOOR) far below rounding.
FLOOR = {torch.float32: -60.0, torch.float64: -300.0}


def skewed(generator: str | Generator, skew: float) -> Generator:
    """The generator of (p, q) -> D_f(p || skew p + (1 - skew) q); a divergence only, it has no operator.

    f_skew(u) = m f(u/m) with m = skew u + 1 - skew; its adjoint is f°(skew + (1 - skew) u), finite at u = 0.

    Raises:
        ValueError: skew outside [0, 1), an unknown generator.
        TypeError: skew is not a number.

    Example:
        >>> g = skewed("kl", 0.1)
        >>> g.name, round(g.adjoint.f0, 4)      # what a class with q = 0 adds, per unit of p: log 10 - 1 + 0.1
        ('skew:0.1 kl', 1.4026)
    """
    g, w = named(generator), check_skew(skew)
    if w == 0:
        return g
    return Generator(
        name=f"skew:{w:g} {g.name}",
        formula=f"m f(u/m),  m = {w:g} u + {1 - w:g},  f = {g.formula}",
        of_log_ratio=partial(_skew_below, f=g.of_log_ratio, w=w),
        link=partial(_skew_below_slope, f=g.of_log_ratio, slope=_slope_of(g), w=w),
        unlink=None,
        spread=None,
        dual=None,
        f0=(1 - w) * g.f0,
        df0=w * g.f0 + g.df0 if g.f0 < INF else -INF,
        adjoint_of=lambda: _skewed_adjoint(g, w),
        source="Lee 2001; Ko et al., arXiv 2402.03898 (DistiLLM)",
    )


def _skewed_adjoint(g: Generator, w: float) -> Generator:
    f = g.adjoint
    slope = _slope_of(f)
    at_zero = torch.tensor(math.log(w), dtype=torch.float64)
    return Generator(
        name=f"adjoint of skew:{w:g} {g.name}",
        formula=f"f({w:g} + {1 - w:g} u),  f = {f.formula}",
        of_log_ratio=partial(_skew_above, f=f.of_log_ratio, w=w),
        link=partial(_skew_above_slope, slope=slope, w=w),
        unlink=None,
        spread=None,
        dual=None,
        f0=float(f.of_log_ratio(at_zero)),
        df0=(1 - w) * float(slope(at_zero)),
        adjoint_of=lambda: skewed(g, w),
        source="Lee 2001; Ko et al., arXiv 2402.03898 (DistiLLM)",
    )


def _skew_below(t: Tensor, f: Scalar, w: float) -> Tensor:
    mix = _log_mix(t, w)
    return torch.exp(mix) * f(t - mix)


def _skew_below_slope(t: Tensor, f: Scalar, slope: Scalar, w: float) -> Tensor:
    mix = _log_mix(t, w)
    return w * f(t - mix) + (1 - w) * torch.exp(-mix) * slope(t - mix)


def _skew_above(t: Tensor, f: Scalar, w: float) -> Tensor:
    return f(_log_mix(t, 1 - w))


def _skew_above_slope(t: Tensor, slope: Scalar, w: float) -> Tensor:
    return (1 - w) * slope(_log_mix(t, 1 - w))


def _slope_of(g: Generator) -> Scalar:
    """`g.slope`, its constant computed: a compiler cannot follow that."""
    return partial(_shifted, link=g.link, by=g.link_one)


def _shifted(t: Tensor, link: Scalar, by: float) -> Tensor:
    return link(t) - by


def _log_mix(t: Tensor, w: float) -> Tensor:
    """log(w exp(t) + 1 - w), t <= 0: the first form is accurate near t = 0, the second at small w or 1 - w."""
    near = torch.log1p(w * torch.expm1(t.clamp_min(-1.0)))
    return torch.where(t > -1, near, torch.log(w * torch.exp(t) + (1 - w)))


@dataclass(frozen=True)
class Scalars:
    """The functions of a log-ratio t <= 0 that a generator's terms are made of, and what is known of them.

    Attributes:
        below, above: f and f° (one object if they are the same).
        below_slope, above_slope: f' and f°'; where both `vanish`, for t <= 0 alone.
        infinite: whether f(0) and f°(0) are.
        vanish: whether u f'(u) and u f°'(u) do, as u -> 0.
    """

    below: Scalar
    above: Scalar
    below_slope: Scalar
    above_slope: Scalar
    infinite: tuple[bool, bool]
    vanish: tuple[bool, bool]


def terms(log_p: Tensor, log_q: Tensor, g: Generator, skew: float = 0.0) -> Tensor:
    """q f(p/q), or its skewed form, elementwise; >= 0, and differentiable in both log-probabilities."""
    if plain_derivatives():
        # no Generator is made here: a compiler cannot follow it
        below, above, infinite = g.of_log_ratio, g.adjoint.of_log_ratio, (g.f0 == INF, g.adjoint.f0 == INF)
        if skew > 0:
            below, above = partial(_skew_below, f=below, w=skew), partial(_skew_above, f=above, w=skew)
            infinite = (infinite[0], False)
        return _value(log_p, log_q, below, above, infinite)[0]
    out: Tensor = _Terms.apply(log_p, log_q, skewed(g, skew))  # pyright: ignore[reportAssignmentType]
    return out


def row_divergence(
    log_p: Tensor,
    log_q: Tensor,
    g: "Generator | Scalars",
    *,
    grad_p: bool = True,
    grad_q: bool = True,
    fused: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """D_f(p||q) [...], and its derivatives in log p and in log q [..., V], None where not asked for.

    `through_softmax` takes the derivatives to logits. Of a shard of the vocabulary, D_f is its share.

    Args:
        log_p, log_q: [..., V] float32 or float64 log-probabilities.
        g: the generator; inside torch.compile, its `scalars`.
        fused: state it for a compiler that fuses elementwise work, not to be differentiated: f and its adjoint share one argument and its exponential.
    """
    f = g if isinstance(g, Scalars) else scalars(g)
    term, d_p, d_q = entry_derivatives(log_p, log_q, f, grad_p, grad_q, fused)
    return term.sum(-1), d_p, d_q


def through_softmax(grad: Tensor, log_p: Tensor) -> Tensor:
    """The derivative in logits from the derivative in log p = log_softmax(logits)."""
    return grad - log_p.exp() * grad.sum(-1, keepdim=True)


class _Terms(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(log_p: Tensor, log_q: Tensor, g: Generator) -> Tensor:
        f = scalars(g)
        return _value(log_p, log_q, f.below, f.above, f.infinite)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Generator], output: Tensor) -> None:
        log_p, log_q, ctx.g = inputs
        ctx.save_for_backward(log_p, log_q)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        log_p, log_q = ctx.saved_tensors
        need_p, need_q, _ = ctx.needs_input_grad
        _, d_p, d_q = entry_derivatives(log_p, log_q, scalars(ctx.g), need_p, need_q)
        return None if d_p is None else grad * d_p, None if d_q is None else grad * d_q, None


def _value(
    log_p: Tensor, log_q: Tensor, f: Scalar, adjoint: Scalar, infinite: tuple[bool, bool], fused: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The terms, and h, max(p, q) and t, from which derivatives start; plain torch, for a compiler to differentiate.

    Unless it is fused, without torch.where, which costs as much as ten other passes on a CPU.
    """
    log_p, log_q = log_p.clamp_min(-FAR), log_q.clamp_min(-FAR)
    t = log_p - log_q
    high = torch.maximum(log_p, log_q).exp()
    below, above = _sides(t, fused or adjoint is f, fused and not any(infinite))
    h = f(below)
    if adjoint is not f:
        # apart, one summand is f(1) = 0; relu and clamp differ in their derivative at t = 0, which is counted once
        h = torch.where(t <= 0, h, adjoint(above)) if fused else h + adjoint(above)
    h = h - h.detach().clamp_max(0.0)  # rounding below zero; unlike a clamp, it leaves derivatives alone
    if not any(infinite):
        return high * h, h, high, t
    # infinite where a class is excluded, but 0 * inf = 0 where the other probability underflows too; others saturate
    largest = torch.finfo(h.dtype).max
    h = h.clamp_max(largest)
    excluded = t.abs() if all(infinite) else -t if infinite[0] else t
    return high * h + (high * (largest / 10)) * torch.relu(excluded - FAR / 2), h, high, t


def _sides(t: Tensor, together: bool, floored: bool) -> tuple[Tensor, Tensor]:
    """Where f and its adjoint are evaluated: both at -|t|, or each at 0 where the other one counts, so that neither can overflow there.

    floored: no lower than slopes are, which changes no finite f beyond rounding, and leaves them one argument.
    """
    if together:
        s = _below_zero(t)
        s = s.clamp_min(FLOOR[t.dtype]) if floored else s
        return s, s
    return t.clamp_max(0.0), -torch.relu(t)


def _below_zero(t: Tensor) -> Tensor:
    """-|t|, whose derivative at 0 is one of its two slopes rather than their average: second derivatives are right."""
    return t - 2 * torch.relu(t)


def entry_derivatives(
    log_p: Tensor, log_q: Tensor, f: Scalars, need_p: bool, need_q: bool, fused: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The terms and their derivatives in log p and log q, as a plain differentiable expression."""
    term, h, high, t = _value(log_p, log_q, f.below, f.above, f.infinite, fused)
    if not (need_p or need_q):
        return term, None, None
    pick = _picker(t, fused)
    below, above = _sides(t, fused or f.above is f.below, floored := fused and not any(f.infinite))
    direct = _direct(f.below_slope, f.above_slope, f.vanish[0], f.infinite[0], below, h, floored)
    if f.above is not f.below:
        direct = pick(direct, _direct(f.above_slope, f.below_slope, f.vanish[1], f.infinite[1], above, h, floored))
    direct = high * direct
    rest = term - direct
    first, second = (direct, rest) if f.vanish[0] else (rest, direct)  # of p and of q, where p <= q
    if f.vanish[0] != f.vanish[1]:
        return term, first if need_p else None, second if need_q else None
    return term, pick(first, second) if need_p else None, pick(second, first) if need_q else None


def _picker(t: Tensor, fused: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """(a, b) -> a where p <= q, b elsewhere."""
    if fused:
        return lambda a, b: torch.where(t <= 0, a, b)
    # 1 where p <= q, 0 elsewhere: a lerp with such a weight is an exact choice of finite numbers
    weight = (t <= 0).to(t.dtype)
    return lambda a, b: torch.lerp(b, a, weight)


def _direct(
    slope: Scalar, other: Scalar, vanishes: bool, infinite: bool, s: Tensor, h: Tensor, floored: bool
) -> Tensor:
    """At u = exp(s) <= 1: u g'(u), the smaller probability's derivative; unless that vanishes at u = 0, g - u g'(u)."""
    if vanishes:
        return torch.exp(s) * slope(s if floored else s.clamp_min(FLOOR[s.dtype]))
    largest = torch.finfo(s.dtype).max
    larger = other(-s).clamp(-largest, largest)
    # an excluded class has no derivative of its own: all of h is the other's
    return larger if infinite else torch.where(s < -FAR / 2, h, larger)


_known: "weakref.WeakKeyDictionary[Generator, Scalars]" = weakref.WeakKeyDictionary()


def scalars(g: Generator) -> Scalars:
    """The functions that a generator's terms are made of; made once."""
    if g not in _known:
        adjoint = g.adjoint
        points = torch.tensor([-30.0, -3.0, -1.0, -0.1], dtype=torch.float64)
        if adjoint.name == g.name and torch.equal(adjoint.of_log_ratio(points), g.of_log_ratio(points)):
            adjoint = g
        vanish = (_vanishes(g), _vanishes(adjoint))
        slopes = [(h.slope_below if all(vanish) else None) or _slope_of(h) for h in (g, adjoint)]
        _known[g] = Scalars(
            below=g.of_log_ratio,
            above=adjoint.of_log_ratio,
            below_slope=slopes[0],
            above_slope=slopes[1],
            infinite=(g.f0 == INF, adjoint.f0 == INF),
            vanish=vanish,
        )
    return _known[g]


def _vanishes(g: Generator) -> bool:
    s = torch.tensor([-1.0, FLOOR[torch.float32]], dtype=torch.float64)
    one, zero = (torch.exp(s) * g.slope(s)).abs().tolist()
    return zero <= 1e-8 * one


def check_skew(skew: object) -> float:
    """skew as a float.

    Raises:
        TypeError: not a number.
        ValueError: outside [0, 1).
    """
    if isinstance(skew, bool) or not isinstance(skew, Real):
        raise TypeError(f"skew: got {type(skew).__name__}; pass a number in [0, 1)")
    if not 0 <= float(skew) < 1:
        raise ValueError(f"skew: got {skew}; pass a number in [0, 1)")
    return float(skew)
