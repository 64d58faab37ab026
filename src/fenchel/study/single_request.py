"""What a user asks of `fenchel train`, checked before anything is read or written."""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fenchel.integrations.losses import LabelLoss
from fenchel.objectives.supervised import supervised_objective
from fenchel.study.errors import StudyError, one_line
from fenchel.study.objectives import check_learns
from fenchel.study.request import check_least, check_positive, check_report_to


@dataclass(frozen=True)
class TrainRequest:
    """What was asked for; None is "choose for me". A training is continued only by the request that began it."""

    objective: str = "kl"
    data: str | None = None
    text_field: str | None = None
    model: str | None = None
    steps: int = 200
    batch_size: int = 8
    accumulate: int = 1
    context: int = 128
    lr: float | None = None
    warmup: int | None = None
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    save_every: int | None = None
    seed: int = 0
    backend: str = "auto"

    def record(self) -> dict[str, Any]:
        """As it is kept in the manifest: paths absolute, so that the directory it was given in does not matter."""
        record = asdict(self)
        for name in ("data", "model"):
            value = record[name]
            if value is not None and Path(value).expanduser().exists():
                record[name] = str(Path(value).expanduser().resolve())
        return record


def checked(request: TrainRequest, report_to: str) -> TrainRequest:
    """The request with its defaults filled in; StudyError for anything unusable."""
    try:
        LabelLoss(request.objective, request.label_smoothing, request.backend)
    except (ValueError, TypeError) as error:
        raise StudyError(f"--objective {request.objective}: {one_line(error)}") from error
    check_learns("--objective", request.objective, supervised_objective(request.objective))
    check_least(
        ("--steps", request.steps, 1),
        ("--batch-size", request.batch_size, 1),
        ("--accumulate", request.accumulate, 1),
        ("--context", request.context, 2),
        ("--warmup", request.warmup, 0),
        ("--save-every", request.save_every, 1),
        ("--seed", request.seed, 0),
    )
    if request.warmup is not None and request.warmup > request.steps:
        raise StudyError(f"--warmup {request.warmup} is longer than the training: pass at most --steps {request.steps}")
    check_positive("--lr", request.lr)
    if not 0 <= request.weight_decay < math.inf:
        raise StudyError(f"--weight-decay must be a number >= 0, got {request.weight_decay:g}")
    check_report_to(report_to)
    return replace(
        request,
        warmup=request.steps // 10 if request.warmup is None else request.warmup,
        save_every=max(1, -(-request.steps // 8)) if request.save_every is None else request.save_every,
    )
