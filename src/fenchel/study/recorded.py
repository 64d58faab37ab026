"""One run of a study and its record on disk: started, resumed, evaluated, finished."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fenchel.integrations.hooks import head_of, last_hidden
from fenchel.integrations.losses import LabelLoss, TokenLoss
from fenchel.objectives.supervised import linear_supervised
from fenchel.study.data import IGNORED, Data, TrainBlocks, Windows, order_hash
from fenchel.study.evaluate import evaluate, every
from fenchel.study.memory import peak_bytes
from fenchel.study.model import ModelSource, build, check_head, state_hash
from fenchel.study.progress import Display
from fenchel.study.record import run_directory
from fenchel.study.runs import agree, append_line, keep_until, write_json
from fenchel.study.sample import continuation
from fenchel.study.train import Recipe, Rewrite, Step, last_checkpoint, train

EVALUATIONS = 8
# Points of the learning curve use every CURVE_SHARE-th held-out window; final figures use all of them.
CURVE_SHARE = 4
PROMPT_TOKENS = 32


@dataclass(frozen=True)
class Task:
    """What the objectives of a study mean.

    Attributes:
        loss: what an objective trains with.
        predicts: the supervised objective whose predictions are those of a trained model.
        measure: more numbers for the final record of a run, from its model, its training blocks and its objective; what it
            has under "summary" and "per_document" joins what is there.
        rows: batches say which rows of a teacher cache are theirs.
        rewrite: what makes other batches of those that an objective and a seed would be trained on.
    """

    loss: Callable[[str], TokenLoss]
    predicts: Callable[[str], str]
    measure: Callable[["Bench", Any, TrainBlocks, str], dict[str, Any]]
    rows: bool = False
    rewrite: Callable[[str, int], Rewrite | None] = lambda objective, seed: None


@dataclass(frozen=True)
class Bench:
    """All that the runs of a study have in common."""

    out: Path
    objectives: tuple[str, ...]
    source: ModelSource
    data: Data
    recipe: Recipe
    windows: Windows
    report_to: str
    device: str
    task: Task


def evaluation_steps(steps: int) -> set[int]:
    """Steps after which the held-out windows are evaluated, 0 and the last among them.

    >>> sorted(evaluation_steps(70))
    [0, 10, 20, 30, 40, 50, 60, 70]
    """
    return {round(i * steps / (EVALUATIONS - 1)) for i in range(EVALUATIONS)}


def finished(out: Path, objective: str, seed: int) -> bool:
    """Whether a run has been trained and recorded to its end."""
    return (run_directory(out, objective, seed) / "done.json").is_file()


def run(bench: Bench, objective: str, seed: int, display: Display) -> None:
    """Train one objective with one seed, from its last checkpoint if it has one, and write its record."""
    recipe, directory = bench.recipe, run_directory(bench.out, objective, seed)
    directory.mkdir(parents=True, exist_ok=True)
    model = build(bench.source, seed, bench.device)
    count = recipe.steps * recipe.batch_size
    blocks = TrainBlocks(bench.data.train.ids, recipe.context, seed, count, rows=bench.task.rows)
    check_head(model, _batch(blocks, 2, bench.device)[:, :32])
    facts = {"init_hash": state_hash(model), "data_hash": order_hash(blocks, recipe.batch_size)}
    agree(bench.out, list(bench.objectives), seed, facts)
    write_json(directory / "start.json", facts)

    checkpoints = directory / "checkpoints"
    found = last_checkpoint(checkpoints)
    done, resume = (0, None) if found is None else found
    for path in checkpoints.glob("*") if checkpoints.is_dir() else ():
        if path != resume:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    past = keep_until(directory / "train.jsonl", done)
    evaluated = {line["step"] for line in keep_until(directory / "eval.jsonl", done if resume else -1)}
    display.begin(objective, seed, done)
    display.skip(done)
    log = RunLog(bench, directory, objective, display, past)
    if 0 not in evaluated:
        log.evaluate(model, 0)
    train(
        model,
        blocks,
        recipe,
        bench.task.loss(objective),
        seed,
        checkpoints,
        lambda step: log.step(model, step),
        resume=resume,
        report_to=bench.report_to,
        name=f"{objective} seed {seed}",
        rewrite=bench.task.rewrite(objective, seed),
    )
    write_json(directory / "final.json", {**_final(bench, model, blocks, objective), **log.totals(), **facts})
    model.save_pretrained(directory / "model")
    bench.data.tokenizer.save_pretrained(directory / "model")
    write_json(directory / "done.json", {"finished": datetime.now(UTC).isoformat(timespec="seconds")})
    shutil.rmtree(checkpoints, ignore_errors=True)
    display.end(log.lines[-1]["loss"], log.totals()["tokens_per_second"])


class RunLog:
    """The growing part of a run's record: a line per step, a line per evaluation."""

    def __init__(
        self, bench: Bench, directory: Path, objective: str, display: Display, past: list[dict[str, Any]]
    ) -> None:
        self.bench, self.directory, self.objective, self.display = bench, directory, objective, display
        self.lines = past
        self.curve = every(bench.windows, CURVE_SHARE)
        self.evaluations = evaluation_steps(bench.recipe.steps)

    @property
    def seconds(self) -> float:
        """Training time so far, over interruptions."""
        return self.lines[-1]["seconds"] if self.lines else 0.0

    def step(self, model: Any, step: Step) -> None:
        """Record a step, and evaluate where the learning curve has a point."""
        seconds = self.seconds + step.seconds
        line = {
            "step": step.step,
            "loss": step.loss,
            "lr": step.lr,
            "seconds": seconds,
            "tokens": step.step * step.tokens,
            "head_seconds": step.head_seconds,
        }
        append_line(self.directory / "train.jsonl", line)
        self.lines.append(line)
        self.display.step(step.step, self.bench.recipe.steps, step.loss, line["tokens"] / seconds)
        if step.step in self.evaluations:
            self.evaluate(model, step.step)

    def evaluate(self, model: Any, step: int) -> None:
        """Record a point of the learning curve."""
        summary = evaluate(model, self.curve, self.bench.task.predicts(self.objective)).summary
        append_line(self.directory / "eval.jsonl", {"step": step, "seconds": self.seconds, "metrics": summary})

    def totals(self) -> dict[str, Any]:
        """Speed of the whole run."""
        heads = [line["head_seconds"] for line in self.lines]
        timed = all(seconds is not None for seconds in heads)
        return {
            "tokens_per_second": self.lines[-1]["tokens"] / self.seconds,
            "head_seconds_share": sum(heads) / self.seconds if timed else None,
        }


