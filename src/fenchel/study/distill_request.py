"""What a user asks of `fenchel distill`, checked before anything is read or written."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fenchel.generators import generator
from fenchel.objectives.distillation import (
    FenchelYoung,
    Mixture,
    RowObjective,
    TeacherOperator,
    distillation_objective,
)
from fenchel.study.arms import CACHE, LABELS, LIVE, ON_POLICY, SOURCES, Arm, arms_of
from fenchel.study.errors import StudyError, one_line
from fenchel.study.presets import preset_for
from fenchel.study.request import check_least, check_positive, check_report_to

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
    teacher_generator: str | None = None
    student: str | None = None
    vocabulary: int | None = None
    temperature: float = 1.0
    hard_weight: float = 0.0
    sources: tuple[str, ...] | None = None
    on_policy: float = 0.0
    cache: str | None = None
    cache_k: int = 64
    steps: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    context: int | None = None

    @property
    def operator(self) -> str:
        """The generator whose softargmax the teacher's probabilities are."""
        return "kl" if self.teacher_generator is None else self.teacher_generator

    @property
    def sparse(self) -> bool:
        """Whether the teacher's probabilities have exact zeros, so that a cache holds all of them."""
        return generator(self.operator).sparse

    @property
    def arms(self) -> tuple[Arm, ...]:
        """What the study compares: the objectives from the sources, or from the one that the other options imply."""
        implied = CACHE if self.cache is not None else ON_POLICY if self.on_policy > 0 else LIVE
        return arms_of(self.objectives, (implied,) if self.sources is None else self.sources)

    def record(self) -> dict[str, Any]:
        """As it is kept in the manifest: paths absolute, so that the directory it was given in does not matter."""
        sources = None if self.sources is None else list(self.sources)
        record = {**asdict(self), "objectives": list(self.objectives), "sources": sources}
        for name in ("data", "teacher", "student"):
            value = record[name]
            if value is not None and Path(value).expanduser().exists():
                record[name] = str(Path(value).expanduser().resolve())
        if self.cache is not None:
            record["cache"] = str(Path(self.cache).expanduser().resolve())
        return record


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


def predictor_of(name: str) -> str:
    """The generator whose softargmax the predictions of a student of this objective are."""
    made = None if name == LABELS else distillation_objective(name)
    return generator(made.generator).name if isinstance(made, FenchelYoung) else "kl"


def checked(request: DistillRequest, report_to: str) -> DistillRequest:
    """The request, its numbers and names fit to be used; StudyError for anything that is not."""
    names = request.objectives
    check_positive("--temperature", request.temperature)
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
    check_positive("--lr", request.lr)
    _check_operator(request)
    _check_sources(request)
    if request.cache is not None:
        _check_cache(request)
    preset_for(request.budget)
    check_report_to(report_to)
    return request


def _check_operator(request: DistillRequest) -> None:
    """StudyError for a teacher's generator that is unknown, or that the other options do not go with."""
    name = request.teacher_generator
    if name is None:
        return
    try:
        made = generator(name)
        for objective in set(request.objectives) - {LABELS}:
            TeacherOperator(objective_of(objective, request.temperature), made)
    except (ValueError, TypeError) as error:
        raise StudyError(f"--teacher-generator {name}: {one_line(error)}") from error
    if request.temperature != 1:
        raise StudyError("--teacher-generator says what the teacher's probabilities are: no --temperature")
    if request.cache is not None and name != "kl" and not made.sparse:
        raise StudyError(
            f"--teacher-generator {name} has no zeros, so no cache holds its distribution: pass no --cache, "
            "or a sparse one, such as alpha:1.5"
        )
    if made.sparse and request.cache is not None and request.cache_k != DistillRequest.cache_k:
        raise StudyError(f"--cache-k: a cache of {name} holds every positive probability; leave it out")


def _check_sources(request: DistillRequest) -> None:
    """StudyError for a source that is unknown or lacks what it needs, and for an option that no source uses."""
    cached, written, sources = request.cache is not None, request.on_policy > 0, request.sources
    if sources is None:
        if cached and written:
            raise StudyError(
                "--cache holds what the teacher says of the data, not of what a student writes: pass no --on-policy, "
                f"or compare the two with --sources {CACHE},{ON_POLICY}"
            )
        return
    for source in sources:
        if source not in SOURCES:
            raise StudyError(f"--sources {source} is unknown: pass some of {', '.join(SOURCES)}")
        if sources.count(source) > 1:
            raise StudyError(f"--sources names {source} twice")
    for source, given, option in (
        (CACHE, cached, "--cache DIRECTORY"),
        (ON_POLICY, written, "--on-policy with a share above 0"),
    ):
        if source in sources and not given:
            raise StudyError(f"--sources {source} needs {option}")
        if given and source not in sources:
            raise StudyError(f"{option.split()[0]} is used by no source of --sources {','.join(sources)}: add {source}")


def _check_cache(request: DistillRequest) -> None:
    from fenchel.integrations.cached import check_cacheable

    if Path(str(request.cache)).expanduser().is_file():
        raise StudyError(f"--cache {request.cache} is a file: pass a directory")
    for name in request.objectives:
        if name != LABELS:
            try:
                objective = objective_of(name, request.temperature)
                check_cacheable(objective, request.temperature, sparse=request.sparse)
            except ValueError as error:
                raise StudyError(f"--cache with --objectives {name}: {one_line(error)}") from error
