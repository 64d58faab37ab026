"""Divergences against their definitions in 60-digit arithmetic, and the laws of f-divergences over every generator.

The oracle shares no code and no arrangement of formulas with the package: p log(p/q), (p - q)^2/q, ... as in textbooks.
"""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import hessian

from fenchel.divergences import bhattacharyya, cauchy_schwarz, divergence, renyi, skew_divergence
from fenchel.generators import Generator, generator
from fenchel.terms import row_divergence, skewed, terms, through_softmax

# torch's own, at the first use of forward derivatives and of the compiler
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning")

INF = math.inf
mp = mpmath.mp.clone()
mp.dps = 60


def kl(p, q):
    return mp.fsum(a * mp.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def mixture(w, p, q):
    return [w * a + (1 - w) * b for a, b in zip(p, q, strict=True)]


def total(term):
    return lambda p, q: mp.fsum(term(a, b) for a, b in zip(p, q, strict=True))


def js(w):
    return lambda p, q: w * kl(p, mixture(w, p, q)) + (1 - w) * kl(q, mixture(w, p, q))


def power(a):
    return lambda p, q: (total(lambda x, y: x**a * y ** (1 - a))(p, q) - 1) / (a * (a - 1))


# every shape of generator: poles and edges on either side, both or neither; limits of the families; a kink; a scale
DEFINITIONS = {
    "kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "alpha:1": kl,
    "alpha:0": lambda p, q: kl(q, p),
    "jeffreys": lambda p, q: kl(p, q) + kl(q, p),
    "js": js(mp.mpf(0.5)),
    "js:0.1": js(mp.mpf(0.1)),
    "hellinger": total(lambda p, q: (mp.sqrt(p) - mp.sqrt(q)) ** 2),
    "alpha:0.5": total(lambda p, q: 2 * (mp.sqrt(p) - mp.sqrt(q)) ** 2),
    "chi2": total(lambda p, q: (p - q) ** 2 / q / 2),
    "neyman": total(lambda p, q: (p - q) ** 2 / p / 2),
    "le_cam": total(lambda p, q: (p - q) ** 2 / (p + q)),
    "tv": total(lambda p, q: abs(p - q) / 2),
    "alpha:0.1": power(mp.mpf(0.1)),
    "alpha:1.5": power(mp.mpf(1.5)),
    "alpha:3": power(mp.mpf(3)),
    "alpha:-0.5": power(mp.mpf(-0.5)),
    "3*js": lambda p, q: 3 * js(mp.mpf(0.5))(p, q),
}
NAMES = tuple(DEFINITIONS)
SMOOTH = tuple(name for name in NAMES if name != "tv")
TWINS = {
    "kl": Generator.from_f(lambda u: u * u.log(), name="my kl"),
    "reverse_kl": Generator.from_f(lambda u: -u.log(), name="my reverse kl"),
    "hellinger": Generator.from_f(lambda u: (u.sqrt() - 1) ** 2, name="my hellinger"),
    "chi2": Generator.from_f(lambda u: (u - 1) ** 2 / 2, name="my chi2"),
}
names = pytest.mark.parametrize("name", NAMES)
smooth = pytest.mark.parametrize("name", SMOOTH)


def softmax(z):
    weights = [mp.exp(mp.mpf(x)) if x > -INF else mp.mpf(0) for x in z]
    norm = mp.fsum(weights)
    return [w / norm for w in weights]


def exact(definition, z, w):
    return definition(softmax(z), softmax(w))


def exact_gradient(definition, z, w):
    """The derivative in the logits z: central differences with a step of 1e-25 in 60 digits."""
    step = mp.mpf(10) ** -25
    out = []
    for j in range(len(z)):
        up, down = [[mp.mpf(x) + s * step * (i == j) for i, x in enumerate(z)] for s in (1, -1)]
        out.append(float((exact(definition, up, w) - exact(definition, down, w)) / (2 * step)))
    return torch.tensor(out, dtype=torch.float64)


def rows(scale, n=3, v=5, dtype=torch.float64):
    # values that float32 holds exactly, so that both precisions answer the same question
    return tuple((scale * torch.randn(n, v)).to(dtype) for _ in range(2))


def gradients(f, *args):
    leaves = [x.clone().requires_grad_() for x in args]
    return torch.autograd.grad(f(*leaves).sum(), leaves)


# Values and derivatives are what the definition says


@names
@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0])
def test_value_and_gradients_equal_the_definition(name, scale):
    p, q = rows(scale, n=2)
    got = divergence(p, q, name)
    d_p, d_q = gradients(lambda a, b: divergence(a, b, name), p, q)
    swapped = lambda b, a: DEFINITIONS[name](a, b)
    for i, (z, w) in enumerate(zip(p.tolist(), q.tolist(), strict=True)):
        want = float(exact(DEFINITIONS[name], z, w))
        # at scale 1e-3 the log-ratios carry the rounding of the logarithms
        assert float(got[i]) == pytest.approx(want, rel=1e-11 if scale >= 1 else 1e-9)
        for grad, target in (
            (d_p[i], exact_gradient(DEFINITIONS[name], z, w)),
            (d_q[i], exact_gradient(swapped, w, z)),
        ):
            assert float((grad - target).abs().max()) <= 1e-11 * max(float(target.abs().max()), want)


