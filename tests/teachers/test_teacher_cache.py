"""Caches on disk: what is written comes back, what is damaged or of something else is refused, a killed build goes on."""

import errno
import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fenchel.teachers import format as on_disk
from fenchel.teachers.buckets import TopK, bucketed_divergence, top_k
from fenchel.teachers.cache import Cache, open_cache
from fenchel.teachers.fingerprint import fingerprint
from fenchel.teachers.format import CacheError, Spec
from fenchel.teachers.sparse import SparseRows, sparse_rows
from fenchel.teachers.writer import build_cache

N, V, K, SHARD = 23, 40, 4, 5
WHO = {"teacher": "the teacher", "data": "the data", "tokenizer": "the tokenizer"}


def logits(v: int = V, n: int = N) -> Tensor:
    return 3 * torch.randn(n, v, generator=torch.Generator().manual_seed(1))


def spec(**change) -> Spec:
    return Spec(**{**WHO, "vocabulary": V, "tokens": N, "k": K, "dtype": "float32", **change})


def pieces(rows: TopK | SparseRows, size: int = 3) -> Callable[[int], Iterator[TopK | SparseRows]]:
    """Rows from any row on, in pieces that fit no shard."""

    def rows_from(start: int) -> Iterator[TopK | SparseRows]:
        for i in range(start, len(rows), size):
            yield rows[i : min(i + size, len(rows))]

    return rows_from


def build(directory: Path, z: Tensor | None = None, **change) -> Cache:
    what = spec(**change)
    z = logits(what.vocabulary) if z is None else z
    rows = sparse_rows(z, what.generator) if what.k is None else top_k(z, what.k, temperature=what.temperature)
    build_cache(directory, what, pieces(rows), rows_per_shard=SHARD)
    return open_cache(directory, **WHO)


def same(a: TopK, b: TopK, tolerance: float = 1e-6) -> None:
    assert torch.equal(a.indices, b.indices)
    torch.testing.assert_close(a.buckets(), b.buckets(), rtol=0, atol=tolerance)
    assert (a.vocabulary, a.temperature) == (b.vocabulary, b.temperature)


# What is written comes back


@pytest.mark.parametrize("v", [V, 2**16, 2**16 + 1])
def test_rows_come_back(tmp_path, v):
    z = logits(v)
    cache = build(tmp_path, vocabulary=v, temperature=2.0)
    assert len(cache) == N
    same(cache.buckets(slice(None)), top_k(z, K, temperature=2.0))
    stored = safetensors.numpy.load_file(tmp_path / "shard-00000.safetensors")
    assert stored["indices"].dtype.name == ("uint16" if v <= 2**16 else "int32")
    assert stored["logp"].shape == (SHARD, K + 1)


def test_any_rows_in_any_order_and_shape(tmp_path):
    cache, want = build(tmp_path), top_k(logits(), K)
    numbers = torch.tensor([[22, 0, 5], [5, 4, 21]])
    same(cache.buckets(numbers), want[numbers])
    same(cache.buckets([7, 7, 3]), want[torch.tensor([7, 7, 3])])
    same(cache.buckets(slice(4, 16)), want[4:16])
    same(cache.buckets(slice(None, None, -4)), want[torch.arange(N - 1, -1, -4)])
    assert cache.buckets([]).indices.shape == (0, K)
    for wrong in ([N], [-1], torch.tensor([3, N])):
        with pytest.raises(IndexError, match=r"rows: got row (23|-1); pass rows in \[0, 23\)"):
            cache.buckets(wrong)
    with pytest.raises(TypeError, match="rows: got dtype torch.int32"):
        cache.buckets(torch.zeros(2, dtype=torch.int32))
    with pytest.raises(CacheError, match="a cache of the 4 largest probabilities; use `buckets`"):
        cache.sparse([0])


