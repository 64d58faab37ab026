"""What the tests compare with, made from textbooks' formulas alone: nothing here is imported from the package.

* `BOOK`: f, f', f*, (f*)', f(0) and f'(0) as the f-divergence literature tabulates them, normalised to
  f(1) = f'(1) = 0.
* `solution`: bisection on tau with those formulas in 50 digits. Slow, and right whatever the poles do.
* `large`: the same for 131,072 tokens. Its unknown is log u of the best token, and scores enter as distances to f*'s
  pole or to the edge of the support, so nothing cancels there. It certifies itself by sum p = 1, and is tested against
  `solution` and against itself in extended precision.
* closed forms by sorting: sparsemax and entmax-1.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mpmath
import numpy as np

mp = mpmath.mp.clone()
mp.dps = 50
INF = float("inf")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Textbook:
    """One row of the literature's table. f takes the module of its functions (numpy or mpmath); the others mpmath."""

    f: Callable[[Any, Any], Any]
    df: Callable[[Any], Any]
    conjugate: Callable[[Any], Any]
    dconjugate: Callable[[Any], Any]
    f0: float
    df0: float
    # for `large`: the distance of f'(u) to f*'s pole (sign 1) or to the edge of the support (-1), else f'(u) (-1),
    # and u as a function of it
    sign: int
    distance: Callable[[Array], Array]
    at: Callable[[Array], Array]


def _omega(x: Array) -> Array:
    """y + log y = x, by scipy's Wright omega function and two Newton steps in extended precision."""
    from scipy.special import wrightomega

    y = np.maximum(wrightomega(x.astype(np.float64)).astype(x.dtype), 1e-300)
    for _ in range(2):
        y = y - y * (y + np.log(y) - x) / (1 + y)
    return y


def _lambert(v: Any) -> Any:
    return mp.lambertw(mp.exp(1 - v)).real


BOOK: dict[str, Textbook] = {
    "kl": Textbook(
        lambda u, m: u * m.log(u) - u + 1,
        lambda u: mp.log(u),
        lambda v: mp.exp(v) - 1,
        lambda v: mp.exp(v),
        1.0,
        -INF,
        -1,
        np.log,
        np.exp,
    ),
    "reverse_kl": Textbook(
        lambda u, m: -m.log(u) + u - 1,
        lambda u: 1 - 1 / u,
        lambda v: -mp.log(1 - v),
        lambda v: 1 / (1 - v),
        INF,
        -INF,
        1,
        lambda u: 1 / u,
        lambda x: 1 / x,
    ),
    "jeffreys": Textbook(
        lambda u, m: (u - 1) * m.log(u),
        lambda u: mp.log(u) + 1 - 1 / u,
        lambda v: _lambert(v) + 1 / _lambert(v) + v - 2,
        lambda v: 1 / _lambert(v),
        INF,
        -INF,
        -1,
        lambda u: np.log(u) + 1 - 1 / u,
        lambda v: 1 / _omega(1 - v),
    ),
    "hellinger": Textbook(
        lambda u, m: (m.sqrt(u) - 1) ** 2,
        lambda u: 1 - 1 / mp.sqrt(u),
        lambda v: v / (1 - v),
        lambda v: (1 - v) ** -2,
        1.0,
        -INF,
        1,
        lambda u: 1 / np.sqrt(u),
        lambda x: x**-2,
    ),
    "chi2": Textbook(
        lambda u, m: (u - 1) ** 2 / 2,
        lambda u: u - 1,
        lambda v: v**2 / 2 + v,
        lambda v: 1 + v,
        0.5,
        -1.0,
        -1,
        lambda u: u,
        lambda x: np.maximum(x, 0),
    ),
    "neyman": Textbook(
        lambda u, m: (u - 1) ** 2 / (2 * u),
        lambda u: (1 - u**-2) / 2,
        lambda v: 1 - mp.sqrt(1 - 2 * v),
        lambda v: 1 / mp.sqrt(1 - 2 * v),
        INF,
        -INF,
        1,
        lambda u: u**-2 / 2,
        lambda x: 1 / np.sqrt(2 * x),
    ),
    "le_cam": Textbook(
        lambda u, m: (u - 1) ** 2 / (u + 1),
        lambda u: 1 - 4 / (u + 1) ** 2,
        lambda v: 4 - v - 4 * mp.sqrt(1 - v),
        lambda v: 2 / mp.sqrt(1 - v) - 1,
        1.0,
        -3.0,
        1,
        lambda u: 4 / (1 + u) ** 2,
        lambda x: np.maximum(2 / np.sqrt(x) - 1, 0),
    ),
}


