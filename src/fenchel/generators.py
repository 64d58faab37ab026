"""What a divergence is: a convex f with f(1) = f'(1) = 0, and the few scalar functions that every path is made of.

Laws (tested for every row of the table and for user-made generators): f >= 0 and f(1) = f'(1) = 0; `unlink` inverts `link`; `link` is f' up to a
constant; `spread` is 1/f''; `dual` is f*(f'(u)) up to a constant; the adjoint f°(u) = u f(1/u) gives D_f°(q||p) = D_f(p||q).

The functions are stated where they are accurate, which is not always where textbooks state them:

* f and f' take the log-ratio t = log(p/q): no overflow for improbable tokens, no cancellation near p = q;
* f' is stated up to a constant, as `link`, so that its pole (reverse KL, Neyman, Hellinger, Jensen-Shannon, Le Cam, alpha < 1) or the edge of its
  support (alpha > 1) lies at zero. The solver's unknown is then the *distance* to the pole. With f' itself, float32 and 131,072 tokens, even the best
  representable threshold is wrong by percents;
* f* is stated as a function of u = p/q, up to a constant, as `dual`: a polynomial or one logarithm for every divergence below.

Adding a generator: one row of `_TABLE` (see docs/adding.md). Nothing else in the project names a divergence by its formula.
"""

import itertools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

__all__ = ["Generator", "generator", "generator_names"]

Scalar = Callable[[Tensor], Tensor]
INF = math.inf


# Custom operators take numbers, not objects: a live generator is found by its number. The one registry of the package.
_live: "weakref.WeakValueDictionary[int, Generator]" = weakref.WeakValueDictionary()
_numbers = itertools.count()