def test_sparse_rows_come_back_whole(tmp_path):
    z = logits()
    cache, want = build(tmp_path, z, k=None, generator="alpha:1.5"), sparse_rows(z, "alpha:1.5")
    got = cache.sparse(slice(None))
    assert torch.equal(got.row_ptr, want.row_ptr)
    assert torch.equal(got.cols, want.cols)
    torch.testing.assert_close(got.probs, want.probs)
    picked = [22, 5, 5, 0, 9]
    part = cache.sparse(picked)
    for i, row in enumerate(picked):
        one, other = part[i : i + 1], want[row : row + 1]
        assert torch.equal(one.cols, other.cols)
        torch.testing.assert_close(one.probs, other.probs)
    buckets = cache.buckets(torch.tensor([[3, 1], [20, 3]]))
    assert buckets.shape == (2, 2)
    assert bool((buckets.tail == -torch.inf).all())
    student = torch.randn(2, 2, V)
    torch.testing.assert_close(
        bucketed_divergence(buckets, student, "js"),
        bucketed_divergence(want.buckets()[torch.tensor([[3, 1], [20, 3]])], student, "js"),
    )


def test_mass_is_that_of_the_largest_classes(tmp_path):
    z = torch.cat((logits(), 40 * torch.eye(V)[:2], torch.zeros(1, V)))
    p = z.double().softmax(-1).numpy()
    want = [sum(sorted(row)[-K:]) for row in p.tolist()]
    cache = build(tmp_path / "top", z, tokens=len(z))
    torch.testing.assert_close(cache.mass().double(), torch.tensor(want, dtype=torch.float64), rtol=1e-6, atol=0)
    assert cache.mass()[-1] == pytest.approx(K / V)
    whole = build(tmp_path / "sparse", k=None, generator="alpha:1.5")
    assert torch.equal(whole.mass(), torch.ones(N))
    assert build(tmp_path / "empty", z[:0], tokens=0).mass().shape == (0,)


def test_float16_is_a_bounded_error(tmp_path):
    z = 4 * logits()
    z[:, 7] = -torch.inf
    z[0, :] = -1e6
    z[0, 3] = 0.0
    live = top_k(z, K)
    stored = build(tmp_path, z, dtype="float16").buckets(slice(None))
    assert torch.equal(stored.indices, live.indices)
    want, got = live.buckets().double(), stored.buckets().double()
    # rounding is 2^-11 of |log p|, and making the sum one again moves all by its mean, at most 2^-11 of the entropy
    finite = want > -65504
    allowed = 2**-11 * (want.abs() + torch.log(torch.tensor(K + 1.0))) + 1e-6
    assert bool(((got - want).abs() <= allowed)[finite].all())
    # float16 ends at -65504, which is still not "excluded"
    assert bool((got[~finite & (want > -torch.inf)] == -65504).all())
    student = torch.randn(N, V)
    for name in ("kl", "js"):
        a, b = bucketed_divergence(live, student, name), bucketed_divergence(stored, student, name)
        assert float((a - b).abs().max()) < 2e-3 * float(a.max())


def test_bytes_per_token_are_those_of_the_directory(tmp_path):
    cache = build(tmp_path, dtype="float16")
    assert cache.bytes_per_token == sum(path.stat().st_size for path in tmp_path.iterdir()) / N
    assert repr(cache) == f"Cache(top 4, 23 rows, V = 40, {cache.bytes_per_token:.1f} bytes per row)"


def test_a_cache_goes_to_other_processes(tmp_path):
    cache = build(tmp_path)
    cache.buckets([0])
    data = pickle.dumps(cache)
    assert len(data) < 4000  # its files are not in it
    same(pickle.loads(data).buckets([8]), cache.buckets([8]))


def test_an_empty_cache(tmp_path):
    cache = build(tmp_path, logits(n=0), tokens=0)
    assert len(cache) == 0
    assert cache.buckets(slice(None)).indices.shape == (0, K)


