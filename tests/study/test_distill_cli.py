"""`fenchel distill`: a study from start to report, continued after it was stopped, and what it refuses."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner, Result

from fenchel.cli import app
from fenchel.objectives.distillation import Mixture
from fenchel.objectives.names import split_names
from fenchel.study import distill_report, recorded, words
from fenchel.study.analysis import analyse
from fenchel.study.data import fit_tokenizer
from fenchel.study.distill_request import objective_of
from fenchel.study.errors import StudyError
from fenchel.study.progress import Display
from fenchel.study.record import load, run_directory

OBJECTIVES = ("labels", "kl", "dkd:alpha=1,beta=2")


def save_model(directory: Path, text: str, seed: int = 7, vocab_size: int = 300) -> Path:
    """A checkpoint that was never trained but has opinions, with a tokeniser fitted to a text."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    model.save_pretrained(directory)
    fit_tokenizer([text] * 4, 300).save_pretrained(directory)
    return directory


@pytest.fixture
def text(corpus: Path) -> str:
    return "".join(path.read_text() for path in sorted(corpus.iterdir()))


@pytest.fixture
def teacher(tmp_path: Path, text: str) -> Path:
    return save_model(tmp_path / "a-teacher", text)


@pytest.fixture
def options(corpus: Path, tiny: Path, teacher: Path) -> dict[str, str]:
    return {
        "--teacher": str(teacher),
        "--student": str(tiny),
        "--objectives": "kl",
        "--steps": "6",
        "--batch-size": "4",
        "--context": "16",
        "--data": str(corpus),
    }