def _final(bench: Bench, model: Any, blocks: TrainBlocks, objective: str) -> dict[str, Any]:
    predicts = bench.task.predicts(objective)
    evaluation = evaluate(model, bench.windows, predicts)
    start = bench.windows.ids[0]
    prompt = start[bench.windows.labels[0] != IGNORED][:PROMPT_TOKENS]
    more = bench.task.measure(bench, model, blocks, objective)
    return {
        **more,
        "summary": {**evaluation.summary, **more.get("summary", {})},
        "per_document": {**evaluation.per_document, **more.get("per_document", {})},
        "documents": list(bench.windows.names),
        "reliability": evaluation.reliability,
        "continuation": continuation(model, bench.data.tokenizer, prompt, predicts),
    }


def head_memory(bench: Bench, model: Any, blocks: TrainBlocks, objective: str) -> dict[str, Any]:
    """The most memory that the head of an objective takes in a step."""
    ids = _batch(blocks, bench.recipe.batch_size, bench.device)
    with torch.no_grad():
        hidden = last_hidden(model, input_ids=ids)[:, :-1].flatten(0, 1)
    head = head_of(model)

    def loss(states: Tensor, weight: Tensor) -> Tensor:
        return linear_supervised(
            states, weight, ids[:, 1:].flatten(), objective, bias=head.bias, softcap=head.softcap, scale=head.scale
        )

    peak, method = peak_bytes(loss, hidden, head.weight)
    return {
        "head_peak_bytes": peak,
        "head_peak_method": method,
        "dense_logits_bytes": hidden.shape[0] * head.weight.shape[0] * 4,
    }


# What `fenchel compare` means by an objective.
LABELS = Task(LabelLoss, lambda objective: objective, head_memory)


def _batch(blocks: TrainBlocks, rows: int, device: str) -> Tensor:
    return torch.stack([blocks[i]["input_ids"] for i in range(min(rows, len(blocks)))]).to(device)
