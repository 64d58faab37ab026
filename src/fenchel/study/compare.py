"""`fenchel compare`: one model, one corpus, several objectives, several seeds, one record."""

import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers.integrations.integration_utils import get_available_reporting_integrations

import fenchel
from fenchel.study import calibrate as calibration
from fenchel.study.data import Data, TrainBlocks, load_data, load_tokenizer, prepare, save_data
from fenchel.study.errors import StudyError, full_disk, one_line
from fenchel.study.evaluate import every
from fenchel.study.model import ModelSource, build, check_head, head_of, read_model
from fenchel.study.presets import PRESETS, Preset, preset, preset_for, steps_within
from fenchel.study.progress import Display
from fenchel.study.recorded import CURVE_SHARE, EVALUATIONS, HELDOUT_TOKENS, Bench, finished, run, study_windows
from fenchel.study.runs import INPUTS, MANIFEST, beginning, existing, fingerprint, locked, write_json
from fenchel.study.sources import read_documents
from fenchel.study.train import Recipe

OBJECTIVES = ("kl", "alpha:1.5", "alpha:2", "js")
SEEDS = 3
BUDGET = 5.0
# Seconds of the budget kept for the statistics and the report.
REPORT = 15.0


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
    """The request with its objectives' names as the generators spell them; StudyError for anything unusable."""
    names = [_objective(name) for name in request.objectives]
    if not names:
        raise StudyError(f"--objectives is empty: pass one or more of {', '.join(fenchel.generator_names())}")
    for name in names:
        if names.count(name) > 1:
            raise StudyError(f"--objectives names {name} twice")
    for option, value, least in (
        ("--seeds", request.seeds, 1),
        ("--steps", request.steps, 1),
        ("--batch-size", request.batch_size, 1),
        ("--context", request.context, 2),
    ):
        if value is not None and value < least:
            raise StudyError(f"{option} must be at least {least}, got {value}")
    if request.lr is not None and not 0 < request.lr < float("inf"):
        raise StudyError(f"--lr must be positive, got {request.lr:g}")
    preset_for(request.budget)
    known = get_available_reporting_integrations()
    if report_to != "none" and report_to not in known:
        installed = ", ".join(known) or "none is installed"
        raise StudyError(
            f"--report-to {report_to} is not available here: pass none or one of those installed ({installed})"
        )
    return replace(request, objectives=tuple(names))


def _objective(name: str) -> str:
    """Canonical name of an objective that can be trained with."""
    try:
        found = fenchel.generator(name)
        fenchel.softargmax(torch.zeros(2), found)
    except (ValueError, TypeError) as error:
        raise StudyError(f"--objectives {name}: {one_line(error)}") from error
    return found.name


def compare(
    request: Request, out: Path, *, report_to: str = "none", console: Console | None = None, command: str = ""
) -> Path:
    """Begin or continue the study in `out`; returns the path of its report.

    Raises:
        StudyError: bad arguments, data or model, an `out` that holds something else, a loss that is no longer finite,
            a full disk. Nothing is trained then, or what was trained is kept and continued by the same call.
    """
    from fenchel.study import report

    console = Console(quiet=True) if console is None else console
    # One progress bar is enough, and it is ours.
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    began = time.perf_counter()
    request = checked(request, report_to)
    with locked(out) as ours, full_disk(out):
        manifest = existing(out, request.record(), ours=ours)
        if manifest is None:
            manifest = begin(request, out, console, began, command)
        bench = _bench(out, manifest, report_to)
        _describe(manifest, out, console)
        runs = [(name, seed) for seed in manifest["seeds"] for name in bench.objectives]
        done = sum(finished(out, name, seed) for name, seed in runs)
        if done:
            console.print(f"{done} of {len(runs)} runs are finished already")
        steps = bench.recipe.steps
        with Display(console, steps * len(runs), steps * done) as display:
            for name, seed in runs:
                if not finished(out, name, seed):
                    run(bench, name, seed, display)
        return report.write(out)


