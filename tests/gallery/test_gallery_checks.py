"""Checks and verdicts: what passes follows from the numbers, and can fail."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from fenchel.gallery.checks import Check, mean, paired, verdict, worst

values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


@given(values)
def test_the_interval_is_students(x):
    check = mean("x", x, more_than=0.0)
    assert check.estimate == pytest.approx(np.mean(x), abs=1e-9)
    if np.ptp(x) == 0:
        assert check.low == check.high == check.estimate
    else:
        low, high = scipy.stats.t.interval(0.95, len(x) - 1, np.mean(x), scipy.stats.sem(x))
        assert (check.low, check.high) == pytest.approx((low, high), rel=1e-4, abs=1e-6)


def test_a_check_passes_only_with_its_whole_interval():
    inside, across = Check("x", 0.5, 0.1, 0.9, more_than=0.0), Check("x", 0.5, -0.1, 1.1, more_than=0.0)
    assert inside.passes
    assert not across.passes
    assert Check("x", 0.5, 0.1, 0.9, less_than=1.0).passes
    assert not Check("x", 0.5, 0.1, 0.9, less_than=0.9).passes
    assert not Check("x", 0.5, 0.1, 0.9, more_than=0.0, less_than=0.8).passes


def test_no_difference_is_no_gain():
    assert not paired("gain", [0.9, 0.8, 0.7], [0.9, 0.8, 0.7], more_than=0.0).passes


def test_one_seed_shows_nothing():
    check = mean("x", [5.0], more_than=0.0)
    assert math.isnan(check.low)
    assert not check.passes


def test_pairs_are_pairs():
    ours, theirs = [0.91, 0.95, 0.89, 0.93], [0.90, 0.94, 0.88, 0.92]
    assert paired("gain", ours, theirs, more_than=0.0).passes
    assert not paired("gain", ours, theirs[::-1], more_than=0.0).passes


def test_the_worst_seed_decides():
    assert not worst("identity", [1e-16, 1e-16, 1e-3], less_than=1e-9).passes
    assert worst("identity", [1e-16, 1e-16, 1e-12], less_than=1e-9).passes
    assert not worst("identity", [1e-16, math.nan], less_than=1e-9).passes


@pytest.mark.parametrize(
    ("passing", "failing", "want"), [(2, 0, "shown"), (1, 1, "partly"), (3, 1, "partly"), (0, 2, "not shown")]
)
def test_the_verdict_counts(passing, failing, want):
    good, bad = Check("x", 1.0, 0.9, 1.1, more_than=0.0), Check("x", 0.0, -0.1, 0.1, more_than=0.0)
    assert verdict([good] * passing + [bad] * failing) == want


def test_what_nothing_could_fail_is_refused():
    with pytest.raises(ValueError, match=r"^got no bound for 'x': pass more_than, less_than or both$"):
        mean("x", [1.0, 2.0])
    with pytest.raises(ValueError, match=r"^got no checks"):
        verdict([])
    with pytest.raises(ValueError, match=r"^got no values for 'x'"):
        mean("x", [], more_than=0.0)
    with pytest.raises(ValueError, match=r"^got 2 and 1 values for 'x'"):
        paired("x", [1.0, 2.0], [1.0], more_than=0.0)
