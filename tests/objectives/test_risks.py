"""Risks of a sample of losses: coherence as laws, linear programs and convex solvers as oracles, both ends of every parameter."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from fenchel.objectives.risks import (
    cvar,
    cvar_spectrum,
    dro,
    dro_ball,
    excess_losses,
    exponential_spectrum,
    extremile_spectrum,
    running_log_mean,
    running_weights,
    spectral_risk,
    worst_weights,
)

DOUBLE = torch.float64
# of each: what it is, and whether R(c l) = c R(l)
RISKS = {
    "dro kl": (lambda l: dro(l, temperature=0.7), False),
    "dro chi2": (lambda l: dro(l, "chi2", temperature=0.7), False),
    "dro reverse_kl": (lambda l: dro(l, "reverse_kl", temperature=0.7), False),
    "ball kl": (lambda l: dro_ball(l, radius=0.1), True),
    "ball chi2": (lambda l: dro_ball(l, "chi2", radius=0.3), True),
    "ball hellinger": (lambda l: dro_ball(l, "hellinger", radius=0.05), True),
    "cvar": (lambda l: cvar(l, 0.3), True),
    "cvar smooth": (lambda l: cvar(l, 0.3, smoothing=0.4), False),
    "extremile": (lambda l: spectral_risk(l, extremile_spectrum(len(l), 2.5)), True),
    "exponential smooth": (lambda l: spectral_risk(l, exponential_spectrum(len(l), 3.0), smoothing=0.2), False),
}
samples = st.lists(st.floats(-50, 50).map(lambda x: round(x, 3)), min_size=1, max_size=9)


def row(values) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


@pytest.mark.parametrize("name", RISKS)
@settings(max_examples=15)
@given(values=samples, seed=st.integers(0, 99))
def test_a_risk_is_coherent(name, values, seed):
    risk, homogeneous = RISKS[name]
    l = row(values)
    value, slack = float(risk(l)), 1e-9 * (1 + float(l.abs().max()))
    assert float(l.mean()) - slack <= value <= float(l.max()) + slack
    assert float(risk(l + 3.5)) == pytest.approx(value + 3.5, abs=slack)
    made = torch.Generator().manual_seed(seed)
    assert float(risk(l[torch.randperm(len(l), generator=made)])) == pytest.approx(value, abs=slack)
    other = l + 5 * torch.rand(len(l), generator=made, dtype=DOUBLE)
    assert float(risk(other)) >= value - slack
    assert float(risk((l + other) / 2)) <= (value + float(risk(other))) / 2 + slack
    if homogeneous:
        assert float(risk(4 * l)) == pytest.approx(4 * value, abs=4 * slack)
    w = worst_weights(risk, l)
    assert float(w.min()) >= -1e-12
    assert float(w.sum()) == pytest.approx(1)
    # larger losses never weigh less
    order = l.argsort()
    rising = w[order].diff()[l[order].diff() > 1e-9]
    assert bool((rising >= -1e-9).all())


@pytest.mark.parametrize("name", RISKS)
def test_gradients(name):
    risk, _ = RISKS[name]
    l = torch.randn(7, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(risk, (l,))
    assert gradgradcheck(risk, (l,))
    (weights,) = torch.autograd.grad(risk(l), l)
    torch.testing.assert_close(weights, worst_weights(risk, l))


@pytest.mark.parametrize("name", RISKS)
def test_dtypes_and_values_that_are_not_finite(name):
    risk, _ = RISKS[name]
    l = torch.tensor([1e9, -1e9, 3.0, 3.0])
    out = risk(l.requires_grad_())
    assert out.dtype == torch.float32
    assert bool(torch.autograd.grad(out, l)[0].isfinite().all())
    assert float(risk(torch.tensor([2.5]))) == pytest.approx(2.5)
    assert float(risk(torch.full((5,), -1e6))) == pytest.approx(-1e6)
    assert math.isnan(float(risk(torch.tensor([1.0, math.nan]))))


def kl(w, q):
    return float(np.sum(np.where(w > 0, w * np.log(np.where(w > 0, w, 1) / q), 0.0)))


def chi2(w, q):
    return float(np.sum(q * (w / q - 1) ** 2) / 2)


def solved(losses, penalty, constraint=None):
    """max <w, l> - penalty(w) over distributions, by a general-purpose solver."""
    n = len(losses)
    constraints = [{"type": "eq", "fun": lambda w: w.sum() - 1}]
    if constraint is not None:
        constraints.append({"type": "ineq", "fun": constraint})
    found = scipy.optimize.minimize(
        lambda w: penalty(w) - w @ losses,
        np.full(n, 1 / n),
        bounds=[(1e-12, 1)] * n,
        constraints=constraints,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-13},
    )
    return -found.fun


@pytest.mark.parametrize(("name", "distance"), [("kl", kl), ("chi2", chi2)])
@pytest.mark.parametrize("uniform", [True, False])
def test_the_worst_distribution_is_that_of_a_convex_solver(name, distance, uniform):
    l = np.array([0.3, -1.2, 2.0, 0.9, 0.1])
    q = np.full(5, 0.2) if uniform else np.array([0.1, 0.3, 0.05, 0.25, 0.3])
    given = None if uniform else torch.tensor(q)
    for t in (0.3, 1.0, 5.0):
        want = solved(l, lambda w, t=t: t * distance(w, q))
        assert float(dro(torch.tensor(l), name, temperature=t, q=given)) == pytest.approx(want, abs=1e-6)
    for radius in (0.01, 0.2, 0.6):
        want = solved(l, lambda w: 0.0, lambda w, radius=radius: radius - distance(w, q))
        assert float(dro_ball(torch.tensor(l), name, radius=radius, q=given)) == pytest.approx(want, abs=1e-5)


def test_kl_is_log_mean_exp():
    l = 3 * torch.randn(9, dtype=DOUBLE)
    for t in (1e-4, 0.1, 1.0, 1e3, 1e9):
        want = t * (torch.logsumexp(l / t, 0) - math.log(9))
        torch.testing.assert_close(dro(l, temperature=t), want, rtol=0, atol=1e-15 * t + 1e-12)
    torch.testing.assert_close(worst_weights(lambda x: dro(x, temperature=0.5), l), (l / 0.5).softmax(0))


def test_both_ends():
    l = torch.randn(8, dtype=DOUBLE)
    for name in ("kl", "chi2", "js", "hellinger", "le_cam"):
        assert float(dro(l, name, temperature=1e7)) == pytest.approx(float(l.mean()), abs=1e-6)
        assert float(dro(l, name, temperature=1e-7)) == pytest.approx(float(l.max()), abs=1e-5)
        assert float(dro_ball(l, name, radius=0.0)) == pytest.approx(float(l.mean()))
        assert float(dro_ball(l, name, radius=1e-12)) == pytest.approx(float(l.mean()), abs=1e-5)
        assert float(dro_ball(l, name, radius=1e3)) == float(l.max())
    # no ball of an f with infinite f(0) holds a distribution with a zero
    assert float(dro_ball(l, "reverse_kl", radius=5.0)) < float(l.max())
    assert float(cvar(l, 1.0)) == pytest.approx(float(l.mean()))
    assert float(cvar(l, 1 / 8)) == pytest.approx(float(l.max()))
    assert float(cvar(l, 1e-3)) == pytest.approx(float(l.max()))
    assert float(cvar(l, 3 / 8)) == pytest.approx(float(l.topk(3).values.mean()))
    assert float(spectral_risk(l, extremile_spectrum(8, 1.0))) == pytest.approx(float(l.mean()))
    assert float(spectral_risk(l, exponential_spectrum(8, 1e-6))) == pytest.approx(float(l.mean()), abs=1e-5)
    assert float(spectral_risk(l, exponential_spectrum(8, 1e4))) == pytest.approx(float(l.max()))


@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=2, max_size=8), st.floats(0, 0.05))
def test_a_small_chi_square_ball_is_mean_and_deviation(values, radius):
    l = row(values)
    deviation = float(l.std(unbiased=False))
    # w_i = (1 + sqrt(2 radius) (l_i - mean)/deviation) / n stays positive: |l_i - mean| <= sqrt(n - 1) deviation
    want = float(l.mean()) + math.sqrt(2 * radius) * deviation
    assert float(dro_ball(l, "chi2", radius=radius)) == pytest.approx(want, abs=1e-9)


def test_ties_at_the_top_share_the_weight():
    l = torch.tensor([2.0, 1.0, 2.0], dtype=DOUBLE)
    # the nearest distribution on the two is log(3/2) away
    for radius in (math.log(1.5) + 1e-9, 5.0):
        assert worst_weights(lambda x, r=radius: dro_ball(x, radius=r), l).tolist() == [0.5, 0.0, 0.5]
    assert float(dro_ball(l, radius=math.log(1.5) - 1e-3)) < 2.0


def test_cvar_is_a_linear_program():
    l = np.array([0.3, -1.2, 2.0, 0.9, 0.1, 0.9])
    for share in (0.1, 0.25, 0.4, 0.77, 1.0):
        exact = scipy.optimize.linprog(-l, A_eq=np.ones((1, 6)), b_eq=[1], bounds=[(0, 1 / (6 * share))] * 6)
        if share < 1 / 6:
            assert exact.status == 0
        assert float(cvar(torch.tensor(l), share)) == pytest.approx(min(-exact.fun, l.max()))


@given(samples, st.floats(0.02, 1))
def test_cvar_is_the_dual_of_a_hinge(values, share):
    l = row(values)
    best = min(float(t + (l - t).clamp_min(0).mean() / share) for t in l)
    assert float(cvar(l, share)) == pytest.approx(best, abs=1e-8)


def permuted(sigma):
    return np.array(list(itertools.permutations(sigma)))


@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.3, 2.0])
def test_spectral_risk_is_the_maximum_over_the_permutahedron(smoothing):
    """Over mixtures of all 24 permutations of the spectrum."""
    l = np.array([0.3, -0.2, 0.5, 0.31])
    sigma = np.array([0.0, 0.1, 0.3, 0.6])
    corners = permuted(sigma)

    def value(mix):
        w = mix @ corners
        return w @ l - smoothing * np.mean((4 * w - 1) ** 2) / 2

    found = scipy.optimize.minimize(
        lambda mix: -value(mix),
        np.full(24, 1 / 24),
        bounds=[(0, 1)] * 24,
        constraints=[{"type": "eq", "fun": lambda mix: mix.sum() - 1}],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    got = spectral_risk(torch.tensor(l), torch.tensor(sigma), smoothing=smoothing)
    assert float(got) == pytest.approx(-found.fun, abs=1e-7)


def test_smoothing_only_lowers():
    l, sigma = torch.randn(30, dtype=DOUBLE), extremile_spectrum(30, 3.0)
    values = [float(spectral_risk(l, sigma, smoothing=t)) for t in (0.0, 1e-6, 1e-2, 1.0, 100.0)]
    assert values == sorted(values, reverse=True)
    assert values[1] == pytest.approx(values[0], abs=1e-4)
    assert values[-1] == pytest.approx(float(l.mean()), abs=0.05)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_spectra_are_rising_distributions(n):
    spectra = [cvar_spectrum(n, s) for s in (0.001, 0.3, 0.5, 1.0)]
    spectra += [extremile_spectrum(n, r) for r in (1.0, 2.0, 50.0)]
    spectra += [exponential_spectrum(n, a) for a in (1e-3, 1.0, 1e3)]
    for sigma in spectra:
        assert float(sigma.sum()) == pytest.approx(1)
        assert float(sigma.min()) >= 0
        assert bool((sigma.diff() >= -1e-15).all())


def test_the_extremile_of_two_is_an_expected_maximum():
    l = torch.randn(6, dtype=DOUBLE)
    want = torch.maximum(l[:, None], l).mean()
    torch.testing.assert_close(spectral_risk(l, extremile_spectrum(6, 2.0)), want)


def test_excess_losses():
    l, reference = torch.randn(6, dtype=DOUBLE), torch.randn(6, dtype=DOUBLE, requires_grad=True)
    excess = excess_losses(l.requires_grad_(), reference)
    assert torch.autograd.grad(dro(excess, temperature=0.5), [l, reference], allow_unused=True)[1] is None
    for risk, _ in RISKS.values():
        torch.testing.assert_close(risk(excess_losses(l, torch.full_like(l, 0.7))), risk(l) - 0.7)


def test_running_weights_are_exact_on_all_samples():
    l = torch.randn(7, dtype=DOUBLE, requires_grad=True)
    log_mean = running_log_mean(l, torch.tensor(3.0), temperature=0.4, rate=1.0)
    (running_weights(l, log_mean, temperature=0.4) * l).sum().backward()
    torch.testing.assert_close(l.grad, worst_weights(lambda x: dro(x, temperature=0.4), l))


def test_running_weights_lose_the_bias_of_batches():
    """Of the expected gradient on two samples out of six: exact with the running mean, far off with the batch's own."""
    l = row([0.0, 0.3, -0.2, 0.1, 2.5, 0.4])
    want = l.softmax(0)
    log_mean = None
    for epoch in range(400):
        made = torch.Generator().manual_seed(epoch)
        for batch in torch.randperm(6, generator=made).view(3, 2):
            log_mean = running_log_mean(l[batch], log_mean, temperature=1.0, rate=0.01)
    pairs = list(itertools.combinations(range(6), 2))
    running, own = torch.zeros(6, dtype=DOUBLE), torch.zeros(6, dtype=DOUBLE)
    for pair in pairs:
        index = torch.tensor(pair)
        running[index] += running_weights(l[index], log_mean, temperature=1.0) / len(pairs)
        own[index] += l[index].softmax(0) / len(pairs)
    torch.testing.assert_close(running, want, rtol=0.02, atol=0.0)
    assert float((own - want).abs().max()) > 0.2
    huge = running_weights(l * 1e4, running_log_mean(l * 1e4, None, temperature=1.0, rate=0.5), temperature=1.0)
    assert bool(huge.isfinite().all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dro(torch.zeros(2, 2), temperature=1.0), r"losses: got shape \[2, 2\]; pass \[N\]"),
        (lambda: dro(torch.zeros(0), temperature=1.0), r"losses: got shape \[0\]"),
        (lambda: dro(torch.zeros(2), temperature=0.0), r"temperature: got 0.0"),
        (lambda: dro(torch.zeros(2), "tv", temperature=1.0), r"tv"),
        (lambda: dro(torch.zeros(2), temperature=1.0, q=torch.ones(3) / 3), r"q: got shape \[3\] for 2 losses"),
        (lambda: dro(torch.zeros(2), temperature=1.0, q=torch.ones(2)), r"q: got entries .* do not sum to one"),
        (lambda: dro(torch.zeros(2), temperature=1.0, q=row([1.0, 0.0])), r"q: got entries that are not positive"),
        (
            lambda: dro(torch.zeros(2), temperature=1.0, q=row([0.5, 0.5]).requires_grad_()),
            r"q: got a tensor that requires a gradient",
        ),
        (lambda: dro_ball(torch.zeros(2), radius=-0.1), r"radius: got -0.1"),
        (lambda: dro_ball(torch.zeros(2), radius=math.nan), r"radius: got nan"),
        (lambda: cvar(torch.zeros(2), 0.0), r"share: got 0.0; pass a number in \(0, 1\]"),
        (lambda: cvar(torch.zeros(2), 1.5), r"share: got 1.5"),
        (lambda: cvar(torch.zeros(2), 0.5, smoothing=-1.0), r"smoothing: got -1.0"),
        (lambda: cvar_spectrum(0, 0.5), r"n: got 0"),
        (lambda: extremile_spectrum(3, 0.5), r"order: got 0.5; pass a number in \[1, inf\)"),
        (lambda: exponential_spectrum(3, 0.0), r"aversion: got 0.0"),
        (lambda: spectral_risk(torch.zeros(2), torch.ones(3) / 3), r"spectrum: got shape \[3\] for 2 losses"),
        (lambda: spectral_risk(torch.zeros(2), row([0.7, 0.3])), r"spectrum: got weights that .* decrease"),
        (lambda: spectral_risk(torch.zeros(2), row([0.3, 0.6])), r"spectrum: got weights"),
        (lambda: spectral_risk(torch.zeros(2), row([math.nan, 0.6])), r"spectrum: got weights"),
        (lambda: excess_losses(torch.zeros(2), torch.zeros(3)), r"reference: got shape \[3\]"),
        (lambda: running_log_mean(torch.zeros(2), None, temperature=1.0, rate=0.0), r"rate: got 0.0"),
        (lambda: running_weights(torch.zeros(2), torch.zeros(()), temperature=-1.0), r"temperature: got -1.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", RISKS)
def test_integers_are_refused(name):
    with pytest.raises(TypeError, match=r"losses: got dtype torch.int64"):
        RISKS[name][0](torch.tensor([1, 2]))
