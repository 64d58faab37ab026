"""Structured objectives: enumeration, a linear program solver, quadrature and autograd through the inner step as oracles."""

import itertools
import math

import pytest
import scipy.integrate
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

import fenchel
from fenchel.objectives.structured import (
    RegularizedMixture,
    basis_of,
    box_log_density,
    debiased_labels,
    meta_label_gradient,
    optimality_margin,
    pair_distribution,
    pair_gains,
    proportion_losses,
    reduced_costs,
    soft_confusion,
)

DOUBLE = torch.float64


# label proportions


@pytest.mark.parametrize(("k", "c"), [(1, 3), (2, 2), (3, 3), (4, 2)])
def test_proportions_are_unbiased_for_any_loss(k, c):
    """By enumeration of all bags from a population of four points, with a loss that is no loss of anything."""
    points = 4
    law = torch.rand(points, c, dtype=DOUBLE)
    law = law / law.sum()  # P(x, y)
    losses = torch.randn(points, c, dtype=DOUBLE)
    prior = law.sum(0)
    supervised = float((law * losses).sum())
    total = 0.0
    outcomes = list(itertools.product(range(points), range(c)))
    for bag in itertools.product(outcomes, repeat=k):
        p = math.prod(float(law[x, y]) for x, y in bag)
        shares = torch.tensor([sum(y == j for _, y in bag) / k for j in range(c)], dtype=DOUBLE)
        total += p * float(proportion_losses(losses[[x for x, _ in bag]][None], shares[None], prior))
    assert total == pytest.approx(supervised)


@given(st.integers(1, 50), st.lists(st.floats(0.01, 1), min_size=2, max_size=6))
def test_debiased_labels(k, weights):
    prior = torch.tensor(weights, dtype=DOUBLE)
    prior = prior / prior.sum()
    shares = torch.eye(len(prior), dtype=DOUBLE)
    y = debiased_labels(shares, prior, k)
    torch.testing.assert_close(y.sum(1), torch.ones(len(prior), dtype=DOUBLE))
    torch.testing.assert_close(debiased_labels(prior[None], prior, k)[0], prior)
    if k == 1:
        torch.testing.assert_close(y, shares)


def test_the_variance_grows_with_the_bag():
    """By no more than its size."""
    made = torch.Generator().manual_seed(0)
    prior = torch.tensor([0.5, 0.5], dtype=DOUBLE)
    spread = {}
    for k in (1, 4, 16):
        n = 16 * 6000 // k
        x = torch.rand(n, k, generator=made, dtype=DOUBLE)
        y = (torch.rand(n, k, generator=made, dtype=DOUBLE) < x).long()
        losses = torch.stack((x, 1 - x), -1)  # of each class
        shares = torch.nn.functional.one_hot(y, 2).double().mean(1)
        bags = proportion_losses(losses, shares, prior)
        spread[k] = float(bags.var())
        assert float(bags.mean()) == pytest.approx(1 / 3, abs=5 * math.sqrt(spread[k] / n))
    assert spread[1] < spread[4] < 4.2 * spread[1]
    assert spread[4] < spread[16] < 4.2 * spread[4]


# linear programs


def program(n=7, m=3):
    """A feasible, bounded program with a vertex that is not degenerate, and its solution."""
    a = torch.rand(m, n, dtype=DOUBLE) + 0.1
    b = a @ torch.rand(n, dtype=DOUBLE)
    c = torch.rand(n, dtype=DOUBLE)
    return a, b, c


def solve(c, a, b):
    found = scipy.optimize.linprog(c.numpy(), A_eq=a.numpy(), b_eq=b.numpy(), method="highs-ds")
    assert found.status == 0
    return torch.tensor(found.x), torch.tensor(found.eqlin.marginals)


def test_reduced_costs_are_those_of_the_solver():
    for _ in range(10):
        a, b, c = program()
        x, duals = solve(c, a, b)
        r = reduced_costs(c, a, basis_of(x, a))
        torch.testing.assert_close(r, c - duals @ a, rtol=0, atol=1e-9)
        assert float(r.min()) >= -1e-9
        moved = c + torch.randn(3, dtype=DOUBLE) @ a
        torch.testing.assert_close(reduced_costs(moved, a, basis_of(x, a)), r)


