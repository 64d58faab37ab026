"""Ways of training on a risk: Prospect's estimates, multipliers of feasible learning, heads of domains, perturbed inputs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fenchel.objectives.risks import (
    FeasibleLearning,
    Prospect,
    cvar,
    domain_specific_risk,
    dro,
    steered_log_probabilities,
    worst_inputs,
    worst_weights,
)

DOUBLE = torch.float64


def least_squares(n=12, d=3):
    """Losses [n] and gradients [n, d] of ridge regression at w, and the risk that they are put under."""
    x, y = torch.randn(n, d, dtype=DOUBLE), torch.randn(n, dtype=DOUBLE)

    def losses(w):
        return (x @ w - y).square() / 2 + 0.05 * w.square().sum()

    def gradients(w):
        return (x @ w - y)[:, None] * x + 0.1 * w

    return losses, gradients, lambda l: cvar(l, 0.5, smoothing=1.0)


def test_prospect_is_unbiased_for_the_weights_of_its_table():
    losses, gradients, risk = least_squares()
    w = torch.randn(3, dtype=DOUBLE)
    start = Prospect(risk, losses(w), gradients(w))
    moved = w + 0.3
    steps = []
    for i in range(12):
        table = Prospect(risk, losses(w), gradients(w))
        table.weights, table.mean = start.weights.clone(), start.mean.clone()
        steps.append(table.direction(i, gradients(moved)[i]))
    torch.testing.assert_close(torch.stack(steps).mean(0), worst_weights(risk, losses(w)) @ gradients(moved))


def test_prospect_at_rest_is_the_gradient_whatever_is_drawn():
    losses, gradients, risk = least_squares()
    w = torch.randn(3, dtype=DOUBLE)
    table = Prospect(risk, losses(w), gradients(w))
    leaf = w.clone().requires_grad_()
    (want,) = torch.autograd.grad(risk(losses(leaf)), leaf)
    for i in (0, 5, 5, 11):
        torch.testing.assert_close(table.direction(i, gradients(w)[i]), want)


def test_the_mean_of_the_table_stays_the_mean_of_its_rows():
    losses, gradients, risk = least_squares()
    w = torch.randn(3, dtype=DOUBLE)
    table = Prospect(risk, losses(w), gradients(w))
    for k in range(20):
        w = w - 0.02 * table.direction(k % 7, gradients(w)[k % 7])
        table.look((k + 3) % 12, losses(w)[(k + 3) % 12])
    torch.testing.assert_close(table.mean, table.weights @ table.gradients)


def test_prospect_reaches_the_minimum_where_batches_stop_short():
    losses, gradients, risk = least_squares()
    w = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    solver = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        value = risk(losses(w))
        value.backward()
        return value

    solver.step(closure)
    best = float(risk(losses(w.detach())))
    drawn = np.random.default_rng(0).integers(12, size=(1200, 2)).tolist()
    v, s = torch.zeros(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE)
    table = Prospect(risk, losses(v), gradients(v))
    for i, j in drawn:
        v = v - 0.04 * table.direction(i, gradients(v)[i])
        table.look(j, losses(v)[j])
        both = torch.tensor([i, j])
        s = s - 0.04 * worst_weights(risk, losses(s)[both]) @ gradients(s)[both]
    assert abs(float(risk(losses(v))) - best) < 1e-6
    assert float(risk(losses(s))) - best > 1e-4


@given(st.floats(0.1, 2), st.floats(0.01, 0.5), st.sampled_from([math.inf, 5.0, 0.5]))
def test_multipliers(bound, rate, alpha):
    feasible = FeasibleLearning(bound, rate, alpha)
    losses, index = torch.tensor([0.0, bound, bound + 1.0], dtype=DOUBLE), torch.tensor([3, 0, 1])
    multipliers = torch.full((5,), 0.25, dtype=DOUBLE)
    for _ in range(800):
        multipliers = feasible.ascend(multipliers, losses, index)
    assert multipliers[[2, 4]].tolist() == [0.25, 0.25]
    assert float(multipliers.min()) >= 0
    if rate * bound * 800 > 1:
        assert float(multipliers[3]) == 0
    if alpha == math.inf:
        assert float(multipliers[1]) == pytest.approx(0.25 + 800 * rate)
        assert feasible.slack(multipliers).tolist() == [0.0] * 5
    elif (1 - rate / alpha) ** 800 < 1e-9:
        # the slack takes what the loss is above the bound
        assert float(multipliers[1]) == pytest.approx(alpha)
        assert float(feasible.slack(multipliers)[1]) == pytest.approx(1.0)


def test_the_slack_is_the_minimiser_that_was_eliminated():
    multipliers = torch.tensor([0.0, 0.3, 2.0], dtype=DOUBLE)
    grid = torch.linspace(0, 4, 4001, dtype=DOUBLE)
    best = grid[(0.75 * grid.square() - multipliers[:, None] * grid).argmin(1)]
    torch.testing.assert_close(FeasibleLearning(0.0, 1.0, 1.5).slack(multipliers), best, rtol=0, atol=1e-3)


def test_the_lagrangian_weighs_by_the_multipliers():
    losses = torch.tensor([1.0, 3.0], requires_grad=True)
    value = FeasibleLearning(0.5, 1.0).lagrangian(
        torch.tensor([9.0, 2.0, 4.0], dtype=DOUBLE), losses, torch.tensor([2, 1])
    )
    assert float(value.detach()) == pytest.approx((4 * 0.5 + 2 * 2.5) / 2)
    assert torch.autograd.grad(value, losses)[0].tolist() == [2.0, 1.0]


def test_primal_and_dual_meet_at_a_feasible_point():
    """One parameter, two samples that pull apart: the bound leaves [0.5, 1.5] out of a minimum of the mean at 0.2."""
    centre, weight = torch.tensor([0.0, 1.5], dtype=DOUBLE), torch.tensor([6.5, 1.0], dtype=DOUBLE)
    losses = lambda w: weight * (w - centre).square()
    w = torch.tensor(0.0, dtype=DOUBLE, requires_grad=True)
    feasible, multipliers, index = FeasibleLearning(1.2, 0.05), torch.zeros(2, dtype=DOUBLE), torch.arange(2)
    for _ in range(4000):
        multipliers = feasible.ascend(multipliers, losses(w), index)
        (g,) = torch.autograd.grad(feasible.lagrangian(multipliers, losses(w), index), w)
        w = (w - 0.02 * g).detach().requires_grad_()
    assert float(losses(w).detach().max()) <= 1.2 + 1e-2
    assert float(multipliers[0]) == 0


def test_domains_count_alike_and_see_their_own_head():
    losses = torch.randn(7, 3, dtype=DOUBLE, requires_grad=True)
    domain = torch.tensor([0, 0, 2, 0, 2, 0, 0])
    value = domain_specific_risk(losses, domain)
    want = (losses[domain == 0, 0].mean() + losses[domain == 2, 2].mean()) / 2
    torch.testing.assert_close(value, want)
    (grad,) = torch.autograd.grad(value, losses)
    assert set(grad.nonzero()[:, 1].tolist()) == {0, 2}
    own = torch.nn.functional.one_hot(domain, 3).bool()
    assert bool((grad[own] > 0).all())
    assert float(grad[~own].abs().sum()) == 0


def test_steering():
    logits = torch.randn(4, 3, 5, dtype=DOUBLE, requires_grad=True)
    gap = torch.rand(4, 3, dtype=DOUBLE)
    p = logits.softmax(-1)
    for t in (0.01, 1.0, 1e6):
        v = torch.softmax(-gap / t, -1)
        torch.testing.assert_close(
            steered_log_probabilities(logits, gap=gap, temperature=t).exp(), (v[..., None] * p).sum(1)
        )
    nearest = steered_log_probabilities(logits, temperature=1e-6).exp()
    entropies = -(p * p.log()).sum(-1)
    torch.testing.assert_close(nearest, p[torch.arange(4), entropies.argmin(1)])
    assert torch.autograd.gradcheck(lambda z: steered_log_probabilities(z, gap=gap), (logits,))
    masked = torch.cat((logits, torch.full((4, 3, 1), -math.inf, dtype=DOUBLE)), -1)
    out = steered_log_probabilities(masked)
    torch.testing.assert_close(out[..., :5], steered_log_probabilities(logits))
    assert bool((out[..., 5] == -math.inf).all())


def test_worst_inputs_of_a_linear_score_are_corners():
    w, x = torch.randn(6, dtype=DOUBLE), torch.randn(9, 6, dtype=DOUBLE)
    losses = lambda x: torch.nn.functional.softplus(-(x @ w))
    got = worst_inputs(losses, x, radius=0.3)
    torch.testing.assert_close(got, x - 0.3 * w.sign())
    assert not got.requires_grad


def test_worst_inputs_stay_in_the_box_and_never_lower_a_loss():
    x = torch.randn(20, 3, dtype=DOUBLE)
    losses = lambda x: (5 * x).sin().sum(-1)
    got = worst_inputs(losses, x, radius=0.4, steps=7, step=0.3)
    assert float((got - x).abs().max()) <= 0.4 + 1e-12
    assert bool((losses(got) >= losses(x)).all())
    assert float((losses(got) - losses(x)).mean()) > 0.5
    assert float(dro(losses(got), temperature=0.5)) >= float(dro(losses(x), temperature=0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeasibleLearning(math.nan, 1.0), r"bound: got nan"),
        (lambda: FeasibleLearning(1.0, 0.0), r"rate: got 0.0"),
        (lambda: FeasibleLearning(1.0, 1.0, -1.0), r"alpha: got -1.0"),
        (lambda: FeasibleLearning(1.0, 1.0).start(0), r"n: got 0"),
        (
            lambda: FeasibleLearning(1.0, 1.0).ascend(torch.zeros(3), torch.zeros(2), torch.tensor([0, 3])),
            r"multipliers",
        ),
        (lambda: FeasibleLearning(1.0, 1.0).ascend(torch.zeros(3), torch.zeros(2), torch.tensor([0])), r"index: got"),
        (
            lambda: domain_specific_risk(torch.zeros(2, 2), torch.tensor([0, 2])),
            r"domain: got a number outside \[0, 2\)",
        ),
        (lambda: domain_specific_risk(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)), r"got \[0, 2\]"),
        (lambda: steered_log_probabilities(torch.zeros(2, 3)), r"logits: got shape \[2, 3\]"),
        (lambda: steered_log_probabilities(torch.zeros(2, 3, 4), gap=torch.zeros(2, 4)), r"gap: got shape \[2, 4\]"),
        (
            lambda: worst_inputs(lambda x: x.sum(), torch.zeros(2, 3), radius=1.0),
            r"losses: got shape \[\] for 2 inputs",
        ),
        (lambda: worst_inputs(lambda x: x.sum(-1), torch.zeros(2, 3), radius=0.0), r"radius: got 0.0"),
        (lambda: worst_inputs(lambda x: x.sum(-1), torch.zeros(2, 3), radius=1.0, steps=0), r"steps: got 0"),
        (lambda: Prospect(lambda l: l.mean(), torch.zeros(3), torch.zeros(2, 4)), r"gradients: got shape \[2, 4\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
