"""`fenchel train`: what it writes, how it goes on, in two processes, and what it says of bad input."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from fenchel.cli import app
from fenchel.study import single_trainer

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def options(corpus: Path, tiny: Path) -> dict[str, str]:
    return {
        "--objective": "alpha:1.5",
        "--data": str(corpus),
        "--model": str(tiny),
        "--steps": "6",
        "--batch-size": "4",
        "--context": "16",
        "--save-every": "2",
        "--lr": "0.01",
    }


def words(options: dict[str, str], out: Path) -> list[str]:
    return ["train", *(word for pair in options.items() for word in pair), "--out", str(out)]


def invoke(options: dict[str, str], out: Path) -> Result:
    return CliRunner().invoke(app, words(options, out))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


def state(out: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(out / "model", local_files_only=True).state_dict()


@pytest.mark.parametrize("objective", ["alpha:1.5", "gce:0.7 + 0.1*log_partition"])
def test_it_trains_and_transformers_opens_it(
    tmp_path: Path, options: dict[str, str], objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "out", []
    monkeypatch.setattr("fenchel.head.young.chosen", lambda backend, *_: bool(asked.append(backend)))
    result = invoke({**options, "--objective": objective, "--steps": "24", "--backend": "torch"}, out)
    assert result.exit_code == 0, result.output
    # a head with kernels, beside the one that checks the model
    assert ("torch" in asked) == (objective == "alpha:1.5")
    log = lines(out)
    assert [line["step"] for line in log] == [*range(1, 25), 24]
    assert log[-2]["loss"] < log[0]["loss"]
    assert log[-1]["heldout_loss"] < log[0]["loss"]
    tokenizer = AutoTokenizer.from_pretrained(out / "model", local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(out / "model", local_files_only=True)
    assert model(**tokenizer("return self", return_tensors="pt")).logits.shape[-1] == 300
    at = AutoModelForCausalLM.from_pretrained(out / "checkpoints" / "checkpoint-22", local_files_only=True)
    assert at.config.vocab_size == 300


def test_a_killed_training_goes_on_as_if_nothing_had_been(
    tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke(options, tmp_path / "whole").exit_code == 0
    step = single_trainer.Log.on_step_end

    def dies(self, args, state, control, **more):
        step(self, args, state, control, **more)
        if state.global_step == 5:
            raise KeyboardInterrupt

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(single_trainer.Log, "on_step_end", dies)
        result = invoke(options, out)
    assert result.exit_code == 130
    assert "the same command continues" in result.output
    result = invoke(options, out)
    assert result.exit_code == 0
    assert "continues from step 4" in result.output
    assert [line["step"] for line in lines(out)] == [line["step"] for line in lines(tmp_path / "whole")]
    torch.testing.assert_close(state(out), state(tmp_path / "whole"), rtol=0, atol=0)
    assert "holds another study, with --steps 6 instead of 7" in invoke({**options, "--steps": "7"}, out).output


def test_an_interrupt_ends_the_step_and_leaves_a_checkpoint(
    tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, out, handler = single_trainer.Log.on_step_end, tmp_path / "out", signal.getsignal(signal.SIGINT)

    def interrupted(self, args, state, control, **more):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, args, state, control, **more)

    monkeypatch.setattr(single_trainer.Log, "on_step_end", interrupted)
    result = invoke(options, out)
    assert result.exit_code == 130
    assert "the same command continues" in result.output
    assert (out / "checkpoints" / "checkpoint-3" / "complete").is_file()
    assert not (out / "model").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_preset_is_a_model(tmp_path: Path, options: dict[str, str]) -> None:
    out = tmp_path / "out"
    assert invoke({**options, "--model": "nano", "--steps": "1"}, out).exit_code == 0
    assert json.loads((out / "study.json").read_text())["config"]["model"]["hidden_size"] == 64


def test_two_processes_train_what_one_does_with_twice_the_batch(tmp_path: Path, options: dict[str, str]) -> None:
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fenchel"]
    done = subprocess.run(
        [*two, *words({**options, "--batch-size": "2"}, tmp_path / "two")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 1
    assert invoke(options, tmp_path / "one").exit_code == 0
    assert json.loads((tmp_path / "two" / "study.json").read_text())["config"]["processes"] == 2
    torch.testing.assert_close(state(tmp_path / "two"), state(tmp_path / "one"), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--objective": "foo"}, "--objective foo: objective: got 'foo'; known"),
        ({"--objective": "tv"}, "no operator or loss"),
        ({"--objective": "0.5*log_partition"}, "--objective 0.5*log_partition: a penalty alone learns no label"),
        ({"--objective": "gce:0.7,nope=1"}, "nope"),
        ({"--objective": "mae + margin", "--label-smoothing": "0.1"}, "label_smoothing"),
        ({"--backend": "gpu"}, "backend: got 'gpu'; pass one of 'auto', 'torch', 'triton'"),
        ({"--objective": "alpha:3", "--backend": "triton"}, "--backend triton: backend: got 'triton', but generator"),
        ({"--steps": "0"}, "--steps must be at least 1, got 0"),
        ({"--steps": "8", "--warmup": "9"}, "--warmup 9 is longer than the training: pass at most --steps 8"),
        ({"--warmup": "-1"}, "--warmup must be at least 0"),
        ({"--lr": "nan"}, "--lr must be positive"),
        ({"--weight-decay": "-1"}, "--weight-decay must be"),
        ({"--context": "100"}, "longer than the model's 64 positions"),
        ({"--data": "/nowhere/none.txt"}, "no such file"),
        ({"--model": "/nowhere/none"}, "no such file or directory, and no preset"),
        ({"--report-to": "nowhere"}, "--report-to nowhere is not available here"),
    ],
)
def test_bad_arguments_end_in_one_line(
    tmp_path: Path, options: dict[str, str], changed: dict[str, str], message: str
) -> None:
    out = tmp_path / "out"
    result = invoke({**options, **changed}, out)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not out.exists()
