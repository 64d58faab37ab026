"""Every supervised objective under the laws that hold for all: one definition behind both doors, oracles in float64, masks, limits, second derivatives."""

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from two_models import derivatives, same

from fenchel import fenchel_young, linear_fenchel_young
from fenchel.head import labelled, programs
from fenchel.objectives.names import makers
from fenchel.objectives.supervised import (
    CompSum,
    CostObjective,
    linear_supervised,
    supervised,
    supervised_names,
    supervised_objective,
)
from fenchel.objectives.supervised.objective import DISTRIBUTION, SET
from fenchel.objectives.supervised.soft_top_k import soft_top_k_shift

N, V, D = 13, 19, 5

# Oracles: one row of logits and the set of its labels, in numpy and loops, nothing from the package.
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
ALL = tuple(TABLE)
OWN = tuple(name for name in ALL if "fenchel_young" not in name)  # with the head of this page
takes = {name: supervised_objective(name).takes for name in ALL}
SETS = tuple(name for name in ALL if takes[name] >= SET)
SOFT = tuple(name for name in ALL if takes[name] >= DISTRIBUTION)
# without bound on what a label may cost, faster than its logit's distance: inf at logits of 1e9, whose gradient is none
UNBOUNDED = ("comp_sum:0.5", "comp_sum:0")


def logits(n: int = N, v: int = V, seed: int = 0, scale: float = 1.5) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(n, v, generator=made, dtype=torch.float64)).requires_grad_()


def head(n: int = N, v: int = V, seed: int = 1) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    shapes = ((n, D), (v, D), (v,))
    return [(0.7 * torch.randn(s, generator=made, dtype=torch.float64)).requires_grad_() for s in shapes]


def classes(n: int = N, v: int = V) -> Tensor:
    return (torch.arange(n) * 3 + 1) % v


def sets(n: int = N, v: int = V) -> Tensor:
    return (
        torch.nn.functional.one_hot(classes(n, v), v) + torch.nn.functional.one_hot((classes(n, v) * 5 + 2) % v, v)
    ) > 0


def soft(n: int = N, v: int = V) -> Tensor:
    return torch.softmax(2 * logits(n, v, seed=3).detach(), -1)


def both(name: str, target: Tensor, **options):
    """The two doors as functions of a head's tensors."""

    def fused(h, w, b):
        return linear_supervised(h, w, target, name, bias=b, memory=4 * 8 * V, **options)

    def plain(h, w, b):
        given = {k: v for k, v in options.items() if k not in ("softcap", "scale", "class_weight")}
        z = options.get("scale", 1.0) * (h @ w.T + b)
        cap = options.get("softcap")
        z = z if cap is None else cap * torch.tanh(z / cap)
        return supervised(z, target, name, weight=options.get("class_weight"), **given)

    return fused, plain


def test_every_objective_of_the_folder_is_here():
    known = {name.partition(":")[0] for name in ALL}
    assert set(makers("fenchel.objectives.supervised")) <= known | {"normalised"}


@pytest.mark.parametrize("name", ALL)
def test_the_formula(name):
    z = logits()
    got = supervised(z, classes(), name, reduction="none")
    want = [TABLE[name](row, [int(y)]) for row, y in zip(z.detach().numpy(), classes(), strict=True)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", SETS)
def test_the_formula_for_sets_of_classes(name):
    z, y = logits(), sets()
    got = supervised(z, y, name, reduction="none")
    want = [TABLE[name](row, list(s.nonzero()[0])) for row, s in zip(z.detach().numpy(), y.numpy(), strict=True)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in SOFT if isinstance(supervised_objective(name), CostObjective)])