@settings(max_examples=12)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    shard=st.integers(1, 9),
    picked=st.randoms(use_true_random=False),
)
def test_pieces_and_shards_of_any_size(tmp_path_factory, sizes, shard, picked: random.Random):
    directory = tmp_path_factory.mktemp("cache")
    n = sum(sizes)
    want = top_k(logits(n=n), K)
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    parts = [want[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    build_cache(directory, spec(tokens=n), lambda start: parts, rows_per_shard=shard)
    cache = open_cache(directory, **WHO)
    numbers = torch.tensor([picked.randrange(n) for _ in range(10)])
    same(cache.buckets(numbers), want[numbers])


# Killed builds


def test_a_build_goes_on_where_it_was(tmp_path):
    want = top_k(logits(), K)

    def stops(start: int) -> Iterator[TopK]:
        yield want[start:13]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path, spec(), stops, rows_per_shard=SHARD)
    with pytest.raises(CacheError, match="unfinished, 10 of 23 rows; run the same build again"):
        open_cache(tmp_path, **WHO)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    asked = []
    build_cache(tmp_path, spec(), lambda start: asked.append(start) or pieces(want)(start), rows_per_shard=SHARD)
    assert asked == [10]
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in before.items())
    same(open_cache(tmp_path, **WHO).buckets(slice(None)), want)
    # and a finished one asks for nothing
    build_cache(tmp_path, spec(), lambda start: pytest.fail("asked for rows"), rows_per_shard=SHARD)


def test_a_build_that_was_killed(tmp_path):
    code = """
    import os, signal, sys
    sys.path.insert(0, sys.argv[2])
    from test_teacher_cache import *
    where, real = Path(sys.argv[1]), os.replace
    def replace(a, b):
        if "shard-00002" in str(b):
            os.kill(os.getpid(), signal.SIGKILL)  # written, not yet in its place
        real(a, b)
    os.replace = replace
    build(where)
    """
    where = tmp_path / "cache"
    run = [sys.executable, "-c", textwrap.dedent(code), str(where), str(Path(__file__).parent)]
    killed = subprocess.run(run, capture_output=True, text=True, timeout=100)
    assert killed.returncode == -9, killed.stderr
    assert (where / "shard-00002.safetensors.partial").is_file()
    asked = []
    want = top_k(logits(), K)
    build_cache(where, spec(), lambda start: asked.append(start) or pieces(want)(start), rows_per_shard=SHARD)
    assert asked == [2 * SHARD]
    assert not list(where.glob("*.partial"))
    same(open_cache(where, **WHO).buckets(slice(None)), want)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(tmp_path, monkeypatch, code):
    want, full = top_k(logits(), K), [False]
    fsync = os.fsync

    def no_room(file: int) -> None:
        if full[0]:
            raise OSError(code, "full")
        fsync(file)

    def fills(start: int) -> Iterator[TopK]:
        yield want[start : start + SHARD]
        full[0] = True
        yield want[start + SHARD :]

    monkeypatch.setattr(on_disk.os, "fsync", no_room)
    with pytest.raises(CacheError, match="no space left on the disk; free some and run the same build again"):
        build_cache(tmp_path, spec(), fills, rows_per_shard=SHARD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "shard-00000.safetensors"]
    full[0] = False
    build_cache(tmp_path, spec(), pieces(want), rows_per_shard=SHARD)
    same(open_cache(tmp_path, **WHO).buckets(slice(None)), want)


# Refusals