@names
@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_float32_is_as_good_as_its_logarithms(name, scale):
    p, q = rows(scale, n=8, v=50, dtype=torch.float32)
    wide = (p.double(), q.double())
    want = divergence(*wide, name)
    got = divergence(p, q, name)
    assert got.dtype == torch.float32
    # a log-probability x is known to 6e-8 |x|, which reaches the divergence through its derivative in log p
    logs = [x.log_softmax(-1) for x in wide]
    slopes = gradients(lambda a, b: terms(a, b, generator(name)), *logs)
    sensitivity = sum((d * x).abs().sum(-1) for d, x in zip(slopes, logs, strict=True))
    assert ((got - want).abs() <= 1e-6 * want + 2e-7 * sensitivity).all()
    f = lambda a, b: divergence(a, b, name)
    for d, d_wide, slope in zip(gradients(f, p, q), gradients(f, *wide), slopes, strict=True):
        assert ((d - d_wide).norm(dim=-1) <= 2e-6 * (1 + scale) * slope.norm(dim=-1) + 2e-7 * scale).all()


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_a_users_f_equals_its_built_in_twin(name, scale):
    p, q = rows(scale)
    mine, theirs = (lambda a, b, g=g: divergence(a, b, g) for g in (TWINS[name], name))
    torch.testing.assert_close(mine(p, q), theirs(p, q), rtol=1e-9, atol=1e-13)
    for a, b in zip(gradients(mine, p, q), gradients(theirs, p, q), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12 * float(theirs(p, q).max() + 1))


def test_a_users_symmetric_f_with_poles_on_both_sides():
    g = Generator.from_f(lambda u: (u - 1) ** 2 * (1 + 1 / u) / 2, name="chi2 + neyman")
    p, q = rows(20.0)
    both = lambda a, b: divergence(a, b, "chi2") + divergence(a, b, "neyman")
    torch.testing.assert_close(divergence(p, q, g), both(p, q), rtol=1e-10, atol=0)
    for a, b in zip(gradients(lambda a, b: divergence(a, b, g), p, q), gradients(both, p, q), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 * float(b.abs().max()))


# Laws

logits = st.integers(1, 6).flatmap(
    lambda v: st.tuples(
        *[st.lists(st.floats(-20, 20, width=32), min_size=v, max_size=v).map(torch.tensor) for _ in range(2)]
    )
)


@given(st.sampled_from([*NAMES, "skew"]), logits, st.sampled_from([torch.float32, torch.float64]))
def test_never_negative_and_zero_at_equality(name, pair, dtype):
    g = skewed("kl", 0.3) if name == "skew" else generator(name)
    p, q = (x.to(dtype) for x in pair)
    assert float(divergence(p, q, g)) >= 0
    assert float(divergence(p, p, g)) <= 1e-12
    if len(p) == 1:
        assert float(divergence(p, q, g)) == 0