def test_the_cost_of_a_distribution_is_the_expected_cost_of_its_label(name):
    z, y = logits(), soft()
    each = torch.stack([supervised(z, torch.full((N,), k), name, reduction="none") for k in range(V)], 1)
    torch.testing.assert_close(supervised(z, y, name, reduction="none"), (y * each).sum(1), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", OWN)
def test_two_copies_of_the_math_cannot_drift(name):
    """Fused and plain are one definition: values and gradients agree, with all that stands between a product and a loss."""
    y = classes().clone()
    y[3] = -100
    options = {"reduction": "none", "softcap": 4.0, "scale": 1.5, "q": torch.rand(V, dtype=torch.float64) + 0.1}
    if takes[name] >= DISTRIBUTION:
        options["label_smoothing"] = 0.1
    same(*both(name, y, **options), head(), torch.randn(N, dtype=torch.float64))
    same(*both(name, y, reduction="mean", class_weight=torch.rand(V, dtype=torch.float64)), head(), 0.7)


@pytest.mark.parametrize("name", [n for n in ALL if takes[n] >= SET or takes[n] >= DISTRIBUTION])
def test_tables_of_targets_fused(name):
    for kind, y in ((SET, sets()), (DISTRIBUTION, soft())):
        if takes[name] >= kind:
            same(*both(name, y, reduction="mean"), head())


@pytest.mark.parametrize("name", OWN)
def test_value_and_gradient_have_a_row_program(name):
    """What a compiler is given is the function itself; no objective falls back to slower code."""
    of = labelled.Labelled(supervised_objective(name), 0.1 if takes[name] >= DISTRIBUTION else 0.0)
    rows = [torch.zeros(5, 7), torch.zeros(7), torch.zeros(5, 1)]
    written = programs._written(lambda *x: labelled.gradient_(*x, of), [*rows, torch.zeros(5, 1)], "row")
    assert written.stores == (0,)
    assert written.outputs == ("row",)
    assert programs._written(lambda *x: labelled.values(*x, of), rows, "row").stores == ()


@pytest.mark.parametrize("name", ["gce:0.7", "nce + 0.5*rce:4", "z_loss:2,0.5", "margin:1.5", "f_divergence:hellinger"])
def test_compiled(name, monkeypatch):
    monkeypatch.setenv("FENCHEL_COMPILE", "1")
    h, w, b = (x.detach().float().requires_grad_() for x in head(40, 130))
    fused, plain = both(name, classes(40, 130), reduction="mean")
    for got, want in zip(derivatives(fused, [h, w, b]), derivatives(plain, [h, w, b]), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", [n for n in OWN if n not in ("dft", "probability:1,0.05", "probability:0,high=0.05")])
def test_gradients(name):
    """Of those whose weights are not constants by definition."""
    z = logits(2, 4)
    assert gradcheck(lambda z: supervised(z, classes(2, 4), name, reduction="none"), (z,))


# all but those that are 0 there, are no float32 (p^10), or turn where two probabilities are equal
@pytest.mark.parametrize(
    "name", [n for n in OWN if n not in ("probability:1,0.05", "probability:10", "f_divergence:tv")]
)
def test_gradients_in_float32_keep_their_digits_in_a_large_vocabulary(name):
    # logits as a model's are when it begins: the label's probability is near 1/V, and what is small beside 1 must not be taken from it
    z = logits(4, 20_000, scale=0.45)
    y = torch.tensor([3, 70, 11_000, 19_999])
    want, got = (
        torch.autograd.grad(supervised(x, y, name), x)[0]
        for x in (z.double().requires_grad_(), z.float().requires_grad_())
    )
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", ["gce:0.7", "3*nce + 1.5*agce", "z_loss", "ldr:0.7,2", "decoupled", "binary:1,2.5"])
def test_second_derivatives_fused(name):
    results = []
    for f in both(name, classes(3, 6), reduction="mean"):
        x = head(3, 6)
        first = torch.autograd.grad(f(*x).square(), x, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), x))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_a_class_outside_the_vocabulary_is_one_that_is_not_there(name):
    h, w, b = head()
    y = classes(v=V - 4)
    out = b.detach().clone()
    out[-4:] = -math.inf
    out.requires_grad_()
    smoothing = 0.1 if takes[name] >= DISTRIBUTION else 0.0
    for door in both(name, y, reduction="mean", label_smoothing=smoothing):
        _, want = both(name, y, reduction="mean", label_smoothing=smoothing)
        wanted = derivatives(want, [h, w[:-4].detach().requires_grad_(), b[:-4].detach().requires_grad_()])
        value, dh, dw, db = derivatives(door, [h, w, out])
        for got, wants in zip((value, dh, dw[:-4], db[:-4]), wanted, strict=True):
            torch.testing.assert_close(got, wants, rtol=1e-10, atol=1e-10)
        assert bool((dw[-4:] == 0).all())
        assert bool((db[-4:] == 0).all())


