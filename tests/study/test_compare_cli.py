"""The command: what it writes, how it goes on after an interruption, and what it says of bad input."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from fenchel.cli import app
from fenchel.study import begin, recorded, report
from fenchel.study.calibrate import Timing
from fenchel.study.record import run_directory
from fenchel.study.request import Request
from fenchel.study.train import COMPLETE

OBJECTIVES = ("kl", "alpha:1.5")


@pytest.fixture
def options(corpus: Path, tiny: Path) -> dict[str, str]:
    return {
        "--objectives": ",".join(OBJECTIVES),
        "--seeds": "1",
        "--steps": "8",
        "--batch-size": "4",
        "--context": "16",
        "--data": str(corpus),
        "--model": str(tiny),
    }


@pytest.fixture
def plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have their own tests and take seconds."""

    def write(out: Path) -> Path:
        (out / "report.html").write_text("")
        return out / "report.html"

    monkeypatch.setattr(report, "write", write)
    monkeypatch.setattr(report, "table", lambda out: "")


def arguments(options: dict[str, str], out: Path) -> list[str]:
    return ["compare", *(word for pair in options.items() for word in pair), "--out", str(out)]


def invoke(options: dict[str, str], out: Path) -> Result:
    return CliRunner().invoke(app, arguments(options, out))


