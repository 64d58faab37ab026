"""Invariance penalties: excess risks by least squares as the oracle, and the counterexample that IRMv1 falls for."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fenchel
from fenchel.objectives.risks import classifier_gradient, conditioned_penalty, irm_penalty

DOUBLE = torch.float64


def squared(score, y):
    return (score - y).square().sum(-1).mean()


def environment(n=30, d=3, c=2):
    phi = torch.randn(n, d, dtype=DOUBLE) @ torch.randn(d, d, dtype=DOUBLE)
    return phi, torch.randn(d, c, dtype=DOUBLE), torch.randn(n, c, dtype=DOUBLE)


def penalties(phi, w, y, loss=squared):
    g = classifier_gradient(loss, phi, w, y)
    if not (phi.requires_grad or w.requires_grad):
        g = g.detach()
    return irm_penalty(g), conditioned_penalty(g, phi)


def test_the_conditioned_penalty_is_the_excess_risk():
    for _ in range(5):
        phi, w, y = environment()
        best = torch.linalg.lstsq(phi, y).solution
        torch.testing.assert_close(penalties(phi, w, y)[1], squared(phi @ w, y) - squared(phi @ best, y))
        # without noise in the score the gradient is small, and so are both
        for penalty in penalties(phi, best, y):
            assert float(penalty) < 1e-20


def test_the_gradient_is_the_derivative_of_any_loss():
    phi, w, _ = environment(c=4)
    y = torch.randint(4, (30,))
    got = classifier_gradient(lambda z, t: fenchel.fenchel_young(z, t, "alpha:1.5"), phi, w, y)
    want = phi.T @ (fenchel.softargmax(phi @ w, "alpha:1.5") - torch.nn.functional.one_hot(y, 4)) / 30
    torch.testing.assert_close(got.detach(), want)


def test_scaling_the_features_empties_the_first_penalty_alone():
    phi, w, y = environment()
    first, conditioned = penalties(phi, w, y)
    scaled_first, scaled = penalties(1e-3 * phi, 1e3 * w, y)
    torch.testing.assert_close(scaled_first, 1e-6 * first)
    torch.testing.assert_close(scaled, conditioned)
    a = torch.randn(3, 3, dtype=DOUBLE)
    torch.testing.assert_close(penalties(phi @ a.T, torch.linalg.solve(a.T, w), y)[1], conditioned)


def test_a_feature_twice_or_one_that_is_zero_changes_nothing():
    phi, w, y = environment()
    _, conditioned = penalties(phi, w, y)
    twice = torch.cat((phi, phi[:, :1], torch.zeros(30, 1, dtype=DOUBLE)), 1)
    more = torch.cat((w, torch.zeros(2, 2, dtype=DOUBLE)))
    torch.testing.assert_close(penalties(twice, more, y)[1], conditioned)
    assert float(penalties(torch.zeros_like(phi), w, y)[1]) == 0


def test_derivatives_reach_features_and_classifier():
    phi, w, y = environment(n=6)
    for which in (0, 1):
        f = lambda phi, w, i=which: penalties(phi, w, y)[i]
        assert gradcheck(f, (phi.requires_grad_(), w.requires_grad_()))
    assert gradgradcheck(lambda w: penalties(phi.detach(), w, y)[1], (w,))


def test_published_irm_is_the_case_of_a_scalar_classifier():
    score, y = torch.randn(20, 1, dtype=DOUBLE), torch.randn(20, 1, dtype=DOUBLE)
    got, _ = penalties(score, torch.ones(1, 1, dtype=DOUBLE), y)
    torch.testing.assert_close(got, (2 * (score * (score - y)).mean()).square())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: classifier_gradient(squared, torch.zeros(3, 2), torch.zeros(3, 1), torch.zeros(3, 1)),
            r"got \[3, 2\]",
        ),
        (
            lambda: classifier_gradient(squared, torch.zeros(0, 2), torch.zeros(2, 1), torch.zeros(0, 1)),
            r"got \[0, 2\]",
        ),
        (lambda: conditioned_penalty(torch.zeros(2), torch.zeros(3, 2)), r"got \[3, 2\] and \[2\]"),
        (lambda: conditioned_penalty(torch.zeros(2, 1), torch.zeros(3, 2), rtol=0.0), r"rtol: got 0.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(TypeError, match=r"features: got dtype"):
        conditioned_penalty(torch.zeros(2, 1), torch.zeros(3, 2, dtype=torch.long))