def begin(request: Request, out: Path, console: Console, began: float, command: str) -> dict[str, Any]:
    """Everything before the first run: data, tokeniser, model, calibration; written to `out`, the manifest last."""
    size = _size(request)
    source = read_model(request.model, size)
    console.print("reading the text and fitting the tokeniser", highlight=False)
    name, documents, truncated = read_documents(request.data, request.text_field)
    most = request.steps or size.steps
    data = prepare(
        documents,
        source.config.get_text_config().vocab_size if source.checkpoint is None else load_tokenizer(source.checkpoint),
        train_tokens=most * size.batch_size * size.context,
        heldout_tokens=32 * HELDOUT_TOKENS,
        name=name,
        truncated=truncated,
    )
    model_facts = _check_model(source, data, size)
    objectives, device = request.objectives, "cuda" if torch.cuda.is_available() else "cpu"
    windows = study_windows(data, size.context)
    measured: dict[str, Any] = {}
    steps = request.steps
    if steps is None:
        console.print("measuring how long a step takes on this machine", highlight=False)
        blocks = TrainBlocks(data.train.ids, size.context, 0, size.batch_size * calibration.STEPS)
        timings = calibration.calibrate(
            source, blocks, size.batch_size, objectives, every(windows, CURVE_SHARE), device
        )
        evaluations = EVALUATIONS + CURVE_SHARE
        fixed = sum(timing.evaluation * evaluations + calibration.PER_RUN for timing in timings.values())
        left = request.budget * 60 - (time.perf_counter() - began) - REPORT
        steps = steps_within(
            left, request.seeds * sum(timing.step for timing in timings.values()), request.seeds * fixed, size.steps
        )
        measured = calibration.as_record(timings)
    config = {
        "model": model_facts,
        "data": data.facts,
        "steps": steps,
        "batch_size": size.batch_size,
        "context": size.context,
        "vocab_size": model_facts["vocab_size"],
        "lr": request.lr if request.lr is not None else default_lr(source),
        "optimizer": "AdamW, no weight decay, no gradient clipping; linear warm-up over a tenth, then cosine",
        "heldout_tokens": int((windows.labels[:, 1:] >= 0).sum()),
        "heldout_documents": len(windows.names),
        "curve_share": CURVE_SHARE,
        "device": device,
        "precision": "float32",
    }
    manifest = {
        "version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "objectives": list(objectives),
        "seeds": list(range(request.seeds)),
        "config": config,
        "request": request.record(),
        "hash": fingerprint(request.record(), config),
        "machine": _machine(),
        "preset": size.name,
        "calibration": {**measured, "sizes": calibration.sizes()},
    }
    with beginning(out) as directory:
        save_data(data, directory)
        (directory / "model").mkdir()
        source.config.save_pretrained(directory / "model")
    write_json(out / MANIFEST, manifest)
    return manifest


def _size(request: Request) -> Preset:
    named = request.model is not None and request.model in {candidate.name for candidate in PRESETS}
    size = preset(str(request.model)) if named else preset_for(request.budget)
    return replace(size, batch_size=request.batch_size or size.batch_size, context=request.context or size.context)


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
    weight = head_of(model).weight
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


def _bench(out: Path, manifest: dict[str, Any], report_to: str) -> Bench:
    """What the runs need, from what is written: a study goes on with what it began with."""
    config, data = manifest["config"], load_data(out / INPUTS)
    device = config["device"]
    if device == "cuda" and not torch.cuda.is_available():
        raise StudyError(f"the study in {out} began on a GPU and there is none here: pass another --out")
    named = manifest["request"]["model"]
    # A checkpoint's weights stay where they are; a configuration is read from the copy that the study keeps.
    checkpoint = Path(config["model"]["source"])
    source = (
        read_model(named, preset(manifest["preset"]))
        if named is not None and checkpoint.is_dir()
        else read_model(str(out / INPUTS / "model"), preset(manifest["preset"]))
    )
    recipe = Recipe(config["steps"], config["batch_size"], config["context"], config["lr"])
    return Bench(
        out,
        tuple(manifest["objectives"]),
        source,
        data,
        recipe,
        study_windows(data, recipe.context),
        report_to,
        device,
    )


def _describe(manifest: dict[str, Any], out: Path, console: Console) -> None:
    config = manifest["config"]
    model, data = config["model"], config["data"]
    console.print(
        f"{model['architecture']}: D = {model['hidden_size']}, V = {model['vocab_size']:,}, {model['layers']} layers, "
        f"{model['parameters']:,} parameters; {data['name']}: {data['tokens_train']:,} tokens to train on, "
        f"{config['heldout_tokens']:,} held out in {config['heldout_documents']} documents\n"
        f"{len(manifest['objectives'])} objectives x {len(manifest['seeds'])} seeds x {config['steps']} steps "
        f"of {config['batch_size']} x {config['context']} tokens; record in {out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "fenchel": fenchel.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
