"""What a user asks of `fenchel distill`, checked before anything is read or written."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fenchel.objectives.distillation import Mixture, RowObjective, distillation_objective
from fenchel.study.errors import StudyError, one_line
from fenchel.study.presets import preset_for
from fenchel.study.request import check_least, check_report_to

# Training on labels alone, with no teacher: what distillation is compared with.
LABELS = "labels"
OBJECTIVES = (LABELS, "kl", "js")


@dataclass(frozen=True)
class DistillRequest:
    """What was asked for; None is "choose for me". A study is continued only by the request that began it."""

    objectives: tuple[str, ...] = OBJECTIVES
    seeds: int = 1
    budget: float = 5.0
    data: str | None = None
    text_field: str | None = None
    teacher: str | None = None
    student: str | None = None
    vocabulary: int | None = None
    temperature: float = 1.0
    hard_weight: float = 0.0
    on_policy: float = 0.0
    cache: str | None = None
    cache_k: int = 64
    steps: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    context: int | None = None

    def record(self) -> dict[str, Any]:
        """As it is kept in the manifest: paths absolute, so that the directory it was given in does not matter."""
        record = {**asdict(self), "objectives": list(self.objectives)}
        for name in ("data", "teacher", "student"):
            value = record[name]
            if value is not None and Path(value).expanduser().exists():
                record[name] = str(Path(value).expanduser().resolve())
        if self.cache is not None:
            record["cache"] = str(Path(self.cache).expanduser().resolve())
        return record


def split_names(text: str) -> tuple[str, ...]:
    """Names of objectives separated by commas, some of which separate the parameters of one.

    >>> split_names("kl, dkd:alpha=1,beta=8, js:0.3, renyi:2,temperature=3")
    ('kl', 'dkd:alpha=1,beta=8', 'js:0.3', 'renyi:2,temperature=3')
    """
    names: list[str] = []
    for piece in text.split(","):
        parameter = "=" in piece.partition(":")[0] or _is_value(piece)
        if names and parameter:
            names[-1] += "," + piece.strip()
        else:
            names.append(piece.strip())
    return tuple(names)


def _is_value(piece: str) -> bool:
    try:
        float(piece)
    except ValueError:
        return piece.strip() in ("true", "false")
    return True


def objective_of(name: str, temperature: float) -> RowObjective:
    """The objective with a name, at a temperature where it names none itself.

    Raises:
        StudyError: an unknown name, or an objective without a temperature where one is asked for.
    """
    try:
        made = distillation_objective(name)
        if temperature == 1:
            return made
        if isinstance(made, Mixture):
            terms = [t if t.temperature != 1 else replace(t, temperature=temperature) for t in made.terms]
            return Mixture(tuple(terms))
        own: Any = made
        if "temperature" not in {field.name for field in fields(own)}:
            raise StudyError(f"--temperature {temperature:g}: {name} has none; leave it out, or the objective")
        return made if own.temperature != 1 else replace(own, temperature=temperature)
    except (ValueError, TypeError) as error:
        raise StudyError(f"--objectives {name}: {one_line(error)}") from error


def checked(request: DistillRequest, report_to: str) -> DistillRequest:
    """The request, its numbers and names fit to be used; StudyError for anything that is not."""
    names = request.objectives
    if not 0 < request.temperature < float("inf"):
        raise StudyError(f"--temperature must be positive, got {request.temperature:g}")
    if not 0 <= request.hard_weight < float("inf"):
        raise StudyError(f"--hard-weight must be a number from 0, got {request.hard_weight:g}")
    if not 0 <= request.on_policy <= 1:
        raise StudyError(f"--on-policy must be a share from 0 to 1, got {request.on_policy:g}")
    for name in names:
        if name != LABELS:
            objective_of(name, request.temperature)
        if names.count(name) > 1:
            raise StudyError(f"--objectives names {name} twice")
    if not set(names) - {LABELS}:
        raise StudyError(f"--objectives names no objective of a teacher, only {LABELS}: pass one, such as kl")
    check_least(
        ("--seeds", request.seeds, 1),
        ("--steps", request.steps, 1),
        ("--batch-size", request.batch_size, 1),
        ("--context", request.context, 4),
        ("--cache-k", request.cache_k, 1),
        ("--vocabulary", request.vocabulary, 1),
    )
    if request.lr is not None and not 0 < request.lr < float("inf"):
        raise StudyError(f"--lr must be positive, got {request.lr:g}")
    if request.cache is not None:
        _check_cache(request)
    preset_for(request.budget)
    check_report_to(report_to)
    return request


def _check_cache(request: DistillRequest) -> None:
    from fenchel.integrations.cached import check_cacheable

    if request.on_policy > 0:
        raise StudyError(
            "--cache holds what the teacher says of the data, not of what a student writes: no --on-policy"
        )
    if Path(str(request.cache)).expanduser().is_file():
        raise StudyError(f"--cache {request.cache} is a file: pass a directory")
    for name in request.objectives:
        if name != LABELS:
            try:
                check_cacheable(objective_of(name, request.temperature), request.temperature)
            except ValueError as error:
                raise StudyError(f"--cache with --objectives {name}: {one_line(error)}") from error