def test_no_loss_is_optimality_by_the_margin():
    for _ in range(20):
        a, b, c = program()
        x, _ = solve(torch.rand(7, dtype=DOUBLE), a, b)
        basis = basis_of(x, a)
        loss = float(optimality_margin(c, a, basis, margin=1e-9))
        assert (loss < 1e-9) == bool(torch.allclose(solve(c, a, b)[0], x))
        # descending on the loss ends at costs that the observed solution is optimal for
        free = c.clone().requires_grad_()
        for _ in range(400):
            value = optimality_margin(free, a, basis, margin=0.1)
            if float(value.detach()) == 0:
                break
            (g,) = torch.autograd.grad(value, free)
            free = (free - 0.02 * g / g.norm()).detach().requires_grad_()
        assert float(value.detach()) < 0.05
        torch.testing.assert_close(solve(free.detach(), a, b)[0], x)


def test_optimality_margin_is_convex_and_differentiable():
    a, b, c = program()
    basis = basis_of(solve(c, a, b)[0], a).expand(2, 3)
    pair = torch.randn(2, 7, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda c: optimality_margin(c, a, basis), (pair,))
    one, two = optimality_margin(pair.detach(), a, basis)
    middle = optimality_margin(pair.detach().mean(0), a, basis[0])
    assert float(middle) <= float(one + two) / 2 + 1e-12


# detection


def test_a_density_integrates_to_one():
    m, s = torch.tensor([[0.3]], dtype=DOUBLE), torch.tensor([[-0.7]], dtype=DOUBLE)
    z = torch.randn(1, 3, dtype=DOUBLE)
    f = lambda x: sum(
        float(box_log_density(torch.tensor([[x]], dtype=DOUBLE), torch.tensor([c]), m, s, z).exp()) for c in range(3)
    )
    total, _ = scipy.integrate.quad(f, -math.inf, math.inf, epsabs=1e-6, limit=60)
    assert total == pytest.approx(1, abs=1e-5)


def test_the_mixture_by_hand():
    g, k, d = 3, 4, 2
    boxes, m, s = torch.randn(g, d, dtype=DOUBLE), torch.randn(k, d, dtype=DOUBLE), torch.randn(k, d, dtype=DOUBLE)
    z, y, w = torch.randn(k, 3, dtype=DOUBLE), torch.tensor([0, 2, 1]), torch.randn(k, dtype=DOUBLE)
    got = RegularizedMixture(0.6).rows(w, box_log_density(boxes, y, m, s, z))
    for i in range(g):
        joint = []
        for j in range(k):
            p = float(z[j].softmax(0)[y[i]] * w.softmax(0)[j])
            for a in range(d):
                scale = math.exp(float(s[j, a]))
                p *= 1 / (math.pi * scale * (1 + ((float(boxes[i, a]) - float(m[j, a])) / scale) ** 2))
            joint.append(p)
        assert float(got[i]) == pytest.approx(-math.log(sum(joint)) - 0.6 * math.log(max(joint)))
    leaves = (w, m, s, z)
    f = lambda w, m, s, z: RegularizedMixture(0.6).rows(w, box_log_density(boxes, y, m, s, z))
    assert gradcheck(f, [x.requires_grad_() for x in leaves])


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=6))
def test_the_regulariser_is_between_none_and_all(values):
    density = torch.tensor([values], dtype=DOUBLE)
    w = torch.zeros(len(values), dtype=DOUBLE)
    nll = float(RegularizedMixture(0.0).rows(w, density))
    gap = float(RegularizedMixture(1.0).rows(w, density)) - 2 * nll
    assert -1e-9 <= gap <= math.log(len(values)) + 1e-9
    if len(set(values)) == 1:
        assert gap == pytest.approx(math.log(len(values)), abs=1e-9)


def test_boxes_far_away_and_images_without_boxes():
    far = torch.full((1, 4), 1e9)
    m, s = torch.zeros(2, 4, requires_grad=True), torch.zeros(2, 4, requires_grad=True)
    z, w = torch.zeros(2, 3), torch.zeros(2)
    out = RegularizedMixture().rows(w, box_log_density(far, torch.tensor([1]), m, s, z)).sum()
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(out, (m, s)))
    empty = RegularizedMixture().rows(w, box_log_density(far[:0], torch.zeros(0, dtype=torch.long), m, s, z))
    assert empty.shape == (0,)
    assert float(torch.autograd.grad(empty.sum(), m)[0].abs().sum()) == 0


