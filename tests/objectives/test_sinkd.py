"""Sinkhorn distillation: the plan's laws, its limits against exact solvers, its derivatives, and the loss."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog
from torch.autograd import gradcheck, gradgradcheck

from fenchel.objectives.distillation import SinKD, sinkhorn_plan


@settings(max_examples=25)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(-4, 2),
    st.sampled_from(["flat", "whole", "same", "line", "large"]),
    st.integers(0, 99),
)
def test_the_marginals_hold(n, m, log_epsilon, kind, seed):
    made = torch.Generator().manual_seed(seed)
    cost = torch.rand(n, m, generator=made, dtype=torch.float64)
    if kind == "whole":  # ties everywhere
        cost = (3 * cost).floor()
    if kind == "same":
        cost = torch.ones(n, m, dtype=torch.float64)
    if kind == "line":
        cost = (cost[:, :1] - cost[:1]).abs()
    epsilon = 10**log_epsilon
    if kind == "large":
        cost, epsilon = 1e5 * cost - 5e4, 1e5 * epsilon
    plan = sinkhorn_plan(cost.requires_grad_(), epsilon)
    assert bool((plan >= 0).all())
    torch.testing.assert_close(plan.sum(1), torch.full((n,), 1 / n, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(plan.sum(0), torch.full((m,), 1 / m, dtype=torch.float64), rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad((plan * cost).sum(), cost)
    assert bool(grad.isfinite().all())
    # a constant added to all costs adds itself to the value
    torch.testing.assert_close(grad.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-6)


def test_it_is_the_minimum():
    """Against plans made by mixing in others with the same marginals."""
    cost, epsilon = torch.rand(5, 5, dtype=torch.float64), 0.2
    value = lambda p: float((p * cost).sum() + epsilon * torch.special.xlogy(p, p).sum())
    plan = sinkhorn_plan(cost, epsilon)
    for _ in range(20):
        other = torch.eye(5, dtype=torch.float64)[torch.randperm(5)] / 5
        assert value(0.99 * plan + 0.01 * other) > value(plan)


def test_a_small_epsilon_gives_the_best_matching():
    for seed in range(3):
        torch.manual_seed(seed)
        cost = torch.rand(7, 7, dtype=torch.float64)
        rows, columns = linear_sum_assignment(cost.numpy())
        best = float(cost[rows, columns].mean())
        values = [float((sinkhorn_plan(cost, e) * cost).sum()) for e in (0.1, 0.01, 1e-3, 1e-4)]
        assert values == sorted(values, reverse=True)
        for e, value in zip((0.1, 0.01, 1e-3, 1e-4), values, strict=True):
            assert -1e-9 <= value - best <= e * np.log(7)
        assert values[-1] == pytest.approx(best, abs=1e-5)


def test_a_small_epsilon_gives_the_linear_program():
    """Batches of two sizes, where the plan is no matching."""
    n, m = 4, 6
    cost = torch.rand(n, m, dtype=torch.float64)
    sums = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    exact = linprog(cost.numpy().ravel(), A_eq=sums, b_eq=np.r_[np.full(n, 1 / n), np.full(m, 1 / m)])
    assert float((sinkhorn_plan(cost, 1e-3) * cost).sum()) == pytest.approx(exact.fun, abs=1e-5)


def test_a_large_epsilon_gives_the_mean():
    cost = torch.rand(4, 6, dtype=torch.float64)
    torch.testing.assert_close((sinkhorn_plan(cost, 1e6) * cost).sum(), cost.mean(), rtol=0, atol=1e-6)


def test_derivatives_of_the_plan():
    cost = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    f = lambda c: sinkhorn_plan(c, 0.2)
    assert gradcheck(f, (cost,))
    assert gradgradcheck(f, (cost,))


def test_derivatives_are_those_of_the_fixed_point_not_of_a_few_iterations():
    """Twenty differentiated sweeps, as in the authors' code, have another gradient where they have not converged."""
    cost = torch.rand(6, 6, dtype=torch.float64, requires_grad=True)
    plan = torch.exp(-cost / 0.02)
    for _ in range(20):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    (unrolled,) = torch.autograd.grad((plan * cost).sum() / 6, cost)
    (fixed,) = torch.autograd.grad((sinkhorn_plan(cost, 0.02) * cost).sum(), cost)
    assert float((unrolled - fixed).abs().max()) > 1e-4


