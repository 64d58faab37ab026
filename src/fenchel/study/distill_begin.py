"""Everything before a distillation study's first step: teacher, student, data, checks, timing, the manifest."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fenchel.integrations.cached import cache_of
from fenchel.integrations.distillation import LiveTeacher, TeacherLoss, check_pair, check_tokenizers
from fenchel.integrations.losses import LabelLoss, TokenLoss
from fenchel.study import calibrate
from fenchel.study.arms import LABELS, ON_POLICY
from fenchel.study.begin import (
    REPORT,
    default_lr,
    device_here,
    first_that_fits,
    manifest_of,
    measuring,
    model_facts,
    sizes_for,
)
from fenchel.study.corpus import Document
from fenchel.study.data import (
    Data,
    TrainBlocks,
    Windows,
    every_block,
    heldout_windows,
    load_tokenizer,
    prepare,
    save_data,
    separator,
)
from fenchel.study.distill_request import DistillRequest, objective_of, predictor_of
from fenchel.study.errors import StudyError, one_line
from fenchel.study.evaluate import every
from fenchel.study.model import ModelSource, build, check_head, preset_config, read_model
from fenchel.study.presets import PRESETS, Preset, steps_within
from fenchel.study.recorded import CURVE_SHARE, EVALUATIONS
from fenchel.study.runs import MANIFEST, beginning, write_json
from fenchel.study.sources import read_documents
from fenchel.teachers.format import Spec, check_same, read_manifest

TEACHER_LAYERS = 4
STUDENT_LAYERS = 1
# Steps of a teacher that is trained here, for each step of a student.
TEACHER_STEPS = 2
# Seconds for a token of every sequence, written by a small student: what on-policy batches add is planned with this.
WRITING = 0.004


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, and the tokeniser of both; None where it is still to be fitted."""

    teacher: ModelSource
    student: ModelSource
    tokenizer: PreTrainedTokenizerBase | None


@dataclass(frozen=True)
class Plan:
    """A size that fits, with what was made and measured to find out."""

    size: Preset
    pair: Pair
    data: Data
    windows: Windows
    facts: dict[str, dict[str, Any]]
    steps: int
    measured: dict[str, Any]


def begin(request: DistillRequest, out: Path, console: Console, began: float, command: str) -> dict[str, Any]:
    """Plan a study and write what it needs to `out`, the manifest last; returns the manifest."""
    console.print("reading the text", highlight=False)
    text = read_documents(request.data, request.text_field)
    sizes = sizes_for(request.budget, request.teacher or request.steps, request.batch_size, request.context)
    plan = first_that_fits(sizes, lambda size: _plan(request, size, text, console, began), console)
    manifest = _manifest(request, plan, command)
    with beginning(out) as directory:
        save_data(plan.data, directory)
        for name, source in (("student", plan.pair.student), ("teacher", plan.pair.teacher)):
            (directory / name).mkdir()
            source.config.save_pretrained(directory / name)
    write_json(out / MANIFEST, manifest)
    return manifest


def read_pair(request: DistillRequest, size: Preset) -> Pair:
    """Both models of a request, and their tokeniser.

    Raises:
        StudyError: no such checkpoint, a teacher without weights or tokeniser, tokenisers or vocabularies that differ.
    """
    if request.teacher is None:
        if request.student is not None and Path(request.student).expanduser().is_dir():
            raise StudyError(f"--student {request.student} needs a --teacher of its tokeniser: pass one")
        student = _student(request, size, None, size.vocab_size)
        v = student.config.get_text_config().vocab_size
        made = preset_config(replace(size, layers=TEACHER_LAYERS, vocab_size=v))
        return Pair(ModelSource(made, option="--teacher"), student, None)
    teacher = read_model(request.teacher, size, "--teacher") if _is_path(request.teacher) else None
    if teacher is None or teacher.checkpoint is None:
        raise StudyError(
            f"--teacher {request.teacher} is no directory of a trained checkpoint: pass one, or leave it out"
        )
    tokenizer = load_tokenizer(teacher.checkpoint, "--teacher")
    student = _student(request, size, tokenizer, teacher.config.get_text_config().vocab_size)
    return Pair(teacher, student, tokenizer)


