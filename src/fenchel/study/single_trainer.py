"""The trainer of `fenchel train`: whole checkpoints, a log, and an end that an interrupt can ask for."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments

from fenchel.integrations.trainer import FenchelTrainer
from fenchel.study.errors import StudyError
from fenchel.study.progress import Display
from fenchel.study.runs import append_line
from fenchel.study.train import COMPLETE, checkpoint_path


class MarkedTrainer(FenchelTrainer):
    """Marks checkpoints that are whole: a training killed while writing one goes on from the one before."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        # every process writes the state of its own random numbers
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            (checkpoint_path(Path(str(self.args.output_dir)), self.state.global_step) / COMPLETE).touch()


class Log(TrainerCallback):
    """Writes the log, shows progress, and ends the training when it is interrupted or its loss is no number."""

    def __init__(self, path: Path, display: Display, tokens: int, stop: list[int], writes: bool) -> None:
        self.path, self.display, self.tokens, self.stop, self.writes = path, display, tokens, stop, writes
        self.loss, self.rate = math.nan, 0.0
        self.began, self.steps = 0.0, 0

    def on_train_begin(self, args: Arguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The clock starts."""
        self.began, self.steps = time.perf_counter(), state.global_step

    def on_step_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The bar moves; an interrupt ends the training with a checkpoint."""
        self.rate = (state.global_step - self.steps) * self.tokens / (time.perf_counter() - self.began)
        self.display.step(state.global_step, state.max_steps, self.loss, self.rate)
        if self.stop:
            control.should_save = control.should_training_stop = True

    def on_log(
        self,
        args: Arguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """A line: step, mean loss since the line before, rate, seconds."""
        if not logs or "loss" not in logs:
            return
        self.loss = float(logs["loss"])
        if not math.isfinite(self.loss):
            raise StudyError(f"the loss became {self.loss} by step {state.global_step}: pass a smaller --lr")
        if self.writes:
            line = {"step": state.global_step, "loss": self.loss, "lr": logs["learning_rate"]}
            append_line(self.path, {**line, "tokens_per_second": round(self.rate, 1)})


@contextmanager
def interruptible(arguments: Arguments) -> Iterator[list[int]]:
    """Signals that have come; a second one ends the process at once.

    With several processes an interrupt ends each where it is, since one that stopped alone would leave the others waiting.
    """
    came: list[int] = []
    if arguments.world_size > 1:
        yield came
        return

    def note(number: int, _: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