def refused(result: Result) -> str:
    """The one line that a refusal prints."""
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def lines(out: Path, objective: str, name: str, seed: int = 0) -> list[dict[str, Any]]:
    text = (run_directory(out, objective, seed) / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_study_from_start_to_report(tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, options = tmp_path / "out", {**options, "--seeds": "2"}
    result = invoke(options, out)
    assert result.exit_code == 0, result.output
    assert "cross-entropy seed 0: loss" in result.output
    assert (out / "report.html").is_file()

    study = read(out / "study.json")
    assert study["version"] == 1
    assert study["objectives"] == list(OBJECTIVES)
    assert study["seeds"] == [0, 1]
    assert study["config"]["vocab_size"] == 300
    assert study["config"]["steps"] == 8
    assert study["config"]["data"]["documents"] == 60
    assert study["config"]["model"]["parameters"] > 2 * 300 * 16
    starts = {}
    for objective in OBJECTIVES:
        for seed in (0, 1):
            directory = run_directory(out, objective, seed)
            steps = lines(out, objective, "train.jsonl", seed)
            assert [line["step"] for line in steps] == list(range(1, 9))
            assert [line["tokens"] for line in steps] == [64 * step for step in range(1, 9)]
            assert all(a["seconds"] < b["seconds"] for a, b in zip(steps, steps[1:], strict=False))
            assert [line["step"] for line in lines(out, objective, "eval.jsonl", seed)] == [0, 1, 2, 3, 5, 6, 7, 8]
            final = read(directory / "final.json")
            assert final["dense_logits_bytes"] == 4 * 15 * 300 * 4
            assert len(final["documents"]) == len(final["per_document"]["tokens"])
            assert 0 < final["head_seconds_share"] < 1
            assert final["head_peak_bytes"] > 0
            assert final["tokens_per_second"] == pytest.approx(8 * 64 / steps[-1]["seconds"])
            assert final["continuation"]["prompt"]
            assert (directory / "done.json").is_file()
            assert not (directory / "checkpoints").exists()
            starts[objective, seed] = read(directory / "start.json")
    assert starts["kl", 0] == starts["alpha:1.5", 0]
    assert starts["kl", 1] == starts["alpha:1.5", 1]
    assert starts["kl", 0]["init_hash"] != starts["kl", 1]["init_hash"]
    assert starts["kl", 0]["data_hash"] != starts["kl", 1]["data_hash"]
    assert not [path for path in out.rglob("*") if ".partial" in path.name or path.name.endswith(".lock")]

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(recorded, "train", never)
    again = invoke(options, out)
    assert again.exit_code == 0
    assert "4 of 4 runs are finished already" in again.output


def test_a_study_of_any_supervised_objectives(
    tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    names = ("kl", "focal:gamma=0", "cross_entropy + 1e-4*log_partition", "stablemax")
    options = {**options, "--objectives": ",".join(names), "--steps": "3"}
    result = invoke(options, out)
    assert result.exit_code == 0, result.output
    study = read(out / "study.json")
    assert study["objectives"] == list(names)
    assert set(study["config"]["predictions"].values()) == {"softmax", "the shares of StableMax()"}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "softmax for kl, focal:gamma=0 and cross_entropy + 1e-4*log_partition; " in page
    assert "the shares of StableMax() for stablemax" in page

    # focal loss without its factor is cross-entropy, from the first step to the measured predictions
    losses = {name: [line["loss"] for line in lines(out, name, "train.jsonl")] for name in names}
    assert losses["focal:gamma=0"] == pytest.approx(losses["kl"], rel=1e-4)
    assert losses["stablemax"] != pytest.approx(losses["kl"], rel=1e-4)
    finals = {name: read(run_directory(out, name, 0) / "final.json") for name in names}
    same = {name: finals["focal:gamma=0"]["summary"][name] for name in ("brier", "eps_perplexity", "ece")}
    assert same == pytest.approx({name: finals["kl"]["summary"][name] for name in same}, rel=1e-3)
    assert all(final["head_peak_bytes"] > 0 for final in finals.values())
    assert all(final["summary"]["support_mean"] == 300 for final in finals.values())

    # continued as any other
    monkeypatch.setattr(report, "write", lambda out: out / "report.html")
    lost = "cross_entropy + 1e-4*log_partition"
    (run_directory(out, lost, 0) / "done.json").unlink()
    again = invoke(options, out)
    assert again.exit_code == 0, again.output
    assert "3 of 4 runs are finished already" in again.output
    assert [line["loss"] for line in lines(out, lost, "train.jsonl")] == losses[lost]


@pytest.mark.usefixtures("plain_report")
def test_a_finished_objective_is_kept_when_another_is_lost(tmp_path: Path, options: dict[str, str]) -> None:
    out = tmp_path / "out"
    assert invoke(options, out).exit_code == 0
    kept = (run_directory(out, "kl", 0) / "train.jsonl").stat().st_mtime_ns
    before = lines(out, "alpha:1.5", "train.jsonl")
    (run_directory(out, "alpha:1.5", 0) / "done.json").unlink()
    assert invoke(options, out).exit_code == 0
    assert (run_directory(out, "kl", 0) / "train.jsonl").stat().st_mtime_ns == kept
    after = lines(out, "alpha:1.5", "train.jsonl")
    assert [line["loss"] for line in after] == [line["loss"] for line in before]


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("plain_report")
def test_a_run_that_is_killed_goes_on_with_the_same_curve(tmp_path: Path, options: dict[str, str]) -> None:
    options = {**options, "--steps": "60", "--objectives": "alpha:1.5"}
    out, whole = tmp_path / "killed", tmp_path / "whole"
    log = run_directory(out, "alpha:1.5", 0) / "train.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "fenchel", *arguments(options, out)],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        began = time.monotonic()
        while not (log.is_file() and log.read_bytes().count(b"\n") >= 20):
            assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
            assert time.monotonic() - began < 60
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    reached = log.read_bytes().count(b"\n")
    assert 20 <= reached < 60
    assert not (log.parent / "done.json").exists()
    # The kill may have hit the middle of a checkpoint and of a line: make sure of both.
    newest = max((log.parent / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (newest / COMPLETE).unlink(missing_ok=True)
    (newest / "optimizer.pt").write_bytes(b"half")
    with log.open("a") as torn:
        torn.write('{"step": 61, "lo')

    result = invoke(options, out)
    assert result.exit_code == 0, result.output
    assert re.search(r"alpha:1.5 seed 0: continues from step (8|16|24|32|40|48|56)\b", result.output)
    assert invoke(options, whole).exit_code == 0
    for name in ("loss", "lr", "tokens", "step"):
        resumed = [line[name] for line in lines(out, "alpha:1.5", "train.jsonl")]
        assert resumed == [line[name] for line in lines(whole, "alpha:1.5", "train.jsonl")], name
    points = [[(line["step"], line["metrics"]) for line in lines(o, "alpha:1.5", "eval.jsonl")] for o in (out, whole)]
    assert points[0] == points[1]
    finals = [read(run_directory(o, "alpha:1.5", 0) / "final.json") for o in (out, whole)]
    assert finals[0]["summary"] == finals[1]["summary"]
    assert finals[0]["continuation"] == finals[1]["continuation"]


@pytest.mark.usefixtures("plain_report")
def test_a_trained_model_can_be_trained_on(tmp_path: Path, options: dict[str, str]) -> None:
    options = {**options, "--objectives": "kl"}
    assert invoke(options, tmp_path / "first").exit_code == 0
    trained = run_directory(tmp_path / "first", "kl", 0) / "model"
    again = {**options, "--model": str(trained), "--seeds": "2", "--steps": "2"}
    assert invoke(again, tmp_path / "second").exit_code == 0
    study = read(tmp_path / "second" / "study.json")
    assert study["config"]["model"]["source"] == str(trained)
    assert study["config"]["lr"] == 5e-5
    starts = [read(run_directory(tmp_path / "second", "kl", seed) / "start.json") for seed in (0, 1)]
    assert starts[0]["init_hash"] == starts[1]["init_hash"]
    assert starts[0]["data_hash"] != starts[1]["data_hash"]
    before = lines(tmp_path / "first", "kl", "eval.jsonl")[-1]["metrics"]
    assert lines(tmp_path / "second", "kl", "eval.jsonl")[0]["metrics"] == pytest.approx(before, rel=1e-6)


@pytest.mark.usefixtures("plain_report")
def test_another_study_is_refused_and_named(tmp_path: Path, options: dict[str, str]) -> None:
    out, options = tmp_path / "out", {**options, "--objectives": "kl", "--steps": "2"}
    assert invoke(options, out).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    line = refused(invoke({**options, "--steps": "3"}, out))
    assert "holds another study, with --steps 2 instead of 3" in line
    assert "--lr not given instead of 0.01" in refused(invoke({**options, "--lr": "0.01"}, out))
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    study = read(out / "study.json")
    study["config"]["lr"] = 1.0
    (out / "study.json").write_text(json.dumps(study))
    assert "was changed after the study began" in refused(invoke(options, out))
    (out / "study.json").write_text("{")
    assert "is damaged" in refused(invoke(options, out))


@pytest.mark.usefixtures("plain_report")
def test_runs_must_start_from_the_same_weights(tmp_path: Path, options: dict[str, str]) -> None:
    out, options = tmp_path / "out", {**options, "--steps": "2"}
    assert invoke(options, out).exit_code == 0
    (run_directory(out, "alpha:1.5", 0) / "done.json").unlink()
    start = run_directory(out, "kl", 0) / "start.json"
    start.write_text(json.dumps({**read(start), "init_hash": "0"}))
    assert "the initial weights of seed 0 differ from those that kl was trained with" in refused(invoke(options, out))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--objectives": "kl,foo"}, "--objectives foo: objective: got 'foo'; known: kl"),
        ({"--objectives": "tv"}, "has no operator or loss"),
        ({"--objectives": "alpha:nan"}, "alpha"),
        ({"--objectives": "kl,alpha:1"}, "names kl twice"),
        ({"--objectives": ""}, "has no name"),
        ({"--objectives": "kl,,js"}, "none between two commas"),
        ({"--objectives": "kl,gce:2"}, "--objectives gce:2: q: got 2"),
        ({"--objectives": "kl,focal:delta=2"}, "parameters: gamma"),
        ({"--objectives": "kl,entropy_penalty"}, "pass cross_entropy + entropy_penalty"),
        ({"--objectives": "kl,alpha:1.5 + mae"}, "predict with softargmax of alpha:1.5 and softmax"),
        ({"--objectives": "gce:0.5,comp_sum:1.5"}, "gce:0.5 and comp_sum:1.5 are one objective"),
        ({"--objectives": "kl,js:0.3,temperature=0"}, "temperature: got 0"),
        ({"--seeds": "0"}, "--seeds must be at least 1, got 0"),
        ({"--steps": "-1"}, "--steps must be at least 1"),
        ({"--lr": "nan"}, "--lr must be positive"),
        ({"--budget": "-3"}, "--budget must be a positive number"),
        ({"--context": "100"}, "longer than the model's 64 positions"),
        ({"--context": "1"}, "--context must be at least 2"),
        ({"--report-to": "nowhere"}, "--report-to nowhere is not available here"),
        ({"--data": "/nowhere/none.txt"}, "no such file"),
        ({"--data": "owner/none"}, "neither a path here nor a data set that could be loaded"),
        ({"--text-field": "body"}, "--text-field"),
        ({"--model": "/nowhere/none"}, "no such file or directory, and no preset"),
    ],
)
def test_bad_arguments_end_in_one_line_before_any_training(
    tmp_path: Path, options: dict[str, str], changed: dict[str, str], message: str
) -> None:
    if "--text-field" in changed:
        options["--data"] = str(Path(options["--data"]) / "file00.txt")
    out = tmp_path / "out"
    assert message in refused(invoke({**options, **changed}, out))
    assert not out.exists()


def test_directories_of_others_are_left_alone(tmp_path: Path, options: dict[str, str]) -> None:
    out = tmp_path / "mine"
    (out / "inputs").mkdir(parents=True)
    (out / "inputs" / "letter.txt").write_text("dear")
    assert "holds other files" in refused(invoke(options, out))
    assert [path.name for path in sorted(out.rglob("*"))] == ["inputs", "letter.txt"]
    assert "is a file" in refused(invoke(options, out / "inputs" / "letter.txt"))


@pytest.mark.usefixtures("plain_report")
def test_what_a_killed_set_up_left_is_cleared(tmp_path: Path, options: dict[str, str]) -> None:
    out = tmp_path / "out"
    (out / ".inputs.partial").mkdir(parents=True)
    (out / ".fenchel.lock").touch()
    assert invoke({**options, "--objectives": "kl", "--steps": "1"}, out).exit_code == 0
    assert (out / "study.json").is_file()
    assert not (out / ".inputs.partial").exists()


def test_a_directory_in_use_is_refused(tmp_path: Path, options: dict[str, str]) -> None:
    from fenchel.study.runs import locked

    with locked(tmp_path / "out"):
        assert "is in use by another run of fenchel" in refused(invoke(options, tmp_path / "out"))


def test_too_small_a_budget_names_one_that_is_enough(tmp_path: Path, options: dict[str, str]) -> None:
    del options["--steps"]
    line = refused(invoke({**options, "--budget": "0.1"}, tmp_path / "out"))
    assert re.search(r"--budget leaves 0 steps a run: pass --budget \d+\.\d or more", line)


def test_list_and_show(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["list"], env={"COLUMNS": "160"})
    assert listed.exit_code == 0
    assert all(name in listed.output for name in ("kl", "alpha:1.5", "js", "tv", "focal:gamma=2", "log_partition"))
    told = CliRunner().invoke(app, ["show", "focal:1 + 1e-4*log_partition"], env={"COLUMNS": "120"})
    assert told.exit_code == 0
    assert all(
        said in told.output for said in ("-(1 - p_y)^gamma log p_y", "arXiv 1708.02002", "(log sum_j exp z_j)^2")
    )
    shown = CliRunner().invoke(app, ["show", "alpha:2"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    assert "2 below" not in shown.output
    assert "more than 1 below" in shown.output.replace("\n", " ")
    for ending, head in ((".svg", b"<?xml"), (".png", b"\x89PNG"), (".html", b"<!doctype html>")):
        path = tmp_path / f"plot{ending}"
        assert CliRunner().invoke(app, ["show", "tv" if ending == ".svg" else "js", "--out", str(path)]).exit_code == 0
        assert path.read_bytes().startswith(head)
    assert "known: kl, reverse_kl" in refused(CliRunner().invoke(app, ["show", "foo"]))
    assert "pass a finite number >= 0" in refused(CliRunner().invoke(app, ["show", "focal:-1"]))
    assert "got 'x' where a number belongs" in refused(CliRunner().invoke(app, ["show", "alpha:x"]))
    assert "ends in .svg, .png, .html" in refused(
        CliRunner().invoke(app, ["show", "kl", "--out", str(tmp_path / "x.txt")])
    )


def test_a_size_that_does_not_fit_the_budget_gives_way_to_a_smaller_one(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timings(source: Any, *_: Any) -> dict[str, Timing]:
        return {"kl": Timing(step=60.0 if source.config.vocab_size > 1024 else 0.1, head=None, evaluation=0.1)}

    monkeypatch.setattr(begin.calibration, "calibrate", timings)
    written = io.StringIO()
    request = Request(objectives=("kl",), seeds=1, data=str(corpus))
    manifest = begin.begin(request, tmp_path, Console(file=written, width=200), time.perf_counter(), "")
    assert manifest["preset"] == "nano"
    assert manifest["config"]["vocab_size"] == 1024
    assert manifest["config"]["steps"] == 200
    assert manifest["calibration"]["seconds_per_step kl"] == 0.1
    assert re.search(r"size small does not fit: --budget leaves [34] steps a run", written.getvalue())