def _is_path(name: str) -> bool:
    path = Path(name).expanduser()
    if not path.exists():
        raise StudyError(f"--teacher {name}: no such directory")
    return path.is_dir()


def _student(
    request: DistillRequest, size: Preset, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int
) -> ModelSource:
    named = {candidate.name: candidate for candidate in PRESETS}
    if request.student is None or request.student in named:
        chosen = replace(size, layers=STUDENT_LAYERS) if request.student is None else named[request.student]
        config = preset_config(replace(chosen, vocab_size=vocab_size, context=size.context))
        if tokenizer is not None:
            config.eos_token_id = tokenizer.eos_token_id  # pyright: ignore[reportAttributeAccessIssue]
        return ModelSource(config, option="--student")
    student = read_model(request.student, size, "--student")
    if student.checkpoint is not None and tokenizer is not None:
        try:
            check_tokenizers(tokenizer, load_tokenizer(student.checkpoint, "--student"))
        except ValueError as error:
            raise StudyError(f"--student {request.student}: {one_line(error)}") from error
    return student


def _plan(
    request: DistillRequest, size: Preset, text: tuple[str, list[Document], bool], console: Console, began: float
) -> Plan:
    name, documents, truncated = text
    pair = read_pair(request, size)
    console.print("encoding the text" if pair.tokenizer else "fitting the tokeniser", highlight=False)
    most = (request.steps or size.steps) * size.batch_size * size.context
    data = prepare(
        documents,
        pair.tokenizer or pair.teacher.config.get_text_config().vocab_size,
        train_tokens=most * (1 if pair.tokenizer else TEACHER_STEPS),
        heldout_tokens=32 * size.heldout,
        name=name,
        truncated=truncated,
    )
    facts = _check(request, pair, data, size)
    _check_cache(request, pair, data, size)
    windows = heldout_windows(data.heldout, size.context, size.heldout, separator(data.tokenizer))
    if request.steps is not None:
        return Plan(size, pair, data, windows, facts, request.steps, {})
    steps, measured = _steps(request, pair, data, windows, size, console, began)
    return Plan(size, pair, data, windows, facts, steps, measured)


def _check(request: DistillRequest, pair: Pair, data: Data, size: Preset) -> dict[str, dict[str, Any]]:
    """Facts of both models, after the checks that would otherwise fail in the middle of a run."""
    teacher, student = build(pair.teacher, 0), build(pair.student, 0)
    blocks = TrainBlocks(data.train.ids, size.context, 0, 2)
    ids = torch.stack([blocks[0]["input_ids"], blocks[1]["input_ids"]])[:, :32]
    for model, source in ((teacher, pair.teacher), (student, pair.student)):
        config = model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None)
        if longest is not None and size.context > longest:
            raise StudyError(f"--context {size.context} is longer than the {longest} positions of {source.option}")
        if len(data.tokenizer) > config.vocab_size:
            raise StudyError(
                f"{source.option}: the tokeniser has {len(data.tokenizer)} entries, the model only {config.vocab_size}"
            )
        check_head(model, ids, source.option)
    try:
        check_pair(teacher, student, request.vocabulary, len(data.tokenizer))
    except ValueError as error:
        raise StudyError(f"--teacher and --student: {one_line(error)}") from error
    return {"teacher": model_facts(teacher, pair.teacher), "model": model_facts(student, pair.student)}


def _check_cache(request: DistillRequest, pair: Pair, data: Data, size: Preset) -> None:
    """Refuse a cache of something else before anything is written."""
    directory = None if request.cache is None else Path(request.cache).expanduser()
    if directory is None or not directory.is_dir() or not any(directory.iterdir()):
        return
    if request.teacher is None:
        raise StudyError(
            f"--cache {directory} is not empty, and the teacher is yet to be trained: pass a new directory"
        )
    teacher = build(pair.teacher, 0)
    spec = cache_spec(request, teacher, data, every_block(data.train.ids, size.context))
    check_same(directory, read_manifest(directory).spec, asdict(spec))


