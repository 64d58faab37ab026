"""`fenchel distill`: a teacher, a student, several objectives between them, one record."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from fenchel.integrations.cached import CachedTeacher, write_cache
from fenchel.integrations.distillation import LiveTeacher, Teacher
from fenchel.integrations.losses import TokenLoss, batch_loss
from fenchel.integrations.on_policy import OnPolicy
from fenchel.study.arms import CACHE, LIVE, ON_POLICY
from fenchel.study.data import Data, TrainBlocks, Windows, every_block, heldout_windows, load_data, separator
from fenchel.study.distill_begin import begin, cache_spec, said_of_cache, token_loss
from fenchel.study.distill_cache import held, said_of_held
from fenchel.study.distill_request import DistillRequest, checked, predictor_of
from fenchel.study.errors import StudyError, full_disk, one_line
from fenchel.study.evaluate import evaluate
from fenchel.study.fidelity import fidelity
from fenchel.study.model import ModelSource, build, read_model
from fenchel.study.presets import preset
from fenchel.study.progress import Display
from fenchel.study.record import run_directory
from fenchel.study.recorded import LABELS as TRAINED_ON_LABELS
from fenchel.study.recorded import Bench, Task, finished, run
from fenchel.study.runs import INPUTS, existing, locked, write_json
from fenchel.study.train import Recipe
from fenchel.teachers.cache import Cache, open_cache
from fenchel.teachers.format import CacheError

TEACHER = "teacher"
# How well the teacher and the untrained student do, what the teacher's cache holds, and how long a step takes with the teacher and with its cache.
BEFORE, HELD, TIMING = "before.json", "cache.json", "timing.json"
TIMED_STEPS = 8


def distill(
    request: DistillRequest, out: Path, *, report_to: str = "none", console: Console | None = None, command: str = ""
) -> Path:
    """Begin or continue the study in `out`; returns the path of its report.

    Raises:
        StudyError: bad arguments, data, models or a cache of something else, an `out` that holds something else, a loss
            that is no longer finite, a full disk. Nothing is trained then, or what was trained is kept and continued by
            the same call.
    """
    from fenchel.study import distill_report

    console = Console(quiet=True) if console is None else console
    # One progress bar is enough, and it is ours.
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    began = time.perf_counter()
    request = checked(request, report_to)
    with locked(out) as ours, full_disk(out), _cache_errors():
        manifest = existing(out, request.record(), ours=ours)
        if manifest is None:
            manifest = begin(request, out, console, began, command)
        bench = _bench(out, manifest, report_to)
        _describe(manifest, out, console)
        model = _teacher(bench, request, manifest, console)
        teachers = _teachers(bench, request, model, console)
        if not (out / BEFORE).is_file():
            write_json(out / BEFORE, _before(bench, request, model))
        if CACHE in teachers and not (out / TIMING).is_file():
            write_json(out / TIMING, _timing(bench, request, teachers[LIVE], teachers[CACHE]))
        if (out / TIMING).is_file():
            console.print(said_of_timing(json.loads((out / TIMING).read_text())), highlight=False)
        _train(replace(bench, task=_task(request, model, teachers, bench.windows)), manifest, console)
        return distill_report.write(out)


@contextmanager
def _cache_errors() -> Iterator[None]:
    try:
        yield
    except CacheError as error:
        raise StudyError(f"--cache {one_line(error)}") from error


def _bench(out: Path, manifest: dict[str, Any], report_to: str) -> Bench:
    """What the students' runs need, from what is written: a study goes on with what it began with."""
    config, data = manifest["config"], load_data(out / INPUTS)
    if config["device"] == "cuda" and not torch.cuda.is_available():
        raise StudyError(f"the study in {out} began on a GPU and there is none here: pass another --out")
    recipe = Recipe(config["steps"], config["batch_size"], config["context"], config["lr"])
    return Bench(
        out,
        tuple(manifest["objectives"]),
        _kept(out, manifest, "student", config["model"]),
        data,
        recipe,
        _windows(data, manifest),
        report_to,
        config["device"],
        TRAINED_ON_LABELS,
    )


