"""PACED: the Beta kernel's laws, and the schedule with plain and fused divergences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fenchel import divergence, linear_divergence
from fenchel.objectives.distillation.paced import TwoStage, pass_rate_weight

DOUBLE = torch.float64
rates = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=12).map(lambda x: torch.tensor(x, dtype=DOUBLE))
exponents = st.floats(0.0, 4.0)


@given(rates, exponents, exponents)
def test_laws(p, a, b):
    w = pass_rate_weight(p, a, b)
    assert (w >= 0).all()
    assert w.mean().item() == pytest.approx(1.0)
    torch.testing.assert_close(w, pass_rate_weight(1 - p, b, a))
    raw = [x**a * (1 - x) ** b for x in p.tolist()]
    torch.testing.assert_close(w, torch.tensor([len(raw) * x / sum(raw) for x in raw], dtype=DOUBLE))


def test_zero_exponents_are_uniform_at_the_ends_too():
    assert pass_rate_weight(torch.tensor([0.0, 0.3, 1.0]), 0.0, 0.0).tolist() == [1.0, 1.0, 1.0]


def test_solved_and_hopeless_problems_have_no_weight():
    w = pass_rate_weight(torch.tensor([0.0, 0.5, 1.0]))
    assert w.tolist() == [0.0, 3.0, 0.0]
    assert pass_rate_weight(torch.tensor([0.0, 1.0])).tolist() == [0.0, 0.0]
    assert pass_rate_weight(torch.zeros(0)).shape == (0,)
    # one-sided: only beta
    assert pass_rate_weight(torch.tensor([0.0, 1.0]), 0.0, 1.0).tolist() == [2.0, 0.0]


def test_the_largest_weight_is_at_the_mode():
    p = torch.linspace(0, 1, 1001, dtype=DOUBLE)
    for a, b in ((1.0, 1.0), (1.0, 3.0), (2.0, 0.5)):
        assert p[pass_rate_weight(p, a, b).argmax()].item() == pytest.approx(a / (a + b), abs=1e-3)


def test_the_schedule_turns_the_divergence_round():
    t, s = torch.randn(5, 6, dtype=DOUBLE), torch.randn(5, 6, dtype=DOUBLE)
    stages = TwoStage(0.4)
    p, q = t.softmax(-1), s.softmax(-1)
    forward, reverse = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
    for progress, expected in ((0.0, forward), (0.39, forward), (0.4, reverse), (1.0, reverse)):
        torch.testing.assert_close(divergence(*stages.orient(t, s, progress)), expected)
    ht, wt, hs, ws = (torch.randn(5, 4, dtype=DOUBLE), torch.randn(6, 4, dtype=DOUBLE)) * 2
    dense = divergence(*stages.orient(ht @ wt.T, hs @ ws.T, 0.9))
    fused = linear_divergence(*stages.orient((ht, wt), (hs, ws), 0.9), reduction="none")
    torch.testing.assert_close(fused, dense)
    assert TwoStage(0.0).orient(1, 2, 0.0) == (2, 1)
    assert TwoStage(1.0).orient(1, 2, 0.999) == (1, 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pass_rate_weight(torch.tensor([1.1])), "outside \\[0, 1\\]"),
        (lambda: pass_rate_weight(torch.tensor([math.nan])), "NaN"),
        (lambda: pass_rate_weight(torch.tensor([0.5]), -1.0), "alpha: got -1.0"),
        (lambda: pass_rate_weight(torch.tensor([0.5]), 1.0, math.inf), "beta: got inf"),
        (lambda: TwoStage(2.0), "switch: got 2.0"),
        (lambda: TwoStage().orient(1, 2, 1.5), "progress: got 1.5"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
    with pytest.raises(TypeError, match="rate: got dtype"):
        pass_rate_weight(torch.tensor([1]))