# meta labels


def student():
    x, clean_x = torch.randn(6, 4, dtype=DOUBLE), torch.randn(5, 4, dtype=DOUBLE)
    clean_y = torch.tensor([0, 1, 2, 0, 1])
    theta = [torch.randn(4, 5, dtype=DOUBLE), torch.randn(5, 3, dtype=DOUBLE)]
    net = lambda x, theta: torch.tanh(x @ theta[0]) @ theta[1]
    log_p = lambda theta: net(x, theta).log_softmax(-1)
    clean = lambda theta: torch.nn.functional.cross_entropy(net(clean_x, theta), clean_y)
    return theta, log_p, clean


def test_the_gradient_is_that_of_autograd_through_the_step():
    theta, log_p, clean = student()
    q = torch.rand(6, 3, dtype=DOUBLE).softmax(-1)
    got = meta_label_gradient(log_p, theta, q, clean, rate=0.7)
    leaf, inner = q.clone().requires_grad_(), [p.clone().requires_grad_() for p in theta]
    loss = -(leaf * log_p(inner)).sum(-1).mean()
    step = torch.autograd.grad(loss, inner, create_graph=True)
    (want,) = torch.autograd.grad(clean([p - 0.7 * g for p, g in zip(inner, step, strict=True)]), leaf)
    torch.testing.assert_close(got, want)
    assert all(p.grad is None for p in theta)
    assert not got.requires_grad


def test_nothing_to_gain_moves_no_label():
    theta, log_p, _ = student()
    q = torch.rand(6, 3, dtype=DOUBLE).softmax(-1)
    flat = lambda theta: (theta[0] * 0.0).sum() + (theta[1] * 0.0).sum()
    assert float(meta_label_gradient(log_p, theta, q, flat, rate=0.7).abs().max()) == 0


def test_descending_on_labels_corrects_them():
    """Half of the labels are wrong; the clean set is the same points with the right ones."""
    made = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=made, dtype=DOUBLE)
    y = (x @ torch.randn(6, 3, generator=made, dtype=DOUBLE)).argmax(1)
    wrong = torch.where(torch.arange(40) % 2 == 0, (y + 1) % 3, y)
    label_logits = 2.0 * torch.nn.functional.one_hot(wrong, 3).double()
    theta = [torch.zeros(6, 3, dtype=DOUBLE)]
    for _ in range(60):
        leaf = label_logits.clone().requires_grad_()
        q = leaf.softmax(-1)
        gradient = meta_label_gradient(
            lambda t: (x @ t[0]).log_softmax(-1),
            theta,
            q,
            lambda t: torch.nn.functional.cross_entropy(x @ t[0], y),
            rate=5.0,
        )
        q.backward(gradient)
        label_logits = label_logits - 60 * leaf.grad
    assert float((label_logits.argmax(1) == y).double().mean()) > 0.85


# selective mixup


def mixup_problem():
    x, y = torch.randn(30, 4, dtype=DOUBLE), torch.arange(30) % 3
    return torch.randn(4, 3, dtype=DOUBLE), x, y


def test_the_confusion_matrix():
    w, x, y = mixup_problem()
    c = soft_confusion(x @ w, y)
    for k in range(3):
        torch.testing.assert_close(c[k], (x @ w).softmax(-1)[y == k].mean(0))


@pytest.mark.parametrize("mix", [0.0, 0.4, 1.0])
def test_a_gain_is_the_change_of_the_metric_along_the_step(mix):
    w, x, y = mixup_problem()
    metric = lambda c: c.diagonal().log().mean()
    gains = pair_gains(metric, w, x, y, mix=mix)
    means = torch.stack([x[y == k].mean(0) for k in range(3)])
    for i, j in itertools.product(range(3), repeat=2):
        leaf = w.clone().requires_grad_()
        z = mix * means[i] + (1 - mix) * means[j]
        (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy((z @ leaf)[None], torch.tensor([i])), leaf)
        h = 1e-5
        change = (metric(soft_confusion(x @ (w - h * g), y)) - metric(soft_confusion(x @ (w + h * g), y))) / (2 * h)
        assert float(gains[i, j]) == pytest.approx(float(change), rel=1e-5, abs=1e-8)


