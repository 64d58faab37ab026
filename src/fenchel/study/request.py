"""What a user asks of a study, checked before anything is read or written."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import get_available_reporting_integrations

from fenchel.study.errors import StudyError
from fenchel.study.objectives import checked_objectives
from fenchel.study.presets import preset_for

OBJECTIVES = ("kl", "alpha:1.5", "alpha:2", "js")
SEEDS = 3
BUDGET = 5.0


@dataclass(frozen=True)
class Request:
    """What was asked for; None is "choose for me". A study is continued only by the request that began it."""

    objectives: tuple[str, ...] = OBJECTIVES
    seeds: int = SEEDS
    budget: float = BUDGET
    data: str | None = None
    text_field: str | None = None
    model: str | None = None
    steps: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    context: int | None = None

    def record(self) -> dict[str, Any]:
        """As it is kept in the manifest: paths absolute, so that the directory it was given in does not matter."""
        record = {**asdict(self), "objectives": list(self.objectives)}
        for name in ("data", "model"):
            value = record[name]
            if value is not None and Path(value).expanduser().exists():
                record[name] = str(Path(value).expanduser().resolve())
        return record


def checked(request: Request, report_to: str) -> Request:
    """The request with the names that its objectives are recorded by; StudyError for anything unusable."""
    names = checked_objectives(request.objectives)
    check_least(
        ("--seeds", request.seeds, 1),
        ("--steps", request.steps, 1),
        ("--batch-size", request.batch_size, 1),
        ("--context", request.context, 2),
    )
    check_positive("--lr", request.lr)
    preset_for(request.budget)
    check_report_to(report_to)
    return replace(request, objectives=names)


def check_least(*given: tuple[str, int | None, int]) -> None:
    """StudyError for the first (option, value, least) whose value is less than it may be."""
    for option, value, least in given:
        if value is not None and value < least:
            raise StudyError(f"{option} must be at least {least}, got {value}")


def check_positive(option: str, value: float | None) -> None:
    """StudyError for a number that is not positive and finite."""
    if value is not None and not 0 < value < float("inf"):
        raise StudyError(f"{option} must be positive, got {value:g}")


def check_report_to(report_to: str) -> None:
    """StudyError for a place to report to that is not installed."""
    known = get_available_reporting_integrations()
    if report_to != "none" and report_to not in known:
        installed = ", ".join(known) or "none is installed"
        raise StudyError(
            f"--report-to {report_to} is not available here: pass none or one of those installed ({installed})"
        )
