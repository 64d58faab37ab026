"""What a cache of k classes holds of its teacher: numbers of a cache made by hand, and what is said of them."""

from pathlib import Path

import pytest
import torch

from fenchel.study.distill_cache import Held, held, said_of_held
from fenchel.teachers.buckets import TopK
from fenchel.teachers.cache import Cache, open_cache
from fenchel.teachers.format import Spec
from fenchel.teachers.sparse import sparse_rows
from fenchel.teachers.writer import build_cache

WHO = {"teacher": "t", "data": "d", "tokenizer": "k"}


def cache_of(directory: Path, kept: list[float]) -> Cache:
    """Rows of two classes that have `kept` of the teacher, one three times the other, in shards of three rows."""
    mass = torch.tensor(kept)
    rows = TopK(
        torch.tensor([5, 2]).expand(len(kept), 2),
        (mass.unsqueeze(-1) * torch.tensor([0.75, 0.25])).log(),
        (1 - mass).log(),
        vocabulary=9,
    )
    spec = Spec(**WHO, vocabulary=9, tokens=len(kept), k=2, dtype="float32")
    build_cache(directory, spec, lambda start: [rows[start:]], rows_per_shard=3)
    return open_cache(directory, **WHO)


def test_mean_and_tenth_over_positions(tmp_path: Path) -> None:
    found = held(cache_of(tmp_path, [0.2, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.95, 0.85]))
    assert found is not None
    assert (found.k, found.rows) == (2, 11)
    assert found.mean == pytest.approx(7.2 / 11, rel=1e-6)
    # the second smallest of eleven
    assert found.tenth == pytest.approx(0.3, rel=1e-6)


def test_nothing_is_said_of_a_cache_that_holds_everything_or_nothing(tmp_path: Path) -> None:
    assert held(cache_of(tmp_path / "empty", [])) is None
    rows = sparse_rows(torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), "alpha:1.5")
    spec = Spec(**WHO, vocabulary=9, tokens=4, k=None, generator="alpha:1.5")
    build_cache(tmp_path / "sparse", spec, lambda start: [rows[start:]])
    assert held(open_cache(tmp_path / "sparse", **WHO)) is None


@pytest.mark.parametrize(("mean", "hint"), [(0.63, True), (0.899, True), (0.9, False), (1.0, False)])
def test_the_hint_comes_below_nine_tenths(mean: float, hint: bool) -> None:
    said = said_of_held(Held(64, 24_000, mean, 0.25))
    assert f"hold {100 * mean:.1f} % of the teacher on average, 25.0 % or less at a tenth of 24,000 tokens" in said
    assert ("--cache-k" in said) is hint
