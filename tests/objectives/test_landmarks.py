"""Two teachers: the authors' gradient, the direction of every pull, continuity, the teacher's error alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fenchel.objectives.distillation.landmarks import Assist, TwoTeachers

DOUBLE = torch.float64
numbers = st.floats(-4.0, 4.0)


def one(x):
    return torch.tensor([[x]], dtype=DOUBLE)


def slope(s, y, tough, tolerant, objective):
    z = one(s).requires_grad_()
    objective.rows(z, one(y), tough=one(tough), tolerant=one(tolerant)).backward()
    return z.grad.item()


def reference_slope(s, y, tough, tolerant):
    """The derivative of the authors' loss away from its jumps: teachers reflected to the student's side of the truth."""
    side = np.sign(s - y)
    total = 0.0
    for teacher, beyond, within in ((tough, 0.9, -0.45), (tolerant, 0.8, -0.4)):
        t = y + side * abs(teacher - y)
        near = y + side * abs(teacher - y) * 0.15
        total += beyond * np.sign(s - t) * (np.sign(s - t) * np.sign(t - y) > 0)
        total += within * np.sign(s - t) * (np.sign(t - s) * np.sign(s - near) >= 0) * (s != t)
    e = abs(s - y)
    return total + 2.0 * side * (3 if e <= abs(tolerant - y) else 2 * e)


@given(numbers, numbers, numbers, numbers)
def test_the_gradient_is_that_of_the_authors_code(s, y, tough, tolerant):
    e = abs(s - y)
    kinks = [0.0, *(c * abs(t - y) for t in (tough, tolerant) for c in (0.15, 1.0))]
    if min(abs(e - k) for k in kinks) < 1e-6 or min(abs(tough - y), abs(tolerant - y)) < 1e-6:
        return
    assert slope(s, y, tough, tolerant, TwoTeachers()) == pytest.approx(reference_slope(s, y, tough, tolerant))


@given(numbers, numbers, numbers, numbers)
def test_every_pull_is_towards_the_truth(s, y, tough, tolerant):
    g = slope(s, y, tough, tolerant, TwoTeachers())
    assert g * (s - y) >= 0
    loss = TwoTeachers().rows(one(s), one(y), tough=one(tough), tolerant=one(tolerant)).item()
    assert loss > 0 or s == y or abs(s - y) < 1e-300


@given(numbers, numbers, numbers)
def test_only_the_size_of_a_teachers_error_counts(s, tough, tolerant):
    args = one(s), one(0.0)
    a = TwoTeachers().rows(*args, tough=one(tough), tolerant=one(tolerant))
    b = TwoTeachers().rows(*args, tough=one(-tough), tolerant=one(-tolerant))
    assert torch.equal(a, b)


def test_continuous_and_increasing_in_the_error():
    e = torch.linspace(0, 4, 40_001, dtype=DOUBLE).unsqueeze(1)
    zero = torch.zeros_like(e)
    for tough, tolerant in ((0.5, 1.0), (1.7, 0.3), (0.0, 2.0)):
        loss = TwoTeachers().rows(e, zero, tough=zero + tough, tolerant=zero + tolerant)
        steps = loss.diff()
        assert (steps >= 0).all()
        assert steps.max() < 2e-3
        assert loss[0] == 0


def test_it_helps_where_the_student_is_worse_and_stops_where_it_is_close():
    help_ = Assist(1.0, 0.9, 0.45, 0.15)
    e = torch.tensor([0.1, 0.5, 1.5], dtype=DOUBLE, requires_grad=True)
    help_(e, torch.tensor(1.0, dtype=DOUBLE)).sum().backward()
    assert e.grad.tolist() == [0.0, 0.45, 0.9]
    right = help_(torch.tensor([0.3, 2.0]), torch.tensor(0.0))
    torch.testing.assert_close(right, 0.9 * torch.tensor([0.3, 2.0]))


def test_derivatives():
    s, y, a, b = (torch.randn(4, 3, dtype=DOUBLE) for _ in range(4))
    s.requires_grad_()
    torch.autograd.gradcheck(lambda s: TwoTeachers().rows(s, y, tough=a, tolerant=b), (s,))
    empty = torch.zeros(0, 3)
    assert TwoTeachers().rows(empty, empty, tough=empty, tolerant=empty).shape == (0,)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Assist(weight=-1.0), "weight: got -1.0"),
        (lambda: Assist(close=2.0), "close: got 2.0"),
        (lambda: TwoTeachers(weight=0.0), "weight: got 0.0"),
        (
            lambda: TwoTeachers().rows(*[torch.zeros(2, 3)] * 2, tough=torch.zeros(2, 2), tolerant=torch.zeros(2, 3)),
            "tough \\(2, 2\\)",
        ),
        (
            lambda: TwoTeachers().rows(*[torch.zeros(3)] * 2, tough=torch.zeros(3), tolerant=torch.zeros(3)),
            "\\[N, D\\]",
        ),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