@pytest.mark.parametrize("name", ALL)
def test_extreme_logits(name):
    z = torch.tensor([[1e9, 0.0, -1e9], [-1e9, 0.0, 1e9], [300.0, -300.0, 0.0], [0.0, 0.0, 0.0], [0.0, -1e9, -1e9]])
    for dtype in (torch.float32, torch.float64):
        x = z.to(dtype).requires_grad_()
        out = supervised(x, torch.zeros(5, dtype=torch.long), name, reduction="none")
        assert not bool(out.isnan().any())
        grad = torch.autograd.grad(out.sum(), x)[0]
        if name not in UNBOUNDED:
            assert bool(out.isfinite().all())
            assert bool(grad.isfinite().all())


@pytest.mark.parametrize("name", ALL)
def test_no_row_left(name):
    """A zero with a gradient of zero, whatever the rows hold."""
    x = head()
    with torch.no_grad():
        x[0][:] = torch.nan
    for reduction in ("none", "mean", "sum"):
        y = torch.full((N,), -100)
        nothing = torch.full((N, V), torch.nan, dtype=torch.float64, requires_grad=True)
        fused = linear_supervised(*x[:2], y, name, bias=x[2], reduction=reduction)
        for out, free in ((fused, x), (supervised(nothing, y, name, reduction=reduction), [nothing])):
            if "fenchel_young" in name and free is not x:
                continue
            assert out.shape == ((N,) if reduction == "none" else ())
            assert all(bool((g == 0).all()) for g in (out, *torch.autograd.grad(out.sum(), free)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("n", "v"), [(0, 5), (1, 1)])
def test_tiny(name, n, v):
    x, y = head(n, v), classes(n, v)
    for f in both(name, y, reduction="mean"):
        assert all(bool(g.isfinite().all()) for g in derivatives(f, x))


@pytest.mark.parametrize("name", ALL)
def test_a_nan_stays_where_it_is(name):
    z = logits().detach().clone()
    z[2, 4] = torch.nan
    out = supervised(z, classes(), name, reduction="none")
    there = torch.arange(N) == 2
    assert bool(out[~there].isfinite().all())
    if not name.startswith("probability:"):  # NaN is within no threshold
        assert bool(out[there].isnan().all())


# What objectives are known for.


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("comp_sum:1.0000001", "cross_entropy"),
        ("comp_sum:2", "mae"),
        ("gce:1e-7", "cross_entropy"),
        ("gce:0.4", "comp_sum:1.4"),
        ("gce:0.4", "probability:0.4"),
        ("probability:0", "cross_entropy"),
        ("focal:0", "cross_entropy"),
        ("poly:0", "cross_entropy"),
        ("agce:0,0.7", "gce:0.7"),
        ("decoupled", "cross_entropy"),
        ("candidates", "cross_entropy"),
        ("cross_entropy", "kl"),
        ("f_divergence:kl", "kl"),
        ("f_divergence:tv", "mae"),
        ("fenchel_young:alpha:1.5,temperature=2", "alpha:1.5,temperature=2"),
        ("0.5*fenchel_young:kl", "0.5*cross_entropy"),
        ("2*fenchel_young:alpha:1.5 + gce", "alpha:1.5 + gce + alpha:1.5"),
        ("2*alpha:1.5", "alpha:1.5,temperature=2"),
    ],
)
def test_limits(name, limit):
    same(lambda z: supervised(z, classes(), name), lambda z: supervised(z, classes(), limit), [logits()], tol=1e-6)


