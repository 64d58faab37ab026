"""A generator from f alone: everything else is derived by autograd and by a safeguarded numerical inverse, in float64.

The inverse of f' is opaque to the compiler and to functorch (its loop depends on the data); two differentiable Newton steps behind it carry the
derivatives, of which the first three are exact.
"""

import math
from functools import partial

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from .generators import INF, Generator, Scalar, by_handle, operator_of
from .opaque import opaque

# u is searched within e^-LIMIT .. e^LIMIT: beyond, u * u underflows in float64
LIMIT = 340.0


def derive(f: Scalar, name: str, f0: float | None, df0: float | None) -> Generator:
    """`Generator.from_f`."""
    value, tilt = _checked(f, name)
    df = _derivative(value)
    d2f = _derivative(df)
    zero = _limits(value, df, d2f, f0, df0)
    return _build(value, df, d2f, name, zero, f"user's f minus {tilt:.6g} (u - 1)" if abs(tilt) > 1e-12 else "user's f")


def _build(f: Scalar, df: Scalar, d2f: Scalar, name: str, zero: tuple[float, float], formula: str) -> Generator:
    f0, df0 = zero
    offset = f0 if f0 < INF else 0.0
    # u below e^-LIMIT is 0
    least = max(df0, float(df(torch.tensor(math.exp(-LIMIT), dtype=torch.float64))))
    g = Generator(
        name=name,
        formula=formula,
        of_log_ratio=lambda t: f(_exp(t)).to(t.dtype),
        link=lambda t: df(_exp(t)).to(t.dtype),
        unlink=lambda w: _unlink(w, number(), df, d2f, least),
        spread=lambda u: torch.where(u > 0, 1 / d2f(_at_least_tiny(u)), 0.0).to(u.dtype),
        dual=lambda u: torch.where(u > 0, u * df(_at_least_tiny(u)) - f(_at_least_tiny(u)) + offset, 0.0).to(u.dtype),
        f0=f0,
        df0=df0,
        adjoint_of=lambda: _adjoint(f, df, d2f, name),
        double=True,
        source="user-defined",
    )
    number = partial(getattr, g, "handle")
    return g


def _adjoint(f: Scalar, df: Scalar, d2f: Scalar, name: str) -> Generator:
    """f°(u) = u f(1/u), f°'(u) = f(1/u) - f'(1/u)/u, f°''(u) = f''(1/u)/u^3.

    f°(0) is the limit of f'(x), and f°'(0) that of f(x) - x f'(x), at infinity: extrapolated, since autograd's f'' cancels there.
    """
    x = torch.tensor([1e3, 1e5, 1e7], dtype=torch.float64)
    zero = _limit(df(x)), -_limit(x * df(x) - f(x))

    def value(u: Tensor) -> Tensor:
        return u * f(1 / u)

    def slope(u: Tensor) -> Tensor:
        return f(1 / u) - df(1 / u) / u

    def curvature(u: Tensor) -> Tensor:
        return d2f(1 / u) / u.pow(3)

    return _build(value, slope, curvature, f"adjoint of {name}", zero, "u f(1/u)")


def _limit(values: Tensor) -> float:
    """The limit of three equally spaced terms of a sequence by Aitken's rule; infinity if its steps do not shrink."""
    first, second, third = (float(v) for v in values)
    before, last = second - first, third - second
    if abs(last) <= 1e-6 * abs(third):
        return third
    ratio = last / before
    return third + last * ratio / (1 - ratio) if 0 <= ratio < 0.97 else INF


def _exp(t: Tensor) -> Tensor:
    return t.double().clamp(-LIMIT, LIMIT).exp()


def _at_least_tiny(u: Tensor) -> Tensor:
    return u.double().clamp(math.exp(-LIMIT), math.exp(LIMIT))


def _derivative(f: Scalar) -> Scalar:
    # traced once on a number into plain tensor operations, which are elementwise as f is: functorch itself is refused inside custom operators
    return make_fx(torch.func.grad(f))(torch.tensor(2.0, dtype=torch.float64))


