"""Objectives with a second head of the student: the dual head, and self-distillation from a weak head (USKD)."""

import math

import numpy as np
import pytest
import torch
from two_models import N, V, heads, logits, same

from fenchel import linear_logp
from fenchel.head.pairs import linear_pair_rows
from fenchel.objectives.distillation import DKD, USKD, BinaryKL, BinaryKLNorm, distillation_objective, dual_head


def three(n: int = 6, v: int = 5) -> list[torch.Tensor]:
    return [torch.randn(n, v, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def test_each_head_has_its_own_loss():
    t, s, a = three()
    y = torch.arange(6) % 5
    out = dual_head(DKD(1, 2), BinaryKLNorm(2.0, 4.0), t.detach(), s, a, y)
    torch.testing.assert_close(out, DKD(1, 2).rows(t, s, y) + BinaryKLNorm(2.0, 4.0).rows(t, a))
    on_student, on_auxiliary = torch.autograd.grad(out.sum(), (s, a))
    torch.testing.assert_close(on_student, torch.autograd.grad(DKD(1, 2).rows(t.detach(), s, y).sum(), s)[0])
    # log cosh((a - t) / 2T) 4: its gradient is tanh of that
    torch.testing.assert_close(on_auxiliary, 4 * torch.tanh((a - t) / 4).detach() / 4)


def test_a_constant_added_to_logits_is_seen_by_one_loss_alone():
    t, s, _ = three()
    kl = distillation_objective("kl")
    torch.testing.assert_close(kl.rows(t, s + 3, None), kl.rows(t, s, None))
    for loss in (BinaryKL(), BinaryKLNorm()):
        assert bool((loss.rows(t, t + 3) > 0.1).all())


def test_what_does_not_fit_is_refused():
    t, s, a = three()
    with pytest.raises(ValueError, match="of_logits: got DKD, which needs a target"):
        dual_head(distillation_objective("kl"), DKD(), t, s, a)
    with pytest.raises(ValueError, match="target: got None; DKD needs one"):
        dual_head(DKD(), BinaryKL(), t, s, a)
    with pytest.raises(ValueError, match="target: got one; Mixture does not use it"):
        dual_head(distillation_objective("kl"), BinaryKL(), t, s, a, torch.zeros(6, dtype=torch.int64))


def by_hand(weak: np.ndarray, s: np.ndarray, y: int, weight: float, loss: USKD) -> float:
    """One row of USKD, by loops."""
    soft = lambda z: np.exp(z) / np.exp(z).sum()
    p, w = soft(s), soft(weak)
    rest = [j for j in range(len(p)) if j != y and p[j] > 0]
    score = {j: p[j] / (1 - p[y]) + w[j] / (1 - w[y]) for j in rest}
    ranked = sorted(rest, key=lambda j: -score[j])
    zipf = np.array([1 / (k + 1) for k in range(len(ranked))])
    zipf /= zipf.sum()
    other = -sum(z * math.log(p[j] / (1 - p[y])) for z, j in zip(zipf, ranked, strict=True))
    there = [j for j in range(len(w)) if w[j] > 0]
    label = {j: loss.smoothing / len(there) + (1 - loss.smoothing) * (j == y) for j in there}
    smoothed = -sum(label[j] * math.log(w[j]) for j in there)
    return loss.alpha * weight * -math.log(p[y]) + loss.beta * other + loss.mu * smoothed


@pytest.mark.parametrize("masked", [0, 2])
def test_uskd_is_its_formula(masked):
    weak, s, _ = (z.detach() for z in three(8, 7))
    if masked:
        weak[:, -masked:] = s[:, -masked:] = -torch.inf
    y, loss = torch.arange(8) % 5, USKD(0.7, 0.4, 0.2, 0.3)
    p = s.softmax(-1)[torch.arange(8), y]
    weight = p**2 + 1 - (p**2).mean()
    torch.testing.assert_close(loss.weight(p.log()), weight)
    got = loss.rows(weak, s, y, weight)
    want = [
        by_hand(a, b, int(c), float(d), loss) for a, b, c, d in zip(weak.numpy(), s.numpy(), y, weight, strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))
    assert got.dtype == torch.float64


def test_uskd_fused_and_its_labels_are_constants():
    x, y, loss = heads(), torch.arange(N) % V, USKD(1.0, 0.5, 0.3)

    def fused(*x):
        weight = loss.weight(linear_logp(x[3], x[4], y, bias=x[5]).logp)
        return linear_pair_rows(loss.rows, x[:3], x[3:], y, weight, memory=2000)

    def plain(*x):
        weak, s = logits(x)
        return loss.rows(weak, s, y, loss.weight(s.log_softmax(-1).gather(-1, y[:, None])[:, 0]))

    same(fused, plain, x, torch.randn(N, dtype=torch.float64))
    # the weak head learns from the smoothed label alone
    weak, s = (z.detach().requires_grad_() for z in logits(x))
    alone = USKD(1.0, 0.5, 0.0)
    rows = alone.rows(weak, s, y, alone.weight(s.log_softmax(-1)[torch.arange(N), y]))
    assert float(torch.autograd.grad(rows.sum(), weak)[0].abs().max()) == 0


def test_uskd_refuses():
    with pytest.raises(ValueError, match="smoothing: got 1.5"):
        USKD(smoothing=1.5)
    with pytest.raises(ValueError, match="beta: got -1"):
        USKD(beta=-1)
