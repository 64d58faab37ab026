"""One run: a model trained with one loss by Hugging Face Trainer, through the fused head."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from fenchel.integrations.hooks import Head, NextStates
from fenchel.integrations.losses import TokenLoss
from fenchel.integrations.trainer import HeadTrainer
from fenchel.study.data import TrainBlocks
from fenchel.study.errors import StudyError, full_disk

# A checkpoint holds this file once it is whole: a run killed while writing one resumes from the one before.
COMPLETE = "complete"
CHECKPOINTS = 8


@dataclass(frozen=True)
class Recipe:
    """How every run of a study is trained: the same optimiser, schedule and batches for every objective.

    AdamW without weight decay and without gradient clipping, because clipping acts on the scale of the gradient, which
    differs between objectives; linear warm-up over a tenth of the steps, then a cosine to zero.
    """

    steps: int
    batch_size: int
    context: int
    lr: float

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""
        return max(1, -(-self.steps // CHECKPOINTS))


class HeadClock:
    """Seconds that the head took in the last step, forward and backward; None where launches are asynchronous."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._mark = 0.0

    def around(self, loss: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """loss(hidden), timed, with the time of its backward pass added when that has run."""
        if hidden.device.type != "cpu":
            return loss(hidden)
        start = time.perf_counter()
        value = loss(hidden)
        self.seconds = time.perf_counter() - start
        if value.requires_grad and hidden.requires_grad:
            value.register_hook(self._backward_begins)
            hidden.register_hook(self._backward_ends)
        return value

    def _backward_begins(self, _: Tensor) -> None:
        self._mark = time.perf_counter()

    def _backward_ends(self, _: Tensor) -> None:
        self.seconds = (self.seconds or 0.0) + time.perf_counter() - self._mark


@dataclass(frozen=True)
class Timed:
    """A loss whose time in the head is kept by a clock."""

    loss: TokenLoss
    clock: HeadClock

    def __call__(self, states: NextStates, head: Head, inputs: Mapping[str, Any]) -> Tensor:
        """The loss."""
        return self.clock.around(lambda hidden: self.loss(replace(states, hidden=hidden), head, inputs), states.hidden)


class Rewrite(Protocol):
    """What makes another batch of one before it is trained on, or gives it back: the student's own continuations."""

    def __call__(self, model: Any, inputs: dict[str, Any], step: int) -> dict[str, Any]:
        """The batch to train on at this step, the same however the run came there."""
        ...


class StudyTrainer(HeadTrainer):
    """The trainer of a run: it remembers the last loss, and marks checkpoints that are whole."""

    def __init__(
        self, token_loss: TokenLoss, clock: HeadClock, rewrite: Rewrite | None = None, **arguments: Any
    ) -> None:
        self.clock, self.rewrite = clock, rewrite
        self.last_loss: Tensor | None = None
        super().__init__(token_loss=Timed(token_loss, clock), **arguments)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean loss of the batch; kept for the log, which sees every step."""
        if self.rewrite is not None:
            inputs = self.rewrite(self.model, inputs, self.state.global_step)
        # one batch is one step: its tokens are those of the step, also where it was written anew
        loss = super().compute_loss(model, inputs)
        self.last_loss = loss.detach()
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with full_disk(Path(str(self.args.output_dir))):
            super()._save_checkpoint(model, trial)
            (checkpoint_path(Path(str(self.args.output_dir)), self.state.global_step) / COMPLETE).touch()


@dataclass(frozen=True)
class Step:
    """What is known after an optimiser step."""

    step: int
    loss: float
    lr: float
    seconds: float
    tokens: int
    head_seconds: float | None


class Stopwatch(TrainerCallback):
    """Reports every step, with the training time since the step before; evaluations and checkpoints are not counted."""

    def __init__(self, trainer: StudyTrainer, name: str, tokens: int, report: Callable[[Step], None]) -> None:
        self.trainer, self.name, self.tokens, self.report = trainer, name, tokens, report
        self.mark = time.perf_counter()
        self.lr = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The clock starts."""
        self.mark = time.perf_counter()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The rate of this step; at its end the scheduler has moved on to the next."""
        assert isinstance(self.trainer.optimizer, torch.optim.Optimizer)
        self.lr = float(self.trainer.optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The step is measured and reported."""
        assert self.trainer.last_loss is not None
        loss = float(self.trainer.last_loss)
        seconds = time.perf_counter() - self.mark
        if not abs(loss) < float("inf"):
            raise StudyError(f"the loss of {self.name} became {loss} at step {state.global_step}: pass a smaller --lr")
        self.report(Step(state.global_step, loss, self.lr, seconds, self.tokens, self.trainer.clock.seconds))
        self.mark = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint is written, which is not training."""
        self.mark = time.perf_counter()


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where Trainer writes the checkpoint of a step."""
    return directory / f"checkpoint-{step}"


def last_checkpoint(directory: Path) -> tuple[int, Path] | None:
    """(step, path) of the newest whole checkpoint."""
    whole = [path for path in directory.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    steps = sorted((int(path.name.rpartition("-")[2]), path) for path in whole)
    return steps[-1] if steps else None


def train(
    model: PreTrainedModel,
    blocks: TrainBlocks,
    recipe: Recipe,
    loss: TokenLoss,
    seed: int,
    directory: Path,
    report: Callable[[Step], None],
    *,
    resume: Path | None = None,
    report_to: str = "none",
    name: str = "",
    rewrite: Rewrite | None = None,
) -> None:
    """Train `model` in place for `recipe.steps` steps, with checkpoints in `directory`; `report` hears of every step.

    `name` is what errors and other logs call the run; `rewrite` sees every batch first.

    Raises StudyError when the loss is no longer finite or the disk is full.
    """
    arguments = TrainingArguments(
        output_dir=str(directory),
        run_name=name,
        seed=seed,
        data_seed=seed,
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=1,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        learning_rate=recipe.lr,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.steps // 10,
        weight_decay=0.0,
        max_grad_norm=0.0,
        optim="adamw_torch",
        save_strategy="steps",
        save_steps=recipe.checkpoint_every,
        save_total_limit=2,
        logging_strategy="no" if report_to == "none" else "steps",
        logging_steps=10,
        report_to=[] if report_to == "none" else [report_to],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )
    # More than one GPU in one process would make Trainer use DataParallel, which splits batches and the head's rows.
    arguments._n_gpu = min(1, arguments.n_gpu)
    trainer = StudyTrainer(loss, HeadClock(), rewrite, model=model, args=arguments, train_dataset=blocks)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Stopwatch(trainer, name, recipe.batch_size * recipe.context, report))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