def test_ldr_between_cross_entropy_and_the_hinge():
    z, y = logits().detach(), classes()
    ce = supervised(z, y, "cross_entropy", reduction="none") - math.log(V)
    torch.testing.assert_close(supervised(z, y, "ldr:1,0", reduction="none"), ce)
    for c in (0.0, 2.0):
        hinge, near = (
            supervised(z, y, f"{name},{c}".replace("margin,", "margin:"), reduction="none")
            for name in ("margin", "ldr:1e-3")
        )
        assert bool(((hinge - near) >= -1e-12).all())
        assert float((hinge - near).max()) <= 1e-3 * math.log(V) + 1e-12
        # lam log mean exp of margins is the worst case over p less lam KL(p||uniform): no p does worse
        p = soft()
        margins = c * (1 - torch.nn.functional.one_hot(y, V)) + z - z.gather(1, y[:, None])
        at = (p * margins).sum(1) - 0.7 * ((p * p.log()).sum(1) + math.log(V))
        assert bool((at <= supervised(z, y, f"ldr:0.7,{c}", reduction="none") + 1e-12).all())


@pytest.mark.parametrize(
    ("name", "total"), [("mae", V - 1.0), ("rce:3", 3.0 * (V - 1)), ("nce", 1.0), ("normalised:gce:0.7", 1.0)]
)
def test_symmetric_losses_add_up_to_a_constant_over_labels(name, total):
    z = logits()
    each = sum(supervised(z, torch.full((N,), k), name, reduction="none") for k in range(V))
    torch.testing.assert_close(each, torch.full((N,), total, dtype=torch.float64))


def test_the_mean_absolute_error_is_not_zero():
    """A published implementation sums the differences without their absolute values, which is 0 for any prediction."""
    z = logits()
    loss = supervised(z, classes(), "mae")
    assert 0.1 < float(loss.detach()) < 1
    assert float(torch.autograd.grad(loss, z)[0].abs().max()) > 1e-3


@pytest.mark.parametrize(
    "name", ["cross_entropy", "comp_sum:0.5", "ldr:0.7,2", "margin:1", "log_partition", "binary", "decoupled"]
)
def test_convex_in_the_logits(name):
    a, b = logits(seed=5), logits(seed=6)
    f = lambda z: supervised(z, classes(), name, reduction="none")
    assert bool((f((a + b) / 2) <= (f(a) + f(b)) / 2 + 1e-12).all())


@pytest.mark.parametrize(
    ("name", "bound"), [("gce:0.7", 1 / 0.7), ("mae", 1.0), ("nce", 1.0), ("rce:4", 4.0), ("aul:1.5,0.9", 1.5**0.9)]
)
def test_bounded(name, bound):
    z = logits(scale=30.0)
    out = supervised(z, classes(), name, reduction="none")
    assert 0 <= float(out.detach().min()) <= float(out.detach().max()) <= bound * (1 + 1e-12)


def test_the_z_loss_knows_neither_shift_nor_scale():
    z = logits().detach()
    for a, b in ((3.0, 5.0), (0.1, -2.0)):
        torch.testing.assert_close(supervised(a * z + b, classes(), "z_loss"), supervised(z, classes(), "z_loss"))


def test_comp_sum_gradients_are_reweighted_cross_entropy():
    """p_y^(tau - 1) times that of cross-entropy; dynamic fine-tuning has that of 1 - p_y."""
    gradient = lambda name: torch.autograd.grad(supervised(z, classes(), name, reduction="sum"), z)[0]
    z = logits()
    p = z.softmax(1).gather(1, classes()[:, None])
    for tau in (0.5, 1.7, 2.0):
        torch.testing.assert_close(gradient(f"comp_sum:{tau}"), p ** (tau - 1) * gradient("cross_entropy"))
    torch.testing.assert_close(gradient("dft"), gradient("mae"))