@dataclass(frozen=True, eq=False, kw_only=True)
class Generator:
    """A convex f, normalised to f(1) = f'(1) = 0, with the companions that operators, losses and divergences need.

    Attributes:
        name: what users type, e.g. `"alpha:1.5"`.
        formula: f as text.
        of_log_ratio: t -> f(exp t).
        link: t -> f'(exp t) + constant, the constant chosen so that a pole or the edge of the support is at 0.
        unlink: w -> u, the inverse of u -> link(log u); 0 below the support. None where f' is not invertible.
        spread: u -> 1 / f''(u) for u > 0; 0 at u = 0 (a token off the support does not move).
        dual: u -> f*(f'(u)) + constant; 0 at u = 0 where f(0) is finite.
        f0: f(0), infinite for some.
        df0: f'(0); finite means that the operator gives exact zeros ("sparse").
        adjoint_of: makes the generator of D_f°(q||p) = D_f(p||q).
        multiplicative: unlink(a + b) = unlink(a) unlink(b), so normalising replaces solving (KL alone).
        power: k where unlink(w) = max(w / k, 0)^k, else 0: the solver's sums are then moments of the logits.
        double: evaluate in float64 whatever the input (see `alpha`).
        slope_below: t -> f'(exp t) for t <= 0, where it can share the work of f there (Jensen-Shannon: one logarithm instead of two); None: the link's.
        source: where the divergence comes from.
        link_one: the link at u = 1, so that f' = link - link_one.
        edge: the link at u = 0: at and below it probabilities are 0 (-inf if the support is always full).

    Example:
        >>> js = generator("js")
        >>> float(js.f(torch.tensor(1.0))), round(js.f0, 4), js.sparse
        (0.0, 0.3466, False)
        >>> generator("alpha:1.5").df0
        -2.0
    """

    name: str
    formula: str
    of_log_ratio: Scalar
    link: Scalar
    unlink: Scalar | None
    spread: Scalar | None
    dual: Scalar | None
    f0: float
    df0: float
    adjoint_of: Callable[[], "Generator"] = field(repr=False)
    multiplicative: bool = False
    power: float = 0.0
    double: bool = False
    slope_below: Scalar | None = None
    source: str = ""
    handle: int = field(init=False, repr=False, default_factory=_numbers.__next__)
    # constants of the solver, computed once: a compiler cannot trace them
    link_one: float = field(init=False, repr=False)
    edge: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _live[self.handle] = self
        object.__setattr__(self, "link_one", float(self.link(torch.zeros((), dtype=torch.float64))))
        object.__setattr__(self, "edge", self.df0 + self.link_one)
        if self.sparse and self.spread is not None and float(self.spread(torch.zeros((), dtype=torch.float64))) != 0:
            raise ValueError(
                f"generator {self.name!r}: spread(0) is not 0 though f'(0) is finite; multiply it by torch.sign(u)"
            )

    @property
    def sparse(self) -> bool:
        """True if f'(0) is finite: tokens far below the best one get probability exactly 0."""
        return self.unlink is not None and self.df0 > -INF

    @property
    def adjoint(self) -> "Generator":
        """The generator f°(u) = u f(1/u), for which D_f°(q||p) = D_f(p||q)."""
        return self.adjoint_of()

    def f(self, u: Tensor) -> Tensor:
        """f(u), u >= 0, elementwise."""
        return torch.where(u > 0, self.of_log_ratio(torch.log(u.clamp_min(torch.finfo(u.dtype).tiny))), self.f0)

    def df(self, u: Tensor) -> Tensor:
        """f'(u), u >= 0, elementwise."""
        safe = torch.log(u.clamp_min(torch.finfo(u.dtype).tiny))
        return torch.where(u > 0, self.slope(safe), self.df0)

    def slope(self, t: Tensor) -> Tensor:
        """f'(exp t), elementwise: the reward of f-DPO at a log-ratio t."""
        return self.link(t) - self.link_one

    def dconjugate(self, v: Tensor) -> Tensor:
        """(f*)'(max(v, f'(0))), elementwise: the u with f'(u) = v."""
        return operator_of(self).unlink(v + self.link_one)

    def conjugate(self, v: Tensor) -> Tensor:
        """f*(max(v, f'(0))), elementwise."""
        one = torch.ones((), dtype=v.dtype, device=v.device)
        dual = operator_of(self).dual
        return dual(self.dconjugate(v)) - dual(one)

    def scaled(self, c: float) -> "Generator":
        """The generator c f, for which D = c D_f and softargmax(logits) = softargmax_f(logits / c).

        Raises:
            ValueError: c is not a positive finite number.

        Example:
            >>> generator("chi2").scaled(2.0).df0
            -2.0
        """
        if not (isinstance(c, (int, float)) and 0 < c < INF):
            raise ValueError(f"scaled: got c = {c!r}; pass a positive finite number")
        return _scaled(self, float(c))

    @staticmethod
    def from_f(f: Scalar, *, name: str = "from_f", f0: float | None = None, df0: float | None = None) -> "Generator":
        """A generator from f alone: f', its inverse, the conjugate, f'', f(0) and f'(0) are derived, and f is checked.

        f is evaluated in float64 on tensors of u > 0, elementwise, and must be twice differentiable by autograd. A term c (u - 1) is
        subtracted so that f'(1) = 0: this changes no divergence between probability vectors.

        Args:
            f: a function of a tensor, e.g. `lambda u: u * u.log()`.
            name: shown in errors, tables and plots.
            f0, df0: f(0) and f'(0) where you know them; estimated from the growth of f'' near 0 otherwise.

        Raises:
            ValueError: f(1) is not 0, f is not convex, or f is not finite on (0, inf).

        Example:
            >>> mine = Generator.from_f(lambda u: u * u.log(), name="my KL")
            >>> round(float(mine.f(torch.tensor(2.0, dtype=torch.float64))), 4)     # 2 log 2 - 2 + 1
            0.3863
        """
        from .from_f import derive  # imports this module

        return derive(f, name, f0, df0)


@dataclass(frozen=True)
class Operator:
    """The part of a generator that exists only where f' is invertible, with the optional fields filled."""

    unlink: Scalar
    spread: Scalar
    dual: Scalar


