"""StableKD: the schedule covers all blocks at every time; gradients stay inside their group; one group is plain distillation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fenchel
from fenchel.objectives.distillation.stable_kd import StableKD, block_losses


@given(st.integers(1, 9), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_groups_follow_each_other_and_only_merge(blocks, apart, first, second):
    schedule = StableKD(blocks, apart)
    early, late = (schedule.groups(t) for t in sorted((first, second)))
    for groups in (early, late):
        assert [k for a, b in groups for k in range(a, b)] == list(range(blocks))
    # no cut comes back: every edge of a later time is one of an earlier time
    assert {a for a, _ in late} <= {a for a, _ in early}
    assert schedule.groups(1.0) == ((0, blocks),)
    assert apart == 0 or schedule.groups(0.0) == tuple((k, k + 1) for k in range(blocks))


def test_stages_have_equal_length():
    schedule = StableKD(8, apart=0.6)
    sizes = [len(schedule.groups(t / 100)) for t in range(100)]
    assert [sizes.count(n) for n in (8, 4, 2, 1)] == [20, 20, 20, 40]


def nets(seed: int, hidden: int) -> list[nn.Module]:
    torch.manual_seed(seed)
    widths = [(5, 4), (4, 4), (4, 3)]
    return [nn.Sequential(nn.Linear(a, hidden), nn.Tanh(), nn.Linear(hidden, b)).double() for a, b in widths]


def test_one_group_is_distillation_end_to_end():
    teacher, student, x = nets(0, 6), nets(1, 2), torch.randn(7, 5, dtype=torch.float64)
    (loss,) = block_losses(teacher, student, x, [(0, 3)], fenchel.divergence)
    want = fenchel.divergence(nn.Sequential(*teacher)(x), nn.Sequential(*student)(x)).mean()
    torch.testing.assert_close(loss, want)


def test_each_loss_reaches_its_own_group_alone():
    teacher, student, x = nets(0, 6), nets(1, 2), torch.randn(7, 5, dtype=torch.float64)
    losses = block_losses(teacher, student, x, [(0, 1), (1, 3)], fenchel.divergence)
    for group, loss in zip(((0, 1), (1, 3)), losses, strict=True):
        for k, block in enumerate(student):
            gradient = torch.autograd.grad(loss, list(block.parameters()), retain_graph=True, allow_unused=True)
            assert all((g is not None) == (group[0] <= k < group[1]) for g in gradient)
    assert all(p.grad is None for block in teacher for p in block.parameters())
    # the inside of a group sees what the teacher gives at its entrance
    first = teacher[0](x)
    torch.testing.assert_close(losses[0], (first - student[0](x)).square().mean())
    exit_of_second = student[2](student[1](first))
    torch.testing.assert_close(losses[1], fenchel.divergence(teacher[2](teacher[1](first)), exit_of_second).mean())


def test_the_teacher_itself_has_no_loss():
    teacher, x = nets(0, 6), torch.randn(7, 5, dtype=torch.float64)
    for groups in StableKD(3).stages():
        assert all(loss == 0 for loss in block_losses(teacher, teacher, x, groups, fenchel.divergence))


@pytest.mark.parametrize("wrong", [[(0, 1), (2, 3)], [(0, 2)], [(1, 3)], [(0, 2), (1, 3)], []])
def test_groups_that_do_not_cover_the_blocks_are_refused(wrong):
    teacher, x = nets(0, 6), torch.randn(2, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^got groups .* of 3 blocks: pass groups that follow each other$"):
        block_losses(teacher, teacher, x, wrong, fenchel.divergence)


def test_blocks_that_do_not_fit_are_refused():
    teacher, x = nets(0, 6), torch.randn(2, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^got 3 blocks of the teacher and 2 of the student"):
        block_losses(teacher, teacher[:2], x, [(0, 3)], fenchel.divergence)
    narrow = [nn.Linear(5, 2).double(), *teacher[1:]]
    with pytest.raises(ValueError, match=r"^got features \(2, 2\) from the student and \(2, 4\) from the teacher"):
        block_losses(teacher, narrow, x, [(0, 1), (1, 3)], fenchel.divergence)
    with pytest.raises(ValueError, match=r"^got blocks=0"):
        StableKD(0)
    with pytest.raises(ValueError, match=r"^got apart=1.5"):
        StableKD(2, apart=1.5)