def _windows(data: Data, manifest: dict[str, Any]) -> Windows:
    config = manifest["config"]
    return heldout_windows(data.heldout, config["context"], config["heldout_most"], separator(data.tokenizer))


def _kept(out: Path, manifest: dict[str, Any], name: str, facts: dict[str, Any]) -> ModelSource:
    """A model of the study: a checkpoint's weights stay where they are, a configuration is read from the copy."""
    size, option = preset(manifest["preset"]), f"--{name}"
    given = Path(facts["source"])
    if not given.is_absolute():
        return read_model(str(out / INPUTS / name), size, option)
    if not given.is_dir():
        raise StudyError(f"{option} {given} is gone: put it back, or pass another --out")
    return read_model(str(given), size, option)


def _teacher(bench: Bench, request: DistillRequest, manifest: dict[str, Any], console: Console) -> Any:
    """The teacher, trained here first if none was given."""
    config = manifest["config"]
    source = _kept(bench.out, manifest, TEACHER, config[TEACHER])
    if request.teacher is not None:
        return build(source, 0, bench.device).eval()
    recipe = replace(bench.recipe, steps=config["teacher_steps"], lr=config["teacher_lr"])
    trained_with = request.operator
    own = replace(bench, out=bench.out / TEACHER, objectives=(trained_with,), source=source, recipe=recipe)
    if not finished(own.out, trained_with, 0):
        with Display(console, recipe.steps, 0, lambda _: "teacher") as display:
            run(own, trained_with, 0, display)
    trained = run_directory(own.out, trained_with, 0) / "model"
    return build(read_model(str(trained), preset(manifest["preset"]), "--teacher"), 0, bench.device).eval()


def _teachers(bench: Bench, request: DistillRequest, model: Any, console: Console) -> dict[str, Teacher]:
    """What the students of each source learn from: the teacher, or its cache, which is built if need be."""
    live = LiveTeacher(model, request.operator)
    teachers: dict[str, Teacher] = {LIVE: live, ON_POLICY: live}
    if request.cache is not None:
        teachers[CACHE] = CachedTeacher(_cache(bench, request, model, console))
    return teachers


def _cache(bench: Bench, request: DistillRequest, model: Any, console: Console) -> Cache:
    directory = Path(str(request.cache)).expanduser()
    blocks = every_block(bench.data.train.ids, bench.recipe.context)
    spec = cache_spec(request, model, bench.data, blocks)
    start = time.perf_counter()
    with Display(console, spec.tokens, 0, unit="tokens") as display:
        write_cache(directory, spec, model, blocks, progress=lambda rows: display.reach("cache", rows))
    cache = open_cache(directory, teacher=spec.teacher, data=spec.data, tokenizer=spec.tokenizer, tokens=spec.tokens)
    found, dense = held(cache), 2 * spec.vocabulary
    console.print(
        f"cache: {len(cache):,} tokens, {cache.bytes_per_token:.0f} bytes a token (dense float16: {dense:,}), "
        f"ready in {time.perf_counter() - start:.1f} s",
        highlight=False,
    )
    if found is not None:
        write_json(bench.out / HELD, asdict(found))
        console.print(said_of_held(found), highlight=False)
    return cache


