"""Every row objective under the laws that hold for all: one definition on both paths, oracles in float64, padding, masks, second derivatives."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from two_models import N, V, derivatives, heads, logits, same

import fenchel
from fenchel.head.pairs import linear_pair_rows
from fenchel.objectives.distillation import (
    TeacherOperator,
    distillation,
    distillation_objective,
    linear_distillation,
)
from fenchel.objectives.names import makers

DIVERGENCES = ("kl", "js:0.3", "gjsd:0.2,scaled=true", "kl + 0.5*reverse_kl", "skew_kl:0.1,temperature=2", "tv")
# divergences between the two models: 0, and flat, at a student that is its teacher
EXACT = (
    *DIVERGENCES,
    "skew_reverse_kl:0.1",
    "renyi:0.7",
    "renyi:2,temperature=3,factor=9",
    "dkd:alpha=0.7,beta=2,temperature=2,factor=4",
    "bd_kd:forward=2,sharpness=3",
    "bd_kd:0,1",
    "adaptive_kl:mu=0.6,temperature=1.5",
    "ferkd:low=0,high=0.6",
    "binary_kl:temperature=2",
    "binary_kl_norm:temperature=2,factor=4",
)
# likelihoods and cross-entropies: not
OTHERS = (
    "nkd:gamma=1.5,temperature=2",
    "pld:temperature=2,factor=0.5",
    "ferkd:low=0.3,high=0.5,smoothing=0.2",
    "fenchel_young:alpha:1.5,temperature=2,factor=3",
    "fenchel_young:kl",
    "asft:0.3",
)
ALL = (*EXACT, *OTHERS)
MEMORY = 5 * 8 * V


def target_of(name: str, n: int = N, v: int = V) -> Tensor | None:
    return (torch.arange(n) * 3 + 1) % v if distillation_objective(name).needs_target else None


def paths(name, reduction="none", mask=None, v=V, vocabulary=None):
    """The two front doors as functions of the student's tensors."""
    y = target_of(name, v=v)

    def fused(*x):
        teacher, student = x[:3], x[3:]
        return linear_distillation(
            name, teacher, student, y, mask=mask, reduction=reduction, vocabulary=vocabulary, memory=MEMORY
        )

    def plain(*x):
        return distillation(name, *logits(x, vocabulary), y, mask=mask, reduction=reduction)

    return fused, plain


def split(x):
    fixed = [t.detach() for t in x[:3]]
    return lambda f: lambda *s: f(*fixed, *s), x[3:]


def test_every_objective_of_the_folder_is_here():
    known = {name.partition(":")[0] for name in ALL}
    assert set(makers("fenchel.objectives.distillation")) <= known


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_two_copies_of_the_math_cannot_drift(name, reduction):
    """TRL #7063, Liger #1082. Fused and plain are one definition: values and gradients agree."""
    with_teacher, student = split(heads())
    upstream = torch.randn(N if reduction == "none" else (), dtype=torch.float64)
    fused, plain = paths(name, reduction, torch.arange(N) % 4 > 0)
    same(with_teacher(fused), with_teacher(plain), student, upstream)


@pytest.mark.parametrize("name", ALL)
def test_gradients_of_both_models(name):
    """The method itself does not detach the teacher."""
    objective, y = distillation_objective(name), target_of(name)
    fn = lambda t, s, *y: objective.rows(t, s, y[0] if y else None)
    rest = () if y is None else (y,)
    fused = lambda *x: linear_pair_rows(fn, x[:3], x[3:], *rest, memory=MEMORY)
    same(fused, lambda *x: fn(*logits(x), *rest), heads(), torch.randn(N, dtype=torch.float64))


# Oracles: one row, probabilities in numpy, loops, nothing from the package.


