"""What stands beside the supervised objectives: state per sample, targets made of numbers, decisions, attacks, whole sequences. Oracles in plain float64."""

import math

import pytest
import torch
from torch.autograd import gradcheck

import fenchel
from fenchel.objectives.sequences import coverage, length_normalised, preference_sft, ranking_loss
from fenchel.objectives.supervised import (
    Binary,
    adversarial_comp_sum,
    aldr_rows,
    aldr_temperature,
    binned,
    binned_mean,
    decision,
    decision_loss,
    false_head_rate,
    fidelity,
    hl_gauss,
    kl_dro,
    multi_focal,
    purified,
    recalled,
    rejection_loss,
    score_distribution,
    supervised,
    thurstone,
)

N, V = 9, 6


def rows(seed: int = 0, n: int = N, v: int = V) -> torch.Tensor:
    return torch.randn(n, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


TARGET = torch.arange(N) % V
ONE_HOT = torch.eye(V, dtype=torch.float64)[TARGET]


def test_adaptive_ldr_is_ldr_at_each_samples_temperature():
    z, lam = rows(), torch.linspace(0.5, 1.0, N, dtype=torch.float64)
    got = aldr_rows(z, ONE_HOT, lam, lam0=1.0, a=2.0, c=1.0)
    for i in range(N):
        plain = supervised(z[i : i + 1], TARGET[i : i + 1], f"ldr:{float(lam[i])},1")
        want = float(plain.detach()) - 2 * math.log(V) / 2 * (float(lam[i]) - 1) ** 2
        assert float(got[i].detach()) == pytest.approx(want, abs=1e-12)
    assert gradcheck(lambda z: aldr_rows(z, ONE_HOT, lam), (z,))


def test_adaptive_temperatures():
    """The surer the model the lower; a step's temperature maximises the loss of the step, whose own KL term it is the solution for."""
    z, lam = rows().detach(), torch.full((N,), 0.8, dtype=torch.float64)
    got = aldr_temperature(z, lam, lam0=1.2, a=1.5)
    for i in range(N):
        p = [math.exp(x / 0.8) for x in z[i].tolist()]
        p = [x / sum(p) for x in p]
        kl = sum(x * math.log(x * V) for x in p)
        assert float(got[i]) == pytest.approx(1.2 - 1.2 * kl / (1.5 * math.log(V)), abs=1e-12)
    assert bool((aldr_temperature(50 * z, lam) < aldr_temperature(z, lam)).all())
    with pytest.raises(ValueError, match="lam: got shape"):
        aldr_temperature(z, lam[:3])
    with pytest.raises(ValueError, match="a: got 1; pass a number > 1"):
        aldr_temperature(z, lam, a=1)
    with pytest.raises(ValueError, match="lam: got 0.0; pass positive"):
        aldr_rows(z, ONE_HOT, 0 * lam)


def test_a_temperature_for_kl_dro_has_its_gradient():
    z, tau = rows(), torch.linspace(0.3, 2.0, N, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda z, tau: kl_dro(z, ONE_HOT, tau, 0.4), (z, tau))
    got = kl_dro(z, ONE_HOT, tau, 0.4)
    cross = torch.nn.functional.cross_entropy(z / tau[:, None], TARGET, reduction="none")
    torch.testing.assert_close(got, tau * cross + (0.4 - math.log(V)) * tau)
    # its least over tau is the worst case within the ball
    taus = torch.logspace(-2, 2, 4000, dtype=torch.float64)
    least = torch.stack([kl_dro(z[:1], ONE_HOT[:1], t, 0.4) for t in taus]).min().detach()
    margins = (z - z.gather(1, TARGET[:, None]))[0].detach()
    found = []
    for s in torch.logspace(-2, 2, 4000, dtype=torch.float64):
        p = torch.softmax(margins / s, 0)
        if float((p * (p * V).log()).sum()) <= 0.4:
            found.append(float(p @ margins))
    assert max(found) == pytest.approx(float(least), rel=1e-2)


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5])
def test_the_adversarial_loss(tau):
    z, x = rows(), rows(1)
    got = adversarial_comp_sum(z, x, TARGET, tau=tau, rho=0.7, nu=0.3)
    for i, y in enumerate(TARGET.tolist()):
        zi, xi = z[i].tolist(), x[i].tolist()
        u = sum(math.exp((zi[k] - zi[y]) / 0.7) for k in range(V) if k != y)
        phi = math.log(1 + u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)
        moved = math.sqrt(sum(((xi[y] - xi[k]) - (zi[y] - zi[k])) ** 2 for k in range(V)))
        assert float(got[i].detach()) == pytest.approx(phi + 0.3 * moved, rel=1e-12)
    assert gradcheck(lambda z, x: adversarial_comp_sum(z, x, TARGET, tau=tau, nu=2.0), (z, x))
    still = adversarial_comp_sum(z, z.detach(), TARGET, nu=1.0)
    assert bool(torch.autograd.grad(still.sum(), z)[0].isfinite().all())


