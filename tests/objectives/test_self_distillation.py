"""Self-distillation of kernel ridge regression: the closed form against the iteration, its limits, and the best weight against a search."""

import math

import numpy as np
import pytest
import torch

from fenchel.objectives.distillation import limit_penalty, optimal_weight, self_distilled, shrinkage

rng = np.random.default_rng(0)
X = rng.uniform(0, 1, 25)
NEW = rng.uniform(0, 1, 40)
K = np.exp(-((X[:, None] - X) ** 2) / 0.05)
CROSS = np.exp(-((NEW[:, None] - X) ** 2) / 0.05)
Y = np.sin(6 * X) + 0.3 * rng.standard_normal(25)
PENALTY = 0.2


def as_tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x)


def iterated(weights: list[float], y: np.ndarray = Y) -> tuple[np.ndarray, np.ndarray]:
    """Fit after fit by a linear solver: the last one on the training points and on new ones."""
    coefficients = y
    for w in [1.0, *weights]:
        label = w * y + (1 - w) * (K @ coefficients)
        coefficients = np.linalg.solve(K + PENALTY * np.eye(25), label)
    return K @ coefficients, CROSS @ coefficients


@pytest.mark.parametrize("weights", [[], [0.3], [0.0, 0.0, 0.0], [1.0, 0.5], [0.2, 0.9, 0.4, 0.1]], ids=str)
def test_equals_the_iteration(weights):
    fitted, new = iterated(weights)
    np.testing.assert_allclose(self_distilled(as_tensor(K), as_tensor(Y), PENALTY, weights).numpy(), fitted, atol=1e-9)
    got = self_distilled(as_tensor(K), as_tensor(Y), PENALTY, weights, cross=as_tensor(CROSS))
    np.testing.assert_allclose(got.numpy(), new, atol=1e-9)
    two = np.stack((Y, Y**2), -1)
    got = self_distilled(as_tensor(K), as_tensor(two), PENALTY, weights)
    np.testing.assert_allclose(got[:, 1].numpy(), iterated(weights, Y**2)[0], atol=1e-9)


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [0, 1, 2, 7, 60])
def test_the_closed_form(weight, steps):
    d, basis = np.linalg.eigh(K)
    c = shrinkage(as_tensor(d.clip(0)), PENALTY, weight, steps).numpy()
    np.testing.assert_allclose(basis @ (c * (basis.T @ Y)), iterated([weight] * steps)[0], atol=1e-8)


@pytest.mark.parametrize("weight", [0.05, 0.3, 1.0])
def test_infinitely_many_steps_are_one_with_a_larger_penalty(weight):
    d = as_tensor(np.linalg.eigvalsh(K).clip(0))
    limit = shrinkage(d, PENALTY, weight, math.inf)
    torch.testing.assert_close(limit, d / (d + limit_penalty(PENALTY, weight)), rtol=1e-12, atol=0)
    torch.testing.assert_close(shrinkage(d, PENALTY, weight, 5000), limit, rtol=1e-9, atol=1e-12)


def test_without_true_targets_nothing_is_left():
    d = as_tensor(np.linalg.eigvalsh(K).clip(0))
    assert float(shrinkage(d, PENALTY, 0.0, math.inf).abs().max()) == 0
    with pytest.raises(ValueError, match="weight: got 0; without true targets"):
        limit_penalty(PENALTY, 0.0)


def test_the_best_weight_is_that_of_a_search():
    truth = np.sin(6 * NEW)
    from_targets = iterated([1.0])[1]
    from_teacher = iterated([0.0])[1]
    best = float(optimal_weight(*map(as_tensor, (from_targets, from_teacher, truth))))
    grid = np.linspace(best - 1, best + 1, 2001)
    errors = [((iterated([w])[1] - truth) ** 2).mean() for w in grid]
    assert grid[int(np.argmin(errors))] == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shrinkage(torch.ones(2), 0.1, 0.5, -1), "steps: got -1; pass 0, 1, 2"),
        (lambda: shrinkage(torch.ones(2), 0.1, 0.5, 1.5), "steps: got 1.5"),
        (lambda: shrinkage(torch.ones(2), 0.1, 1.5, 1), r"weight: got 1.5; pass a number in \[0, 1\]"),
        (lambda: shrinkage(torch.ones(2), 0.0, 0.5, 1), "penalty: got 0.0"),
        (lambda: self_distilled(torch.eye(3), torch.ones(2), 0.1, []), r"kernel, target: got \[3, 3\] and \[2\]"),
        (lambda: self_distilled(torch.eye(3), torch.ones(3), 0.1, [2.0]), "weight: got 2.0"),
        (lambda: self_distilled(torch.eye(3), torch.ones(3), 0.1, [], cross=torch.ones(2, 2)), r"cross: got \[2, 2\]"),
        (
            lambda: optimal_weight(torch.ones(2), torch.ones(3), torch.ones(2)),
            r"got \[2\], \[3\], \[2\]; pass one shape",
        ),
        (lambda: optimal_weight(torch.ones(2), torch.ones(2), torch.ones(2)), "got the same predictions"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