def _checked(f: Scalar, name: str) -> tuple[Scalar, float]:
    """f with f'(1) = 0, and the slope that was taken out; raises where f is no generator."""
    u = torch.logspace(-6, 6, 241, dtype=torch.float64)
    try:
        values = f(u)
    except (TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"from_f({name!r}): f failed on a float64 tensor of u > 0: {error}; write f with torch functions"
        ) from error
    if not isinstance(values, Tensor) or values.shape != u.shape:
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"from_f({name!r}): f of a tensor of shape {tuple(u.shape)} gave {got}; f must be elementwise")
    if not torch.isfinite(values).all():
        where = float(u[~torch.isfinite(values)][0])
        raise ValueError(
            f"from_f({name!r}): f({where:.3g}) = {float(f(u[~torch.isfinite(values)])[0])}; f must be finite on (0, inf)"
        )
    one = torch.ones((), dtype=torch.float64)
    at_one = float(f(one))
    if abs(at_one) > 1e-9:
        raise ValueError(f"from_f({name!r}): f(1) = {at_one:.6g}, and must be 0; pass u -> f(u) - {at_one:.6g}")
    tilt = float(torch.func.grad(f)(one))
    if not math.isfinite(tilt):
        raise ValueError(f"from_f({name!r}): f'(1) = {tilt}; f must be differentiable at 1")
    curvature = _derivative(_derivative(f))(u).expand_as(u)  # a constant one is one number
    flat = ~(curvature > 0)
    if flat.any():
        where, got = float(u[flat][0]), float(curvature[flat][0])
        raise ValueError(
            f"from_f({name!r}): f''({where:.3g}) = {got:.3g}; f must be strictly convex (f'' > 0) on (0, inf)"
        )
    return (lambda u: f(u) - at_one - tilt * (u - 1)), tilt


def _limits(f: Scalar, df: Scalar, d2f: Scalar, f0: float | None, df0: float | None) -> tuple[float, float]:
    """f(0) and f'(0). The growth of f'' decides whether they are finite: f' = u f'' integrated over log u, f = u^2 f'' likewise."""
    near, nearer, nearest = (torch.tensor(math.exp(-x), dtype=torch.float64) for x in (60.0, 120.0, 300.0))
    growth = float(torch.log(d2f(nearer) / d2f(near)) / -60.0)  # f'' ~ u^growth
    if f0 is None:
        f0 = float(f(nearest)) if growth > -2 + 1e-3 else INF
    if df0 is None:
        df0 = float(df(nearest)) if growth > -1 + 1e-3 else -INF
    return f0, df0


@opaque("invert")
def _invert(w: Tensor, number: int) -> Tensor:
    """log u with f'(u) = w by bisection-guarded Newton on log u, elementwise; -LIMIT below the support."""
    g = by_handle(number)
    low, high = torch.full_like(w, -LIMIT), torch.full_like(w, LIMIT)
    t, last = torch.zeros_like(w), torch.full_like(w, INF)
    for step in range(150):
        u = _exp(t)
        miss = g.link(t) - w
        low, high = torch.where(miss < 0, t, low), torch.where(miss < 0, high, t)
        newton = t - miss * operator_of(g).spread(u) / u
        close = (newton - t).abs() <= 1e-7 * (1 + t.abs())  # this step and the two that follow in _unlink square it
        # far from the root Newton may move by a constant: a step as long as the last one is replaced by a halved bracket
        quick = (newton - t).abs() < 0.5 * last
        trusted = close | ((newton > low) & (newton < high) & (quick | (step == 0)))
        new = torch.where(trusted, newton, (low + high) / 2)
        t, last = new, (new - t).abs()
        if bool((close | w.isnan()).all()):
            break
    return torch.where(w.isnan(), w, t)


@_invert.register_fake
def _(w: Tensor, number: int) -> Tensor:
    return torch.empty_like(w)


@_invert.register_vmap
def _(info: object, dims: tuple[int | None, None], w: Tensor, number: int) -> tuple[Tensor, int | None]:
    return _invert(w, number), dims[0]


def _unlink(w: Tensor, number: int, df: Scalar, d2f: Scalar, least: float) -> Tensor:
    wide = w.double()
    inside = wide > least
    # below, any argument will do: the result is replaced
    target = torch.where(inside, wide, 0.0)
    u = _exp(torch.ops.fenchel.invert(target.detach(), number))
    for _ in range(2):
        u = u + (target - df(u)) / d2f(u)
    return torch.where(wide.isnan(), wide, torch.where(inside, u, torch.zeros_like(u))).to(w.dtype)