@given(st.sampled_from([*NAMES, *TWINS.values(), skewed("kl", 0.2), skewed("neyman", 0.7)]), logits)
def test_adjoint_swaps_the_arguments(g, pair):
    g = generator(g)
    p, q = (x.double() for x in pair)
    torch.testing.assert_close(divergence(q, p, g.adjoint), divergence(p, q, g), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(divergence(p, q, g.adjoint.adjoint), divergence(p, q, g), rtol=1e-9, atol=1e-13)


@given(st.sampled_from(NAMES), logits, st.floats(0.1, 10), st.floats(-50, 50))
def test_scaling_and_shifting(name, pair, c, shift):
    p, q = (x.double() for x in pair)
    want = divergence(p, q, name)
    torch.testing.assert_close(divergence(p, q, generator(name).scaled(c)), c * want, rtol=1e-12, atol=1e-15)
    # a shift rounds the logits, by some 1e-14
    torch.testing.assert_close(divergence(p + shift, q - shift, name), want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(divergence(p.log_softmax(-1), q, name), want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(divergence(3 * p, 3 * q, name, temperature=3.0), want, rtol=1e-10, atol=1e-12)


@given(st.sampled_from(NAMES), logits.filter(lambda pair: len(pair[0]) >= 2))
def test_merging_two_classes_does_not_increase_it(name, pair):
    p, q = (x.double() for x in pair)
    merged = [torch.cat((torch.logsumexp(x[:2], 0, keepdim=True), x[2:])) for x in (p, q)]
    assert float(divergence(*merged, name)) <= float(divergence(p, q, name)) * (1 + 1e-10) + 1e-14


@given(st.sampled_from(NAMES), logits, logits, st.floats(0.05, 0.95))
def test_jointly_convex(name, one, two, w):
    v = min(len(one[0]), len(two[0]))
    (p, q), (r, s) = ([x[:v].double().log_softmax(-1) for x in pair] for pair in (one, two))
    mix = [torch.logaddexp(a + math.log(w), b + math.log1p(-w)) for a, b in ((p, r), (q, s))]
    chord = w * divergence(p, q, name) + (1 - w) * divergence(r, s, name)
    assert float(divergence(*mix, name)) <= float(chord) * (1 + 1e-9) + 1e-13


@given(logits)
def test_the_inequalities_between_divergences(pair):
    p, q = (x.double() for x in pair)
    d = {name: float(divergence(p, q, name)) for name in ("kl", "tv", "js", "hellinger", "chi2", "le_cam")}
    slack = 1 + 1e-12
    assert 2 * d["tv"] ** 2 <= d["kl"] * slack  # Pinsker
    assert d["hellinger"] / 2 <= d["tv"] * slack
    assert d["tv"] <= math.sqrt(d["hellinger"] * (1 - d["hellinger"] / 4)) * slack + 1e-12
    assert d["js"] <= math.log(2) * d["tv"] * slack  # Lin 1991
    assert d["kl"] <= math.log1p(2 * d["chi2"]) * slack
    assert d["le_cam"] / 4 <= d["js"] * slack  # Topsoe 2000
    assert d["tv"] <= 1 * slack
    assert d["js"] <= math.log(2) * slack


# Masked classes


@names
def test_classes_masked_on_both_sides_do_not_count(name):
    p, q = rows(2.0)
    pad = torch.full((3, 4), -INF, dtype=torch.float64)
    wide = [torch.cat((x[:, :2], pad, x[:, 2:]), 1) for x in (p, q)]
    f = lambda a, b: divergence(a, b, name)
    torch.testing.assert_close(f(*wide), f(p, q), rtol=1e-14, atol=0)
    for padded, plain in zip(gradients(f, *wide), gradients(f, p, q), strict=True):
        assert (padded[:, 2:6] == 0).all()
        torch.testing.assert_close(torch.cat((padded[:, :2], padded[:, 6:]), 1), plain, rtol=1e-13, atol=1e-15)


@names
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_excluded_on_one_side_adds_its_limit(name, side, dtype):
    pair = [x.to(dtype) for x in rows(1.0)]
    mass = pair[1 - side].softmax(-1)[:, 2]
    pair[side][:, 2] = -INF
    g = generator(name)
    f = lambda a, b: divergence(a, b, g)
    got = f(*pair)
    limit = g.f0 if side == 0 else g.adjoint.f0
    if limit == INF:
        assert (got == INF).all()
        return
    log_p, log_q = (x.log_softmax(-1)[:, [0, 1, 3, 4]] for x in pair)
    torch.testing.assert_close(got, mass * limit + terms(log_p, log_q, g).sum(-1))
    for i, d in enumerate(gradients(f, *pair)):
        assert d.isfinite().all()
        if i == side:
            assert (d[:, 2] == 0).all()
    # the limit of ever lower logits
    low = [x.clone() for x in pair]
    low[side][:, 2] = -1e9
    torch.testing.assert_close(f(*low), got)
    for far, limit_d in zip(gradients(f, *low), gradients(f, *pair), strict=True):
        torch.testing.assert_close(far, limit_d)


@names
def test_logits_of_a_thousand_million(name):
    p = torch.tensor([[1e9, 0.0, -1e9], [0.0, -1e9, 0.0], [1e9, 1e9, 1e9]])
    q = torch.tensor([[1e9, -1e9, 0.0], [0.0, -1e9, 1.0], [1e9, 1e9, -1e9]])
    got = divergence(p, q, name)
    assert (got >= 0).all()
    assert not got.isnan().any()
    assert float(got[0]) == 0  # both have all mass on the first class
    for d in gradients(lambda a, b: divergence(a, b, name), p[:2], q[:2]):
        assert d.isfinite().all()


def test_nan_rows_are_nan_and_leave_others_alone():
    p, q = rows(1.0)
    clean = divergence(p, q, "js")
    for side in (0, 1):
        pair = [p.clone(), q.clone()]
        pair[side][1, 3] = math.nan
        got = divergence(*pair, "js")
        assert got[1].isnan()
        assert torch.equal(got[[0, 2]], clean[[0, 2]])


# Differentiability


@smooth
@pytest.mark.parametrize("equal", [False, True], ids=["apart", "p = q"])
def test_first_and_second_derivatives(name, equal):
    p, q = rows(1.0, n=1, v=3)
    if equal:
        q = p.clone()
    leaves = (p.requires_grad_(), q.requires_grad_())
    f = lambda a, b: divergence(a, b, name)
    assert gradcheck(f, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, leaves)


def test_total_variation_has_the_zero_subgradient_at_its_kink():
    p, _ = rows(1.0)
    assert all((d == 0).all() for d in gradients(lambda a, b: divergence(a, b, "tv"), p, p.clone()))
    assert gradcheck(lambda a, b: divergence(a, b, "tv"), tuple(x.requires_grad_() for x in rows(1.0)))


@pytest.mark.parametrize("f", [renyi, skew_divergence, bhattacharyya, cauchy_schwarz])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_derivatives_of_the_others(f, scale):
    p, q = rows(scale, n=1, v=3)
    leaves = (p.requires_grad_(), q.requires_grad_())
    g = {renyi: lambda a, b: renyi(a, b, 1.7), skew_divergence: lambda a, b: f(a, b, "js:0.3", skew=0.2)}.get(f, f)
    assert gradcheck(g, leaves, check_forward_ad=True)
    assert gradgradcheck(g, leaves)


@pytest.mark.parametrize("name", ["kl", "js", "chi2"])
def test_functional_transforms_compose(name):
    p, q = rows(1.0)
    f = lambda a, b: divergence(a, b, name)
    batched = torch.func.vmap(torch.func.grad(f, argnums=(0, 1)))(p, q)
    for got, want in zip(batched, gradients(f, p, q), strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.func.vmap(f, in_dims=(0, None))(p, q[0]), f(p, q[:1].expand_as(p)))
    v = torch.randn_like(q[0])
    _, forward = torch.func.jvp(lambda b: f(p[0], b), (q[0],), (v,))
    torch.testing.assert_close(forward, batched[1][0] @ v)
    second = torch.func.hessian(lambda b: f(p[0], b))(q[0])
    torch.testing.assert_close(second, hessian(lambda b: f(p[0], b), q[0]))


def test_any_upstream_gradient_and_either_argument_alone():
    p, q = rows(1.0)
    weights = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    both = gradients(lambda a, b: weights * divergence(a, b, "js"), p, q)
    one = torch.cat([gradients(lambda a, i=i: divergence(a, q[i : i + 1], "js"), p[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(both[0], weights[:, None] * one)
    torch.testing.assert_close(both[1], gradients(lambda b: weights * divergence(p, b, "js"), q)[0])


@names
def test_row_form_equals_autograd(name):
    p, q = rows(2.0)
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    value, x_p, x_q = row_divergence(log_p, log_q, generator(name))
    assert torch.equal(value, divergence(p, q, name))
    for got, want in zip(
        (through_softmax(x_p, log_p), through_softmax(x_q, log_q)),
        gradients(lambda a, b: divergence(a, b, name), p, q),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)
    none, only_q = row_divergence(log_p, log_q, generator(name), grad_p=False)[1:]
    assert none is None
    assert torch.equal(only_q, x_q)
    only_p, none = row_divergence(log_p, log_q, generator(name), grad_q=False)[1:]
    assert none is None
    assert torch.equal(only_p, x_p)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["kl", "js"])
def test_compiled_whole(name):
    p, q = rows(1.0)
    p[0], p[1, 2], q[1, 2] = q[0], -INF, -INF
    f = lambda a, b: divergence(a, b, name)
    compiled = torch.compile(f, fullgraph=True)
    torch.testing.assert_close(compiled(p, q), f(p, q))
    for got, want in zip(gradients(compiled, p, q), gradients(f, p, q), strict=True):
        torch.testing.assert_close(got, want)


@names
def test_what_a_compiler_differentiates(name, monkeypatch):
    """The expression given to compilers, differentiated in eager mode: two derivatives equal the usual ones."""
    p, q = rows(1.0)
    p[0], p[1, 2], q[1, 2] = q[0], -INF, -INF
    p[2] *= 100  # unselected branches would overflow here
    f = lambda a, b: divergence(a, b, name)
    curvature = lambda: [hessian(lambda x, b=b: f(x, b), y) for y, b in zip(p[:2], q[:2], strict=True)]
    want = f(p, q), gradients(f, p, q), curvature()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    got = f(p, q), gradients(f, p, q), curvature()
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


# Skews and mixtures


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js", "chi2", "hellinger", "tv", "alpha:0.1"])
@pytest.mark.parametrize("skew", [1e-4, 0.1, 0.9])
def test_skew_equals_the_divergence_from_the_mixture(name, skew):
    p, q = rows(6.0)
    f = lambda a, b: skew_divergence(a, b, name, skew=skew)
    got, grads = f(p, q), gradients(f, p, q)
    w = mp.mpf(skew)
    definition = lambda a, b: DEFINITIONS[name](a, mixture(w, a, b))
    for i, (z, y) in enumerate(zip(p.tolist(), q.tolist(), strict=True)):
        want = float(exact(definition, z, y))
        assert float(got[i]) == pytest.approx(want, rel=1e-10)
        for d, target in ((grads[0][i], exact_gradient(definition, z, y)),
                          (grads[1][i], exact_gradient(lambda b, a: definition(a, b), y, z))):  # fmt: skip
            torch.testing.assert_close(d, target, rtol=1e-8, atol=1e-11 * max(1.0, want))
    narrow = skew_divergence(p.float(), q.float(), name, skew=skew)
    torch.testing.assert_close(narrow.double(), got, rtol=3e-5, atol=1e-7)


def test_skew_of_a_teacher_and_a_student_is_distillms():
    t, s = rows(1.0)
    forward = lambda z, y: kl(softmax(z), mixture(mp.mpf(0.1), softmax(z), softmax(y)))
    reverse = lambda z, y: kl(softmax(y), mixture(mp.mpf(0.9), softmax(z), softmax(y)))
    for i, (z, y) in enumerate(zip(t.tolist(), s.tolist(), strict=True)):
        assert float(skew_divergence(t, s)[i]) == pytest.approx(float(forward(z, y)), rel=1e-10)
        assert float(skew_divergence(s, t)[i]) == pytest.approx(float(reverse(z, y)), rel=1e-10)


def test_limits_of_the_skew():
    p, q = rows(1.0)
    assert torch.equal(skew_divergence(p, q, "js", skew=0.0), divergence(p, q, "js"))
    left = 1e-5
    a, b = p.softmax(-1), q.softmax(-1)
    want = ((a - b) ** 2 / a).sum(-1) / 2  # f''(1) = 1 for KL
    torch.testing.assert_close(skew_divergence(p, q, skew=1 - left) / left**2, want, rtol=1e-3, atol=0)


@pytest.mark.parametrize("beta", [1e-6, 1 - 1e-6])
def test_the_mixture_of_js_is_oriented_and_its_limits_are_kl(beta):
    """PEERS' most frequent mistake: the mixture swapped, and the end points taken for KL without the scale."""
    p, q = rows(1.0)
    scaled = divergence(p, q, f"js:{beta!r}") / min(beta, 1 - beta)
    want = divergence(p, q) if beta < 0.5 else divergence(q, p)
    torch.testing.assert_close(scaled, want, rtol=1e-4, atol=0)
    assert not torch.allclose(scaled, divergence(q, p) if beta < 0.5 else divergence(p, q), rtol=1e-2)


# Renyi and its kin


def exact_renyi(a):
    return lambda p, q: mp.log(total(lambda x, y: x**a * y ** (1 - a))(p, q)) / (a - 1)


@pytest.mark.parametrize("order", [0.01, 0.5, 0.999999, 1.000001, 2.0, 5.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
def test_renyi_equals_the_definition(order, scale):
    p, q = rows(scale)
    got = renyi(p, q, order)
    narrow = renyi(p.float(), q.float(), order)
    grads = gradients(lambda a, b: renyi(a, b, order), p, q)
    assert (narrow >= 0).all()
    definition = exact_renyi(mp.mpf(order))
    for i, (z, y) in enumerate(zip(p.tolist(), q.tolist(), strict=True)):
        want = float(exact(definition, z, y))
        assert float(got[i]) == pytest.approx(want, rel=1e-9)
        if scale >= 1:
            assert float(narrow[i]) == pytest.approx(want, rel=1e-4, abs=1e-6)
        torch.testing.assert_close(grads[0][i], exact_gradient(definition, z, y), rtol=1e-8, atol=1e-10)


def test_renyi_of_order_one_is_kl_and_the_limit_of_its_neighbours():
    p, q = (x.float() for x in rows(1.0))
    assert torch.equal(renyi(p, q, 1.0), divergence(p, q))
    assert torch.equal(renyi(p, q, 1), divergence(p, q))
    for order in (1 - 1e-6, 1 + 1e-6):
        torch.testing.assert_close(renyi(p, q, order), divergence(p, q), rtol=2e-5, atol=1e-7)


def test_renyi_of_excluded_classes():
    half, one = torch.tensor([0.0, 0.0, -INF]), torch.tensor([0.0, -INF, -INF])
    for order in (0.5, 2.0):
        assert float(renyi(one, half, order)) == pytest.approx(math.log(2), rel=1e-6)
    assert float(renyi(half, one, 0.5)) == pytest.approx(math.log(2), rel=1e-6)
    assert float(renyi(half, one, 2.0)) == INF
    assert float(renyi(one, torch.tensor([-INF, 0.0, 0.0]), 0.5)) == INF
    d_p, d_q = gradients(lambda a, b: renyi(a, b, 0.5), one, half)
    assert d_p.isfinite().all()
    assert d_q.isfinite().all()


def exact_cauchy_schwarz(p, q):
    dot = lambda a, b: mp.fsum(x * y for x, y in zip(a, b, strict=True))
    return -mp.log(dot(p, q) ** 2 / (dot(p, p) * dot(q, q)))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
def test_cauchy_schwarz_has_the_square_of_the_sum_and_natural_logarithms(scale):
    p, q = rows(scale)
    got, gap = cauchy_schwarz(p, q), bhattacharyya(p, q)
    assert (cauchy_schwarz(p.float(), q.float()) >= 0).all()
    torch.testing.assert_close(cauchy_schwarz(q, p), got, rtol=1e-9, atol=0)
    for i, (z, y) in enumerate(zip(p.tolist(), q.tolist(), strict=True)):
        assert float(got[i]) == pytest.approx(float(exact(exact_cauchy_schwarz, z, y)), rel=1e-9)
        overlap = mp.fsum(mp.sqrt(a * b) for a, b in zip(softmax(z), softmax(y), strict=True))
        assert float(gap[i]) == pytest.approx(float(-mp.log(overlap)), rel=1e-9)


def test_cauchy_schwarz_by_hand():
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.2, 0.8]).log()
    # sum p q = 0.5, sum p^2 = 0.5, sum q^2 = 0.68; the sum of squares would give -log(0.17/0.34) = log 2
    assert float(cauchy_schwarz(p, q)) == pytest.approx(-math.log(0.25 / 0.34), rel=1e-5)


# Shapes, dtypes, errors


def test_kl_is_never_negative_where_others_are():
    """At logit scale 20 and p = q but for 1e-4, sums of p (log p - log q) come out below zero in float32; PEERS c14."""
    p = 20 * torch.randn(4096, 64)
    q = p + 1e-4 * torch.randn_like(p)
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    assert ((log_p.exp() * (log_p - log_q)).sum(-1) < 0).any()
    assert (divergence(p, q) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    p, q = (x.to(dtype) for x in rows(3.0, v=200))
    got = divergence(p, q, "js")
    assert got.dtype == dtype
    assert torch.equal(got, divergence(p.float(), q.float(), "js").to(dtype))
    assert divergence(p, q.float()).dtype == torch.float32
    d_p, d_q = gradients(lambda a, b: divergence(a, b, "js"), p, q)
    assert d_p.dtype == d_q.dtype == dtype


@names
def test_shapes(name):
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    want = divergence(x, y, name)
    assert want.shape == (2, 3)
    torch.testing.assert_close(divergence(x.movedim(-1, 0), y.movedim(-1, 0), name, dim=0), want)
    torch.testing.assert_close(divergence(x.movedim(-1, 1), y.movedim(-1, 1), name, dim=-2), want)
    assert divergence(x[0, 0], y[0, 0], name).shape == ()
    empty = torch.zeros(0, 4, requires_grad=True)
    out = divergence(empty, torch.zeros(0, 4), name)
    assert out.shape == (0,)
    out.sum().backward()
    assert empty.grad is not None
    assert empty.grad.shape == (0, 4)


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: divergence(X, torch.zeros(2, 4)), ValueError, r"q_logits: got shape \(2, 4\), p_logits have \(2, 3\)"),
        (lambda: divergence(X, torch.zeros(3)), ValueError, "pass rows over the same vocabulary"),
        (lambda: divergence(X, X.to("meta")), ValueError, "q_logits: got device meta"),
        (lambda: divergence(X.long(), X), TypeError, "p_logits: got dtype torch.int64"),
        (lambda: divergence(X, [0.0]), TypeError, "q_logits: got list"),
        (lambda: divergence(X[:, :0], X[:, :0]), ValueError, "at least one class"),
        (lambda: divergence(X[0, 0], X[0, 0]), ValueError, "at least one class"),
        (lambda: divergence(X, X, dim=2), ValueError, "dim: got 2"),
        (lambda: divergence(X, X, temperature=0.0), ValueError, "temperature: got 0.0"),
        (lambda: divergence(X, X, "kullback"), ValueError, "known: kl"),
        (lambda: skew_divergence(X, X, skew=1.0), ValueError, r"skew: got 1.0; pass a number in \[0, 1\)"),
        (lambda: skew_divergence(X, X, skew=-0.1), ValueError, "skew: got -0.1"),
        (lambda: skew_divergence(X, X, skew=math.nan), ValueError, "skew: got nan"),
        (lambda: skew_divergence(X, X, skew=None), TypeError, "skew: got NoneType"),
        (lambda: renyi(X, X, 0.0), ValueError, "order: got 0.0"),
        (lambda: renyi(X, X, INF), ValueError, "order: got inf"),
        (lambda: cauchy_schwarz(X, X, temperature=-1.0), ValueError, "temperature: got -1.0"),
    ],
)
def test_errors_say_what_was_got_and_what_to_pass(call, error, message):
    with pytest.raises(error, match=message):
        call()