def operator_of(g: Generator) -> Operator:
    """The functions that the operator needs.

    Raises:
        ValueError: f is not strictly convex or not differentiable (total variation), so no operator or loss exists.
    """
    if g.unlink is None or g.spread is None or g.dual is None:
        raise ValueError(
            f"generator {g.name!r} has no operator or loss: f is not strictly convex and differentiable; "
            f"use it as a divergence, or pass one of {', '.join(n for n in generator_names() if n != g.name)}"
        )
    return Operator(g.unlink, g.spread, g.dual)


# The scalar functions. Parameters trail, so that kernels can bind them; nothing is captured.


def _kl(t: Tensor) -> Tensor:
    return t.exp() * t - t.expm1()


def _reverse_kl(t: Tensor) -> Tensor:
    return t.expm1() - t


def _jeffreys(t: Tensor) -> Tensor:
    return t.expm1() * t


def _inverse_omega(x: Tensor) -> Tensor:
    """exp(-t) for the t with exp(t) + t = x: 1 / y for Wright's omega function y = omega(x).

    One step of third order in t, where its rounding is part of the residual. It starts within 1.3e-5: from rational functions, of x below 1 and of log x
    above, fitted to have the least largest error, which share their division.
    """
    above, low, log = x > 1, x.clamp(-14.0, 1.0), x.clamp_min(1.0).log()
    over = torch.where(
        above,
        (((0.04282737 * log + 0.05714236) * log + 0.26346159) * log + 0.49962033) * log,
        (((3.89153205e-05 * low + 1.65939150e-03) * low + 0.0268781598) * low + 0.198154900) * low + 0.567145786,
    )
    under = torch.where(
        above,
        (((0.03808890 * log + 0.13126103) * log - 0.10570083) * log + 1) * x,
        (((0.00317354 * low - 0.02235098) * low + 0.10168604) * low - 0.28862183) * low + 1,
    )
    t = torch.where(above, log, x) - over / under
    u = torch.exp(-t)
    share = 1 / (1 + u)
    step = -(1 + u * (t - x)) * share
    step = step * (1 - step * (share / 2))
    return torch.where(u == INF, INF, torch.where(x == INF, 0.0, u * (1 - step * (1 - step / 2))))


def _js(t: Tensor, b: float) -> Tensor:
    mean = torch.log1p(b * t.expm1())
    return b * t.exp() * (t - mean) - (1 - b) * mean


def _js_link(t: Tensor, b: float) -> Tensor:
    # softplus, without its default switch to x at 20, which costs digits in float64
    return -b * torch.nn.functional.softplus(math.log((1 - b) / b) - t, threshold=40.0)


def _js_slope_below(t: Tensor, b: float) -> Tensor:
    return b * (t - torch.log1p(b * t.expm1()))


def _js_unlink(w: Tensor, b: float) -> Tensor:
    return ((1 - b) / b) / torch.expm1(-w / b)


def _hellinger(t: Tensor) -> Tensor:
    return torch.expm1(t / 2).square()


def _le_cam(t: Tensor) -> Tensor:
    return t.expm1() * torch.tanh(t / 2)


def _chi2(t: Tensor) -> Tensor:
    return t.expm1().square() / 2


def _neyman(t: Tensor) -> Tensor:
    return 2 * torch.sinh(t / 2).square()


def _tv(t: Tensor) -> Tensor:
    return t.expm1().abs() / 2


def _alpha(t: Tensor, a: float) -> Tensor:
    # groupings of the same formula, each free of cancellation at its own limit (KL at 1, reverse KL at 0) and of 0 * inf at t = -inf
    if 0.5 <= a < 1:
        return (torch.exp(a * t) * (torch.expm1((1 - a) * t) / (1 - a)) - t.expm1()) / a
    if a > 1:
        return (t.exp() * (torch.expm1((a - 1) * t) / (a - 1)) - t.expm1()) / a
    return (torch.expm1(a * t) / a - t.expm1()) / (a - 1)


def _power_link(t: Tensor, a: float) -> Tensor:
    return torch.exp((a - 1) * t) / (a - 1)