def test_derivatives_of_the_loss():
    t, s = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(SinKD(epsilon=0.1, temperature=2.0, factor=3.0), (t, s))


def test_second_derivatives_of_the_loss():
    """Through the cost as well as the plan: those of a loss whose cost is written with |s - t|."""
    t, s = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = SinKD(epsilon=0.2, temperature=2.0)
    assert gradgradcheck(loss, (t, s))

    def by_hand(t, s):
        p, q = (s / 2).softmax(-1), (t / 2).softmax(-1)
        cost = (p.unsqueeze(-2) - q.unsqueeze(-3)).abs().sum(-1)
        return (sinkhorn_plan(cost, 0.2) * cost).sum()

    got, want = (torch.autograd.functional.hessian(f, (t, s)) for f in (loss, by_hand))
    torch.testing.assert_close(got, want)


def test_the_loss_is_the_cost_of_the_plan():
    t, s = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    got = SinKD(epsilon=0.3, temperature=2.0, factor=0.5)(t, s)
    p, q = (s / 2).softmax(-1), (t / 2).softmax(-1)
    cost = (p.unsqueeze(-2) - q.unsqueeze(-3)).abs().sum(-1)
    torch.testing.assert_close(got, 0.5 * (sinkhorn_plan(cost, 0.3) * cost).sum((-2, -1)))
    # each problem of a batch is its own
    torch.testing.assert_close(got[1], SinKD(0.3, 2.0, 0.5)(t[1], s[1]))


def test_a_student_that_is_its_teacher():
    """Not 0, because a plan of epsilon > 0 is no matching; at most epsilon log B."""
    t = 3 * torch.randn(16, 50, dtype=torch.float64)
    for epsilon in (0.5, 0.1, 0.01):
        value = float(SinKD(epsilon)(t, t.clone()))
        assert -1e-12 <= value <= epsilon * np.log(16)


def test_rows_of_another_order_cost_nothing():
    """What tells it from a loss of pairs: the batch is what is compared."""
    t = 5 * torch.randn(8, 30, dtype=torch.float64)
    assert float(SinKD(0.01)(t, t.flip(0))) < 1e-6


def test_masked_vocabulary_and_dtypes():
    t, s = torch.randn(4, 9), torch.randn(4, 9, requires_grad=True)
    padded = lambda z: torch.cat((z, torch.full((4, 3), -torch.inf)), -1)
    out = SinKD()(padded(t), padded(s))
    torch.testing.assert_close(out, SinKD()(t, s))
    assert bool(torch.autograd.grad(out, s)[0].isfinite().all())
    assert SinKD()(t.bfloat16(), s.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinkhorn_plan(torch.rand(3), 0.1), r"cost: got shape \[3\]; pass \[..., n, m\]"),
        (lambda: sinkhorn_plan(torch.rand(0, 3), 0.1), r"cost: got shape \[0, 3\]"),
        (lambda: sinkhorn_plan(torch.tensor([[0.0, torch.inf]]), 0.1), r"cost: got an entry that is not finite"),
        (lambda: sinkhorn_plan(torch.rand(3, 3), 0.0), r"epsilon: got 0.0"),
        (lambda: sinkhorn_plan(torch.rand(4, 4), 1e-13), r"sinkhorn_plan: the marginals are met to .* too small"),
        (lambda: SinKD(epsilon=-1.0), r"epsilon: got -1.0"),
        (
            lambda: SinKD()(torch.rand(3, 4), torch.rand(3, 5)),
            r"student: got shape \[3, 5\], the teacher's is \[3, 4\]",
        ),
        (lambda: SinKD()(torch.rand(4), torch.rand(4)), r"teacher: got shape \[4\]; pass \[..., B, V\]"),
        (lambda: SinKD()(torch.rand(0, 4), torch.rand(0, 4)), r"teacher: got shape \[0, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()
