"""MI-alpha: limits, the definition written out, its bounds, bias and variance on Gaussians; the recommendation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fenchel.objectives.distillation.mi_alpha import cosine_scores, dot_scores, feature_cosine, feature_mse, mi_alpha
from fenchel.objectives.distillation.recommend import Trial, recommend

DOUBLE = torch.float64


def by_loops(f, alpha, log_q):
    """Poole et al., equation 11, as sums over contexts: K = N - 1 students, with the partner or without it."""
    n = len(f)
    joint, product = [], []
    for j in range(n):
        for l in range(n):
            context = [i for i in range(n) if i != l]
            m = np.mean([math.exp(f[i, j]) for i in context])
            a = alpha * m + (1 - alpha) * math.exp(log_q[j])
            if l != j:
                joint.append(f[j, j] - math.log(a))
            else:
                product += [math.exp(f[i, j]) / a for i in context]
    return 1 + np.mean(joint) - np.mean(product)


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.5, 1.0])
def test_it_is_the_definition(alpha):
    f, log_q = torch.randn(6, 6, dtype=DOUBLE) * 2, torch.randn(6, dtype=DOUBLE)
    expected = by_loops(f.numpy(), alpha, log_q.numpy())
    assert mi_alpha(f, alpha, log_baseline=log_q).item() == pytest.approx(expected, rel=1e-12)


def test_the_ends_are_infonce_and_nwj():
    f = torch.randn(5, 5, dtype=DOUBLE)
    info_nce = np.mean(
        [
            f[j, j].item() - math.log(np.mean([math.exp(f[i, j].item()) for i in range(5) if i != l]))
            for j in range(5)
            for l in range(5)
            if l != j
        ]
    )
    assert mi_alpha(f, 1.0).item() == pytest.approx(info_nce, rel=1e-12)
    off = f[~torch.eye(5, dtype=torch.bool)]
    nwj = f.diagonal().mean() - (off - 1).exp().mean()
    assert mi_alpha(f, 0.0).item() == pytest.approx(nwj.item(), rel=1e-12)


@given(st.integers(2, 7), st.floats(0.01, 1.0), st.integers(0, 10**6), st.floats(0.1, 40.0))
def test_no_batch_exceeds_its_bound(n, alpha, seed, size):
    f = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) * size
    assert mi_alpha(f, alpha).item() <= math.log((n - 1) / alpha) + 1 + 1e-9
    # the product term is at most 1/alpha, the joint one at most log(K/alpha); at alpha = 1 the former is 1
    if alpha == 1.0:
        assert mi_alpha(f, alpha).item() <= math.log(n - 1) + 1e-9


def test_scores_that_dominate_their_column_lose_nothing():
    f = torch.full((4, 4), -300.0, dtype=DOUBLE)
    f.fill_diagonal_(300.0)
    f.requires_grad_()
    value = mi_alpha(f, 1.0)
    assert value.item() == pytest.approx(math.log(3), rel=1e-12)
    value.backward()
    assert f.grad.isfinite().all()
    # in single precision, against the same in double
    g = torch.randn(8, 8) * 30
    assert mi_alpha(g, 0.3).item() == pytest.approx(mi_alpha(g.double(), 0.3).item(), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_derivatives(alpha):
    f = torch.randn(3, 3, dtype=DOUBLE, requires_grad=True)
    q = torch.randn(3, dtype=DOUBLE, requires_grad=True)
    torch.autograd.gradcheck(lambda f, q: mi_alpha(f, alpha, log_baseline=q), (f, q))
    torch.autograd.gradgradcheck(lambda f, q: mi_alpha(f, alpha, log_baseline=q), (f, q))


def gaussian_scores(rho, n, d, batches):
    """log p(x,y)/(p(x)p(y)) of correlated Gaussians at [batches, n, n] pairs, and the mutual information."""
    x = torch.randn(batches, n, d, dtype=DOUBLE)
    y = rho * x + math.sqrt(1 - rho**2) * torch.randn_like(x)
    xx, yy, xy = x.square().sum(-1).unsqueeze(2), y.square().sum(-1).unsqueeze(1), x @ y.mT
    s = 1 - rho**2
    return -d / 2 * math.log(s) - (rho**2 * (xx + yy) - 2 * rho * xy) / (2 * s), -d / 2 * math.log(s)


def test_on_gaussians_alpha_trades_bias_for_variance():
    scores, mi = gaussian_scores(0.8, 16, 4, 1500)
    values = {a: torch.func.vmap(lambda f, a=a: mi_alpha(f, a, log_baseline=0.0))(scores) for a in (0.0, 0.1, 1.0)}
    error = {a: v.std() / len(v) ** 0.5 for a, v in values.items()}
    means = {a: v.mean() for a, v in values.items()}
    for a in (0.1, 1.0):
        assert means[a] < mi + 3 * error[a]
    assert abs(means[0.0] - mi) < 4 * error[0.0]
    assert means[1.0] + 10 * error[1.0] < means[0.1]
    assert values[1.0].std() < 0.7 * values[0.1].std() < 0.7 * values[0.0].std()


def test_critics_and_row_objectives():
    t, s = torch.randn(5, 3, dtype=DOUBLE), torch.randn(5, 3, dtype=DOUBLE)
    tn, sn = t.numpy(), s.numpy()
    cos = (sn @ tn.T) / np.linalg.norm(sn, axis=1)[:, None] / np.linalg.norm(tn, axis=1)
    np.testing.assert_allclose(cosine_scores(t, s, temperature=0.2), cos / 0.2, rtol=1e-12)
    np.testing.assert_allclose(dot_scores(t, s), sn @ tn.T / math.sqrt(3), rtol=1e-12)
    np.testing.assert_allclose(feature_cosine(t, s), 1 - np.diag(cos), rtol=1e-12)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (tn, sn)]
    np.testing.assert_allclose(feature_cosine(t, s), ((unit[0] - unit[1]) ** 2).sum(1) / 2, rtol=1e-12)
    # MSE is the Gaussian bound less its constants
    sigma, logq = 0.7, torch.distributions.Normal(s, 0.7).log_prob(t).sum(1)
    bound = -3 / 2 * math.log(2 * math.pi * sigma**2) - 3 * feature_mse(t, s) / (2 * sigma**2)
    torch.testing.assert_close(logq, bound)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=DOUBLE))[0]
    for of in (cosine_scores, dot_scores, feature_mse, feature_cosine):
        torch.testing.assert_close(of(t @ turn, s @ turn), of(t, s))


def test_half_precision_and_zero_features():
    f = torch.randn(6, 6)
    assert mi_alpha(f.bfloat16(), 0.5).dtype == torch.bfloat16
    assert cosine_scores(torch.zeros(2, 3), torch.ones(2, 3)).eq(0).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mi_alpha(torch.zeros(3, 3), 1.5), "alpha: got 1.5"),
        (lambda: mi_alpha(torch.zeros(3, 4)), "pass \\[N, N\\]"),
        (lambda: mi_alpha(torch.zeros(1, 1)), "N >= 2"),
        (lambda: mi_alpha(torch.zeros(3, 3), log_baseline=torch.zeros(2)), "log_baseline: got shape"),
        (lambda: dot_scores(torch.zeros(3, 4), torch.zeros(3, 5)), "project one of them"),
        (lambda: cosine_scores(torch.zeros(3, 4), torch.zeros(3, 4), temperature=0.0), "temperature: got 0.0"),
        (lambda: recommend([], [{}]), "pass at least one of each"),
        (lambda: recommend([Trial("a", {"x": "1"}, 0.0)], [{"x": "1"}]), "one trial on 'a'"),
        (lambda: recommend([Trial("a", {"x": "1"}, 0.0)] * 2, [{"y": "1"}]), "components"),
        (lambda: recommend([Trial("a", {"x": "1"}, math.nan)] * 2, [{"x": "1"}]), "finite"),
        (lambda: recommend([Trial("a", {"x": "1"}, 0.0)] * 2, [{"x": "1"}], descriptors={"n": 1.0}), "descriptors"),
        (lambda: recommend([Trial("a", {"x": "1"}, 0.0)] * 2, [{"x": "1"}], ridge=0.0), "ridge"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()


PIPELINES = [{"loss": l, "data": d} for l in ("mse", "mi") for d in ("plain", "mixed")]
EFFECT = {"mse": 0.0, "mi": 0.05, "plain": 0.0, "mixed": 0.02}


def test_it_recommends_what_was_best_whatever_the_scale_of_a_data_set():
    trials = [
        Trial(name, p, base + scale * sum(EFFECT[v] for v in p.values()))
        for name, base, scale in (("easy", 0.9, 0.1), ("hard", 0.3, 3.0))
        for p in PIPELINES
    ]
    ranked = recommend(trials, PIPELINES)
    assert ranked[0].pipeline == {"loss": "mi", "data": "mixed"}
    assert ranked[-1].pipeline == {"loss": "mse", "data": "plain"}
    assert [r.predicted for r in ranked] == sorted((r.predicted for r in ranked), reverse=True)


def test_data_sets_that_resemble_the_new_one_count_more():
    def trials(name, size, sign):
        return [Trial(name, p, sign * sum(EFFECT[v] for v in p.values()), {"log_size": size}) for p in PIPELINES]

    both = [*trials("small", 3.0, 1.0), *trials("large", 9.0, -1.0)]
    assert recommend(both, PIPELINES, descriptors={"log_size": 3.5})[0].pipeline["loss"] == "mi"
    assert recommend(both, PIPELINES, descriptors={"log_size": 8.5})[0].pipeline["loss"] == "mse"


def test_a_choice_never_tried_is_neither_praised_nor_blamed():
    trials = [Trial("a", p, sum(EFFECT[v] for v in p.values())) for p in PIPELINES]
    new = {"loss": "new", "data": "mixed"}
    ranked = [r.pipeline for r in recommend(trials, [*PIPELINES, new])]
    assert 0 < ranked.index(new) < 4
