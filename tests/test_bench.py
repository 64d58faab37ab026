"""The benchmark: what it refuses, what it computes, and that every path it times is the same function."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fenchel
from fenchel.bench import command, generators, parts, plan, run
from fenchel.bench.bars import FIRST, LIMIT, Bar, bars, peaks
from fenchel.bench.curves import Curve, curves
from fenchel.bench.measure import Alone, alone, in_turns, parity
from fenchel.bench.paths import all_paths, path_of
from fenchel.bench.plan import Wanted, sections
from fenchel.bench.regimes import inputs
from fenchel.bench.results import from_dict, ratio, row, to_dict
from fenchel.bench.sizes import FULL, QUICK
from fenchel.bench.trained import SNAPSHOTS, run_name, snapshots
from fenchel.bench.work import Work, flops, moved, share

OBJECTIVE = "alpha:1.5"
PATHS = all_paths()
PATH = {path.key: path for path in PATHS}
# what the bars depend on
FACTS = {"n": 2048, "d": 512, "v": 32768, "dtype": "float32", "support": {"alpha:1.5": 0.004, "alpha:2": 0.004}}


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


# half precision is slow on a CPU that has none
@pytest.mark.parametrize(
    ("dtype", "paths"),
    [
        ("float32", [path for path in PATHS if path.kind != "peer"]),
        ("float32", [path for path in PATHS if path.kind == "peer"]),
        ("bfloat16", [path for path in all_paths(("js", "alpha:1.5")) if path.kind != "peer"]),
    ],
    ids=("ours", "peers", "bfloat16"),
)
def test_every_path_equals_its_dense_reference(dtype, paths, tmp_path):
    size = replace(QUICK, dtype=dtype)
    given = inputs("initial", size, OBJECTIVE, tmp_path)
    measured = [path for path in paths if path.kind != "bare" and path.missing(QUICK, 2**40) is None]
    found = parity(measured, given, size)
    assert set(found) == {path.key for path in measured}
    assert {key: p for key, p in found.items() if not p.met} == {}
    smooth = [p.allowed for key, p in found.items() if not key.endswith(":tv")]
    assert all(allowed == 2e-5 for allowed in smooth) == (dtype == "float32")


def test_equal_probabilities_may_lie_on_either_side_of_a_kink(tmp_path):
    given = inputs("initial", QUICK, OBJECTIVE, tmp_path)
    [tv] = parity([path_of("pair:tv")], given, QUICK).values()
    [js] = parity([path_of("pair:js")], given, QUICK).values()
    assert tv.met
    assert js.allowed == 2e-5 < tv.allowed < 1e-2


def test_every_generator_is_measured_in_every_way_that_it_has():
    known = {name for name in fenchel.generator_names() if ":" not in name}
    assert known <= set(generators.every())
    for name in generators.every():
        families = {path.family for path in PATHS if path.generator == name and path.kind != "peer"}
        assert families >= {"pair", "pair-each", "divergence"}
        assert ("young" in families) == ("softargmax" in families) == generators.has_loss(name)
    labelled = {path.key.partition(":")[2] for path in PATHS if path.family == "supervised"}
    assert labelled == set(fenchel.supervised_names()) - set(fenchel.generator_names())
    assert [path_of(path.key).label for path in PATHS] == [path.label for path in PATHS]
    assert path_of("pair:alpha:1.7").generator == "alpha:1.7"


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
    assert not parity([replace(PATH["kl"], loss=off)], given, QUICK)["kl"].met


def test_nothing_is_timed_or_written_where_a_path_is_wrong(tmp_path, monkeypatch, capsys):
    wrong = replace(PATH["alpha:1.5"], loss=PATH["alpha:2"].loss)
    monkeypatch.setattr(plan, "all_paths", lambda names: (PATH["product"], PATH["dense"], wrong))
    monkeypatch.setattr(parts, "in_turns", lambda *_: pytest.fail("timed"))
    with pytest.raises(SystemExit) as caught:
        quick(tmp_path, tmp_path / "out", "--regimes", "initial")
    assert caught.value.code == 2
    assert "fused alpha:1.5 differs from the dense float64 reference" in capsys.readouterr().err
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == []


def test_the_run_gives_json_markdown_plot_and_page(cache, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{command.START}\nold\n{command.END}\nafter\n", encoding="utf-8")
    found = quick(cache, tmp_path / "out", "--regimes", "initial,early", "--paths", "kl,alpha:1.5", "--page", str(page))
    assert [regime["facts"]["regime"] for regime in found["regimes"]] == ["initial", "early"]
    for regime in found["regimes"]:
        rows = {made["key"]: made for made in regime["rows"]}
        assert set(rows) == {"product", "copy", "dense", "kl", "alpha:1.5"}
        assert rows["dense"]["per_dense"] == 1
        assert rows["kl"]["least"] <= rows["kl"]["seconds"] <= rows["kl"]["most"]
        # 3 products against the one that was measured
        assert rows["kl"]["ceiling"]["flops"] == 6 * QUICK.n * QUICK.d * QUICK.v
        # bars are set for the full size
        assert rows["kl"]["targets"] == []
    assert found["regimes"][1]["facts"]["run"]["step"] == QUICK.early
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| fused alpha:1.5 | " in text
    assert next((tmp_path / "out").glob("*.png")).read_bytes().startswith(b"\x89PNG")


def test_a_grid_of_ones_own(tmp_path):
    more = ("--grid", "--generators", "tv,alpha:1.7", "--paths", "pair,softargmax,loss", "--shapes", "24x8x96,16x8x128")
    found = quick(tmp_path, tmp_path / "out", *more, "--repeats", "1")
    assert [(r["facts"]["n"], r["facts"]["d"], r["facts"]["v"]) for r in found["regimes"]] == [
        (24, 8, 96),
        (16, 8, 128),
    ]
    for regime in found["regimes"]:
        keys = {made["key"] for made in regime["rows"] if made["seconds"] is not None}
        # the total variation has no operator
        assert keys == {
            "product",
            "copy",
            "dense",
            "pair:tv",
            "pair:alpha:1.7",
            "softargmax:alpha:1.7",
            "loss:alpha:1.7",
        }


def test_what_an_interrupted_run_measured_is_not_measured_again(tmp_path, monkeypatch, capsys):
    more = ("--grid", "--generators", "kl", "--paths", "young", "--shapes", "16x8x96,24x8x96,32x8x96", "--repeats", "1")
    done: list[str] = []

    def interrupted(section, *rest):
        if section.size.n == 32 and len(done) == 2:
            raise KeyboardInterrupt
        done.append(section.size.shape)
        return parts.measured(section, *rest)

    monkeypatch.setattr(command, "measured", interrupted)
    with pytest.raises(SystemExit) as caught:
        quick(tmp_path, tmp_path / "out", *more)
    assert caught.value.code == 130
    assert "goes on where it was" in capsys.readouterr().err
    # other flags are another run
    quick(tmp_path, tmp_path / "other", *more[:-2], "--repeats", "3")
    found = quick(tmp_path, tmp_path / "out", *more)
    assert done == ["16x8x96", "24x8x96", "16x8x96", "24x8x96", "32x8x96", "32x8x96"]
    assert [r["facts"]["n"] for r in found["regimes"]] == [16, 24, 32]
    assert list((tmp_path / "out").glob("unfinished-*")) == []


def test_the_curves_of_a_scaling(tmp_path):
    found = quick(tmp_path, tmp_path / "out", "--scaling", "--paths", "kl,js", "--repeats", "1")
    assert [(r["facts"]["n"], r["facts"]["v"]) for r in found["regimes"]] == [
        (32, 256),
        (64, 256),
        (128, 256),
        (64, 128),
        (64, 512),
    ]
    drawn = curves([(r["facts"], [from_dict(row) for row in r["rows"]]) for r in found["regimes"]], "v")
    assert {curve.label: curve.x for curve in drawn} == dict.fromkeys(
        ("torch dense cross-entropy", "fused cross-entropy (kl)", "fused js"), (128, 256, 512)
    )
    assert "### Along N" in next((tmp_path / "out").glob("*.md")).read_text(encoding="utf-8")
    assert next((tmp_path / "out").glob("*.png")).read_bytes().startswith(b"\x89PNG")


def test_the_exponent_of_a_curve():
    x = (1024, 2048, 8192)
    assert Curve("n", "", "", "fused", x, tuple(3e-4 * n**1.25 for n in x), (None,) * 3).exponent == pytest.approx(1.25)


def test_scaling_reaches_the_shapes_that_it_promises():
    shapes = {(s.size.n, s.size.v) for s in sections("scaling", FULL, Wanted())}
    assert {(16384, 32768), (2048, 262144)} <= shapes
    assert len({(s.size.d) for s in sections("scaling", FULL, Wanted())}) == 1


def test_parts_measure_every_path_once_and_what_it_is_compared_with():
    [section] = sections("grid", FULL, Wanted(generators=("js", "kl", "hellinger", "alpha:1.5", "le_cam")))
    found = section.parts()
    assert len(found) > 2
    own = [path.key for part in found for path in part]
    assert set(own) == {path.key for path in section.paths}
    assert all(own.count(path.key) == 1 for path in section.paths if path.family == "divergence")
    for part in found:
        keys = {path.key for path in part}
        assert {"product", "copy", "dense"} <= keys
        assert "js" not in keys or "kl" in keys


def test_what_does_not_fit_is_not_run():
    size = FULL.shaped(16384, 256, 262144)
    assert PATH["dense"].missing(size, 24 * 2**30) == "stores 64 GiB"
    assert PATH["kl"].missing(size, 24 * 2**30) is None
    assert replace(PATH["kl"], needs=("no_such_module",)).missing(size, 2**40) == "needs no_such_module"


def test_the_share_of_the_ceiling():
    size = FULL.shaped(64, 32, 512)
    # a product a second, and a copied number a second
    times = {"product": [1.0], "copy": [2.0 * 64 * 512], "a": [4.0], "b": [10 * 3.0 * 64 * 512]}
    assert flops(Work(products=1, sparse=2), size, 0.5) == 2 * (2 * 64 * 32 * 512)
    assert moved(Work(passes=3, tensors=2), size) == 4 * (3 * 64 * 512 + 2 * (64 + 512) * 32)
    head, function = share(Work(products=3), size, 1.0, times, "a"), share(Work(passes=3), size, 1.0, times, "b")
    assert head is not None
    assert function is not None
    assert (head.bound, head.share) == ("product", pytest.approx(0.75))
    assert (function.bound, function.share) == ("memory", pytest.approx(0.1))
    assert share(Work(), size, 1.0, times, "a") is None
    assert share(Work(products=3), size, 1.0, {"a": [4.0]}, "a") is None


def test_a_row_is_the_same_after_it_was_stored():
    times = {"kl": [0.95], "dense": [1.0], "product": [0.4], "copy": [0.1]}
    made = row(PATH["kl"], FULL, FACTS, times, Alone(1.0, 100 * 2**20), 1e-7, None)
    assert made.targets
    assert made.ceiling is not None
    assert from_dict(json.loads(json.dumps(to_dict(made)))) == made


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
    "arguments",
    [
        ["--regimes", "late,later"],
        ["--paths", "kl,l1"],
        ["--repeats", "0"],
        ["--objective", "l1"],
        ["--generators", "kl,l1"],
        ["--shapes", "64x32"],
        ["--shapes", "64x32x0"],
        ["--shapes", "64x32x100", "--regimes", "late"],
        ["--scaling", "--shapes", "64x32x100"],
    ],
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
    ("key", "support", "first", "limit"),
    [
        ("alpha:1.5", 0.004, Bar(0.45, "dense"), 1.1),
        ("alpha:1.5", 0.08, Bar(0.8, "dense"), 1.8),
        ("alpha:2", 0.9, Bar(1.15, "kl"), 3.4),
        ("kl", 1.0, Bar(0.9, "dense"), 3.1),
        ("js", 1.0, Bar(1.25, "kl"), 3.6),
        ("pair:js", 1.0, Bar(1.3, "products4"), 4.6),
        ("le_cam", 1.0, None, 4.5),
        ("neyman", 1.0, None, 6.0),
        ("pair:le_cam", 1.0, None, 6.0),
        ("pair-each:kl", 1.0, None, 6.8),
        ("logp", 1.0, None, 5.4),
        ("supervised:gce:0.7", 1.0, Bar(1.3, "kl"), None),
    ],
)
def test_bars(key, support, first, limit):
    facts = FACTS | {"support": {"alpha:1.5": support, "alpha:2": support}}
    found = bars(key, path_of(key).family, facts)
    assert found == [*([] if first is None else [first]), *([] if limit is None else [Bar(limit, "product")])]
    assert bars(key, path_of(key).family, facts | {"v": 1000}) == []


def test_half_precision_is_judged_by_that_of_torch():
    half = FACTS | {"dtype": "bfloat16", "v": 1000}
    assert bars("hellinger", "young", half) == [Bar(1.0, "dense")]
    assert bars("softargmax:js", "softargmax", half) == []


def test_bars_are_set_for_paths_that_exist():
    known = {path.key for path in PATHS} | {path.family for path in PATHS}
    assert {*FIRST, *LIMIT} <= known


def test_a_missed_target_is_computed():
    times = {"kl": [0.95], "dense": [1.0], "product": [0.4]}
    made = row(PATH["kl"], FULL, FACTS, times, Alone(1.0, 80 * 2**20), 1e-7, None)
    assert [(t.what, t.most, t.met) for t in made.targets] == [
        ("time / dense", 0.9, False),
        ("time / product", 3.1, True),
        ("peak MiB", 96, True),
        ("peak MiB", 64, False),
    ]
    assert peaks("loss:kl", "function", FACTS) == []


def test_the_full_size_is_that_of_the_promise():
    assert (FULL.n, FULL.d, FULL.v) == (2048, 512, 32768)