def test_a_prior_in_q_is_logit_adjustment_for_every_objective():
    """And balanced softmax: the same cross-entropy, whose model predicts without it."""
    z, prior = logits(), torch.softmax(logits(1, seed=9).detach()[0], 0)
    adjusted = torch.nn.functional.cross_entropy(z + prior.log(), classes())
    for name in ("kl", "cross_entropy"):
        torch.testing.assert_close(supervised(z, classes(), name, q=prior), adjusted)
    for name in ("gce:0.7", "focal:2", "nce"):
        torch.testing.assert_close(
            supervised(z, classes(), name, q=prior), supervised(z + prior.log(), classes(), name)
        )
    # at zero logits a model says the prior, whatever its generator
    for name in ("alpha:1.5", "js"):
        flat = torch.zeros(1, V, dtype=torch.float64, requires_grad=True)
        [grad] = torch.autograd.grad(supervised(flat, prior[None], name, q=prior), flat)
        torch.testing.assert_close(grad, torch.zeros_like(grad))


def test_positives_do_not_compete_with_each_other():
    z = logits()
    [grad] = torch.autograd.grad(supervised(z, sets(), "decoupled", reduction="sum"), z)
    one = torch.nn.functional.one_hot(classes(), V).bool()
    moved = torch.where(sets() & ~one, z + 1, z)
    other = torch.autograd.grad(supervised(moved, sets(), "decoupled", reduction="sum"), z)[0]
    torch.testing.assert_close(grad[one], other[one])
    assert bool((grad[sets()] < 0).all())


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("k", [0.5, 1.0, 5.0, 18.5])
def test_soft_top_k_has_k_in_all(k, scale):
    x = torch.cat((scale * logits(40), scale * logits(40, seed=4).sign())).detach()
    total = torch.sigmoid(x + soft_top_k_shift(x, k)).sum(1)
    torch.testing.assert_close(total, torch.full_like(total, k), rtol=1e-6, atol=1e-6)
    sure = torch.sigmoid(1e4 * logits() + soft_top_k_shift(1e4 * logits(), 5.0)) > 0.5
    assert torch.equal(sure, logits() >= logits().sort(1, descending=True).values[:, 4:5])


def test_generators_go_the_way_of_fenchel_young():
    h, w, b = head()
    for name in ("kl", "alpha:1.5", "js:0.3"):
        torch.testing.assert_close(
            linear_supervised(h, w, classes(), name, bias=b, label_smoothing=0.1),
            linear_fenchel_young(h, w, classes(), name, bias=b, label_smoothing=0.1),
            rtol=0,
            atol=0,
        )
        torch.testing.assert_close(
            supervised(logits(), soft(), name), fenchel_young(logits(), soft(), name), rtol=0, atol=0
        )
    fused, plain = both("alpha:1.5 + 0.1*logit_penalty + 2*fenchel_young:kl", classes(), reduction="none")
    same(fused, plain, head(), torch.randn(N, dtype=torch.float64))


def test_half_precision_is_computed_in_single():
    h, w, _ = (x.detach().bfloat16() for x in head())
    got = linear_supervised(h, w, classes(), "gce:0.7")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, supervised(h.float() @ w.float().T, classes(), "gce:0.7"))
    assert supervised(logits().bfloat16(), classes(), "gce:0.7").dtype == torch.bfloat16