def _alpha(a: float) -> Textbook:
    c, e = mp.mpf(a), a

    def f(u: Any, m: Any) -> Any:
        k = c if m is mp else e
        return (u**k - 1 - k * (u - 1)) / (k * (k - 1))

    return Textbook(
        f,
        lambda u: (u ** (c - 1) - 1) / (c - 1),
        lambda v: ((1 + (c - 1) * v) ** (c / (c - 1)) - 1) / c,
        lambda v: (1 + (c - 1) * v) ** (1 / (c - 1)),
        1 / a if a > 0 else INF,
        -1 / (a - 1) if a > 1 else -INF,
        -1 if a > 1 else 1,
        lambda u: u ** (e - 1) / abs(e - 1),
        lambda x: (abs(e - 1) * np.maximum(x, 0)) ** (1 / (e - 1)),
    )


def _js(b: float) -> Textbook:
    """b KL(p||m) + (1 - b) KL(q||m), m = b p + (1 - b) q: at b = 1/2 half of the f that the literature tabulates."""
    c, e = mp.mpf(b), b

    def f(u: Any, m: Any) -> Any:
        k = c if m is mp else e
        mean = k * u + 1 - k
        return k * u * m.log(u / mean) - (1 - k) * m.log(mean)

    return Textbook(
        f,
        lambda u: c * mp.log(u / (c * u + 1 - c)),
        lambda v: (1 - c) * mp.log((1 - c) / (1 - c * mp.exp(v / c))),
        lambda v: (1 - c) * mp.exp(v / c) / (1 - c * mp.exp(v / c)),
        float(-(1 - c) * mp.log(1 - c)),
        -INF,
        1,
        lambda u: e * np.log1p((1 - e) / (e * u)),
        lambda x: (1 - e) / (e * np.expm1(x / e)),
    )


def textbook(name: str) -> Textbook:
    """The row for a name: `BOOK`'s, `js`, `js:BETA` or `alpha:A`."""
    head, _, parameter = name.partition(":")
    if head == "alpha" and float(parameter) not in (0.0, 1.0):
        return _alpha(float(parameter))
    if head == "js":
        return _js(float(parameter or 0.5))
    return BOOK[{"alpha:0": "reverse_kl", "alpha:1": "kl"}.get(name, name)]


class Solution(NamedTuple):
    """p, the value less the best score, and the entropy: of one row, or of each."""

    p: Array
    excess: Array
    entropy: Array


def solution(theta: Sequence[float], name: str, q: Sequence[float] | float = 1.0, c: float = 1.0) -> Solution:
    """argmax_p <p, theta> - c D_f(p||q) by bisection on tau in 50 digits; scores of -inf are dropped first."""
    book = textbook(name)
    n = len(theta)
    measure = [mp.mpf(x) for x in (q if isinstance(q, Sequence) else [q] * n)]
    live = [j for j in range(n) if theta[j] > -INF]
    t = {j: mp.mpf(theta[j]) / c for j in live}
    best = max(live, key=lambda j: t[j])
    total = mp.fsum(measure[j] for j in live)

    def at(tau: Any) -> dict[int, Any]:
        return {j: measure[j] * _ratio(book, t[j] - tau) for j in live}

    low, high = t[best] - book.df(1 / measure[best]), t[best] - book.df(1 / total)
    for _ in range(150):
        middle = (low + high) / 2
        low, high = (middle, high) if mp.fsum(at(middle).values()) >= 1 else (low, middle)
    # the upper end: at the lower one a ratio may lie on the pole
    p = at(high)
    if book.f0 < INF:
        inside = mp.fsum(measure[j] * (book.f0 - _value(book, p[j] / measure[j])) for j in live) - book.f0
    else:
        inside = mp.fsum(measure[j] * (_value(book, 1 / total) - _value(book, p[j] / measure[j])) for j in live)
    below = mp.fsum(p[j] * (t[best] - t[j]) for j in live)
    return Solution(
        np.array([float(p.get(j, 0)) for j in range(n)]),
        np.array(float(c * (inside - below))),
        np.array(float(c * inside)),
    )


def _ratio(book: Textbook, v: Any) -> Any:
    return mp.mpf(0) if v <= book.df0 else book.dconjugate(v)


def _value(book: Textbook, u: Any) -> Any:
    return book.f(u, mp) if u > 0 else mp.mpf(book.f0)