def replaced(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "a bit of a shard's rows": (
        lambda d: flipped(d / "shard-00001.safetensors", -3),
        "shard-00001.safetensors: corrupt",
    ),
    "a bit of its header": (lambda d: flipped(d / "shard-00001.safetensors", 20), "shard-00001.safetensors: corrupt"),
    "a short shard": (
        lambda d: os.truncate(d / "shard-00004.safetensors", 100),
        "shard-00004.safetensors: 100 bytes, the manifest says [0-9]+: truncated or replaced",
    ),
    "no shard": (lambda d: (d / "shard-00002.safetensors").unlink(), "shard-00002.safetensors: missing"),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "no manifest.json, so this is no teacher cache"),
    "half a manifest": (lambda d: os.truncate(d / "manifest.json", 200), "manifest.json: cannot be read"),
    "another format": (lambda d: (d / "manifest.json").write_text("[1]"), "manifest.json: not of a teacher cache"),
    "another version": (
        lambda d: replaced(d / "manifest.json", b'"version": 1', b'"version": 2'),
        "manifest.json: version 2, this Fenchel reads 1",
    ),
    "an edited manifest": (
        lambda d: replaced(d / "manifest.json", b"the teacher", b"my teacher"),
        "manifest.json: corrupt",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_refused(tmp_path, damage, message):
    build(tmp_path)
    damage(tmp_path)
    with pytest.raises(CacheError, match=message) as found:
        open_cache(tmp_path, **WHO)
    assert "\n" not in str(found.value)


def test_damage_without_verifying_is_found_at_the_first_use(tmp_path):
    build(tmp_path)
    flipped(tmp_path / "shard-00001.safetensors", -3)
    cache = open_cache(tmp_path, **WHO, verify=False)
    cache.buckets([0, 12])
    with pytest.raises(CacheError, match="shard-00001.safetensors: corrupt"):
        cache.buckets([0, SHARD])


@pytest.mark.parametrize("found", [b"", b"\x80\x04N.", b"\x10" + 7 * b"\0" + b'{"a":' + 11 * b" "])
def test_only_shards_are_read(tmp_path, found):
    path = tmp_path / "shard"
    path.write_bytes(found)
    with pytest.raises(CacheError, match="not a shard of a teacher cache") as error:
        on_disk.arrays_of(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"teacher": "another"}, "made of another teacher: teacher 'the teacher', asked for 'another'"),
        ({"data": "other"}, "made for other data: data 'the data'"),
        ({"tokenizer": "other"}, "made of another tokenizer"),
        ({"vocabulary": 41}, "made differently: vocabulary 40, asked for 41"),
        ({"temperature": 2.0}, "made differently: temperature 1.0, asked for 2.0"),
        ({"tokens": 24}, "made differently: tokens 23, asked for 24"),
        ({"generator": "alpha:1.5"}, "made differently: generator 'kl'"),
    ],
)
def test_a_cache_of_something_else_is_refused(tmp_path, asked, message):
    build(tmp_path)
    with pytest.raises(CacheError, match=message):
        open_cache(tmp_path, **WHO | asked)
    open_cache(tmp_path, teacher=None, data=None, tokenizer=None)


def test_nothing_is_built_over_something_else(tmp_path):
    rows = pieces(top_k(logits(), K))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(CacheError, match="holds 'a.txt', which is not of a cache"):
        build_cache(tmp_path / "notes", spec(), rows)
    with pytest.raises(CacheError, match="is a file; pass a new or empty directory"):
        build_cache(tmp_path / "notes" / "a.txt", spec(), rows)
    with pytest.raises(CacheError, match="no manifest.json, so this is no teacher cache"):
        open_cache(tmp_path / "notes", **WHO)
    with pytest.raises(CacheError, match="no such directory"):
        open_cache(tmp_path / "nowhere", **WHO)
    build(tmp_path / "cache")
    with pytest.raises(CacheError, match="made of another teacher"):
        build_cache(tmp_path / "cache", spec(teacher="other"), rows, rows_per_shard=SHARD)
    with pytest.raises(CacheError, match="made differently: k 4, asked for 3"):
        build_cache(tmp_path / "cache", spec(k=3), rows, rows_per_shard=SHARD)
    with pytest.raises(CacheError, match="built with rows_per_shard = 5, asked for 6"):
        build_cache(tmp_path / "cache", spec(), rows, rows_per_shard=6)
    (tmp_path / "cache" / "manifest.json").unlink()
    with pytest.raises(CacheError, match="holds shards of nobody knows what"):
        build_cache(tmp_path / "cache", spec(), rows)


def test_one_build_at_a_time(tmp_path):
    want = top_k(logits(), K)

    def meets_another(start: int) -> Iterator[TopK]:
        with pytest.raises(CacheError, match="another build is writing there; wait for it to end"):
            build_cache(tmp_path, spec(), pieces(want), rows_per_shard=SHARD)
        yield want

    build_cache(tmp_path, spec(), meets_another, rows_per_shard=SHARD)
    same(open_cache(tmp_path, **WHO).buckets(slice(None)), want)


