"""`fenchel compare`: one model, one corpus, several objectives, several seeds, one record."""

import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from fenchel.study.begin import begin
from fenchel.study.data import heldout_windows, load_data, separator
from fenchel.study.errors import StudyError, full_disk
from fenchel.study.model import read_model
from fenchel.study.presets import preset
from fenchel.study.progress import Display
from fenchel.study.recorded import LABELS, Bench, finished, run
from fenchel.study.request import Request, checked
from fenchel.study.runs import INPUTS, existing, locked
from fenchel.study.train import Recipe


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
        heldout_windows(data.heldout, recipe.context, config["heldout_most"], separator(data.tokenizer)),
        report_to,
        device,
        LABELS,
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