def test_one_file_adds_an_objective(tmp_path, monkeypatch):
    """A name, both doors and a row of the page; and the laws above ask for it, in `test_every_objective_of_the_folder_is_here`."""
    (tmp_path / "brier.py").write_text(BRIER)
    folder = importlib.import_module("fenchel.objectives.supervised")
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    makers.cache_clear()
    try:
        assert "brier" in supervised_names()
        h, w, b = head()
        p = torch.softmax(h @ w.T + b, -1)
        want = (p - torch.eye(V).double()[classes()]).square().sum(1).mean()
        torch.testing.assert_close(supervised(h @ w.T + b, classes(), "brier"), want)
        torch.testing.assert_close(linear_supervised(h, w, classes(), "brier + 0.5*brier:2", bias=b), 2 * want)
        docs = importlib.util.spec_from_file_location("build_api", Path(__file__).parents[2] / "docs" / "build_api.py")
        build_api = importlib.util.module_from_spec(docs)
        sys.modules["build_api"] = build_api
        docs.loader.exec_module(build_api)
        row = next(line for line in build_api.supervised_names_page() if line.startswith("| `brier"))
        assert "sum_j (p_j - y_j)^2" in row
        assert "Brier 1950" in row
    finally:
        del sys.modules["fenchel.objectives.supervised.brier"]
        sys.modules.pop("build_api", None)
        makers.cache_clear()


BRIER = '''
from dataclasses import dataclass

import torch

from fenchel.objectives.supervised.objective import DISTRIBUTION


@dataclass(frozen=True)
class Brier:
    """factor sum_j (p_j - y_j)^2.

    Source: Brier 1950.
    """

    factor: float = 1.0
    takes = DISTRIBUTION

    def rows(self, logits, target):
        return self.factor * (torch.softmax(logits, -1) - target).square().sum(-1)


OBJECTIVES = {"brier": Brier}
'''


# What is refused.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", r"objective: got 'nosuch'; known: .*gce"),
        ("gce:2", r"q: got 2; pass a number in \(0, 1\]"),
        ("gce:0", "q: got 0; pass a positive finite number"),
        ("comp_sum:-1", "tau: got -1; pass a finite number >= 0"),
        ("focal:gama=2", "objective 'focal:gama=2': .*parameters: gamma"),
        ("gce + nosuch", "objective: got 'nosuch'"),
        ("normalised:z_loss", "normalised: got ZLoss; pass a loss of the label's probability alone"),
        ("aul:1", "a: got 1; pass a number > 1"),
        ("f_divergence:reverse_kl", "infinite; pass one with finite f"),
        ("probability:1,0.5,0.5", "low: got 0.5 with high = 0.5"),
        ("tv", "has no operator or loss"),
    ],
)
def test_bad_names(name, message):
    with pytest.raises(ValueError, match=message):
        supervised(logits(), classes(), name)


def test_bad_targets():
    z = logits()
    with pytest.raises(ValueError, match=r"target: got class 19; pass classes in \[0, 19\)"):
        supervised(z, classes() + 1 + (classes() == classes().max()) * (V - 1 - classes().max()), "gce")
    with pytest.raises(ValueError, match="target: got probabilities, but LDR does not take them"):
        supervised(z, soft(), "ldr")
    with pytest.raises(ValueError, match="target: got sets of classes .bool., but CompSum does not take them"):
        supervised(z, sets(), "gce")
    with pytest.raises(ValueError, match="target: got a row without any class"):
        supervised(z, sets() & (torch.arange(N) != 2)[:, None], "candidates")
    assert bool(supervised(z, sets() & (torch.arange(N) != 2)[:, None], "binary").isfinite())
    with pytest.raises(ValueError, match="label_smoothing: got 0.1, but Margin takes no probabilities"):
        supervised(z, classes(), "margin", label_smoothing=0.1)
    with pytest.raises(ValueError, match="a row that sums to 2"):
        supervised(z, 2 * soft(), "gce")
    with pytest.raises(ValueError, match="q: got a class that is not positive"):
        supervised(z, classes(), "gce", q=torch.arange(V).double())
    with pytest.raises(ValueError, match="q: got shape"):
        supervised(z, classes(), "gce", q=torch.ones(3))
    with pytest.raises(ValueError, match="target: got sets of classes with class weights"):
        supervised(z, sets(), "candidates", weight=torch.ones(V, dtype=torch.float64))
    with pytest.raises(TypeError, match="objective: got .*; pass a name"):
        supervised(z, classes(), 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="objective: got .*; pass a name"):
        supervised(z, classes(), CompSum)  # pyright: ignore[reportArgumentType]