def test_a_damaged_shard_stops_the_build_that_goes_on(tmp_path):
    want = top_k(logits(), K)
    with pytest.raises(CacheError, match=r"rows_from\(0\): ended at row 14 of 23"):
        build_cache(tmp_path, spec(), lambda start: [want[:14]], rows_per_shard=SHARD)
    flipped(tmp_path / "shard-00000.safetensors", -1)
    with pytest.raises(CacheError, match="shard-00000.safetensors: corrupt"):
        build_cache(tmp_path, spec(), pieces(want), rows_per_shard=SHARD)


@pytest.mark.parametrize(
    ("change", "rows", "message"),
    [
        ({"tokens": 22}, lambda z: top_k(z, K), r"rows_from\(0\): row 23 of 22"),
        ({"tokens": 24}, lambda z: top_k(z, K), r"rows_from\(0\): ended at row 23 of 24"),
        (
            {"k": 3},
            lambda z: top_k(z, K),
            r"rows: got \(k, vocabulary, temperature\) = \(4, 40, 1.0\), the cache is for \(3, 40, 1.0\)",
        ),
        ({}, lambda z: top_k(z, K, temperature=2.0), "the cache is for"),
        ({}, lambda z: top_k(z, K, vocabulary=30), "the cache is for"),
        ({}, lambda z: sparse_rows(z, "alpha:2"), "rows_from: got SparseRows, the spec has k = 4; yield TopK"),
        ({"k": None}, lambda z: top_k(z, K), "rows_from: got TopK, the spec has k = None; yield SparseRows"),
        ({"k": None}, lambda z: sparse_rows(z[:, :9], "alpha:2"), "rows: got sparse ones of 9 classes"),
        (
            {},
            lambda z: top_k(torch.where(z > 3, torch.nan, z), K),
            "rows: got a log-probability that is NaN or positive",
        ),
        ({"k": 12}, lambda z: sparse_rows(z, "alpha:1.5").buckets(), "rows: got"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, change, rows, message):
    with pytest.raises(CacheError, match=message):
        build_cache(tmp_path, spec(**change), pieces(rows(logits())), rows_per_shard=SHARD)
    with pytest.raises(CacheError, match="unfinished"):
        open_cache(tmp_path, **WHO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": ""}, "teacher: got ''"),
        ({"k": 41}, "k: got 41; pass an integer from 1 to 40"),
        ({"k": 0}, "k: got 0"),
        ({"tokens": -1}, "tokens: got -1"),
        ({"vocabulary": 4.0, "k": None}, "vocabulary: got 4.0"),
        ({"temperature": 0}, "temperature: got 0"),
        ({"dtype": "bfloat16"}, "dtype: got 'bfloat16'; pass one of 'float16', 'float32'"),
    ],
)
def test_bad_specs(change, message):
    with pytest.raises(ValueError, match=message):
        spec(**change)


def test_the_manifest_is_json(tmp_path):
    build(tmp_path)
    held = json.loads((tmp_path / "manifest.json").read_text())
    assert held["contents"]["spec"]["teacher"] == "the teacher"
    assert [s["rows"] for s in held["contents"]["shards"]] == [5, 5, 5, 5, 3]


# Fingerprints


def test_fingerprints_differ_where_things_do():
    x = torch.arange(6, dtype=torch.float32)
    things = [
        (x,),
        (x.view(2, 3),),
        (x.double(),),
        (x.bfloat16(),),
        (x + 1,),
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        (b"abc",),
        (1,),
        (1.0,),
        (True,),
        ("1",),
        (None,),
        ([1, 2],),
        (1, 2),
        ([[1], 2],),
        ({"a": 1},),
        ({"a": 2},),
        ({"a": 1, "b": x},),
        (torch.tensor(True),),
        (),
    ]
    assert len({fingerprint(*t) for t in things}) == len(things)
    assert fingerprint(x, {"b": 1, "a": [2]}) == fingerprint(x.clone(), {"a": [2], "b": 1})
    assert fingerprint(torch.arange(12.0)[::2]) == fingerprint(torch.arange(12.0)[::2].contiguous())
    with pytest.raises(TypeError, match="fingerprint: got set"):
        fingerprint({1, 2})
