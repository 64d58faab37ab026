"""A vocabulary that several ranks share: values and all derivatives are those of one process, and ranks that disagree are all told so.

Processes take seconds to start, so each test starts them once, for all of its cases.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel import all_cases, label_cases
from tests.parallel.count_cases import REDUCTIONS, SIZES, SMOOTH, SPARSE, STEEP
from tests.parallel.ranks import Case, check, run
from tests.parallel.refusal_cases import REFUSALS

# in the worst case, with the processes of other tests on all cores
pytestmark = pytest.mark.timeout(300)


def run_all(world: int, folder: Path) -> list[dict[str, Any]]:
    return run("tests.parallel.all_cases", world, folder, timeout=280)


def check_equal(found: list[dict[str, Any]], cases: dict[str, Case]) -> None:
    wrong = {}
    for name, case in cases.items():
        torch.manual_seed(0)
        try:
            check(case, [results[name] for results in found], 1e-6 if "float32" in name else 1e-10)
        except AssertionError as error:
            wrong[name] = str(error)
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())


def check_refused(found: list[dict[str, Any]]) -> None:
    for name, refusal in REFUSALS.items():
        for result, pattern in zip(found, (refusal.everywhere, refusal.on_one or refusal.everywhere), strict=True):
            told = result[f"refused {name}"]
            assert re.search(pattern, told["told"]), f"{name}: {told['told']}"
            assert told["after"] == "1.500", f"after {name} ranks no longer agree"


def check_counts(found: list[dict[str, Any]]) -> None:
    counts = found[0]["counts"]
    assert counts == found[1]["counts"]

    def number(name: str) -> set[int]:
        return {counts[f"{name} {v}"] for v in SIZES}

    assert number("softargmax kl") == {4}
    assert max(max(number(f"softargmax {name}")) for name in SMOOTH) <= 12
    assert max(max(number(f"softargmax {name}")) for name in SPARSE) <= 18
    assert max(max(number(f"softargmax {name}")) for name in STEEP) <= 90
    for name, forward, backward in (("loss kl", 5, 1), ("divergence", 5, 2), ("head logp", 4, 5), ("head js", 3, 2)):
        assert number(name) == {forward}
        assert number(f"backward of {name}") == {backward}
    for name, reductions in REDUCTIONS.items():
        assert number(f"supervised {name}") == {reductions}
        assert number(f"backward of supervised {name}") == {0}
    # the gradient of hidden states, once: all else was made in the forward pass
    assert number("head kl") == {4}
    assert number("head gce") == {3}
    assert (
        number("backward of head kl") == number("backward of head alpha:1.5") == number("backward of head gce") == {1}
    )


def test_two_ranks(tmp_path):
    found = run_all(2, tmp_path)
    check_equal(found, all_cases.equal(2))
    check_refused(found)
    check_counts(found)


def test_four_ranks(tmp_path):
    check_equal(run_all(4, tmp_path), all_cases.equal(4))


def test_supervised_objectives_on_two_ranks(tmp_path):
    check_equal(run("tests.parallel.label_cases", 2, tmp_path, timeout=280), label_cases.CASES)
