"""What every supervised objective is worth, by name: one row of logits and the set of its labels, in numpy and loops, nothing from the package."""

import math
from collections.abc import Callable

import numpy as np

Oracle = Callable[[np.ndarray, list[int]], float]


def p_of(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def of_p(cost: Callable[[float], float]) -> Oracle:
    return lambda z, y: cost(p_of(z)[y[0]])


def over_every(cost: Callable[[float], float]) -> Oracle:
    return lambda z, y: cost(p_of(z)[y[0]]) / sum(cost(p) for p in p_of(z))


def of_shares(score: Callable[[np.ndarray], np.ndarray]) -> Oracle:
    return lambda z, y: -math.log(score(z)[y[0]] / score(z).sum())


def ldr(z: np.ndarray, y: list[int], lam: float, c: float) -> float:
    margins = [c * (k != y[0]) + z[k] - z[y[0]] for k in range(len(z))]
    return lam * math.log(sum(math.exp(m / lam) for m in margins) / len(z))


def z_loss(z: np.ndarray, y: list[int], a: float, b: float) -> float:
    s = (z[y[0]] - z.mean()) / math.sqrt(((z - z.mean()) ** 2).mean())
    return math.log(1 + math.exp(a * (b - s))) / a


def decoupled(z: np.ndarray, y: list[int]) -> float:
    rest = sum(math.exp(z[k]) for k in range(len(z)) if k not in y)
    return sum(-math.log(math.exp(z[p]) / (math.exp(z[p]) + rest)) for p in y) / len(y)


def soft_top_k(z: np.ndarray, y: list[int]) -> float:
    """Of k = 3 at alpha = 1.5, by halving."""
    s = lambda t: 1 / (1 + np.exp(-1.5 * z - t))
    low, high = -50.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if s(middle).sum() < 3 else (low, middle)
    return sum(-math.log(s(low)[p]) for p in y) / len(y)


def binary(z: np.ndarray, y: list[int], plus: float, minus: float) -> float:
    s = 1 / (1 + np.exp(-z))
    yes = [-((1 - s[k]) ** plus) * math.log(s[k]) for k in range(len(z)) if k in y]
    no = [-(s[k] ** minus) * math.log(1 - s[k]) for k in range(len(z)) if k not in y]
    return sum(yes) + sum(no)


def entropy(z: np.ndarray) -> float:
    return -sum(p * math.log(p) for p in p_of(z))


def js(z: np.ndarray, y: list[int], beta: float) -> float:
    q = p_of(z)
    p = np.eye(len(z))[y[0]]
    m = beta * p + (1 - beta) * q
    kl = lambda a, b: sum(a[k] * math.log(a[k] / b[k]) for k in range(len(z)) if a[k] > 0)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


TABLE: dict[str, Oracle] = {
    "comp_sum:0.5": lambda z, y: (sum(math.exp(x - z[y[0]]) for x in z) ** 0.5 - 1) / 0.5,
    "comp_sum:0": lambda z, y: sum(math.exp(x - z[y[0]]) for k, x in enumerate(z) if k != y[0]),
    "comp_sum:1.3": of_p(lambda p: (1 - p**0.3) / 0.3),
    "cross_entropy": of_p(lambda p: -math.log(p)),
    "gce:0.7": of_p(lambda p: (1 - p**0.7) / 0.7),
    "mae": lambda z, y: sum(abs((k == y[0]) - p) for k, p in enumerate(p_of(z))) / 2,
    "probability:10": of_p(lambda p: (1 - p**10) / 10),
    "probability:1,0.05": of_p(lambda p: (1 - p) * (p >= 0.05)),
    "probability:0,high=0.05": of_p(lambda p: -math.log(p) * (p <= 0.05)),
    "agce:1,2": of_p(lambda p: (4 - (1 + p) ** 2) / 2),
    "agce:0,0.5": of_p(lambda p: (1 - p**0.5) / 0.5),
    "aul:1.5,0.9": of_p(lambda p: ((1.5 - p) ** 0.9 - 0.5**0.9) / 0.9),
    "rce:3": lambda z, y: -sum(p * (0.0 if k == y[0] else -3.0) for k, p in enumerate(p_of(z))),
    "sce:0.3,0.7,4": of_p(lambda p: -0.3 * math.log(p) + 0.7 * 4 * (1 - p)),
    "nce": over_every(lambda p: -math.log(p)),
    "normalised:focal:2": over_every(lambda p: -((1 - p) ** 2) * math.log(p)),
    "nce + 0.5*rce:4": lambda z, y: over_every(lambda p: -math.log(p))(z, y) + 2 * (1 - p_of(z)[y[0]]),
    "3*nce + 1.5*agce": lambda z, y: (
        3 * over_every(lambda p: -math.log(p))(z, y) + 0.75 * (4 - (1 + p_of(z)[y[0]]) ** 2)
    ),
    "focal:2": of_p(lambda p: -((1 - p) ** 2) * math.log(p)),
    "focal:0.5": of_p(lambda p: -((1 - p) ** 0.5) * math.log(p)),
    "poly:2": of_p(lambda p: -math.log(p) + 2 * (1 - p)),
    "dft": of_p(lambda p: -p * math.log(p)),
    "f_divergence:kl": of_p(lambda p: -math.log(p)),
    "f_divergence:hellinger": of_p(lambda p: 2 * (1 - math.sqrt(p))),
    "f_divergence:js:0.3": lambda z, y: js(z, y, 0.3),
    "f_divergence:tv": of_p(lambda p: 1 - p),
    "z_loss": lambda z, y: z_loss(z, y, 1.0, 0.0),
    "z_loss:2,0.5": lambda z, y: z_loss(z, y, 2.0, 0.5),
    "spherical:0.1": of_shares(lambda z: z**2 + 0.1),
    "taylor": of_shares(lambda z: 1 + z + z**2 / 2),
    "stablemax": of_shares(lambda z: np.array([x + 1 if x >= 0 else 1 / (1 - x) for x in z])),
    "ldr:0.7,2": lambda z, y: ldr(z, y, 0.7, 2.0),
    "margin:1.5": lambda z, y: max(1.5 * (k != y[0]) + x - z[y[0]] for k, x in enumerate(z)),
    "kl_dro:0.5,0.2": lambda z, y: ldr(z, y, 0.5, 0.0) + 0.1,
    "decoupled": decoupled,
    "soft_top_k:3,1.5": soft_top_k,
    "candidates": lambda z, y: -math.log(sum(p_of(z)[k] for k in y)),
    "binary": lambda z, y: binary(z, y, 0, 0),
    "binary:1,2.5": lambda z, y: binary(z, y, 1, 2.5),
    "log_partition": lambda z, y: math.log(sum(math.exp(x) for x in z)) ** 2,
    "entropy_penalty": lambda z, y: entropy(z),
    "confidence_penalty": lambda z, y: math.log(len(z)) - entropy(z),
    "logit_penalty": lambda z, y: sum(x**2 for x in z) / 2,
    "cross_entropy + -0.1*entropy_penalty": lambda z, y: -math.log(p_of(z)[y[0]]) - 0.1 * entropy(z),
    "fenchel_young:kl": of_p(lambda p: -math.log(p)),
}
