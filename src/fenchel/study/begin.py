"""Everything before the first run: size, data, tokeniser, checks, calibration, and the manifest that freezes them."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from rich.console import Console
from transformers import PreTrainedModel

import fenchel
from fenchel.integrations.hooks import head_of
from fenchel.integrations.losses import LabelLoss
from fenchel.objectives.supervised import supervised_objective
from fenchel.objectives.supervised.predictions import predictor, said_of
from fenchel.study import calibrate as calibration
from fenchel.study.corpus import Document
from fenchel.study.data import (
    Data,
    TrainBlocks,
    Windows,
    heldout_windows,
    load_tokenizer,
    prepare,
    save_data,
    separator,
)
from fenchel.study.errors import StudyError
from fenchel.study.evaluate import every
from fenchel.study.machine import processor
from fenchel.study.model import ModelSource, build, check_head, read_model
from fenchel.study.presets import PRESETS, Preset, TooLittleTime, preset, preset_for, steps_within
from fenchel.study.progress import shown
from fenchel.study.recorded import CURVE_SHARE, EVALUATIONS
from fenchel.study.request import Request
from fenchel.study.runs import MANIFEST, beginning, fingerprint, write_json
from fenchel.study.sources import read_documents

Planned = TypeVar("Planned")
# Seconds of the budget kept for the statistics and the report.
REPORT = 15.0


@dataclass(frozen=True)
class Plan:
    """A size that fits, with what was made and measured to find out."""

    size: Preset
    source: ModelSource
    data: Data
    windows: Windows
    model_facts: dict[str, Any]
    steps: int
    measured: dict[str, Any]


def begin(request: Request, out: Path, console: Console, began: float, command: str) -> dict[str, Any]:
    """Plan a study and write what it needs to `out`, the manifest last; returns the manifest.

    The largest preset that the budget is meant for is tried first, and a smaller one where this machine is too slow.
    """
    console.print("reading the text", highlight=False)
    text = read_documents(request.data, request.text_field)
    sizes = _sizes(request)
    plan = first_that_fits(sizes, lambda size: _plan(request, size, text, console, began), console)
    manifest = _manifest(request, plan, command)
    with beginning(out) as directory:
        save_data(plan.data, directory)
        (directory / "model").mkdir()
        plan.source.config.save_pretrained(directory / "model")
    write_json(out / MANIFEST, manifest)
    return manifest


def _sizes(request: Request) -> list[Preset]:
    """Presets to try, as the request changes them; one where the model or the steps are given."""
    if request.model is not None and request.model in {candidate.name for candidate in PRESETS}:
        return _changed([preset(request.model)], request.batch_size, request.context)
    return sizes_for(request.budget, request.model or request.steps, request.batch_size, request.context)


def sizes_for(budget: float, given: object, batch_size: int | None, context: int | None) -> list[Preset]:
    """Presets to try, the largest first; that of the budget alone where what decides the size is `given`."""
    largest = preset_for(budget)
    fitting = [size for size in reversed(PRESETS) if size.minutes <= largest.minutes]
    return _changed([largest] if given is not None else fitting, batch_size, context)


def _changed(sizes: list[Preset], batch_size: int | None, context: int | None) -> list[Preset]:
    return [replace(size, batch_size=batch_size or size.batch_size, context=context or size.context) for size in sizes]


def _plan(
    request: Request, size: Preset, text: tuple[str, list[Document], bool], console: Console, began: float
) -> Plan:
    name, documents, truncated = text
    source = read_model(request.model, size)
    console.print("fitting the tokeniser", highlight=False)
    data = prepare(
        documents,
        source.config.get_text_config().vocab_size if source.checkpoint is None else load_tokenizer(source.checkpoint),
        train_tokens=(request.steps or size.steps) * size.batch_size * size.context,
        heldout_tokens=32 * size.heldout,
        name=name,
        truncated=truncated,
    )
    facts = _check_model(source, data, size)
    windows = heldout_windows(data.heldout, size.context, size.heldout, separator(data.tokenizer))
    if request.steps is not None:
        return Plan(size, source, data, windows, facts, request.steps, {})
    console.print("measuring how long a step takes on this machine", highlight=False)
    blocks = TrainBlocks(data.train.ids, size.context, 0, size.batch_size * calibration.STEPS)
    losses = {name: (LabelLoss(name), name) for name in request.objectives}
    timings = calibration.calibrate(source, blocks, size.batch_size, losses, every(windows, CURVE_SHARE), device_here())
    said = ", ".join(f"{shown(name)} {timing.step:.3f} s" for name, timing in timings.items())
    console.print(f"a step takes: {said}", highlight=False, markup=False)
    evaluations = EVALUATIONS + CURVE_SHARE
    fixed = sum(timing.evaluation * evaluations + calibration.PER_RUN for timing in timings.values())
    per_step = sum(timing.step for timing in timings.values())
    left = request.budget * 60 - (time.perf_counter() - began) - REPORT
    steps = steps_within(left, request.seeds * per_step, request.seeds * fixed, size.steps)
    return Plan(size, source, data, windows, facts, steps, calibration.as_record(timings))


def _manifest(request: Request, plan: Plan, command: str) -> dict[str, Any]:
    config = {
        "model": plan.model_facts,
        "data": plan.data.facts,
        "steps": plan.steps,
        "batch_size": plan.size.batch_size,
        "context": plan.size.context,
        "vocab_size": plan.model_facts["vocab_size"],
        "lr": request.lr if request.lr is not None else default_lr(plan.source),
        "predictions": {name: said_of(predictor(supervised_objective(name))) for name in request.objectives},
        **measuring(plan.size, plan.windows),
    }
    measured = {**plan.measured, "sizes": calibration.sizes()}
    return manifest_of(request, request.objectives, config, plan.size.name, measured, command)


def first_that_fits(sizes: Sequence[Preset], plan: Callable[[Preset], Planned], console: Console) -> Planned:
    """The plan of the first size that the budget has time for.

    Raises:
        TooLittleTime: of the last size, if none fits.
    """
    for size in sizes[:-1]:
        try:
            return plan(size)
        except TooLittleTime as error:
            console.print(f"size {size.name} does not fit: {error}", highlight=False, markup=False)
    return plan(sizes[-1])


def measuring(size: Preset, windows: Windows) -> dict[str, Any]:
    """What a record says of how its models are trained and measured."""
    return {
        "optimizer": "AdamW, no weight decay, no gradient clipping; linear warm-up over a tenth, then cosine",
        "heldout_most": size.heldout,
        "heldout_tokens": int((windows.labels[:, 1:] >= 0).sum()),
        "heldout_documents": len(windows.names),
        "curve_share": CURVE_SHARE,
        "device": device_here(),
        "precision": "float32",
    }


def manifest_of(
    request: Any,
    objectives: Sequence[str],
    config: dict[str, Any],
    preset: str,
    calibrated: dict[str, Any],
    command: str,
) -> dict[str, Any]:
    """The manifest of a study: what was asked (seeds, a record), what is compared, and what was decided."""
    return {
        "version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "objectives": list(objectives),
        "seeds": list(range(request.seeds)),
        "config": config,
        "request": request.record(),
        "hash": fingerprint(request.record(), config),
        "machine": machine(),
        "preset": preset,
        "calibration": calibrated,
    }


def device_here() -> str:
    """Where runs of this process are trained."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_lr(source: ModelSource) -> float:
    """Learning rate where none is given: small for trained weights, otherwise falling with the width.

    3e-3 up to D = 128, then as 1 / D.
    """
    if source.checkpoint is not None:
        return 5e-5
    return round(min(3e-3, 0.384 / source.config.get_text_config().hidden_size), 6)