def _task(request: DistillRequest, model: Any, teachers: Mapping[str, Teacher], windows: Windows) -> Task:
    arms = {arm.name: arm for arm in request.arms}

    def measure(bench: Bench, student: Any, blocks: TrainBlocks, name: str) -> dict[str, Any]:
        generators = request.operator, predictor_of(arms[name].objective)
        return fidelity(model, student, windows, request.vocabulary, generators)

    def rewrite(name: str, seed: int) -> OnPolicy | None:
        # students go on from a quarter of a sequence
        prompt = max(1, windows.ids.shape[1] // 4)
        return OnPolicy(request.on_policy, prompt, seed) if arms[name].source == ON_POLICY else None

    return Task(
        loss=lambda name: token_loss(arms[name].objective, teachers[arms[name].source], request),
        predicts=lambda name: predictor_of(arms[name].objective),
        measure=measure,
        rows=CACHE in teachers,
        rewrite=rewrite,
    )


def _before(bench: Bench, request: DistillRequest, model: Any) -> dict[str, Any]:
    """What teacher and untrained student (seed 0) do on the held-out text."""
    student = build(bench.source, 0, bench.device)
    near = fidelity(model, student, bench.windows, request.vocabulary, (request.operator, "kl"))["summary"]
    return {
        "teacher": evaluate(model, bench.windows, request.operator).summary,
        "student": {**evaluate(student, bench.windows, "kl").summary, **near},
    }


def _timing(bench: Bench, request: DistillRequest, live: Teacher, cached: Teacher) -> dict[str, Any]:
    """Median seconds of a step with the live teacher and with its cache, in turn, on the same batches."""
    objective = next(arm.objective for arm in request.arms if arm.source == CACHE)
    recipe = bench.recipe
    blocks = TrainBlocks(bench.data.train.ids, recipe.context, 0, recipe.batch_size * TIMED_STEPS, rows=True)
    assert isinstance(cached, CachedTeacher)
    step = {
        name: _stepper(bench, token_loss(objective, source, request))
        for name, source in (("live", live), ("cached", cached))
    }
    seconds: dict[str, list[float]] = {name: [] for name in step}
    for i in range(TIMED_STEPS):
        items = [blocks[i * recipe.batch_size + j] for j in range(recipe.batch_size)]
        batch = {name: torch.stack([item[name] for item in items]).to(bench.device) for name in items[0]}
        for name, one in step.items():
            start = time.perf_counter()
            one(batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    # the first two also pay for allocations
    median = {name: sorted(values[2:])[len(values[2:]) // 2] for name, values in seconds.items()}
    return {
        "objective": objective,
        "seconds_per_step": {name: round(value, 5) for name, value in median.items()},
        "speedup": round(median["live"] / median["cached"], 3),
        "steps": TIMED_STEPS - 2,
        "bytes_per_token": round(cached.cache.bytes_per_token, 2),
        "dense_bytes_per_token": 2 * cached.cache.spec.vocabulary,
        "keeps": said_of_cache(request),
    }


def _stepper(bench: Bench, loss: TokenLoss) -> Callable[[dict[str, Any]], None]:
    student = build(bench.source, 0, bench.device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.0)

    def step(batch: dict[str, Any]) -> None:
        batch_loss(loss, student, student, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def said_of_timing(timing: dict[str, Any]) -> str:
    """The measurement in a sentence."""
    seconds = timing["seconds_per_step"]
    return (
        f"a student's step ({timing['objective']}) takes {seconds['live']:.4f} s with the live teacher and "
        f"{seconds['cached']:.4f} s from the cache: {timing['speedup']:.2f} times as fast"
    )


def _train(bench: Bench, manifest: dict[str, Any], console: Console) -> None:
    runs = [(name, seed) for seed in manifest["seeds"] for name in bench.objectives]
    done = sum(finished(bench.out, name, seed) for name, seed in runs)
    if done:
        console.print(f"{done} of {len(runs)} runs are finished already")
    steps = bench.recipe.steps
    with Display(console, steps * len(runs), steps * done, lambda name: name) as display:
        for name, seed in runs:
            if not finished(bench.out, name, seed):
                run(bench, name, seed, display)


def _describe(manifest: dict[str, Any], out: Path, console: Console) -> None:
    config, asked = manifest["config"], manifest["request"]["objectives"]
    data, arms = config["data"], "objectives" if manifest["objectives"] == asked else "arms"
    for role, model in (("teacher", config["teacher"]), ("student", config["model"])):
        console.print(
            f"{role}: {model['architecture']}, D = {model['hidden_size']}, V = {model['vocab_size']:,}, "
            f"{model['layers']} layers, {model['parameters']:,} parameters",
            highlight=False,
            markup=False,
        )
    console.print(
        f"{data['name']}: {data['tokens_train']:,} tokens to train on, {config['heldout_tokens']:,} held out in "
        f"{config['heldout_documents']} documents\n"
        f"{len(manifest['objectives'])} {arms} x {len(manifest['seeds'])} seeds x {config['steps']} steps "
        f"of {config['batch_size']} x {config['context']} tokens; record in {out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