def large(theta: Array, name: str, q: Array | float = 1.0, dtype: type = np.float64) -> Solution:
    """`solution` for rows [N, V] of finite scores."""
    book = textbook(name)
    t = theta.astype(dtype)
    measure = np.broadcast_to(np.asarray(q, dtype=dtype), t.shape)
    d = t.max(-1, keepdims=True) - t
    total = measure.sum(-1, keepdims=True)
    first = np.take_along_axis(measure, d.argmin(-1)[:, None], -1)

    def ratios(log_u: Array) -> Array:
        with np.errstate(over="ignore"):  # far tokens: exp or a power overflows, and its inverse is 0
            return book.at(book.distance(np.exp(log_u)) + book.sign * d)

    def miss(log_u: Array) -> Array:
        return np.log((measure * ratios(log_u)).sum(-1, keepdims=True))

    low, high = -np.log(total), -np.log(first)
    at_low, at_high = np.minimum(miss(low), 0), np.maximum(miss(high), 0)
    bar = 500 * np.finfo(dtype).eps
    x, at = np.where(at_high <= bar, high, low), np.where(at_high <= bar, at_high, at_low)
    side = np.zeros_like(x)
    for step in range(150):
        if (np.abs(at) <= bar).all():
            break
        # false position (Illinois: an end that stays has its value halved), every third step a bisection
        slope = np.where(at_high > at_low, at_high - at_low, 1)
        between = (low + high) / 2 if step % 3 == 2 else high - at_high * (high - low) / slope
        x = np.where(np.abs(at) <= bar, x, between)
        at = miss(x)
        up = at > 0
        at_low, at_high = (
            np.where(up & (side > 0), at_low / 2, at_low),
            np.where(~up & (side < 0), at_high / 2, at_high),
        )
        low, at_low = np.where(up, low, x), np.where(up, at_low, at)
        high, at_high = np.where(up, x, high), np.where(up, at, at_high)
        side = np.where(up, 1, -1)
    u = ratios(x)
    p = measure * u
    error = float(np.abs(p.sum(-1) - 1).max())
    assert error < 1e-12, f"the oracle itself is off by {error} for {name}"
    f = np.where(u > 0, book.f(np.where(u > 0, u, 1), np), book.f0)
    # where f(0) is infinite, relative to flat scores: as divergences from them, since differences of f cancel at large V
    loss = f - book.f0 if book.f0 < INF else _from_flat(name, u, 1 / total)
    inside = -(measure * loss).sum(-1) - (book.f0 if book.f0 < INF else 0)
    return Solution(p, inside - (p * d).sum(-1), inside)


def _from_flat(name: str, u: Array, flat: Array) -> Array:
    """f(u) - f(flat) - f'(flat) (u - flat) where f(0) is infinite: flat^a f_a(u / flat) for the alpha family."""
    powers = {"reverse_kl": (0.0,), "alpha:0": (0.0,), "neyman": (-1.0,), "jeffreys": (0.0, 1.0)}
    x = u / flat
    step = x - 1
    near = np.abs(step) < 1e-4
    parts = []
    for a in powers.get(name) or (float(name.partition(":")[2]),):
        exact = textbook(f"alpha:{a:g}").f(np.where(near, 2, x), np)
        series = step**2 / 2 + (a - 2) * step**3 / 6 + (a - 2) * (a - 3) * step**4 / 24
        parts.append(flat**a * np.where(near, series, exact))
    return sum(parts[1:], parts[0])


def sparsemax(theta: Array) -> Array:
    """The projection of a row onto the simplex, by sorting (Martins & Astudillo 2016, algorithm 1)."""
    z = np.sort(theta)[::-1]
    k = np.arange(1, len(z) + 1)
    sums = np.cumsum(z)
    support = k[1 + k * z > sums][-1]
    return np.maximum(theta - (sums[support - 1] - 1) / support, 0)


def entmax15(theta: Array) -> Array:
    """entmax-1.5 of a row, by sorting (Peters, Niculae & Martins 2019, algorithm 2)."""
    half = (theta - theta.max()) / 2
    z = np.sort(half)[::-1]
    k = np.arange(1, len(z) + 1)
    mean, squares = np.cumsum(z) / k, np.cumsum(z**2) / k
    tau = mean - np.sqrt(np.maximum((1 - k * (squares - mean**2)) / k, 0))
    return np.maximum(half - tau[k[tau <= z][-1] - 1], 0) ** 2