def _power_unlink(w: Tensor, a: float) -> Tensor:
    return ((a - 1) * w).clamp_min(0.0).pow(1 / (a - 1))


def _near_log_link(t: Tensor, a: float) -> Tensor:
    return torch.expm1((a - 1) * t) / (a - 1)


def _near_log_unlink(w: Tensor, a: float) -> Tensor:
    return torch.exp(torch.log1p(((a - 1) * w).clamp_min(-1.0)) / (a - 1))


def _power_spread(u: Tensor, a: float) -> Tensor:
    # at u = 0 the power is 0 below alpha = 2 only
    return u.pow(2 - a) if a < 2 else torch.where(u > 0, u.clamp_min(torch.finfo(u.dtype).tiny).pow(2 - a), 0.0)


def _power_dual(u: Tensor, a: float) -> Tensor:
    return u.pow(a) / a


def _near_zero_dual(u: Tensor, a: float) -> Tensor:
    return torch.expm1(a * torch.log(u)) / a


def _scaled(g: Generator, c: float) -> Generator:
    unlink, spread, dual, below = g.unlink, g.spread, g.dual, g.slope_below
    return Generator(
        name=f"{c:g}*{g.name}",
        formula=f"{c:g} ({g.formula})",
        of_log_ratio=lambda t: c * g.of_log_ratio(t),
        link=lambda t: c * g.link(t),
        unlink=None if unlink is None else lambda w: unlink(w / c),
        spread=None if spread is None else lambda u: spread(u) / c,
        dual=None if dual is None else lambda u: c * dual(u),
        f0=c * g.f0,
        df0=c * g.df0,
        adjoint_of=lambda: _scaled(g.adjoint, c),
        double=g.double,
        slope_below=None if below is None else lambda t: c * below(t),
        source=g.source,
    )


def _js_family(b: float) -> Generator:
    if not 0 < b < 1:
        raise ValueError(
            f"js:BETA: got beta = {b:g}; pass 0 < beta < 1 (JS/beta tends to kl at 0, JS/(1 - beta) to reverse_kl at 1)"
        )
    return Generator(
        name="js" if b == 0.5 else f"js:{b:g}",
        formula=f"{b:g} u log(u/m) - {1 - b:g} log m,  m = {b:g} u + {1 - b:g}",
        of_log_ratio=partial(_js, b=b),
        link=partial(_js_link, b=b),
        unlink=partial(_js_unlink, b=b),
        spread=lambda u: u * (b * u + (1 - b)) / (b * (1 - b)),
        dual=lambda u: (1 - b) * torch.log1p(u * (b / (1 - b))),
        f0=-(1 - b) * math.log1p(-b),
        df0=-INF,
        adjoint_of=lambda: generator("js" if b == 0.5 else f"js:{1 - b:.17g}"),
        slope_below=partial(_js_slope_below, b=b),
        source="Lin 1991, doi:10.1109/18.61115 (generalised Jensen-Shannon); D = b KL(p||m) + (1-b) KL(q||m), m = b p + (1-b) q",
    )


def _alpha_family(a: float) -> Generator:
    if not abs(a) < INF:
        raise ValueError(f"alpha:A: got A = {a}; pass a finite number")
    if a in (0.0, 1.0):
        return generator("reverse_kl" if a == 0 else "kl")
    near_log = abs(a - 1) < 0.1
    return Generator(
        name=f"alpha:{a:g}",
        formula=f"(u^a - 1 - a (u - 1)) / (a (a - 1)),  a = {a:g}",
        of_log_ratio=partial(_alpha, a=a),
        link=partial(_near_log_link if near_log else _power_link, a=a),
        unlink=partial(_near_log_unlink if near_log else _power_unlink, a=a),
        spread=partial(_power_spread, a=a),
        dual=partial(_near_zero_dual if -0.1 < a < 0 else _power_dual, a=a),
        f0=1 / a if a > 0 else INF,
        df0=-1 / (a - 1) if a > 1 else -INF,
        adjoint_of=lambda: generator(f"alpha:{1 - a:.17g}"),
        power=1 / (a - 1) if a > 1 and not near_log else 0.0,
        # float32 cannot hold u^(a-1) at large vocabularies (a < 0), and is worse conditioned than the logits themselves above 2
        double=not 0.25 <= a <= 2,
        source="Cressie & Read 1984; Blondel et al., arXiv 2501.18537, table 1 (Tsallis entropies, entmax, for q = 1)",
    )


