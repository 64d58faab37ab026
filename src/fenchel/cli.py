"""The command line: compare, train, distill, list, show, bench. Commands import what they need, so that --help is quick."""

import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fenchel.gallery.command import app as papers

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Probabilistic training objectives: compare them on your model and data, and see what they are.",
    pretty_exceptions_enable=False,
)
app.add_typer(papers, name="papers")

BAD_INPUT = 2
INTERRUPTED = 130


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the command with one line on stderr for what the user can put right; anything else keeps its traceback."""
    from fenchel.study.errors import StudyError

    try:
        yield
    except StudyError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        typer.echo("interrupted: the same command continues from the last checkpoint", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _fail(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(BAD_INPUT)


@app.command()
def compare(
    task: Annotated[
        str, typer.Option(help="text: a language model; classification: a linear classifier of a table.")
    ] = "text",
    objectives: Annotated[
        str | None,
        typer.Option(
            help="What to train with, separated by commas, the first the baseline: generators (kl, alpha:1.5) or any other supervised "
            "objective (focal:gamma=2, gce:0.7, dft, 'cross_entropy + 1e-4*log_partition')."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs per objective.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps of a run, instead of what the budget allows.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Minutes for the whole study: chooses the size of the model and the steps.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Text file, directory, JSONL, Parquet, Hugging Face data set directory or id, "
            "instead of the Python standard library's source. For classification digits, wine, breast_cancer, iris or a CSV file."
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Classification: the column of labels of a CSV file.")] = None,
    noise: Annotated[float, typer.Option(help="Classification: share of training labels that are made wrong.")] = 0.0,
    long_tail: Annotated[
        float, typer.Option(help="Classification: training rows of the last class for one of the first, 0.01 say.")
    ] = 1.0,
    folds: Annotated[int, typer.Option(help="Classification: folds of the cross-validation.")] = 5,
    text_field: Annotated[str | None, typer.Option(help="Field of the rows of --data that holds the text.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint directory, config.json, or a preset: nano, small, medium, large, huge."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate, the same for every objective.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per step.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per sequence.")] = None,
    out: Annotated[Path, typer.Option(help="Directory of the record and the report.")] = Path("fenchel-study"),
    report_to: Annotated[str, typer.Option(help="Where Trainer also reports: tensorboard, wandb, ...")] = "none",
) -> None:
    """Train one model under several objectives; say which is better, faster and smaller.

    The same command continues a study that was interrupted. With no options: cross-entropy, alpha = 1.5, alpha = 2
    and Jensen-Shannon with three seeds each, on the source of the Python standard library, in five minutes.
    """
    with one_line_errors():
        warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
        text_only = {"--steps": steps, "--budget": budget, "--text-field": text_field, "--model": model, "--lr": lr}
        text_only |= {
            "--batch-size": batch_size,
            "--context": context,
            "--report-to": None if report_to == "none" else report_to,
        }
        tables_only = {"--label": label, "--noise": noise or None, "--long-tail": None if long_tail == 1 else long_tail}
        tables_only |= {"--folds": None if folds == 5 else folds}
        _check_task(task, {"text": tables_only, "classification": text_only})
        if task == "classification":
            _classify(objectives, seeds, data, label, noise, long_tail, folds, out)
            return
        from fenchel.objectives.names import split_names
        from fenchel.study import report
        from fenchel.study.compare import compare
        from fenchel.study.request import Request

        given = {
            "objectives": None if objectives is None else split_names(objectives),
            "seeds": seeds,
            "budget": budget,
        }
        request = Request(
            data=data,
            text_field=text_field,
            model=model,
            steps=steps,
            lr=lr,
            batch_size=batch_size,
            context=context,
            **{name: value for name, value in given.items() if value is not None},
        )
        console = Console()
        command = shlex.join(["fenchel", *sys.argv[1:]])
        path = compare(request, out, report_to=report_to, console=console, command=command)
        console.print(report.table(out))
        console.print(f"report: {path}", highlight=False, markup=False, soft_wrap=True)


def _check_task(task: str, others: dict[str, dict[str, object]]) -> None:
    """One line for a task that there is not, or an option that it would ignore."""
    if task not in others:
        _fail(f"--task {task}: pass one of {', '.join(others)}")
    for option, value in others[task].items():
        if value is not None:
            _fail(f"{option} {value} does not go with --task {task}: leave it out")


def _classify(
    objectives: str | None,
    seeds: int | None,
    data: str | None,
    label: str | None,
    noise: float,
    long_tail: float,
    folds: int,
    out: Path,
) -> None:
    from fenchel.objectives.names import split_names
    from fenchel.study import classify_report
    from fenchel.study.classify import ClassifyRequest, classify

    given = {"objectives": None if objectives is None else split_names(objectives), "seeds": seeds, "data": data}
    request = ClassifyRequest(
        label=label,
        noise=noise,
        long_tail=long_tail,
        folds=folds,
        **{name: value for name, value in given.items() if value is not None},
    )
    console = Console()
    path = classify(request, out, console=console, command=shlex.join(["fenchel", *sys.argv[1:]]))
    console.print(classify_report.table(out))
    console.print(f"report: {path}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def train(
    objective: Annotated[
        str, typer.Option(help="Any supervised objective: alpha:1.5, gce:0.7, cross_entropy + 1e-4*log_partition, ...")
    ] = "kl",
    data: Annotated[
        str | None, typer.Option(help="As for compare; without it, the Python standard library's source.")
    ] = None,
    text_field: Annotated[str | None, typer.Option(help="Field of the rows of --data that holds the text.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint directory, config.json, or a preset: nano, small, medium, large, huge."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Sequences per batch, of each process.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Batches per step.")] = 1,
    context: Annotated[int, typer.Option(help="Tokens per sequence.")] = 128,
    lr: Annotated[float | None, typer.Option(help="Learning rate at the end of the warm-up; a cosine follows.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps of warm-up; a tenth where not given.")] = None,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    label_smoothing: Annotated[float, typer.Option(help="For objectives that take probabilities.")] = 0.0,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; an eighth of all where not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights and the order of the batches.")] = 0,
    backend: Annotated[
        str, typer.Option(help="What the head's rows run on: auto, torch, or triton, which a GPU has for generators.")
    ] = "auto",
    out: Annotated[Path, typer.Option(help="Directory of the checkpoints and the model.")] = Path("fenchel-model"),
    report_to: Annotated[str, typer.Option(help="Where Trainer also reports: tensorboard, wandb, ...")] = "none",
) -> None:
    """Train a causal language model with any objective; transformers opens what comes out.

    The same command continues a training that was interrupted. Runs under torchrun and accelerate launch too.
    """
    with one_line_errors():
        warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
        from fenchel.study.single import train as run
        from fenchel.study.single_request import TrainRequest

        request = TrainRequest(
            objective=objective,
            data=data,
            text_field=text_field,
            model=model,
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            context=context,
            lr=lr,
            warmup=warmup,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            save_every=save_every,
            seed=seed,
            backend=backend,
        )
        console, command = Console(), shlex.join(["fenchel", *sys.argv[1:]])
        path = run(request, out, report_to=report_to, console=console, command=command)
        if os.environ.get("RANK", "0") == "0":
            console.print(f"model: {path}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def distill(
    teacher: Annotated[
        str | None, typer.Option(help="Checkpoint directory; without one a small teacher is trained first.")
    ] = None,
    teacher_generator: Annotated[
        str | None,
        typer.Option(
            help="What the teacher's probabilities are the softargmax of, and what it is trained with here: alpha:1.5, ...; "
            "a cache of a sparse one is exact. Without it, softmax."
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint directory, config.json, or a preset, instead of one layer of the teacher's width."
        ),
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            "--objectives",
            "--objective",
            help="Objectives between teacher and student, separated by commas: a divergence (kl, js:0.3), dkd:alpha=1,beta=8, ...; "
            "labels is training without the teacher. The first is the baseline.",
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs per objective.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps of a student, instead of what the budget allows.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Minutes for everything: chooses the size of the models and the steps.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="As for compare; without it, the Python standard library's source."),
    ] = None,
    text_field: Annotated[str | None, typer.Option(help="Field of the rows of --data that holds the text.")] = None,
    temperature: Annotated[float, typer.Option(help="Of objectives that name none; no factor T^2 is applied.")] = 1.0,
    hard_weight: Annotated[float, typer.Option(help="Weight of the labels' cross-entropy beside the objective.")] = 0.0,
    sources: Annotated[
        str | None,
        typer.Option(
            help="Compare every objective from several sources, separated by commas: live, cache, on-policy; "
            "instead of the one that --cache or --on-policy implies."
        ),
    ] = None,
    on_policy: Annotated[
        float, typer.Option(help="Share of the batches that the student writes itself, 0 to 1.")
    ] = 0.0,
    cache: Annotated[
        str | None,
        typer.Option(help="Directory: train from a cache of the teacher, built there if it is not there yet."),
    ] = None,
    cache_k: Annotated[int, typer.Option(help="Classes that the cache keeps of each row; the rest is one more.")] = 64,
    vocabulary: Annotated[
        int | None,
        typer.Option(help="Compare the first K tokens, for models whose vocabularies are padded differently."),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of the students, the same for every objective.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per step.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per sequence.")] = None,
    out: Annotated[Path, typer.Option(help="Directory of the record and the report.")] = Path("fenchel-distillation"),
    report_to: Annotated[str, typer.Option(help="Where Trainer also reports: tensorboard, wandb, ...")] = "none",
) -> None:
    """Train a student to predict as its teacher does, under one objective or several; say how near it comes.

    The same command continues a study that was interrupted. With no options: a 4-layer teacher is trained on the source of
    the Python standard library and distilled into one layer, from labels alone, KL and Jensen-Shannon, in five minutes.
    """
    with one_line_errors():
        warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
        from fenchel.objectives.names import split_names
        from fenchel.study import distill_report
        from fenchel.study.distill import distill
        from fenchel.study.distill_request import DistillRequest
        from fenchel.study.record import run_directory

        given = {
            "objectives": None if objectives is None else split_names(objectives),
            "seeds": seeds,
            "budget": budget,
        }
        request = DistillRequest(
            data=data,
            text_field=text_field,
            teacher=teacher,
            teacher_generator=teacher_generator,
            student=student,
            vocabulary=vocabulary,
            temperature=temperature,
            hard_weight=hard_weight,
            sources=None if sources is None else tuple(name.strip() for name in sources.split(",")),
            on_policy=on_policy,
            cache=cache,
            cache_k=cache_k,
            steps=steps,
            lr=lr,
            batch_size=batch_size,
            context=context,
            **{name: value for name, value in given.items() if value is not None},
        )
        console = Console()
        command = shlex.join(["fenchel", *sys.argv[1:]])
        path = distill(request, out, report_to=report_to, console=console, command=command)
        console.print(distill_report.table(out))
        for arm in request.arms:
            console.print(
                f"student ({arm.name}): {run_directory(out, arm.name, 0) / 'model'}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        console.print(f"report: {path}", highlight=False, markup=False, soft_wrap=True)


@app.command("list")
def list_generators() -> None:
    """All generators and their properties, and the supervised objectives beside them."""
    from fenchel import show as pictures

    console = Console()
    console.print(pictures.table())
    console.print(pictures.objectives())


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="A generator or a supervised objective: alpha:1.5, focal; `fenchel list` names them.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write a generator's plots to this .svg, .png or .html file.")
    ] = None,
) -> None:
    """Formula, properties, source and plots of a generator; what a supervised objective is."""
    from fenchel import show as pictures

    try:
        if out is None:
            pictures.show(name, Console())
        else:
            pictures.save(name, out)
            typer.echo(f"wrote {out}")
    except (ValueError, OSError) as error:
        _fail(str(error))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def bench(context: typer.Context) -> None:
    """Time and memory of the fused heads against dense ones on this machine; `fenchel bench --help` says more."""
    try:
        run = import_module("fenchel.bench").run
    except ModuleNotFoundError as error:
        if error.name != "fenchel.bench":
            raise
        _fail("this installation of fenchel has no benchmark (fenchel.bench is missing)")
        return
    run(context.args)