@pytest.fixture
def plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have their own tests and take seconds."""
    monkeypatch.setattr(distill_report, "write", lambda out: out / "report.html")
    monkeypatch.setattr(distill_report, "table", lambda out: "")


def invoke(options: dict[str, str], out: Path) -> Result:
    words = (word for pair in options.items() for word in pair)
    return CliRunner().invoke(app, ["distill", *words, "--out", str(out)], env={"COLUMNS": "200"})


def done(options: dict[str, str], out: Path) -> Result:
    result = invoke(options, out)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output + repr(result.exception)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def lines(out: Path, objective: str, name: str = "train.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_directory(out, objective, 0) / name).read_text().splitlines()]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_study_from_start_to_report(
    tmp_path: Path, options: dict[str, str], teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "out", {**options, "--objectives": ",".join(OBJECTIVES), "--hard-weight": "0.1"}
    result = done(options, out)
    assert "student before" in result.output
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in OBJECTIVES)
    assert "Nearness to the teacher" in page
    assert not re.search(r'(src|href)="http', page)

    study, before = read(out / "study.json"), read(out / "before.json")
    assert study["config"]["teacher"]["source"] == str(teacher)
    assert study["config"]["hard_weight"] == 0.1
    finals = {name: read(run_directory(out, name, 0) / "final.json") for name in OBJECTIVES}
    for name, final in finals.items():
        assert [line["step"] for line in lines(out, name)] == list(range(1, 7))
        assert final["summary"].keys() >= {"teacher_kl", "agreement", "nll_softmax", "accuracy_1"}
        assert len(final["per_document"]["teacher_kl"]) == len(final["documents"])
    assert len({final["init_hash"] for final in finals.values()}) == 1
    analysis = analyse(load(out))
    by_loss = sorted(OBJECTIVES, key=lambda name: finals[name]["summary"]["nll_softmax"])
    assert len(distill_report.sentences(analysis, before)) == len(OBJECTIVES)
    monkeypatch.setattr(distill_report, "SENTENCES", 2)
    first, *few = distill_report.sentences(analysis, before)
    assert "the table has all of them" in first
    assert [
        line.startswith(distill_report.named(name)) for name, line in zip((by_loss[0], by_loss[-1]), few, strict=True)
    ] == [True, True]
    # a student that is taught comes nearer to its teacher than it was; one that is not does not learn of it
    assert finals["kl"]["summary"]["teacher_kl"] < before["student"]["teacher_kl"]
    assert finals["kl"]["summary"]["teacher_kl"] < finals["labels"]["summary"]["teacher_kl"]
    mean = sum(
        n * kl
        for n, kl in zip(
            finals["kl"]["per_document"]["tokens"], finals["kl"]["per_document"]["teacher_kl"], strict=True
        )
    ) / sum(finals["kl"]["per_document"]["tokens"])
    assert finals["kl"]["summary"]["teacher_kl"] == pytest.approx(mean, rel=1e-6)

    saved = run_directory(out, "kl", 0) / "model"
    model, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert model.config.num_hidden_layers == 1
    assert not any(info.values())
    assert AutoTokenizer.from_pretrained(saved).get_vocab() == AutoTokenizer.from_pretrained(teacher).get_vocab()

    monkeypatch.setattr(recorded, "train", lambda *_, **__: pytest.fail("a finished run was trained again"))
    assert "3 of 3 runs are finished already" in done(options, out).output


@pytest.mark.usefixtures("plain_report")
def test_without_a_teacher_one_is_trained_first(tmp_path: Path, corpus: Path, tiny: Path) -> None:
    out = tmp_path / "out"
    given = {"--data": str(corpus), "--steps": "2", "--budget": "1", "--batch-size": "2", "--context": "16"}
    given |= {"--teacher-generator": "alpha:1.5"}
    result = done({**given, "--objectives": "labels,js", "--student": str(tiny)}, out)
    assert result.output.index("teacher seed 0: loss") < result.output.index("js seed 0: loss")
    config = read(out / "study.json")["config"]
    assert (config["teacher"]["layers"], config["model"]["layers"]) == (4, 1)
    assert (config["teacher"]["vocab_size"], config["model"]["vocab_size"]) == (300, 300)
    assert config["teacher_steps"] == 4
    trained = run_directory(out / "teacher", "alpha:1.5", 0)
    assert len((trained / "train.jsonl").read_text().splitlines()) == 4
    final, before = read(trained / "final.json")["summary"], read(out / "before.json")["teacher"]
    for name in ("nll_softmax", "support_mean"):
        assert before[name] == pytest.approx(final[name], rel=1e-5)


class Stopped(Exception):
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, method: str, count: int) -> None:
    """Ends the command when the display is told of something for the count-th time."""
    own, heard = getattr(Display, method), []

    def tell(self: Display, *args: Any) -> None:
        own(self, *args)
        heard.append(args)
        if len(heard) == count:
            raise Stopped

    monkeypatch.setattr(Display, method, tell)


@pytest.mark.usefixtures("plain_report")
def test_a_stopped_run_goes_on_with_the_same_curve(
    tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**options, "--objectives": "js:0.3", "--on-policy": "0.5", "--temperature": "2"}
    with monkeypatch.context() as patch:
        stop_at(patch, "step", 4)
        assert isinstance(invoke(options, tmp_path / "stopped").exception, Stopped)
    assert not (run_directory(tmp_path / "stopped", "js:0.3", 0) / "done.json").exists()
    assert "js:0.3 seed 0: continues from step 3" in done(options, tmp_path / "stopped").output
    done(options, tmp_path / "whole")
    for name in ("loss", "lr", "step"):
        resumed = [line[name] for line in lines(tmp_path / "stopped", "js:0.3")]
        assert resumed == [line[name] for line in lines(tmp_path / "whole", "js:0.3")], name


@pytest.mark.usefixtures("plain_report")
def test_training_from_a_cache(tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    with_cache = {**options, "--cache": str(cache), "--cache-k": "300"}
    with monkeypatch.context() as patch:
        stop_at(patch, "reach", 2)
        assert isinstance(invoke(with_cache, tmp_path / "cached").exception, Stopped)
    result = done(with_cache, tmp_path / "cached")
    assert re.search(r"from the cache: \d+\.\d\d times as fast", result.output.replace("\n", " "))
    assert "hold 100.0 % of the teacher on average" in result.output.replace("\n", " ")
    timing = read(tmp_path / "cached" / "timing.json")
    assert timing["speedup"] == pytest.approx(
        timing["seconds_per_step"]["live"] / timing["seconds_per_step"]["cached"], rel=0.02
    )
    # with all classes kept it is the live teacher, up to half precision
    done(options, tmp_path / "live")
    losses = [[line["loss"] for line in lines(tmp_path / out, "kl")] for out in ("cached", "live")]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
    # another study of the same teacher and text reads the same cache
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    done({**with_cache, "--objectives": "labels,reverse_kl"}, tmp_path / "again")
    assert files == {path: path.stat().st_mtime_ns for path in cache.iterdir()}


def page_builder() -> Any:
    """docs/build_distilled.py, as a module."""
    path = Path(__file__).resolve().parents[2] / "docs" / "build_distilled.py"
    spec = importlib.util.spec_from_file_location("build_distilled", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sources_are_compared_in_one_study(tmp_path: Path, options: dict[str, str]) -> None:
    out = tmp_path / "out"
    options = {**options, "--objectives": "labels,kl", "--steps": "2", "--sources": "live,cache,on-policy"}
    options |= {"--budget": "1"}
    options = {**options, "--cache": str(tmp_path / "cache"), "--cache-k": "300", "--on-policy": "1"}
    result = done(options, out)
    arms = ["labels", "kl", "kl (cache)", "kl (on-policy)"]
    assert read(out / "study.json")["objectives"] == arms
    assert all(f"student ({name}): " in result.output for name in arms)
    first = {name: lines(out, name)[0]["loss"] for name in arms}
    # the same batches and, with all classes kept, the same teacher; other text
    assert first["kl (cache)"] == pytest.approx(first["kl"], rel=5e-3)
    assert abs(first["kl (on-policy)"] - first["kl"]) > 1e-3 * first["kl"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Where the student learns from" in page
    assert "the batches are what the student writes" in page
    assert re.search(r"The \d+ classes of a cached row hold 100\.0 % of the teacher on average, 100\.0 % or less", page)

    built = page_builder()
    numbers = json.loads(json.dumps(built.extract(out)))
    written = built.page(numbers)
    assert list(numbers["sources"]["teacher_kl"]) == ["kl"]
    value = read(run_directory(out, "kl (cache)", 0) / "final.json")["summary"]["teacher_kl"]
    assert numbers["sources"]["teacher_kl"]["kl"]["cache"]["value"] == value
    rows = [line for line in written.splitlines() if line.startswith("| `kl` |")]
    assert len(rows) == 1 + len(built.METRICS)
    assert words.number(value) in written
    assert read(out / "timing.json")["keeps"] in written

    (run_directory(out, "kl (cache)", 0) / "done.json").unlink()
    with pytest.raises(ValueError, match="1 runs are missing"):
        built.extract(out)


@pytest.mark.usefixtures("plain_report")
def test_the_whole_distribution_of_a_sparse_teacher_is_cached(tmp_path: Path, options: dict[str, str]) -> None:
    out, young = tmp_path / "out", "fenchel_young:alpha:1.5"
    options = {**options, "--teacher-generator": "alpha:1.5", "--objectives": young, "--steps": "2", "--budget": "1"}
    done({**options, "--cache": str(tmp_path / "cache"), "--sources": "live,cache"}, out)
    manifest = read(tmp_path / "cache" / "manifest.json")["contents"]["spec"]
    assert (manifest["k"], manifest["generator"]) == (None, "alpha:1.5")
    losses = [[line["loss"] for line in lines(out, name)] for name in (young, f"{young} (cache)")]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    final, before = read(run_directory(out, young, 0) / "final.json")["summary"], read(out / "before.json")
    # both predict with exact zeros, so a divergence that can be infinite says nothing
    assert before["teacher"]["support_mean"] < 300
    assert 0 < final["teacher_tv"] < 1
    assert read(out / "timing.json")["keeps"] == "every positive probability"


KILLED = """
import os, signal, sys
from fenchel.cli import app
from fenchel.study.progress import Display

