"""KDRL: what each KL estimator is as a number and as a loss, by enumerating a policy; the joint gradient; masks."""

import math

import pytest
import torch

from fenchel.objectives.distillation.kdrl import ESTIMATORS, KDRL, anneal, kl_estimate, unsolved
from fenchel.objectives.distillation.trrd import clipped_surrogate

DOUBLE = torch.float64


def policies(v=7):
    """Logits of a policy with a gradient, and its log-probabilities and a teacher's."""
    z = torch.randn(v, dtype=DOUBLE, requires_grad=True)
    return z, z.log_softmax(0), (2 * torch.randn(v, dtype=DOUBLE)).log_softmax(0)


def kl(logp, logq):
    return (logp.exp() * (logp - logq)).sum()


def mean_gradient(z, logp, per_token):
    """E over tokens sampled from pi (the sampling is not differentiated) of the gradient of a loss per token."""
    (gradient,) = torch.autograd.grad((logp.detach().exp() * per_token).sum(), z, retain_graph=True)
    return gradient


def test_values():
    _, logp, teacher = policies()
    p = logp.exp()
    mean = {name: (p * kl_estimate(logp, teacher, name)).sum() for name in ESTIMATORS}
    torch.testing.assert_close(mean["k1"], kl(logp, teacher))
    torch.testing.assert_close(mean["k3"], kl(logp, teacher))
    assert abs(mean["k2"] - kl(logp, teacher)) > 0.01 * kl(logp, teacher)
    # second order in the gap all three agree
    near = (logp + 1e-3 * torch.randn_like(logp)).log_softmax(0)
    torch.testing.assert_close((p * kl_estimate(logp, near, "k2")).sum(), kl(logp, near), rtol=1e-2, atol=0.0)
    for name in ("k2", "k3"):
        assert (kl_estimate(logp, teacher, name) >= 0).all()


def test_k1_as_a_loss_learns_nothing():
    # AReaL's joint branch adds mean(log pi - log pi_T) as a plain loss
    z, logp, teacher = policies()
    assert mean_gradient(z, logp, kl_estimate(logp, teacher, "k1")).abs().max() < 1e-15
    with pytest.raises(ValueError, match="k1"):
        KDRL(estimator="k1")


def test_gradients_as_losses():
    z, logp, teacher = policies()
    (wanted,) = torch.autograd.grad(kl(logp, teacher), z, retain_graph=True)
    torch.testing.assert_close(mean_gradient(z, logp, kl_estimate(logp, teacher, "k2")), wanted)
    (other,) = torch.autograd.grad(kl(teacher, logp), z, retain_graph=True)
    torch.testing.assert_close(mean_gradient(z, logp, kl_estimate(logp, teacher, "k3")), other)
    assert (wanted - other).abs().max() > 0.01


@pytest.mark.parametrize(("estimator", "direction"), [("k2", 1), ("score", 1), ("k3", -1)])
def test_the_joint_gradient_is_that_of_reward_less_kl(estimator, direction):
    z, logp, teacher = policies()
    reward, beta = torch.randn(7, dtype=DOUBLE), 0.3
    divergence = kl(logp, teacher) if direction == 1 else kl(teacher, logp)
    (wanted,) = torch.autograd.grad(beta * divergence - (logp.exp() * reward).sum(), z, retain_graph=True)
    baseline = (logp.exp() * reward).sum().detach()
    rows = KDRL(beta, estimator).rows(logp, logp.detach(), teacher, reward - baseline)
    torch.testing.assert_close(mean_gradient(z, logp, rows), wanted)


def test_the_score_form_is_right_off_policy_too():
    z, logp, teacher = policies()
    old = (logp + 0.3 * torch.randn_like(logp)).detach().log_softmax(0)
    rows = KDRL(1.0, "score").rows(logp, old, teacher, torch.zeros_like(old))
    (got,) = torch.autograd.grad((old.exp() * rows).sum(), z, retain_graph=True)
    (wanted,) = torch.autograd.grad(kl(logp, teacher), z)
    torch.testing.assert_close(got, wanted)


def test_on_policy_the_score_form_has_the_gradient_of_k2_to_the_last_bit():
    logp = (torch.randn(50) - 2).requires_grad_()
    teacher, zero = torch.randn(50) - 2, torch.zeros(50)
    grads = [
        torch.autograd.grad(KDRL(1.0, name).rows(logp, logp.detach(), teacher, zero).sum(), logp)[0]
        for name in ("k2", "score")
    ]
    assert torch.equal(*grads)


def test_without_a_teacher_it_is_ppo():
    logp, old, teacher, advantage = torch.randn(4, 40).unbind()
    assert torch.equal(KDRL(0.0).rows(logp, old, teacher, advantage), clipped_surrogate(logp - old, advantage))


def test_what_is_solved_is_left_to_the_reward():
    logp = (torch.randn(6, dtype=DOUBLE) - 2).requires_grad_()
    old, advantage = logp.detach() - 0.1, torch.randn(6, dtype=DOUBLE)
    teacher = torch.tensor([-1.0, -math.inf, math.nan, -2.0, -3.0, -math.inf], dtype=DOUBLE)
    taught = unsolved(torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0]))
    rows = KDRL(0.5).rows(logp, old, teacher, advantage, distil=taught)
    plain = clipped_surrogate(logp - old, advantage)
    assert torch.equal(rows[~taught], plain[~taught])
    torch.testing.assert_close(rows[taught], (plain + 0.25 * (logp - teacher) ** 2)[taught])
    rows.sum().backward()
    assert logp.grad.isfinite().all()


@pytest.mark.parametrize("estimator", ["k2", "k3", "score"])
def test_derivatives(estimator):
    logp, teacher, advantage = (torch.randn(5, dtype=DOUBLE) for _ in range(3))
    old = logp - 0.1
    if estimator != "score":  # whose gradient is not that of its value, by design
        torch.autograd.gradcheck(
            lambda z: KDRL(0.7, estimator).rows(z, old, teacher, advantage), (logp.requires_grad_(),)
        )
    empty = torch.zeros(0)
    assert KDRL(0.7, estimator).rows(empty, empty, empty, empty).shape == (0,)


def test_annealing():
    assert anneal(0, 10) == 5e-3
    assert anneal(10, 10) == anneal(99, 10) == 1e-3
    assert anneal(5, 10, start=1.0, end=0.0) == 0.5
    values = [anneal(s, 7) for s in range(9)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("call", "says", "kind"),
    [
        (lambda: KDRL(-1.0), "beta: got -1.0", ValueError),
        (lambda: KDRL(estimator="k4"), "pass one of 'k2', 'k3', 'score'", ValueError),
        (lambda: kl_estimate(torch.zeros(1), torch.zeros(1), "score"), "pass one of 'k1', 'k2', 'k3'", ValueError),
        (lambda: kl_estimate(torch.zeros(1), torch.zeros(2)), "one shape", ValueError),
        (lambda: KDRL().rows(*[torch.zeros(2)] * 4, distil=torch.ones(2)), "bool mask", TypeError),
        (lambda: KDRL().rows(*[torch.zeros(2)] * 4, distil=torch.ones(1, dtype=torch.bool)), "distil", ValueError),
        (lambda: anneal(-1, 5), "step -1 of 5", ValueError),
        (lambda: anneal(1, 0), "step 1 of 0", ValueError),
    ],
)
def test_bad_input(call, says, kind):
    with pytest.raises(kind, match=says):
        call()