def p_of(z: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    e = np.exp((z - z.max()) / temperature)
    return e / e.sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


def entropy(p: np.ndarray) -> float:
    return -sum(a * math.log(a) for a in p if a > 0)


def rest(p: np.ndarray, y: int) -> np.ndarray:
    return np.delete(p, y) / (1 - p[y])


def dkd(t, s, y, alpha, beta, T):
    p, q = p_of(t, T), p_of(s, T)
    two = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
    return alpha * two + beta * kl(rest(p, y), rest(q, y))


def nkd(t, s, y, gamma, T):
    a, b = rest(p_of(t, T), y), rest(p_of(s, T), y)
    return -p_of(t)[y] * math.log(p_of(s)[y]) - gamma * float((a * np.log(b)).sum())


def pld(t, s, y, T):
    left = sorted((j for j in range(len(t)) if j != y), key=lambda j: -t[j])
    ranking, w, total = [y, *left], p_of(t, T), 0.0
    for k, chosen in enumerate(ranking):
        total -= w[chosen] * (s[chosen] - math.log(sum(math.exp(s[j]) for j in ranking[k:])))
    return total


def akl(t, s, y, mu, T):
    p, q = p_of(t, T), p_of(s, T)
    head, mass = [], 0.0
    for j in sorted(range(len(p)), key=lambda j: -p[j]):
        mass += p[j]
        if mass > mu and head:
            break
        head.append(j)
    h = sum(abs(p[j] - q[j]) for j in head) / np.abs(p - q).sum()
    return h * kl(p, q) + (1 - h) * kl(q, p)


def bd(t, s, y, forward, reverse, sharpness):
    p, q = p_of(t), p_of(s)
    odds = reverse / forward * math.exp(sharpness * (entropy(q) - entropy(p)))
    return kl(p, q) / (1 + odds) + kl(q, p) * odds / (1 + odds)


def ferkd(t, s, y, low, high, smoothing):
    p, q = p_of(t), p_of(s)
    if p.max() > high:
        return 0.0
    mixed = np.full(len(p), smoothing / len(p)) + (1 - smoothing) * np.eye(len(p))[y]
    return kl(mixed if p.max() < low else p, q)


def gjsd(t, s, y, beta):
    p, q = p_of(t), p_of(s)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def binary(t, s, T):
    two = lambda z: np.array([1 / (1 + math.exp(-z / T)), 1 / (1 + math.exp(z / T))])
    return sum(kl(two(a), two(b)) for a, b in zip(t, s, strict=True))


def young(t, s, a, T):
    """Of the negative Tsallis entropy sum p^a / (a (a - 1)), whose softargmax is found by halving."""
    p, theta = p_of(t, T), s / T
    of = lambda lam: np.maximum((a - 1) * (theta - lam), 0) ** (1 / (a - 1))
    low, high = theta.min() - 20.0, theta.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if of(middle).sum() > 1 else (low, middle)
    q = of(low)
    return float(q @ theta - p @ theta + ((p**a).sum() - (q**a).sum()) / (a * (a - 1)))


ORACLES = {
    "fenchel_young:alpha:1.5,temperature=2,factor=3": lambda t, s, y: 3 * young(t, s, 1.5, 2),
    "fenchel_young:kl,temperature=2": lambda t, s, y: kl(p_of(t, 2), p_of(s, 2)),
    "asft:0.3": lambda t, s, y: -p_of(s)[y] * math.log(p_of(s)[y]) + 0.3 * kl(p_of(t), p_of(s)),
    "binary_kl:2": lambda t, s, y: binary(t, s, 2),
    "binary_kl_norm:2,factor=4": lambda t, s, y: 4 * float(np.log(np.cosh((s - t) / 4)).sum()),
    "dkd:0.7,2,temperature=2,factor=4": lambda t, s, y: 4 * dkd(t, s, y, 0.7, 2, 2),
    "nkd:1.5,temperature=2": lambda t, s, y: nkd(t, s, y, 1.5, 2),
    "pld:2,factor=0.5": lambda t, s, y: 0.5 * pld(t, s, y, 2),
    "adaptive_kl:0.6,temperature=1.5": lambda t, s, y: akl(t, s, y, 0.6, 1.5),
    "adaptive_kl:0.01": lambda t, s, y: akl(t, s, y, 0.01, 1),
    "bd_kd:2,0.5,sharpness=3": lambda t, s, y: bd(t, s, y, 2, 0.5, 3),
    "bd_kd:1,0": lambda t, s, y: kl(p_of(t), p_of(s)),
    "bd_kd:0,1": lambda t, s, y: kl(p_of(s), p_of(t)),
    "ferkd:0.3,0.5,smoothing=0.2": lambda t, s, y: ferkd(t, s, y, 0.3, 0.5, 0.2),
    "renyi:0.7": lambda t, s, y: math.log((p_of(t) ** 0.7 * p_of(s) ** 0.3).sum()) / -0.3,
    "gjsd:0.2": lambda t, s, y: gjsd(t, s, y, 0.2),
    "gjsd:0.2,scaled=true,factor=3": lambda t, s, y: 3 * gjsd(t, s, y, 0.2) / 0.16,
    "skew_kl:0.1,temperature=2": lambda t, s, y: kl(p_of(t, 2), 0.1 * p_of(t, 2) + 0.9 * p_of(s, 2)),
    "skew_reverse_kl:0.1": lambda t, s, y: kl(p_of(s), 0.1 * p_of(s) + 0.9 * p_of(t)),
    "kl:temperature=2,factor=4": lambda t, s, y: 4 * kl(p_of(t, 2), p_of(s, 2)),
    "kl + 0.5*reverse_kl": lambda t, s, y: kl(p_of(t), p_of(s)) + 0.5 * kl(p_of(s), p_of(t)),
}


@pytest.mark.parametrize("name", ORACLES)
def test_equals_its_formula(name):
    t, s = (1.5 * torch.randn(40, 7, dtype=torch.float64) for _ in range(2))
    y = target_of(name, 40, 7)
    got = distillation(name, t, s, y, reduction="none")
    want = [
        ORACLES[name](a, b, 0 if y is None else int(y[i]))
        for i, (a, b) in enumerate(zip(t.numpy(), s.numpy(), strict=True))
    ]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_student_that_is_its_teacher(name, dtype):
    """TRL #5731, about 6.0 where it should be 0. Exactly zero, and flat."""
    ht, wt, bt, *_ = (t.detach() for t in heads(dtype, n=20, v=101))
    student = [t.clone().requires_grad_() for t in (ht, wt, bt)]
    y = target_of(name, 20, 101)
    for out in (
        linear_distillation(name, (ht, wt, bt), tuple(student), y, reduction="none"),
        linear_distillation(name, (ht, wt, bt), tuple(student), y),
        distillation(name, ht @ wt.T + bt, student[0] @ student[1].T + student[2], y),
    ):
        assert bool((out == 0).all())
        # the slope of js:BETA at 1 is a rounding, the same for all classes, which softmax takes out again
        allowed = 1e-12 if "js" in name else 0.0
        assert max(float(g.abs().max()) for g in torch.autograd.grad(out.sum(), student)) <= allowed


@pytest.mark.parametrize("name", ALL)
def test_padded_vocabularies(name):
    """Liger pads a student with zeros, and identical models are 142.6 apart. Here: told, or refused."""
    x = heads()
    x[4] = torch.cat((x[4].detach(), torch.randn(5, 6).double())).requires_grad_()
    x[5] = torch.cat((x[5].detach(), torch.randn(5).double())).requires_grad_()
    y = target_of(name, v=30)
    with pytest.raises(ValueError, match=r"student: got a weight with V = 42, teacher has 37; .* pass vocabulary"):
        linear_distillation(name, tuple(x[:3]), tuple(x[3:]), y)
    with_teacher, student = split(x)
    fused, plain = paths(name, v=30, vocabulary=30)
    same(with_teacher(fused), with_teacher(plain), student)
    *_, d_weight, d_bias = derivatives(with_teacher(fused), student)
    assert bool((d_weight[30:] == 0).all())
    assert bool((d_bias[30:] == 0).all())


@pytest.mark.parametrize("name", ALL)
def test_a_bias_of_minus_infinity_is_a_class_that_is_not_there(name):
    """TRL's ChunkedDivergence gives NaN."""
    x = heads()
    with torch.no_grad():
        x[2][-4:] = x[5][-4:] = -torch.inf
    with_teacher, student = split(x)
    fused, plain = paths(name, v=V - 4)
    _, cut = paths(name, v=V - 4, vocabulary=V - 4)
    want = derivatives(with_teacher(cut), student)
    for f in (fused, plain):
        for got, wanted in zip(derivatives(with_teacher(f), student), want, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_an_excluded_class_of_one_model_alone(name):
    """The teacher excludes a class: its share is 0, and nothing is NaN."""
    t, s = torch.randn(6, 9, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    t[:, 8] = -torch.inf
    out = distillation(name, t, s, target_of(name, 6, 8), reduction="none")
    assert not bool(out.isnan().any())
    if bool(out.isfinite().all()):
        assert bool(torch.autograd.grad(out.sum(), s)[0].isfinite().all())


@pytest.mark.parametrize("name", ALL)
def test_no_row_left(name):
    """torchtune returns a constant, and backward raises. A zero with a gradient of zero, whatever the rows hold."""
    y, mask = target_of(name), torch.zeros(N, dtype=torch.bool)
    x = heads()
    with torch.no_grad():
        x[0][:] = x[3][:] = torch.nan
    nothing = torch.full((N, V), torch.nan, dtype=torch.float64, requires_grad=True)
    for reduction in ("none", "mean", "sum"):
        fused = linear_distillation(name, tuple(x[:3]), tuple(x[3:]), y, mask=mask, reduction=reduction)
        plain = distillation(name, nothing.detach(), nothing, y, mask=mask, reduction=reduction)
        for out, free in ((fused, x[3:]), (plain, [nothing])):
            assert out.shape == ((N,) if reduction == "none" else ())
            assert all(bool((g == 0).all()) for g in (out, *torch.autograd.grad(out.sum(), free)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("n", "v"), [(0, 5), (1, 1), (3, 2)])
def test_tiny(name, n, v):
    x = heads(n=n, v=v)
    y = target_of(name, n, v)
    for out in (
        linear_distillation(name, tuple(x[:3]), tuple(x[3:]), y),
        distillation(name, *logits(x), y),
    ):
        assert bool(out.isfinite())
        grads = torch.autograd.grad(out, x[3:])
        assert all(bool(g.isfinite().all()) for g in grads)
        if v == 1 and not name.startswith("binary"):  # which compare logits, and one logit is enough for that
            # a Fenchel-Young loss is the gap between a value and a score
            assert float(out.detach().abs()) <= (1e-15 if name.startswith("fenchel_young") else 0)


def test_the_fenchel_young_loss_of_a_sparse_teacher():
    """Zero, and flat, at the student whose own softargmax is the teacher's distribution; a divergence of softmaxes never is."""
    t = 3 * torch.randn(20, 9, dtype=torch.float64)
    s = (t + torch.randn(20, 1, dtype=torch.float64)).requires_grad_()
    sparse = fenchel.softargmax(t, "alpha:1.5").log()
    assert bool((sparse == -torch.inf).any())
    own = distillation("fenchel_young:alpha:1.5", sparse, s, reduction="none")
    assert float(own.detach().abs().max()) < 1e-12
    assert float(torch.autograd.grad(own.sum(), s)[0].abs().max()) < 1e-12
    assert bool((distillation("fenchel_young:alpha:2", sparse, s, reduction="none") > 1e-3).any())
    assert bool((distillation("kl", sparse, s, reduction="none") > 1e-3).all())
    # an objective of a model's logits is that of its distribution
    taught = TeacherOperator(distillation_objective("kl + reverse_kl:skew=0.1"), "alpha:1.5")
    torch.testing.assert_close(distillation(taught, t, s), distillation("kl + reverse_kl:skew=0.1", sparse, s))


def test_generators_without_such_a_loss_are_refused():
    with pytest.raises(ValueError, match="D_f of a distribution with zeros is infinite"):
        distillation_objective("fenchel_young:reverse_kl")
    with pytest.raises(ValueError, match="has no operator or loss"):
        distillation_objective("fenchel_young:tv")
    with pytest.raises(ValueError, match="objective: DKD needs a target"):
        TeacherOperator(distillation_objective("dkd"), "alpha:2")


@pytest.mark.parametrize("name", ["dkd:0.7,2", "nkd:temperature=2", "pld:temperature=2", "renyi:2", "ferkd:0,1"])
def test_derivatives_of_both_orders(name):
    """Of those whose weights are not constants by definition."""
    t, s = (torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    objective, y = distillation_objective(name), target_of(name, 2, 4)
    f = lambda t, s: objective.rows(t, s, y)
    assert gradcheck(f, (t, s))
    assert gradgradcheck(f, (t, s), fast_mode=True)


@pytest.mark.parametrize("name", ["dkd:1,8", "pld", "adaptive_kl", "ferkd:0.3,0.5"])
def test_second_derivatives_fused(name):
    with_teacher, student = split(heads(n=3, v=5))
    y = target_of(name, 3, 5)
    results = []
    for f in (
        lambda *x: linear_distillation(name, x[:3], x[3:], y, reduction="none", memory=80),
        lambda *x: distillation(name, *logits(x), y, reduction="none"),
    ):
        first = torch.autograd.grad(with_teacher(f)(*student).square().sum(), student, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), student))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_extreme_logits(name):
    t = torch.tensor([[1e9, 0.0, -1e9], [300.0, -300.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    s = t.flip(-1).clone().requires_grad_()
    out = distillation(name, t, s, target_of(name, 3, 3), reduction="none")
    assert not bool(out.isnan().any())
    grad = torch.autograd.grad(out[out.isfinite()].sum(), s)[0]
    assert not bool(grad.isnan().any())
