"""The laws of a generator, over the table; the names; `from_f`."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fenchel
from fenchel import Generator, generator, generator_names
from fenchel.generators import operator_of
from tests.oracle import INF, mp, textbook
from tests.table import BUILT_IN, MINE, TABLE, over

EPS = torch.finfo(torch.float64).eps


def logs(low: float = -20.0, high: float = 20.0) -> st.SearchStrategy[Tensor]:
    """t = log u of a few tokens, float64; u near 1 is drawn often, because f cancels there."""
    near = st.floats(1e-9, 1e-3) | st.floats(-1e-3, -1e-9) | st.just(0.0)
    far = st.floats(low, high).filter(lambda t: abs(t) > 1e-3)
    return st.lists(near | far, min_size=1, max_size=6).map(lambda x: torch.tensor(x, dtype=torch.float64))


def laws(examples: int = 12):
    return settings(max_examples=examples, deadline=None, derandomize=True)


def close(got: Tensor, want: Tensor, within: Tensor | float) -> None:
    error = (got - want).abs()
    assert (error <= within).all(), (
        f"got {got.tolist()}, want {want.tolist()}, allowed {torch.as_tensor(within).tolist()}"
    )


def precise(function, t: Tensor) -> Tensor:
    """A textbook function of u = exp t, in 50 digits."""
    return torch.tensor([float(function(mp.exp(mp.mpf(x)))) for x in t.tolist()], dtype=torch.float64)


@over(TABLE)
def test_f_and_its_slope_vanish_at_one(case):
    one = torch.ones((), dtype=torch.float64)
    assert abs(float(case.g.f(one))) <= 1e-15
    assert abs(float(case.g.df(one))) <= 1e-15


@over(TABLE)
@given(t=logs())
@laws()
def test_f_and_its_derivative_are_the_textbooks(case, t):
    book, c, u = textbook(case.book), case.scale, t.exp()
    f = precise(lambda x: c * book.f(x, mp), t)
    # near u = 1 rounding t or u to a float64 costs this much; a user's f is written in u
    unit = torch.ones_like(t) if case.mine else t.abs()
    close(case.g.of_log_ratio(t), f, 8 * EPS * (f + unit * (1 + u)))
    close(case.g.f(u), f, 8 * EPS * (f + (1 + unit) * (1 + u) * (t.abs() + EPS) + (1 + u) * case.mine))
    df = precise(lambda x: c * book.df(x), t)
    close(case.g.slope(t), df, 8 * EPS * (1 + df.abs()) * (1 + t.abs()))
    close(case.g.df(u), df, 16 * EPS * (1 + df.abs()) * (1 + t.abs()))


@over(TABLE)
@given(t=logs(-60, 60))
@laws()
def test_f_is_not_negative(case, t):
    f = case.g.of_log_ratio(t)
    assert (f >= -4 * EPS * ((1 + t.exp()) if case.mine else t.abs() * (1 + t.exp()))).all()


@over(TABLE)
@given(t=logs(-8, 8), s=st.floats(-8, 8), mix=st.floats(0.1, 0.9))
@laws()
def test_f_is_convex(case, t, s, mix):
    u, v = t.exp(), torch.full_like(t, math.exp(s))
    chord = mix * case.g.f(u) + (1 - mix) * case.g.f(v)
    between = case.g.f(mix * u + (1 - mix) * v)
    assert (between <= chord + 16 * EPS * (1 + chord + u + v)).all()


@over(TABLE)
@given(t=logs(-8, 8))
@laws()
def test_df_is_the_derivative_of_f(case, t):
    u = t.exp()
    got = torch.func.grad(lambda x: case.g.f(x).sum())(u)
    close(case.g.df(u), got, 1e-12 * (1 + got.abs()))


@over(BUILT_IN)
@given(t=logs())
@laws()
def test_unlink_inverts_link(case, t):
    u, w = t.exp(), case.g.link(t)
    # rounding w alone moves u by |w| / f''(u)
    close(operator_of(case.g).unlink(w), u, 16 * EPS * (u * (1 + t.abs()) + w.abs() * operator_of(case.g).spread(u)))


@over(BUILT_IN)
@given(t=logs())
@laws()
def test_spread_is_one_over_the_second_derivative(case, t):
    # 1 / f'' is the slope of the inverse of f'; compiled code differentiates that inverse
    slope = torch.func.grad(lambda w: operator_of(case.g).unlink(w).sum())(case.g.link(t))
    spread = operator_of(case.g).spread(t.exp())
    close(slope, spread, 1e-9 * spread)
    curvature = precise(lambda u: mp.diff(textbook(case.book).df, u) * case.scale, t)
    close(spread * curvature, torch.ones_like(t), 1e-12)


@over(BUILT_IN)
@given(t=logs(-20, 8))
@laws()
def test_dual_has_the_slope_of_f_star_at_f_prime(case, t):
    u = t.exp()
    slope = torch.func.grad(lambda x: operator_of(case.g).dual(x).sum())(u)
    close(slope * operator_of(case.g).spread(u), u, 1e-9 * u)


@over(BUILT_IN)
@given(t=logs(-20, 20))
@laws()
def test_dual_is_the_conjugate_at_f_prime_up_to_a_constant(case, t):
    book, one = textbook(case.book), torch.ones((), dtype=torch.float64)
    got = operator_of(case.g).dual(t.exp()) - operator_of(case.g).dual(one)
    want = precise(lambda u: case.scale * (u * book.df(u) - book.f(u, mp)), t)
    close(got, want, 16 * EPS * (1 + want.abs() + operator_of(case.g).dual(t.exp()).abs()))


@over(BUILT_IN)
@given(t=logs(-6, 6))
@laws()
def test_conjugacy(case, t):
    u, v = t.exp(), case.g.slope(t)
    size = 1 + u * v.abs() + case.g.f(u) + (1 + v.abs()) * operator_of(case.g).spread(u) * (1 + v.abs())
    close(case.g.conjugate(v), u * v - case.g.f(u), 64 * EPS * size)
    close(case.g.dconjugate(v), u, 64 * EPS * size)


@over(BUILT_IN)
@given(t=logs(-6, 6), s=st.floats(-6, 6))
@laws()
def test_the_conjugate_is_a_supremum(case, t, s):
    """Fenchel and Young: f(x) + f*(v) >= x v for every x."""
    v, x = case.g.slope(t), torch.full_like(t, math.exp(s))
    assert (
        case.g.f(x) + case.g.conjugate(v) - x * v >= -1e-9 * (1 + x * v.abs() + operator_of(case.g).spread(t.exp()))
    ).all()


@over(BUILT_IN)
@given(t=logs(-6, 4))
@laws()
def test_the_conjugate_is_the_textbooks(case, t):
    book, c = textbook(case.book), case.scale
    v = case.g.slope(t)
    want = torch.tensor([float(c * book.conjugate(mp.mpf(x) / c)) for x in v.tolist()], dtype=torch.float64)
    close(case.g.conjugate(v), want, 1e-10 * (1 + want.abs()))


@over(tuple(case for case in TABLE if case.g.sparse))
def test_the_conjugate_is_flat_below_the_support(case):
    v = torch.tensor([case.g.df0 - 1e-3, case.g.df0 - 1.0, -1e9], dtype=torch.float64)
    close(case.g.dconjugate(v), torch.zeros_like(v), 0.0)
    close(case.g.conjugate(v), torch.full_like(v, -case.g.f0), 1e-12)


@over(BUILT_IN)
@given(t=logs())
@laws()
def test_the_adjoint_swaps_the_arguments(case, t):
    u, other = t.exp(), case.g.adjoint
    want = u * case.g.of_log_ratio(-t)
    close(other.of_log_ratio(t), want, 64 * EPS * (want + (1 + u) * t.abs()))
    close(other.adjoint.of_log_ratio(t), case.g.of_log_ratio(t), 64 * EPS * (1 + u) * (1 + t.abs()) + 64 * EPS * want)


@over(TABLE)
def test_limits_at_zero(case):
    book, zero = textbook(case.book), torch.zeros(2, dtype=torch.float64)
    assert case.g.f0 == pytest.approx(case.scale * book.f0, rel=1e-12)
    assert case.g.df0 == pytest.approx(case.scale * book.df0, rel=1e-12)
    assert case.g.sparse == (book.df0 > -INF)
    assert case.g.f(zero).tolist() == [case.g.f0] * 2
    assert case.g.df(zero).tolist() == [case.g.df0] * 2
    if case.g.sparse:
        edge = torch.tensor(case.g.edge, dtype=torch.float64)
        assert abs(float(operator_of(case.g).unlink(edge))) <= 1e-7
        assert float(operator_of(case.g).unlink(edge - 1)) == 0
    # the adjoint's f(0) is the limit of f(x) / x
    x = mp.mpf(10) ** 4000
    slope = case.scale * book.f(x, mp) / x
    assert case.g.adjoint.f0 == pytest.approx(float(slope) if slope < 1e3 else INF, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("alpha:1", "kl"),
        ("alpha:0", "reverse_kl"),
        ("js:0.5", "js"),
        ("alpha:2", "chi2"),
        ("alpha:-1", "neyman"),
        ("alpha:0.5", "2*hellinger"),
    ],
)
def test_families_meet_the_named_ones(name, twin):
    t = torch.linspace(-10, 10, 41, dtype=torch.float64)
    close(generator(name).of_log_ratio(t), generator(twin).of_log_ratio(t), 1e-13 * generator(twin).of_log_ratio(t))
    close(generator(name).slope(t), generator(twin).slope(t), 1e-13 * (1 + generator(twin).slope(t).abs()))


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("step", [1e-3, -1e-3, 1e-6, -1e-6])
def test_alpha_is_continuous_at_its_limits(limit, step):
    t = torch.linspace(-5, 5, 21, dtype=torch.float64)
    near, at = generator(f"alpha:{limit + step!r}"), generator(f"alpha:{limit!r}")
    allowed = 30 * abs(step) * (1 + at.of_log_ratio(t))
    close(near.of_log_ratio(t), at.of_log_ratio(t), allowed)
    close(near.slope(t), at.slope(t), 30 * abs(step) * (1 + at.slope(t).abs()))
    close(
        operator_of(near).dual(t.exp()) - operator_of(near).dual(torch.ones(1)),
        operator_of(at).dual(t.exp()) - operator_of(at).dual(torch.ones(1)),
        30 * abs(step) * t.exp().clamp_min(1),
    )


def test_js_is_half_of_the_literatures_f():
    u = torch.tensor(3.0, dtype=torch.float64)
    table = 3 * math.log(3) - 4 * math.log(2)  # u log u - (u + 1) log((u + 1) / 2)
    assert float(generator("js").f(u)) == pytest.approx(table / 2, rel=1e-14)
    assert float(generator("js:0.5").f(u)) == pytest.approx(table / 2, rel=1e-14)


@pytest.mark.parametrize("c", [0.25, 3.0])
@pytest.mark.parametrize("name", ["kl", "js", "alpha:1.5", "reverse_kl", "tv"])
def test_scaled_multiplies_f(name, c):
    g, t = generator(name), torch.linspace(-3, 3, 13, dtype=torch.float64)
    s = g.scaled(c)
    close(s.of_log_ratio(t), c * g.of_log_ratio(t), 0.0)
    close(s.slope(t), c * g.slope(t), 8 * EPS * c * (1 + g.slope(t).abs()))
    close(s.adjoint.of_log_ratio(t), c * g.adjoint.of_log_ratio(t), 0.0)
    assert (s.f0, s.df0) == (c * g.f0, c * g.df0)
    assert generator(s.name).name == s.name


@pytest.mark.parametrize("c", [0, -1.0, math.inf, math.nan, "2"])
def test_scaled_refuses(c):
    with pytest.raises(ValueError, match=r"^scaled: got c = .+; pass a positive finite number$"):
        generator("kl").scaled(c)


def test_every_name_parses_to_itself():
    for name in generator_names():
        member = {"js:BETA": "js:0.3", "alpha:A": "alpha:1.7"}.get(name, name)
        assert generator(member).name == member
        assert generator(member) is generator(generator(member))


@pytest.mark.parametrize("name", ["", "Kl", "kl:2", "jsd", "alpha", "3*jsd", "tv:1", "alpha:1.5:2"])
def test_unknown_names_list_the_known(name):
    with pytest.raises(ValueError, match=r"^(unknown generator|generator ')") as caught:
        generator(name)
    if str(caught.value).startswith("unknown"):
        assert str(caught.value).endswith("known: " + ", ".join(generator_names()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alpha:nan", "generator 'alpha:nan': got 'nan' where a number belongs, as in 'alpha:1.5' or '2*js'"),
        ("alpha:x", "generator 'alpha:x': got 'x' where a number belongs, as in 'alpha:1.5' or '2*js'"),
        ("alpha:", "generator 'alpha:': got '' where a number belongs, as in 'alpha:1.5' or '2*js'"),
        ("js:", "generator 'js:': got '' where a number belongs, as in 'alpha:1.5' or '2*js'"),
        ("x*js", "generator 'x*js': got 'x' where a number belongs, as in 'alpha:1.5' or '2*js'"),
        ("alpha:inf", "alpha:A: got A = inf; pass a finite number"),
        ("alpha:-inf", "alpha:A: got A = -inf; pass a finite number"),
        ("js:0", "js:BETA: got beta = 0; pass 0 < beta < 1"),
        ("js:1", "js:BETA: got beta = 1; pass 0 < beta < 1"),
        ("js:-0.5", "js:BETA: got beta = -0.5; pass 0 < beta < 1"),
        ("js:nan", "generator 'js:nan': got 'nan' where a number belongs, as in 'alpha:1.5' or '2*js'"),
        ("0*js", "scaled: got c = 0.0; pass a positive finite number"),
        ("-1*kl", "scaled: got c = -1.0; pass a positive finite number"),
    ],
)
def test_bad_parameters_are_refused(name, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        generator(name)


@pytest.mark.parametrize("thing", [None, 1.5, b"kl", ["kl"]])
def test_what_is_no_name_is_refused(thing):
    with pytest.raises(TypeError, match=r"^generator: got \w+; pass a name \(kl, .+\) or a Generator$"):
        generator(thing)


def test_total_variation_is_a_divergence_only():
    g, logits = generator("tv"), torch.zeros(2, 3)
    assert float(g.f(torch.tensor(3.0))) == 1
    message = r"^generator 'tv' has no operator or loss: .+ pass one of kl, (?!.*\btv\b).*alpha:A$"
    calls = [
        lambda: g.conjugate(torch.zeros(1)),
        lambda: g.dconjugate(torch.zeros(1)),
        *(lambda call=call: call(logits, "tv") for call in OPERATORS),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    assert not g.sparse


OPERATORS = (fenchel.softargmax, fenchel.softmax_value, fenchel.entropy, fenchel.sigmoid, fenchel.softplus)


# from_f


@over(MINE)
def test_from_f_equals_the_built_in_twin(case):
    twin = generator(case.book)
    t = torch.linspace(-12, 6, 37, dtype=torch.float64)
    close(case.g.of_log_ratio(t), twin.of_log_ratio(t), 1e-13 * (1 + t.exp() + twin.of_log_ratio(t)))
    close(case.g.slope(t), twin.slope(t), 1e-13 * (1 + twin.slope(t).abs()))
    u = (t / 2).exp()
    assert (case.g.f0, case.g.df0) == (pytest.approx(twin.f0), pytest.approx(twin.df0))
    close(operator_of(case.g).spread(u), operator_of(twin).spread(u), 1e-9 * operator_of(twin).spread(u))
    close(case.g.dconjugate(twin.slope(t / 2)), u, 1e-9 * u)
    close(case.g.conjugate(twin.slope(t / 2)), twin.conjugate(twin.slope(t / 2)), 1e-9 * (1 + u))
    logits = 3 * torch.randn(2, 5, dtype=torch.float64)
    logits[0, :3] = -math.inf
    q = torch.rand(5, dtype=torch.float64) + 0.1
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    p, same = (fenchel.softargmax(leaf, g, q=q, temperature=0.7) for leaf, g in ((mine, case.g), (theirs, twin)))
    close(p, same, 1e-11)
    ((p + same) @ torch.arange(5.0).double()).sum().backward()
    close(fenchel.entropy(logits, case.g, q=q), fenchel.entropy(logits, twin, q=q), 1e-10)
    assert mine.grad is not None
    assert theirs.grad is not None
    close(mine.grad, theirs.grad, 1e-9)


def test_from_f_takes_out_the_slope_at_one():
    with_slope = Generator.from_f(lambda u: u * u.log() + 5 * (u - 1))
    t = torch.linspace(-3, 3, 7, dtype=torch.float64)
    close(with_slope.of_log_ratio(t), generator("kl").of_log_ratio(t), 1e-13 * (1 + t.exp()) * 5)
    assert with_slope.formula == "user's f minus 6 (u - 1)"


def test_from_f_takes_the_limits_that_are_given():
    g = Generator.from_f(lambda u: u * u.log(), f0=1.0, df0=-INF)
    assert (g.f0, g.df0) == (1.0, -INF)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda u: u * u.log() + 1, "f(1) = 1, and must be 0; pass u -> f(u) - 1"),
        (lambda u: -u * u.log(), "f must be strictly convex (f'' > 0) on (0, inf)"),
        (lambda u: (u - 1) ** 3 + u.log(), "f must be strictly convex (f'' > 0) on (0, inf)"),
        (lambda u: 0 * u, "f must be strictly convex (f'' > 0) on (0, inf)"),
        (lambda u: (u - 1).abs() / 2, "f must be"),
        (lambda u: torch.where(u > 10, torch.inf, (u - 1) ** 2), "= inf; f must be finite on (0, inf)"),
        (lambda u: (u - 0.5).log() * u, "= nan; f must be finite on (0, inf)"),
        (lambda u: (u * u.log()).sum(), "gave shape (); f must be elementwise"),
        (lambda u: (u - 1) @ (u - 1), "gave shape (); f must be elementwise"),
        (lambda u: 3.0, "gave float; f must be elementwise"),
        (lambda u: math.log(u), "write f with torch functions"),
        (lambda u: u.logarithm(), "write f with torch functions"),
    ],
)
def test_from_f_says_what_is_wrong(f, message):
    with pytest.raises(ValueError, match=r"^from_f\('mine'\): ") as caught:
        Generator.from_f(f, name="mine")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_new_generator_works_everywhere():
    """Defined here, in one place, from nothing but its f: KL plus chi-square, which no row of the table is."""
    g = Generator.from_f(lambda u: u * u.log() - u + 1 + (u - 1) ** 2 / 2, name="kl + chi2")
    assert (g.f0, g.sparse, generator(g)) == (pytest.approx(1.5), False, g)
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    q = torch.rand(7, dtype=torch.float64) + 0.5
    p = fenchel.softargmax(logits, g, q=q)
    close(p.sum(-1), torch.ones(4, dtype=torch.float64), 1e-13)
    # the definition: f'(p/q) + tau = theta, and f' = log u + u - 1
    slack = logits - (p / q).log() - (p / q)
    close(slack, slack[:, :1].expand(4, 7), 1e-12)
    divergence = (q * (p / q * (p / q).log() - p / q + 1 + (p / q - 1) ** 2 / 2)).sum(-1)
    value, h = fenchel.softmax_value(logits, g, q=q), fenchel.entropy(logits, g, q=q)
    close(h, 1.5 * (q.sum() - 1) - divergence, 1e-12)
    close(value, (p * logits).sum(-1) + h, 1e-12)
    close(torch.autograd.grad(value.sum(), logits)[0], p, 1e-13)
    few = logits[:1, :3].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: fenchel.softargmax(z, g), few)
    two = fenchel.softargmax(torch.stack((torch.zeros(4, dtype=torch.float64), logits[:, 0]), -1), g)[:, 1]
    close(fenchel.sigmoid(logits[:, 0], g), two, 1e-14)
    close(fenchel.softplus(logits[:, 0], g.scaled(2.0)), 2 * fenchel.softplus(logits[:, 0] / 2, g), 1e-12)
    close(g.adjoint.f(torch.tensor([2.0])), 2 * g.f(torch.tensor([0.5])), 1e-6)


@over(TABLE)
def test_a_cheaper_slope_below_one_is_the_slope(case):
    t = -torch.logspace(-6, 2.5, 200, dtype=torch.float64)
    if case.g.slope_below is None:
        assert case.book.partition(":")[0] != "js" or case.mine
    else:
        torch.testing.assert_close(case.g.slope_below(t), case.g.slope(t), rtol=1e-9, atol=1e-15)