_TABLE: tuple[Generator, ...] = (
    Generator(
        name="kl",
        formula="u log u - u + 1",
        of_log_ratio=_kl,
        link=lambda t: t,
        unlink=torch.exp,
        spread=lambda u: u,
        dual=lambda u: u,
        f0=1.0,
        df0=-INF,
        adjoint_of=lambda: generator("reverse_kl"),
        multiplicative=True,
        source="Kullback & Leibler 1951; softmax and cross-entropy",
    ),
    Generator(
        name="reverse_kl",
        formula="-log u + u - 1",
        of_log_ratio=_reverse_kl,
        link=lambda t: -torch.exp(-t),
        unlink=lambda w: -1 / w,
        spread=lambda u: u * u,
        dual=torch.log,
        f0=INF,
        df0=-INF,
        adjoint_of=lambda: generator("kl"),
        double=True,
        source="Blondel et al., arXiv 2501.18537, table 1",
    ),
    Generator(
        name="jeffreys",
        formula="(u - 1) log u",
        of_log_ratio=_jeffreys,
        link=lambda t: t - torch.exp(-t),
        unlink=lambda w: _inverse_omega(-w),
        spread=lambda u: u * (u / (1 + u)),
        dual=lambda u: u + torch.log(u),
        f0=INF,
        df0=-INF,
        adjoint_of=lambda: generator("jeffreys"),
        double=True,
        source="Jeffreys 1946; KL(p||q) + KL(q||p)",
    ),
    Generator(
        name="hellinger",
        formula="(sqrt(u) - 1)^2",
        of_log_ratio=_hellinger,
        link=lambda t: -torch.exp(-t / 2),
        unlink=lambda w: w.pow(-2),
        spread=lambda u: 2 * u * torch.sqrt(u),
        dual=torch.sqrt,
        f0=1.0,
        df0=-INF,
        adjoint_of=lambda: generator("hellinger"),
        source="squared Hellinger distance; Blondel et al., arXiv 2501.18537, table 1",
    ),
    Generator(
        name="chi2",
        formula="(u - 1)^2 / 2",
        of_log_ratio=_chi2,
        link=torch.exp,
        unlink=lambda w: w.clamp_min(0.0),
        power=1.0,
        spread=torch.sign,
        dual=lambda u: u * u / 2,
        f0=0.5,
        df0=-1.0,
        adjoint_of=lambda: generator("neyman"),
        source="Pearson chi-square, alpha = 2; sparsemax for q = 1 (Martins & Astudillo, arXiv 1602.02068)",
    ),
    Generator(
        name="neyman",
        formula="(u - 1)^2 / (2 u)",
        of_log_ratio=_neyman,
        link=lambda t: -torch.exp(-2 * t) / 2,
        unlink=lambda w: (-2 * w).pow(-0.5),
        spread=lambda u: u * u * u,
        dual=lambda u: -1 / u,
        f0=INF,
        df0=-INF,
        adjoint_of=lambda: generator("chi2"),
        double=True,
        source="Neyman (reverse) chi-square, alpha = -1; Blondel et al., arXiv 2501.18537, table 1",
    ),
    Generator(
        name="le_cam",
        formula="(u - 1)^2 / (u + 1)",
        of_log_ratio=_le_cam,
        link=lambda t: -4 * torch.sigmoid(-t).square(),
        unlink=lambda w: (2 / torch.sqrt(-w) - 1).clamp_min(0.0),
        spread=lambda u: torch.sign(u) * (1 + u).pow(3) / 8,
        dual=lambda u: 4 * (u / (1 + u)).square(),
        f0=1.0,
        df0=-3.0,
        adjoint_of=lambda: generator("le_cam"),
        double=True,  # it has a pole and an edge: float32 cannot be accurate at both
        source="Le Cam (triangular) discrimination, Le Cam 1986",
    ),
    Generator(
        name="tv",
        formula="|u - 1| / 2",
        of_log_ratio=_tv,
        link=lambda t: torch.sign(t) / 2,
        unlink=None,
        spread=None,
        dual=None,
        f0=0.5,
        df0=-0.5,
        adjoint_of=lambda: generator("tv"),
        source="total variation distance; not strictly convex, so a divergence only",
    ),
)