@settings(max_examples=20)
@given(st.floats(0, 50), st.sampled_from(["kl", "alpha:1.5", "alpha:2"]))
def test_pairs(sharpness, name):
    gains = torch.tensor([[0.1, -0.3, 0.2], [0.9, 0.0, 0.4], [-0.2, 0.3, 0.1]], dtype=DOUBLE)
    p = pair_distribution(gains, sharpness, name)
    assert float(p.sum()) == pytest.approx(1)
    assert float(p[1, 0]) == float(p.max())
    if sharpness == 0:
        torch.testing.assert_close(p, torch.full((3, 3), 1 / 9, dtype=DOUBLE))
    torch.testing.assert_close(p.flatten(), fenchel.softargmax(sharpness * gains.flatten(), name))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: debiased_labels(torch.ones(2, 2), torch.ones(2) / 2, 3), r"shares: got entries"),
        (lambda: debiased_labels(torch.ones(2, 2) / 2, torch.tensor([1.5, -0.5]), 3), r"prior: got entries"),
        (lambda: debiased_labels(torch.ones(2, 2) / 2, torch.ones(3) / 3, 3), r"got \[2, 2\] and \[3\]"),
        (lambda: debiased_labels(torch.ones(2, 2) / 2, torch.ones(2) / 2, 0), r"size: got 0"),
        (
            lambda: proportion_losses(torch.zeros(3, 4, 2), torch.ones(2, 2) / 2, torch.ones(2) / 2),
            r"losses: got shape \[3, 4, 2\]",
        ),
        (
            lambda: basis_of(torch.tensor([1.0, 1.0, 0.0]), torch.ones(1, 3)),
            r"solution: got 2 to 2 positive entries for 1",
        ),
        (lambda: basis_of(torch.zeros(3), torch.ones(4, 3)), r"constraints: got shape \[4, 3\]"),
        (lambda: reduced_costs(torch.zeros(3), torch.ones(1, 3), torch.tensor([3])), r"basis: got shape \[1\]"),
        (lambda: reduced_costs(torch.zeros(4), torch.ones(1, 3), torch.tensor([0])), r"cost: got shape \[4\]"),
        (
            lambda: optimality_margin(torch.zeros(3), torch.ones(1, 3), torch.tensor([0]), margin=0.0),
            r"margin: got 0.0",
        ),
        (lambda: RegularizedMixture(-1.0), r"weight: got -1.0"),
        (lambda: RegularizedMixture().rows(torch.zeros(2), torch.zeros(3, 4)), r"got \[2\] and \[3, 4\]"),
        (
            lambda: box_log_density(
                torch.zeros(1, 2), torch.tensor([3]), torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 3)
            ),
            r"labels: got \[1\] for 1 boxes; pass \[G\] in \[0, 3\)",
        ),
        (
            lambda: box_log_density(
                torch.zeros(1, 2), torch.tensor([0]), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3)
            ),
            r"got boxes \[1, 2\]",
        ),
        (
            lambda: meta_label_gradient(
                lambda t: t[0], [torch.zeros(2, 3)], torch.zeros(2, 2), lambda t: t[0].sum(), rate=1.0
            ),
            r"labels: got shape \[2, 2\]",
        ),
        (
            lambda: meta_label_gradient(
                lambda t: t[0], [torch.zeros(2, 2)], torch.zeros(2, 2), lambda t: t[0].sum(), rate=0.0
            ),
            r"rate: got 0.0",
        ),
        (lambda: soft_confusion(torch.zeros(2, 3), torch.tensor([0, 1])), r"target: got no sample of class 2"),
        (lambda: soft_confusion(torch.zeros(2, 3), torch.tensor([0, 3])), r"target: got a class outside \[0, 3\)"),
        (
            lambda: pair_gains(lambda c: c.sum(), torch.zeros(3, 2), torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])),
            r"features: got \[4, 2\]",
        ),
        (
            lambda: pair_gains(lambda c: c.sum(), torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor([0, 1]), mix=1.5),
            r"mix: got 1.5",
        ),
        (lambda: pair_distribution(torch.zeros(2, 3), 1.0), r"gains: got shape \[2, 3\]"),
        (lambda: pair_distribution(torch.zeros(2, 2), -1.0), r"sharpness: got -1.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