def cache_spec(request: DistillRequest, teacher: Any, data: Data, blocks: Tensor) -> Spec:
    """What the cache of a study's teacher is a cache of."""
    return cache_of(
        teacher,
        data.tokenizer,
        blocks,
        None if request.sparse else request.cache_k,
        temperature=request.temperature,
        vocabulary=request.vocabulary or teacher.config.get_text_config().vocab_size,
        generator=request.operator,
    )


def _steps(
    request: DistillRequest,
    pair: Pair,
    data: Data,
    windows: Windows,
    size: Preset,
    console: Console,
    began: float,
) -> tuple[int, dict[str, Any]]:
    """How many steps each student can take within the budget, and the timings that say so."""
    console.print("measuring how long a step takes on this machine", highlight=False)
    blocks = TrainBlocks(data.train.ids, size.context, 0, size.batch_size * calibrate.STEPS)
    device, curve = device_here(), every(windows, CURVE_SHARE)
    teacher = LiveTeacher(build(pair.teacher, 0, device), request.operator)
    losses: dict[str, tuple[TokenLoss, str]] = {
        name: (token_loss(name, teacher, request), predictor_of(name)) for name in request.objectives
    }
    timings = calibrate.calibrate(pair.student, blocks, size.batch_size, losses, curve, device)
    # what a cache saves is not counted on
    runs = [timings[arm.objective] for arm in request.arms for _ in range(request.seeds)]
    per_step = sum(timing.step for timing in runs)
    evaluations = EVALUATIONS + CURVE_SHARE
    fixed = sum(timing.evaluation * evaluations + calibrate.PER_RUN for timing in runs)
    record = calibrate.as_record(timings)
    if request.teacher is None:
        trained = {"teacher": (LabelLoss(request.operator), request.operator)}
        (own,) = calibrate.calibrate(pair.teacher, blocks, size.batch_size, trained, curve, device).values()
        per_step += TEACHER_STEPS * own.step
        fixed += own.evaluation * evaluations + calibrate.PER_RUN
        record["seconds_per_step teacher"] = round(own.step, 5)
    # tokens of a replaced batch are drawn one forward pass after another
    written = sum(arm.source == ON_POLICY for arm in request.arms) * request.seeds
    per_step += request.on_policy * written * WRITING * size.context
    said = ", ".join(f"{name} {timing.step:.3f} s" for name, timing in timings.items())
    console.print(f"a step takes: {said}", highlight=False, markup=False)
    left = request.budget * 60 - (time.perf_counter() - began) - REPORT
    return steps_within(left, per_step, fixed, size.steps), record


def token_loss(name: str, teacher: Any, request: DistillRequest) -> TokenLoss:
    """What an objective's name trains with."""
    if name == LABELS:
        return LabelLoss()
    objective = objective_of(name, request.temperature)
    return TeacherLoss(teacher, objective, request.vocabulary, request.hard_weight)


def _manifest(request: DistillRequest, plan: Plan, command: str) -> dict[str, Any]:
    lr = default_lr(plan.pair.student) if request.lr is None else request.lr
    config = {
        **plan.facts,
        "data": plan.data.facts,
        "steps": plan.steps,
        "teacher_steps": TEACHER_STEPS * plan.steps if request.teacher is None else 0,
        "batch_size": plan.size.batch_size,
        "context": plan.size.context,
        "vocab_size": plan.facts["model"]["vocab_size"],
        "lr": lr,
        "teacher_lr": default_lr(plan.pair.teacher),
        "temperature": request.temperature,
        "hard_weight": request.hard_weight,
        "arms": [asdict(arm) for arm in request.arms],
        "on_policy": request.on_policy,
        "teacher_generator": request.operator,
        "cache": None if request.cache is None else said_of_cache(request),
        **measuring(plan.size, plan.windows),
    }
    names = [arm.name for arm in request.arms]
    return manifest_of(request, names, config, plan.size.name, plan.measured, command)


def said_of_cache(request: DistillRequest) -> str:
    """What a row of the study's cache keeps."""
    return "every positive probability" if request.sparse else f"{request.cache_k} classes and the rest of each row"
