"""How long a step of each objective takes on this machine, and so how many steps a budget allows."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fenchel.integrations.losses import TokenLoss, batch_loss
from fenchel.study.data import TrainBlocks, Windows
from fenchel.study.evaluate import evaluate
from fenchel.study.model import ModelSource, build
from fenchel.study.presets import PRESETS, head_share
from fenchel.study.train import HeadClock, Timed

# The first step also pays for allocations and lazy imports; the median of the others is the estimate.
STEPS = 4
# Per run, beyond steps and evaluations: Trainer's set-up, checkpoints, hashes, the sampled continuation.
PER_RUN = 2.0


@dataclass(frozen=True)
class Timing:
    """Seconds on this machine with this model."""

    step: float
    head: float | None
    evaluation: float


def calibrate(
    source: ModelSource,
    blocks: TrainBlocks,
    batch_size: int,
    losses: Mapping[str, tuple[TokenLoss, str]],
    windows: Windows,
    device: str,
) -> dict[str, Timing]:
    """Time a few training steps and one evaluation of every loss, each from the same initialisation.

    `losses` are (loss, supervised objective whose predictions are those of the model) by name.
    """
    return {name: _time(source, blocks, batch_size, *losses[name], windows, device) for name in losses}


def _time(
    source: ModelSource,
    blocks: TrainBlocks,
    batch_size: int,
    loss: TokenLoss,
    predicts: str,
    windows: Windows,
    device: str,
) -> Timing:
    model = build(source, 0, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    seconds, head = [], []
    for step in range(STEPS):
        items = [blocks[(step * batch_size + i) % len(blocks)] for i in range(batch_size)]
        batch = {name: torch.stack([item[name] for item in items]).to(device) for name in items[0]}
        clock = HeadClock()

        def one_step(batch: dict[str, torch.Tensor] = batch, clock: HeadClock = clock) -> None:
            batch_loss(Timed(loss, clock), model, model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()

        seconds.append(_timed(one_step))
        head.append(clock.seconds)
    measured = [value for value in head[1:] if value is not None]
    evaluation = _timed(lambda: evaluate(model, windows, predicts))
    return Timing(_median(seconds[1:]), _median(measured) if measured else None, evaluation)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def as_record(timings: dict[str, Timing]) -> dict[str, object]:
    """What study.json keeps of a calibration."""
    record: dict[str, object] = {}
    for name, timing in timings.items():
        record[f"seconds_per_step {name}"] = round(timing.step, 5)
        record[f"seconds_in_head {name}"] = None if timing.head is None else round(timing.head, 5)
        record[f"seconds_per_evaluation {name}"] = round(timing.evaluation, 4)
    return record


def sizes() -> list[dict[str, float | int]]:
    """Every preset with the share of a step's multiplications that its head takes, counted from its shapes."""
    return [
        {
            "budget": max(1.0, preset.minutes),
            "head_share": round(head_share(preset), 3),
            "vocab_size": preset.vocab_size,
            "hidden_size": preset.hidden_size,
        }
        for preset in PRESETS
    ]