def test_purification_keeps_the_likeliest_and_drops_what_trails():
    z = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    sets = torch.tensor([[False, True, True, True]])
    assert purified(z, sets, 0.2).tolist() == [[False, True, True, False]]
    assert purified(z, sets, 0.0).tolist() == [[False, True, False, False]]
    assert purified(z, sets, 1.0).equal(sets)
    shrinking = sets
    for margin in (0.3, 0.2, 0.1):
        smaller = purified(z, shrinking, margin)
        assert not bool((smaller & ~shrinking).any())
        assert bool(smaller.any())
        shrinking = smaller
    with pytest.raises(ValueError, match="a row without any"):
        purified(z, torch.zeros(1, 4, dtype=torch.bool), 0.1)
    with pytest.raises(TypeError, match=r"candidates: got torch.float32; pass bool"):
        purified(z, sets.float(), 0.1)


def test_multi_focal_with_a_gamma_per_class():
    z, y = rows(), (rows(2) > 0).double()
    plus, minus = torch.linspace(0, 2, V, dtype=torch.float64), torch.linspace(3, 0, V, dtype=torch.float64)
    got = multi_focal(z, y, plus, minus)
    s = torch.sigmoid(z)
    want = -(y * (1 - s) ** plus * s.log() + (1 - y) * s**minus * (1 - s).log()).sum(1)
    torch.testing.assert_close(got, want)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none").sum(1)
    torch.testing.assert_close(Binary().rows(z, y), plain)


def test_labels_are_recalled_above_their_classes_threshold():
    z = torch.tensor([[2.0, 2.0, -2.0]])
    found = recalled(z, torch.tensor([[False, False, True]]), torch.tensor([0.5, 0.95, 0.5]))
    assert found.tolist() == [[True, False, True]]
    with pytest.raises(ValueError, match="threshold: got 2"):
        recalled(z, found, 2.0)