_FAMILIES: tuple[tuple[str, str, Callable[[float], Generator], float | None], ...] = (
    ("js", "js:BETA", _js_family, 0.5),
    ("alpha", "alpha:A", _alpha_family, None),
)


class _Known:
    """Generators as attributes: a compiler looks an attribute up anew, where it would keep a copy of a dict."""


_known = _Known()
_attribute: dict[str, str] = {}


def _remember(name: str, g: Generator) -> None:
    _attribute[name] = f"generator_{g.handle}"
    setattr(_known, _attribute[name], g)


for _row in _TABLE:
    _remember(_row.name, _row)


def generator_names() -> tuple[str, ...]:
    """The names that `generator` parses; families stand with their parameter, e.g. `alpha:A`.

    Example:
        >>> "js" in generator_names() and "alpha:A" in generator_names()
        True
    """
    families = [
        name for head, name, _, default in _FAMILIES for name in ((head, name) if default is not None else (name,))
    ]
    return tuple(g.name for g in _TABLE) + tuple(families)


def generator(name: "str | Generator") -> Generator:
    """The generator with a name; a Generator is returned as it is.

    Names: `kl`, `reverse_kl`, `jeffreys`, `js`, `js:BETA`, `hellinger`, `chi2`, `neyman`, `le_cam`, `alpha:A` for any real A, `tv`, and `C*NAME` for
    a scaled one. `js` is the standard Jensen-Shannon divergence KL(p||m)/2 + KL(q||m)/2, half of the f that the f-divergence literature tabulates.

    Raises:
        ValueError: an unknown name (the message lists the known ones) or a parameter outside its domain.
        TypeError: neither a name nor a Generator.

    Example:
        >>> generator("alpha:1.5").name, generator("2*js").name, generator("alpha:1").name
        ('alpha:1.5', '2*js', 'kl')
    """
    if isinstance(name, Generator):
        return name
    if not isinstance(name, str):
        raise TypeError(
            f"generator: got {type(name).__name__}; pass a name ({', '.join(generator_names())}) or a Generator"
        )
    found: Generator = getattr(_known, _learn(name))
    return found


def alpha(a: float) -> Generator:
    """The generator `alpha:A` of a number."""
    return generator(f"alpha:{a!r}")


def jensen_shannon(b: float) -> Generator:
    """The generator `js:BETA` of a number."""
    return generator(f"js:{b!r}")


def _learn(name: str) -> str:
    """The attribute of a name, parsed with its adjoint if it is new: a compiler, which cannot make a Generator, has it made while it traces."""
    if name not in _attribute:
        made = _parse(name)
        _remember(name, made)
        _ = made.adjoint
    return _attribute[name]


# what torch.compiler.assume_constant_result does, without importing the compiler with the package
vars(_learn)["_dynamo_marked_constant"] = True


def _parse(name: str) -> Generator:
    scale, star, rest = name.partition("*")
    if star:
        return generator(rest).scaled(_number(name, scale))
    head, colon, parameter = name.partition(":")
    for family, _, make, default in _FAMILIES:
        if head == family and (colon or default is not None):
            value = _number(name, parameter) if colon else float(default or 0)
            return make(value)
    raise ValueError(f"unknown generator {name!r}; known: {', '.join(generator_names())}")


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"generator {name!r}: got {text!r} where a number belongs, as in 'alpha:1.5' or '2*js'")
    return value


def by_handle(number: int) -> Generator:
    """The live generator whose `handle` is this number."""
    return _live[number]
