"""`fenchel train`: one model, one objective, in one process or in several of `torchrun` and `accelerate launch`."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback
from transformers import TrainingArguments as Arguments

from fenchel.integrations.hooks import Head, NextStates, head_of
from fenchel.integrations.losses import LabelLoss
from fenchel.study.begin import default_lr, machine, model_facts
from fenchel.study.data import (
    Data,
    TrainBlocks,
    heldout_windows,
    load_data,
    load_tokenizer,
    prepare,
    save_data,
    separator,
)
from fenchel.study.errors import StudyError, full_disk, one_line
from fenchel.study.evaluate import heldout_states
from fenchel.study.model import ModelSource, build, read_model
from fenchel.study.presets import PRESETS, Preset, preset
from fenchel.study.progress import Display
from fenchel.study.runs import INPUTS, MANIFEST, append_line, beginning, existing, fingerprint, keep_until, locked
from fenchel.study.runs import write_json as write
from fenchel.study.single_request import TrainRequest, checked
from fenchel.study.single_trainer import Log, MarkedTrainer, interruptible
from fenchel.study.sources import read_documents
from fenchel.study.train import last_checkpoint

# The size of a model that is not given; the vocabulary of one whose tokeniser is fitted here.
SIZE = "small"
# Where the model is when it is trained, and the log of the training.
MODEL, LOG = "model", "train.jsonl"
# About this many lines of a log.
LINES = 100


def train(
    request: TrainRequest, out: Path, *, report_to: str = "none", console: Console | None = None, command: str = ""
) -> Path:
    """Begin or continue a training in `out`; returns the directory of the trained model, which transformers opens.

    Each process of a launcher calls this with the same arguments; a step takes batch_size sequences of each.

    Raises:
        StudyError: bad arguments, data or model, an `out` that holds something else, a loss that is no longer finite, a full disk.
        KeyboardInterrupt: an interrupted training, after a checkpoint where there is one process.
    """
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    request = checked(request, report_to)
    named = request.model if request.model in {known.name for known in PRESETS} else SIZE
    size = replace(preset(named), context=request.context, batch_size=request.batch_size)
    source = read_model(request.model, size)
    arguments = _arguments(request, source, out, report_to)
    _check_kernels(request, arguments.device)
    first = arguments.process_index == 0
    console = Console(quiet=True) if console is None or not first else console
    with locked(out) if first else nullcontext(True) as ours, full_disk(out):
        with arguments.main_process_first(desc="data"):
            if first and existing(out, request.record(), ours=ours) is None:
                _begin(request, out, source, size, arguments, command)
            data = load_data(out / INPUTS)
        if not (out / MODEL / "config.json").is_file():
            _run(request, out, source, data, arguments, console)
    return out / MODEL


def _check_kernels(request: TrainRequest, device: torch.device) -> None:
    """Refuse kernels that were asked for and cannot run: they run once."""
    if request.backend != "triton":
        return
    one = torch.zeros(1, 2, device=device)
    try:
        LabelLoss(request.objective, request.label_smoothing, request.backend)(
            NextStates(one, one.new_zeros(1, dtype=torch.long)), Head(torch.zeros(2, 2, device=device)), {}
        )
    except ValueError as error:
        raise StudyError(f"--backend {request.backend}: {one_line(error)}") from error


def _arguments(request: TrainRequest, source: ModelSource, out: Path, report_to: str) -> Arguments:
    lines = max(1, request.steps // LINES)
    arguments = Arguments(
        output_dir=str(out / "checkpoints"),
        run_name=out.name,
        seed=request.seed,
        data_seed=request.seed,
        max_steps=request.steps,
        per_device_train_batch_size=request.batch_size,
        gradient_accumulation_steps=request.accumulate,
        # blocks are in their order already
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        learning_rate=default_lr(source) if request.lr is None else request.lr,
        lr_scheduler_type="cosine",
        warmup_steps=request.warmup or 0,
        weight_decay=request.weight_decay,
        label_smoothing_factor=request.label_smoothing,
        # clipping acts on the scale of the gradient, which differs between objectives
        max_grad_norm=0.0,
        save_strategy="steps",
        save_steps=request.save_every or request.steps,
        save_total_limit=2,
        logging_steps=lines,
        logging_nan_inf_filter=False,
        report_to=[] if report_to == "none" else [report_to],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )
    # more than one GPU in one process would make Trainer use DataParallel, which splits the head's rows
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _begin(
    request: TrainRequest, out: Path, source: ModelSource, size: Preset, arguments: Arguments, command: str
) -> None:
    """Reads and encodes the text, and writes it and the manifest to `out`."""
    name, documents, truncated = read_documents(request.data, request.text_field)
    sequences = _sequences(request, arguments)
    data = prepare(
        documents,
        source.config.get_text_config().vocab_size if source.checkpoint is None else load_tokenizer(source.checkpoint),
        train_tokens=sequences * request.context,
        heldout_tokens=4 * size.heldout,
        name=name,
        truncated=truncated,
    )
    model = build(source, request.seed)
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and request.context > longest:
        raise StudyError(f"--context {request.context} is longer than the model's {longest} positions")
    if len(data.tokenizer) > config.vocab_size:
        raise StudyError(f"the tokeniser has {len(data.tokenizer)} entries, the model only {config.vocab_size}")
    TrainBlocks(data.train.ids, request.context, request.seed, sequences)
    decided = {
        "model": model_facts(model, source),
        "data": data.facts,
        "lr": arguments.learning_rate,
        "processes": arguments.world_size,
    }
    record = request.record()
    manifest = {
        "version": 1,
        "command": command,
        "request": record,
        "config": decided,
        "hash": fingerprint(record, decided),
        "machine": machine(),
    }
    with beginning(out) as directory:
        save_data(data, directory)
    write(out / MANIFEST, manifest)


def _sequences(request: TrainRequest, arguments: Arguments) -> int:
    return request.steps * request.batch_size * request.accumulate * arguments.world_size


def _run(
    request: TrainRequest, out: Path, source: ModelSource, data: Data, arguments: Arguments, console: Console
) -> None:
    blocks = TrainBlocks(data.train.ids, request.context, request.seed, _sequences(request, arguments))
    model = build(source, request.seed)
    try:
        trainer = MarkedTrainer(
            model,
            arguments,
            objective=request.objective,
            backend=request.backend,
            train_dataset=blocks,
            processing_class=data.tokenizer,
        )
    except ValueError as error:
        raise StudyError(f"--model: {one_line(error)}") from error
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    found = last_checkpoint(out / "checkpoints")
    done, resume = (0, None) if found is None else found
    first = arguments.process_index == 0
    if first:
        keep_until(out / LOG, done)
    tokens = request.batch_size * request.accumulate * request.context * arguments.world_size
    with Display(console, request.steps, done) as display, interruptible(arguments) as stop:
        display.begin(request.objective, request.seed, done)
        log = Log(out / LOG, display, tokens, stop, first)
        trainer.add_callback(log)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        if stop and trainer.state.global_step < request.steps:
            raise KeyboardInterrupt
        display.end(log.loss, log.rate)
    if not first:
        return
    facts = {"step": request.steps, "heldout_loss": heldout_loss(model, data, request)}
    append_line(out / LOG, facts)
    console.print(f"held-out loss ({request.objective}): {facts['heldout_loss']:.4f} per token", highlight=False)
    # whole or not at all: the configuration, which says that it is there, comes last
    data.tokenizer.save_pretrained(out / MODEL)
    model.save_pretrained(out / MODEL)


def heldout_loss(model: Any, data: Data, request: TrainRequest) -> float:
    """The mean loss of the held-out tokens."""
    windows = heldout_windows(data.heldout, request.context, preset(SIZE).heldout, separator(data.tokenizer))
    hidden, target, _ = heldout_states(model, windows)
    found = head_of(model)
    head = Head(found.weight, found.bias, found.softcap, found.scale)
    with torch.no_grad():
        loss = LabelLoss(request.objective, backend=request.backend)
        return float(loss(NextStates(hidden, target), head, {})) / len(target)
