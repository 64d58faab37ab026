"""TRRD and PPO's clipped ratio: equality at alpha = 1, trust region, the anchor, group advantages."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fenchel.objectives.distillation.trrd import TRRD, clipped_surrogate, group_advantage

DOUBLE = torch.float64
logps = st.floats(-6.0, 0.0)


def ppo(logp, old, advantage, clip):
    """As PPO is written down, with numbers."""
    r = math.exp(logp - old)
    return -min(r * advantage, min(max(r, 1 - clip), 1 + clip) * advantage)


@given(logps, logps, logps, st.floats(-3.0, 3.0), st.floats(0.05, 0.5), st.floats(0.0, 1.0))
def test_it_is_ppo_with_the_anchor_as_old_policy(logp, old, teacher, advantage, clip, alpha):
    def one(x):
        return torch.tensor([x], dtype=DOUBLE)

    loss = TRRD(alpha, clip).rows(one(logp), one(old), one(teacher), one(advantage)).item()
    assert loss == pytest.approx(ppo(logp, alpha * old + (1 - alpha) * teacher, advantage, clip), rel=1e-9, abs=1e-12)


def tokens(n=64, dtype=torch.float32):
    logp, old, teacher = (torch.randn(3, n, dtype=dtype) - 2).unbind()
    return logp.requires_grad_(), old, teacher, torch.randn(n, dtype=dtype)


def test_alpha_one_is_grpo_to_the_last_bit():
    logp, old, teacher, _ = tokens()
    advantage = group_advantage(torch.randn(8, 8)).flatten()
    ours = TRRD(1.0).rows(logp, old, teacher, advantage)
    ratio = (logp - old).exp()
    grpo = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    assert torch.equal(ours, grpo)
    (a,), (b,) = (torch.autograd.grad(x.sum(), logp, retain_graph=True) for x in (ours, grpo))
    assert torch.equal(a, b)
    # a teacher that excludes the token has no part in it
    assert torch.equal(TRRD(1.0).rows(logp, old, torch.full_like(teacher, -math.inf), advantage), grpo)


def test_outside_the_trust_region_there_is_no_gradient():
    logp, old, teacher, advantage = tokens(256, DOUBLE)
    objective = TRRD(0.3, 0.2)
    (grad,) = torch.autograd.grad(objective.rows(logp, old, teacher, advantage).sum(), logp)
    ratio = (logp - 0.3 * old - 0.7 * teacher).exp().detach()
    done = ((advantage > 0) & (ratio > 1.2)) | ((advantage < 0) & (ratio < 0.8))
    assert (grad[done] == 0).all()
    torch.testing.assert_close(grad[~done], (-ratio * advantage)[~done])
    assert 0 < done.sum() < 256


def test_the_teacher_is_followed_only_where_the_advantage_agrees():
    # the student has moved past the old policy's region; the teacher likes the token much more
    old, logp, teacher = (torch.tensor([x], dtype=DOUBLE) for x in (-2.0, -1.7, -0.5))
    for advantage, alpha, pulled in ((1.0, 1.0, False), (1.0, 0.5, True), (-1.0, 0.5, False)):
        z = logp.clone().requires_grad_()
        TRRD(alpha).rows(z, old, teacher, torch.tensor([advantage], dtype=DOUBLE)).backward()
        assert (z.grad.item() < 0) is pulled  # descent raises the token's probability


def test_the_cap_bounds_what_a_teacher_can_do():
    logp = torch.tensor([-1.0, -1.0], dtype=DOUBLE, requires_grad=True)
    teacher, advantage = torch.tensor([-80.0, -math.inf], dtype=DOUBLE), -torch.ones(2, dtype=DOUBLE)
    loss = TRRD(0.5, cap=3.0).rows(logp, logp.detach(), teacher, advantage)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([3.0, 3.0], rel=1e-15)
    assert logp.grad.tolist() == [0.0, 0.0]
    assert TRRD(0.5).rows(logp, logp.detach(), teacher, advantage)[1] == math.inf
    # with a positive advantage the clip is enough
    logp.grad = None
    for advantage in (torch.ones(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE)):
        loss = TRRD(0.5).rows(logp, logp.detach(), teacher, advantage)
        loss.sum().backward()
        assert loss.tolist() == (-1.2 * advantage).tolist()
    assert logp.grad.tolist() == [0.0, 0.0]


def test_derivatives():
    logp, old, teacher, advantage = tokens(6, DOUBLE)
    torch.autograd.gradcheck(lambda z: TRRD(0.4).rows(z, old, teacher, advantage), (logp,))


def test_group_advantage():
    reward = torch.randn(5, 8, dtype=DOUBLE)
    r = reward.numpy()
    centred = r - r.mean(1, keepdims=True)
    np.testing.assert_allclose(group_advantage(reward, eps=0.0), centred / r.std(1, ddof=1, keepdims=True))
    np.testing.assert_allclose(group_advantage(reward, scale=False), centred)
    assert group_advantage(torch.ones(2, 4)).eq(0).all()
    assert group_advantage(torch.ones(3, 1)).eq(0).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: TRRD(alpha=1.5), "alpha: got 1.5"),
        (lambda: TRRD(clip=0.0), "clip: got 0.0"),
        (lambda: TRRD(cap=-1.0), "cap: got -1.0"),
        (lambda: TRRD().rows(torch.zeros(2), torch.zeros(2), torch.zeros(3), torch.zeros(2)), "one shape"),
        (lambda: clipped_surrogate(torch.zeros(2), torch.zeros(3)), "one shape"),
        (lambda: group_advantage(torch.zeros(2, 0)), "at least one answer"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
    with pytest.raises(TypeError, match="reward: got dtype"):
        group_advantage(torch.tensor([[1, 0]]))