def test_bins_hold_a_normal_distribution():
    edges = torch.linspace(-4, 6, 41, dtype=torch.float64)
    mean = torch.tensor([0.3, 1.7], dtype=torch.float64)
    p = binned(mean, torch.tensor([0.5, 0.8], dtype=torch.float64), edges)
    torch.testing.assert_close(p.sum(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(binned_mean(p, edges), mean, rtol=0, atol=1e-3)
    for i, (m, s) in enumerate(((0.3, 0.5), (1.7, 0.8))):
        cdf = [0.5 * (1 + math.erf((float(e) - m) / (s * math.sqrt(2)))) for e in edges]
        for j in range(40):
            assert float(p[i, j]) == pytest.approx((cdf[j + 1] - cdf[j]) / (cdf[-1] - cdf[0]), abs=1e-14)


def test_the_width_of_hl_gauss_is_said():
    """Two well-known versions differ in it by more than a factor of two, in silence."""
    edges = torch.linspace(0, 1, 11, dtype=torch.float64)
    with pytest.raises(TypeError, match="ratio"):
        hl_gauss(torch.tensor([0.5]), edges)  # pyright: ignore[reportCallIssue]
    number = torch.tensor([0.42], dtype=torch.float64)
    torch.testing.assert_close(hl_gauss(number, edges, ratio=0.75), binned(number, 0.075, edges))
    assert float(hl_gauss(number, edges, ratio=2.0).max()) < float(hl_gauss(number, edges, ratio=0.75).max())
    with pytest.raises(ValueError, match="bins of different widths"):
        hl_gauss(number, torch.tensor([0.0, 0.5, 0.6]), ratio=0.75)
    with pytest.raises(ValueError, match="pass edges that hold all of them"):
        hl_gauss(number + 1, edges, ratio=0.75)


def test_score_distributions_keep_the_mean_and_the_spread():
    levels = torch.arange(1.0, 6.0, dtype=torch.float64)
    mean, std = torch.tensor([2.8, 3.3], dtype=torch.float64), torch.tensor([0.6, 0.5], dtype=torch.float64)
    p = score_distribution(mean, std, levels)
    got = (p * levels).sum(1)
    spread = ((p * levels.square()).sum(1) - got.square()).sqrt()
    one_hot_error = (mean - mean.round()).abs()
    assert bool(((got - mean).abs() < 0.1 * one_hot_error).all())
    assert bool(((spread - std).abs() < 0.1).all())  # that of a one-hot label is 0


def test_fidelity_is_half_the_squared_hellinger_distance_of_two_coins():
    p, q = torch.rand(5, dtype=torch.float64).requires_grad_(), torch.rand(5, dtype=torch.float64)
    two = lambda x: torch.stack((x, 1 - x), -1)
    want = (two(p).sqrt() - two(q).sqrt()).square().sum(-1) / 2
    torch.testing.assert_close(fidelity(p, q), want)
    assert gradcheck(lambda p: fidelity(p, q), (p,))
    torch.testing.assert_close(
        thurstone(q, q + 1, 2.0, 2.0), torch.full((5,), 0.5 * (1 + math.erf(-0.5 / math.sqrt(2)))).double()
    )


def test_rejection_is_a_bound_with_the_right_minimiser():
    s = torch.linspace(-3, 3, 601, dtype=torch.float64)
    for eta in (0.1, 0.3, 0.6):
        for cost in (0.2, 0.5):
            surrogate = sum(
                w * rejection_loss(s, torch.full(s.shape, wrong), cost) for w, wrong in ((eta, True), (1 - eta, False))
            )
            target = eta * (s > 0) + cost * (s <= 0)
            assert bool((surrogate >= target - 1e-12).all())
            assert float(s[surrogate.argmin()]) == pytest.approx(math.log(cost / eta) / 2, abs=0.011)
    with pytest.raises(ValueError, match="pass a cost in"):
        rejection_loss(s, s > 0, 1.0)


def test_decisions():
    z = rows()
    weight = torch.rand(V, dtype=torch.float64)
    got = decision_loss(z, TARGET, torch.eye(V), class_weight=weight)
    torch.testing.assert_close(got, torch.nn.functional.cross_entropy(z, TARGET, weight=weight, reduction="none"))
    u = torch.rand(V, V, dtype=torch.float64) + torch.eye(V)
    p = torch.softmax(z, 1)
    want = [
        -math.log(sum(float(u[y, j]) * float(p[i, j].detach()) for j in range(V)))
        for i, y in enumerate(TARGET.tolist())
    ]
    torch.testing.assert_close(decision_loss(z, TARGET, u), torch.tensor(want, dtype=torch.float64))
    particles = torch.softmax(torch.stack([rows(s).detach() for s in range(3)]), -1)
    best = [max(range(V), key=lambda j: sum(float(q[y] * u[y, j]) for y in range(V))) for q in particles.mean(0)]
    assert decision(particles, u).tolist() == best
    with pytest.raises(ValueError, match="utility: got a negative one"):
        decision_loss(z, TARGET, -u)
    assert bool(false_head_rate(TARGET, TARGET, torch.ones(V, dtype=torch.bool)).isnan())
    head = torch.arange(V) < 2
    assert float(false_head_rate(torch.zeros(N, dtype=torch.long), TARGET, head)) == 1.0


# Sequences.


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_coverage(n):
    x = torch.tensor([1e-12, 1e-6, 1e-4 / n, 1.1e-4 / n, 0.01, 0.3, 0.9, 1 - 1e-9], dtype=torch.float64)
    logp = x.log().requires_grad_()
    got = coverage(logp, n)
    want = [-math.log(-math.expm1(n * math.log1p(-float(v)))) for v in x]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    [grad] = torch.autograd.grad(got.sum(), logp)
    factor = [n * (1 - float(v)) ** (n - 1) * float(v) / -math.expm1(n * math.log1p(-float(v))) for v in x]
    torch.testing.assert_close(-grad, torch.tensor(factor, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_coverage_at_the_ends():
    for dtype in (torch.float32, torch.float64):
        logp = torch.tensor([-1e9, -1e4, -200.0, 0.0], dtype=dtype, requires_grad=True)
        out = coverage(logp, 8)
        assert bool(out.isfinite().all())
        assert bool(torch.autograd.grad(out.sum(), logp)[0].isfinite().all())
        torch.testing.assert_close(out[2], torch.tensor(200 - math.log(8), dtype=dtype))
        assert float(out[3].detach()) == 0
    assert gradcheck(
        lambda x: coverage(x, 5), (torch.tensor([-9.0, -2.0, -0.1], dtype=torch.float64, requires_grad=True),)
    )
    with pytest.raises(ValueError, match="n: got 0; pass a whole number"):
        coverage(logp, 0)
    with pytest.raises(TypeError, match=r"n: got 2.0; pass a whole number"):
        coverage(logp, 2.0)  # pyright: ignore[reportArgumentType]


def test_coverage_of_a_fused_head():
    hidden, weight = rows(3, 8, 5), rows(4, 11, 5)
    y = torch.arange(8).view(2, 4)
    fused = coverage(fenchel.linear_logp(hidden.view(2, 4, 5), weight, y).logp.sum(-1), 4).sum()
    logp = torch.log_softmax(hidden @ weight.T, -1).gather(1, y.view(-1, 1)).view(2, 4).sum(-1)
    plain = -(-(4 * (-logp.exp()).log1p()).expm1()).log().sum()
    for got, want in zip(
        torch.autograd.grad(fused, (hidden, weight)), torch.autograd.grad(plain, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_a_preference_over_aligned_models():
    logp, reference = rows(5)[0], rows(6).detach()[:3]
    got = preference_sft(logp, reference[0], beta=0.5)
    torch.testing.assert_close(got, -torch.sigmoid(0.5 * (logp - reference[0])).log())
    [grad] = torch.autograd.grad(got.sum(), logp)
    torch.testing.assert_close(grad, -0.5 * torch.sigmoid(0.5 * (reference[0] - logp)))
    torch.testing.assert_close(
        preference_sft(logp, reference), torch.stack([preference_sft(logp, r) for r in reference]).mean(0)
    )
    with pytest.raises(ValueError, match="reference: got shape"):
        preference_sft(logp, reference[:, :2])


def test_ranking():
    s = rows(7)
    got = ranking_loss(s, 0.1)
    for i in range(N):
        v = s[i].tolist()
        want = sum(max(0.0, v[b] - v[a] + (b - a) * 0.1) for a in range(V) for b in range(a + 1, V))
        assert float(got[i].detach()) == pytest.approx(want, abs=1e-12)
    ordered = torch.tensor([3.0, 2.0, 1.0]) * 0.1
    assert float(ranking_loss(ordered, 0.09)) == 0
    assert float(ranking_loss(ordered, 0.2)) > 0
    assert float(ranking_loss(torch.zeros(1), 1.0)) == 0
    assert length_normalised(torch.tensor([-6.0]), torch.tensor([3])).tolist() == [-2.0]