method, left = sys.argv.pop(1), int(sys.argv.pop(1))
own = getattr(Display, method)

def tell(self, *args):
    global left
    own(self, *args)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

setattr(Display, method, tell)
app()
"""


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("plain_report")
def test_what_is_killed_goes_on_and_nothing_is_lost(tmp_path: Path, corpus: Path, tiny: Path) -> None:
    """SIGKILL in the teacher's training, while its cache is built, and in a student's training."""
    given = {"--data": str(corpus), "--steps": "2", "--budget": "1", "--batch-size": "2", "--context": "16"}
    given |= {"--student": str(tiny), "--objectives": "kl"}

    def called(name: str) -> list[str]:
        named = {**given, "--cache": str(tmp_path / f"{name}-cache"), "--out": str(tmp_path / name)}
        return ["distill", *(word for pair in named.items() for word in pair)]

    # the display hears of every step and of every piece of the cache, whose last the kill forestalls
    for method, count in (("step", 3), ("reach", 1), ("step", 1)):
        command = [sys.executable, "-c", KILLED, method, str(count), *called("killed")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=150)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    for name in ("killed", "whole"):
        result = CliRunner().invoke(app, called(name), env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output + repr(result.exception)
    for part in ("teacher", "."):
        where = [run_directory(tmp_path / name / part, "kl", 0) for name in ("killed", "whole")]
        killed, whole = ([json.loads(line) for line in (w / "train.jsonl").read_text().splitlines()] for w in where)
        for name in ("step", "loss", "lr"):
            assert [line[name] for line in killed] == [line[name] for line in whole], (part, name)
        finals = [read(w / "final.json") for w in where]
        assert finals[0]["summary"] == finals[1]["summary"]
    caches = [sorted((tmp_path / f"{name}-cache").glob("*.safetensors")) for name in ("killed", "whole")]
    assert [path.read_bytes() for path in caches[0]] == [path.read_bytes() for path in caches[1]]


@pytest.mark.usefixtures("plain_report")
def test_caches_of_something_else_are_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, str], text: str
) -> None:
    cache = tmp_path / "cache"
    options = {**options, "--cache": str(cache), "--cache-k": "4", "--steps": "1"}
    first = done(options, tmp_path / "first")
    # four classes of an untrained teacher are next to nothing
    assert read(tmp_path / "first" / "cache.json")["mean"] < 0.9
    assert "pass a larger --cache-k" in first.output.replace("\n", " ")
    out = tmp_path / "out"

    def line(**changed: str) -> str:
        said = refused(invoke({**options, **{f"--{k.replace('_', '-')}": v for k, v in changed.items()}}, out))
        assert not out.exists()
        return said

    other = save_model(tmp_path / "b-teacher", text, seed=8)
    assert "made of another teacher" in line(teacher=str(other))
    assert "made for other data" in line(context="12")
    assert "made differently: k 4, asked for 5" in line(cache_k="5")
    assert "the cache was made at" in line(objectives="kl:temperature=3", temperature="2")
    assert "made differently: temperature 1.0, asked for 2.0" in line(temperature="2")
    shard = next(cache.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-7])
    assert "truncated or replaced" in refused(invoke(options, tmp_path / "second"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--objectives": "kl,foo"}, "--objectives foo: objective: got 'foo'; known: kl"),
        ({"--objectives": "labels"}, "names no objective of a teacher"),
        ({"--objectives": "kl,kl"}, "names kl twice"),
        ({"--temperature": "0"}, "--temperature must be positive"),
        ({"--hard-weight": "-1"}, "--hard-weight must be a number from 0"),
        ({"--on-policy": "1.5"}, "--on-policy must be a share from 0 to 1"),
        ({"--on-policy": "0.5", "--cache": "c"}, "not of what a student writes"),
        ({"--objectives": "dkd", "--cache": "c"}, "needs the teacher's whole distribution"),
        ({"--objectives": "fenchel_young:kl", "--cache": "c"}, "needs the teacher's whole distribution"),
        ({"--sources": "live,disk"}, "--sources disk is unknown: pass some of live, cache, on-policy"),
        ({"--sources": "live,live"}, "--sources names live twice"),
        ({"--sources": "live,cache"}, "--sources cache needs --cache DIRECTORY"),
        ({"--sources": "live,on-policy"}, "--sources on-policy needs --on-policy with a share above 0"),
        ({"--sources": "live", "--cache": "c"}, "--cache is used by no source of --sources live: add cache"),
        (
            {"--sources": "live", "--on-policy": "1"},
            "--on-policy is used by no source of --sources live: add on-policy",
        ),
        ({"--teacher-generator": "foo"}, "--teacher-generator foo: unknown generator 'foo'"),
        ({"--teacher-generator": "tv"}, "--teacher-generator tv: generator 'tv' has no operator"),
        ({"--teacher-generator": "js", "--cache": "c"}, "--teacher-generator js has no zeros"),
        ({"--teacher-generator": "alpha:2", "--objectives": "dkd"}, "DKD needs a target, which a teacher with zeros"),
        ({"--teacher-generator": "alpha:2", "--temperature": "2"}, "no --temperature"),
        ({"--teacher-generator": "alpha:2", "--cache": "c", "--cache-k": "8"}, "holds every positive probability"),
        ({"--teacher": "/nowhere/none"}, "--teacher /nowhere/none: no such directory"),
        ({"--student": "/nowhere/none"}, "--student /nowhere/none: no such file or directory"),
        ({"--context": "100"}, "longer than the 64 positions of --teacher"),
        ({"--steps": "0"}, "--steps must be at least 1"),
        ({"--vocabulary": "400"}, "vocabulary: got 400; pass 1 to 300"),
        ({"--data": "/nowhere/none.txt"}, "no such file"),
    ],
)
def test_bad_arguments_end_in_one_line_before_any_training(
    tmp_path: Path, options: dict[str, str], changed: dict[str, str], message: str
) -> None:
    out = tmp_path / "out"
    assert message in refused(invoke({**options, **changed}, out))
    assert not out.exists()


def test_models_that_do_not_fit_together_are_refused(
    tmp_path: Path, options: dict[str, str], teacher: Path, text: str
) -> None:
    out = tmp_path / "out"
    other = save_model(tmp_path / "other-tokeniser", "entirely different words for this one")
    assert "the tokenisers of teacher and student differ" in refused(invoke({**options, "--student": str(other)}, out))
    wide = save_model(tmp_path / "wide", text, vocab_size=320)
    line = refused(invoke({**options, "--teacher": str(wide)}, out))
    assert "got a vocabulary of 320, the student's has 300" in line
    (teacher / "tokenizer.json").unlink()
    assert "--teacher" in refused(invoke(options, out))
    for path in teacher.glob("*.safetensors"):
        path.unlink()
    assert "is no directory of a trained checkpoint" in refused(invoke(options, out))
    assert not out.exists()


def test_names_of_objectives() -> None:
    assert split_names("kl") == ("kl",)
    assert split_names("kl + 0.5*reverse_kl, dkd:alpha=1, beta=8") == ("kl + 0.5*reverse_kl", "dkd:alpha=1,beta=8")
    made = objective_of("kl:temperature=3 + js", 2.0)
    assert isinstance(made, Mixture)
    assert [term.temperature for term in made.terms] == [3, 2]
    assert objective_of("dkd", 2.0).temperature == 2  # type: ignore[attr-defined]
    with pytest.raises(StudyError, match="--objectives none"):
        objective_of("none", 1.0)
