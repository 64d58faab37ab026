"""The benchmark: what it refuses, what it computes, and that every path it times is the same function."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fenchel.bench import command, run
from fenchel.bench.bars import bar
from fenchel.bench.measure import Alone, alone, in_turns, parity
from fenchel.bench.paths import PATHS
from fenchel.bench.regimes import inputs
from fenchel.bench.results import ratio, row
from fenchel.bench.sizes import FULL, QUICK
from fenchel.bench.trained import SNAPSHOTS, run_name, snapshots

OBJECTIVE = "alpha:1.5"
PATH = {path.key: path for path in PATHS}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """The cache with the snapshots of a tiny real run."""
    directory = tmp_path_factory.mktemp("cache")
    snapshots(QUICK, OBJECTIVE, directory, lambda text: None)
    return directory


def quick(cache: Path, out: Path, *more: str) -> dict:
    """The results of `fenchel bench --quick`."""
    run(["--quick", "--cache", str(cache), "--out", str(out), "--repeats", "2", "--no-memory", "--no-peers", *more])
    return json.loads(next(out.glob("*.json")).read_text(encoding="utf-8"))


def test_every_path_equals_its_dense_reference(tmp_path):
    given = inputs("initial", QUICK, OBJECTIVE, tmp_path)
    there = [path for path in PATHS if path.missing() is None and "initial" in path.regimes and path.kind != "bare"]
    errors = parity(there, given)
    assert set(errors) == {path.key for path in there}
    assert {key: found for key, found in errors.items() if not found <= 2e-5} == {}


@pytest.mark.parametrize("wrong", ["value", "hidden", "weight", "nan"])
def test_a_wrong_path_is_found(wrong, tmp_path):
    given = inputs("initial", QUICK, OBJECTIVE, tmp_path)
    right = PATH["kl"].loss
    assert right is not None
    off = {
        "value": lambda x: right(x) + 1e-3,
        "hidden": lambda x: right(x) + 1e-4 * (x.hidden - x.hidden.detach()).sum(),
        "weight": lambda x: right(x) + 1e-6 * (x.weight - x.weight.detach()).sum(),
        "nan": lambda x: right(x) * float("nan"),
    }[wrong]
    assert not parity([replace(PATH["kl"], loss=off)], given)["kl"] <= 2e-5


def test_nothing_is_timed_or_written_where_a_path_is_wrong(tmp_path, monkeypatch, capsys):
    wrong = replace(PATH["alpha:1.5"], loss=PATH["alpha:2"].loss)
    monkeypatch.setattr(command, "PATHS", (PATH["product"], PATH["dense"], wrong))
    monkeypatch.setattr(command, "in_turns", lambda *_: pytest.fail("timed"))
    with pytest.raises(SystemExit) as caught:
        quick(tmp_path, tmp_path / "out", "--regimes", "initial")
    assert caught.value.code == 2
    assert "fused alpha:1.5 differs from the dense float64 reference" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_the_run_gives_json_markdown_plot_and_page(cache, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{command.START}\nold\n{command.END}\nafter\n", encoding="utf-8")
    found = quick(cache, tmp_path / "out", "--regimes", "initial,early", "--paths", "kl,alpha:1.5", "--page", str(page))
    assert [regime["facts"]["regime"] for regime in found["regimes"]] == ["initial", "early"]
    for regime in found["regimes"]:
        rows = {made["key"]: made for made in regime["rows"]}
        assert set(rows) == {"product", "dense", "kl", "alpha:1.5"}
        assert rows["dense"]["per_dense"] == 1
        assert rows["kl"]["least"] <= rows["kl"]["seconds"] <= rows["kl"]["most"]
        # bars are set for the full size
        assert rows["kl"]["targets"] == []
    assert found["regimes"][1]["facts"]["run"]["step"] == QUICK.early
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| fused alpha:1.5 | " in text
    assert next((tmp_path / "out").glob("*.png")).read_bytes().startswith(b"\x89PNG")


def test_snapshots_are_what_the_head_of_one_run_saw_and_are_reused(cache, monkeypatch):
    taken = snapshots(QUICK, OBJECTIVE, cache, lambda text: pytest.fail(f"trained again: {text}"))
    assert tuple(taken) == SNAPSHOTS
    for snapshot in taken.values():
        assert snapshot.hidden.shape == (QUICK.n, QUICK.d)
        assert snapshot.weight.shape == (QUICK.v, QUICK.d)
    assert torch.equal(taken["early"].labels, taken["late"].labels)
    assert not torch.equal(taken["early"].weight, taken["late"].weight)
    loss = PATH["alpha:1.5"].loss
    assert loss is not None
    # what it was fitted to, it predicts better than it does unseen text
    fitted, unseen = (loss(inputs(name, QUICK, OBJECTIVE, cache)).item() for name in ("fitted", "late"))
    assert fitted < unseen


def test_a_damaged_snapshot_is_one_line(tmp_path, capsys):
    directory = tmp_path / run_name(QUICK, OBJECTIVE)
    directory.mkdir(parents=True)
    for name in SNAPSHOTS:
        (directory / f"{name}.safetensors").write_bytes(b"cut short")
    with pytest.raises(SystemExit):
        quick(tmp_path, tmp_path / "out", "--regimes", "early")
    assert "is not a snapshot of a run: delete it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--regimes", "late,later"], ["--paths", "kl,l1"], ["--repeats", "0"], ["--objective", "l1"]]
)
def test_bad_flags_are_one_line(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run(["--quick", "--out", str(tmp_path / "out"), *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_logits_of_a_dense_path_are_in_its_peak(tmp_path):
    size = replace(QUICK, n=1024, v=8192)
    found = alone(PATH["dense"], "initial", size, OBJECTIVE, tmp_path, 1, tmp_path / "compiled")
    assert found.failure is None
    assert found.first is not None
    assert found.peak is not None
    logits = 4 * size.n * size.v
    # their gradient takes as much again, the softmax may
    assert 1.9 * logits <= found.peak <= 3.2 * logits


def test_turns_alternate():
    order = []
    steps = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = in_turns(steps, 2, lambda key, turn: None)
    assert order == ["a", "b"] * 3
    assert {key: len(found) for key, found in times.items()} == {"a": 2, "b": 2}


def test_ratios_are_taken_within_a_turn():
    # the machine was twice as slow in the second turn, three times in the third: the ratio is the same
    assert ratio({"a": [1.0, 2.0, 3.0], "b": [2.0, 4.0, 6.0]}, "a", "b") == 0.5
    assert ratio({"a": [1.0]}, "a", "b") is None


@pytest.mark.parametrize(
    ("key", "support", "most", "of"),
    [
        ("alpha:1.5", 0.004, 0.45, "dense"),
        ("alpha:1.5", 0.08, 0.8, "dense"),
        ("alpha:2", 0.9, 1.15, "kl"),
        ("kl", 1.0, 0.9, "dense"),
        ("js", 1.0, 1.25, "kl"),
        ("js2", 1.0, 1.3, "products4"),
    ],
)
def test_bars(key, support, most, of):
    found = bar(key, {"support": {"alpha:1.5": support, "alpha:2": support}})
    assert found is not None
    assert (found.most, found.of) == (most, of)


def test_a_missed_target_is_computed():
    times = {"kl": [0.95], "dense": [1.0], "product": [0.4]}
    made = row(PATH["kl"], {}, times, Alone(1.0, 100 * 2**20), {"kl": 1e-7}, None, judged=True)
    assert [(t.what, t.measured, t.met) for t in made.targets] == [
        ("time / dense", 0.95, False),
        ("peak MiB", 100, False),
    ]


def test_the_full_size_is_that_of_the_promise():
    assert (FULL.n, FULL.d, FULL.v) == (2048, 512, 32768)