def _check_model(source: ModelSource, data: Data, size: Preset) -> dict[str, Any]:
    """Facts of the model, after the checks that would otherwise fail in the middle of a run."""
    model = build(source, 0)
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and size.context > longest:
        raise StudyError(f"--context {size.context} is longer than the model's {longest} positions")
    if len(data.tokenizer) > config.vocab_size:
        raise StudyError(f"the tokeniser has {len(data.tokenizer)} entries, the model only {config.vocab_size}")
    blocks = TrainBlocks(data.train.ids, size.context, 0, 2)
    check_head(model, torch.stack([blocks[0]["input_ids"], blocks[1]["input_ids"]])[:, :32])
    return model_facts(model, source)


def model_facts(model: PreTrainedModel, source: ModelSource) -> dict[str, Any]:
    """What a record says of a model."""
    config, weight = model.config.get_text_config(), head_of(model).weight
    return {
        "architecture": type(model).__name__,
        "source": str(source.checkpoint) if source.checkpoint else "initialised from its configuration",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": weight.shape[0],
        "hidden_size": weight.shape[1],
        "layers": getattr(config, "num_hidden_layers", None),
        "heads": getattr(config, "num_attention_heads", None),
        "tied_embeddings": weight is getattr(model.get_input_embeddings(), "weight", None),
    }


def machine() -> dict[str, Any]:
    """What a record says of the machine and the versions."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "fenchel": fenchel.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }
