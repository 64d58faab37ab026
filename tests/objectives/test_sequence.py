"""Sequences: MiniLLM's decomposition against the KL of enumerated sequences; masks; GKD's share."""

import itertools
import math

import numpy as np
import pytest
import torch

from fenchel.objectives.distillation.sequence import minillm, mixed_logp, on_policy, sequence_kd, to_go

DOUBLE = torch.float64
V, T = 3, 3


class Tabular:
    """A model of sequences of T tokens: logits [V^t prefixes, V] for each position."""

    def __init__(self):
        self.logits = [torch.randn(V**t, V, dtype=DOUBLE, requires_grad=True) for t in range(T)]

    def rows(self):
        """Next-token log-probabilities of every sequence at each position, [V^T, T, V]."""
        every = torch.arange(V**T)
        return torch.stack([self.logits[t].log_softmax(-1)[every // V ** (T - t)] for t in range(T)], 1)


SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=T)))  # in the order of the prefixes above
ALL = torch.ones(len(SEQUENCES), T, dtype=torch.bool)


def picked(rows):
    return rows.gather(-1, SEQUENCES.unsqueeze(-1)).squeeze(-1)


def test_minillm_has_the_gradient_of_the_kl_of_sequences():
    student, teacher = Tabular(), Tabular()
    q, p = student.rows(), teacher.rows().detach()
    log_q, log_p = picked(q).sum(1), picked(p).sum(1)
    kl = (log_q.exp() * (log_q - log_p)).sum()
    wanted = torch.autograd.grad(kl, student.logits, retain_graph=True)
    single = (q.exp() * (q - p)).sum(-1)
    rows = minillm(picked(q), picked(p), picked(q).detach(), single, ALL, mean=False)
    got = torch.autograd.grad((log_q.detach().exp() * rows.sum(1)).sum(), student.logits)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_weights_undo_the_mixture_at_the_last_token():
    # with one token the paper's weight is the exact one
    q, p = (torch.randn(V, dtype=DOUBLE).log_softmax(0) for _ in range(2))
    z = q.clone().requires_grad_()
    logp = z.log_softmax(0)
    sampler = mixed_logp(p, q, share=0.3)
    np.testing.assert_allclose(sampler.exp(), 0.3 * p.exp() + 0.7 * q.exp())
    single = torch.zeros(V, 1, dtype=DOUBLE)
    rows = minillm(logp[:, None], p[:, None], sampler[:, None], single + (logp.exp() * (logp - p)).sum(), ALL[:V, :1])
    (got,) = torch.autograd.grad((sampler.exp() * rows[:, 0]).sum(), z, retain_graph=True)
    (wanted,) = torch.autograd.grad((logp.exp() * (logp - p)).sum(), z)
    torch.testing.assert_close(got, wanted)


def test_to_go_by_loops():
    r = torch.randn(4, 6, dtype=DOUBLE)
    mask = torch.rand(4, 6) < 0.7
    for mean in (False, True):
        got = to_go(r.masked_fill(~mask, math.nan), mask, mean=mean)
        for b, t in itertools.product(range(4), range(6)):
            later = [r[b, u].item() for u in range(t + 1, 6) if mask[b, u]]
            expected = (np.mean(later) if mean else np.sum(later)) if later else 0.0
            assert got[b, t].item() == pytest.approx(expected, abs=1e-12)


def test_padding_may_hold_anything():
    mask = torch.tensor([[True, True, False, False], [True, True, True, False], [False] * 4])
    z = torch.randn(4, 3, 4, dtype=DOUBLE)
    junk = z.masked_fill(~mask, math.nan).requires_grad_()
    zero = z.masked_fill(~mask, 0.0).requires_grad_()
    for x in (junk, zero):
        (minillm(*x.unbind(), mask).sum() + sequence_kd(x[0], mask).sum()).backward()
    assert torch.equal(junk.grad, zero.grad)
    assert junk.grad[:, ~mask].eq(0).all()
    assert minillm(*junk.unbind(), mask)[2].eq(0).all()


def test_sequence_kd_is_the_kl_of_sequences_plus_the_entropy():
    student, teacher = Tabular(), Tabular()
    log_q, log_p = picked(student.rows()), picked(teacher.rows())
    p = log_p.sum(1).exp()
    mean = (p * sequence_kd(log_q, ALL)).sum()
    kl, entropy = (p * (log_p - log_q).sum(1)).sum(), -(p * log_p.sum(1)).sum()
    torch.testing.assert_close(mean, kl + entropy)


def test_mixture_at_its_ends_and_without_support():
    p, q = torch.tensor([1.0, 0.0, 0.0]).log(), torch.tensor([0.0, 0.5, 0.5]).log()
    assert mixed_logp(p, q, share=1.0) is p
    assert mixed_logp(p, q, share=0.0) is q
    torch.testing.assert_close(mixed_logp(p, q, share=0.2).exp(), torch.tensor([0.2, 0.4, 0.4]))


def test_the_students_share():
    made = on_policy(20_000, 0.3, generator=torch.Generator().manual_seed(1))
    assert made.dtype == torch.bool
    assert made.float().mean().item() == pytest.approx(0.3, abs=0.02)
    again = on_policy(20_000, 0.3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made, again)
    assert on_policy(50, 1.0).all()
    assert not on_policy(50, 0.0).any()


@pytest.mark.parametrize(
    ("call", "says", "kind"),
    [
        (lambda: on_policy(3, 1.2), "share = 1.2", ValueError),
        (lambda: mixed_logp(torch.zeros(2), torch.zeros(2), share=-0.1), "share: got -0.1", ValueError),
        (lambda: mixed_logp(torch.zeros(2), torch.zeros(3)), "one shape", ValueError),
        (lambda: sequence_kd(torch.zeros(2, 3), torch.ones(2, 3)), "pass a bool mask", TypeError),
        (lambda: sequence_kd(torch.zeros(2, 3), torch.ones(2, 2, dtype=torch.bool)), "pass \\[B, T\\]", ValueError),
        (lambda: to_go(torch.zeros(3), torch.ones(3, dtype=torch.bool)), "pass \\[B, T\\]", ValueError),
        (lambda: minillm(*[torch.zeros(2, 3)] * 3, torch.zeros(2, 4), torch.ones(2, 3) > 0), "one shape", ValueError),
    ],
)
def test_bad_input(call, says, kind):
    with pytest.raises(kind, match=says):
        call()
