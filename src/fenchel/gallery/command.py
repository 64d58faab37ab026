"""`fenchel papers`: list, run and show the papers of the gallery."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer.core import TyperGroup

if TYPE_CHECKING:
    from fenchel.gallery.checks import Check
    from fenchel.gallery.paper import Paper
    from fenchel.gallery.result import Result


class _Papers(TyperGroup):
    """The commands of the gallery, which say what to do with a paper's id in the place of one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As the class above, after a look at what was given."""
        if args and re.fullmatch("[Pp][0-9]+", args[0]):
            _fail(f"got {args[0]} in the place of a command: pass fenchel papers show {args[0]}, or run {args[0]}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Papers, no_args_is_help=False, help="Small experiments on the claims of papers, with computed verdicts."
)

_COLOUR = {"shown": "green", "partly": "yellow", "not shown": "red"}


@app.callback(invoke_without_command=True)
def listing(context: typer.Context) -> None:
    """All papers and the verdicts of the committed runs; `run` runs them, `show` explains one."""
    if context.invoked_subcommand is not None:
        return
    from fenchel.gallery import papers
    from fenchel.gallery.page import NOT_RUN
    from fenchel.gallery.result import RESULTS, judge, load

    known = papers()
    results = load(RESULTS, list(known))
    table = Table("", "paper", "objectives", "verdict")
    for name, paper in known.items():
        said = judge(paper, results[name])[1] if name in results else NOT_RUN
        table.add_row(name, escape(paper.title), escape(", ".join(paper.objectives)), _coloured(said))
    Console().print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A paper, e.g. P065; `fenchel papers` lists them.")]) -> None:
    """Claim, experiment, committed result and verdict of a paper."""
    from fenchel.gallery.result import RESULTS, load

    paper = _papers([name])[0]
    console = Console()
    console.print(f"[bold]{paper.id} {escape(paper.title)}[/bold]\n{escape(paper.source)}", highlight=False)
    console.print(f"\nClaim: {escape(paper.claim)}\n\n{escape(paper.setup)}\n", highlight=False)
    result = load(RESULTS, [paper.id]).get(paper.id)
    if result is None:
        console.print(f"Not run yet: fenchel papers run {paper.id}")
        return
    _report(console, paper, result)
    console.print(f"{result.date}, commit {result.commit}, {escape(result.processor)}", highlight=False)
    if paper.notes:
        console.print(f"\n{escape(paper.notes)}", highlight=False)


@app.command()
def run(
    names: Annotated[list[str] | None, typer.Argument(help="Papers, e.g. P065 P075.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them: some minutes.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds, instead of each paper's own number.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory to write the numbers, the figures and a page to.")] = None,
) -> None:
    """Runs experiments and prints their checks and verdicts."""
    if every == bool(names):
        _fail("got " + ("papers and --all" if names else "no paper") + ": pass ids such as P065, or --all")
    execute_all(_papers(names), seeds=seeds, out=out)


def execute_all(chosen: "list[Paper]", *, seeds: int | None = None, out: Path | None = None) -> "dict[str, Result]":
    """Runs papers one after the other with a progress bar, prints each result, and writes to `out` if it is given."""
    from fenchel.gallery.result import execute, save

    console = Console()
    results = {}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("seeds"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        for paper in chosen:
            task = bar.add_task(paper.id, total=paper.seeds if seeds is None else seeds)
            began = time.perf_counter()
            results[paper.id] = execute(
                paper, seeds=seeds, progress=lambda done, task=task: bar.update(task, completed=done)
            )
            bar.remove_task(task)
            seconds = time.perf_counter() - began
            console.print(f"[bold]{paper.id} {escape(paper.title)}[/bold] ({seconds:.0f} s)", highlight=False)
            _report(console, paper, results[paper.id])
            if out is not None:
                save(results[paper.id], out)
    if out is not None:
        _write_page({paper.id: paper for paper in chosen}, results, out)
        console.print(f"page: {out / 'gallery.md'}", highlight=False, markup=False, soft_wrap=True)
    return results


def main(paper: "Paper") -> None:
    """What `python -m fenchel.gallery.p065` does."""
    execute_all([paper])


def _write_page(papers: "dict[str, Paper]", results: "dict[str, Result]", out: Path) -> None:
    from fenchel.gallery.page import page, pictures

    for name, text in pictures(papers, results).items():
        (out / name).write_text(text, encoding="utf-8")
    (out / "gallery.md").write_text(page(papers, results, "."), encoding="utf-8")


def _report(console: Console, paper: "Paper", result: "Result") -> None:
    from fenchel.gallery.page import interval, number
    from fenchel.gallery.result import judge

    checks, verdict = judge(paper, result)
    table = Table("check", "estimate", "95 % interval", "needed", "")
    for check in checks:
        table.add_row(escape(check.statement), number(check.estimate), interval(check), check.needed, _passed(check))
    console.print(table)
    console.print(f"verdict: {_coloured(verdict)} ({result.seeds} seeds)")


def _passed(check: "Check") -> str:
    return "[green]passes" if check.passes else "[red]fails"


def _coloured(verdict: str) -> str:
    return f"[{_COLOUR[verdict]}]{verdict}[/]" if verdict in _COLOUR else f"[dim]{verdict}[/]"


def _papers(names: list[str] | None) -> "list[Paper]":
    from fenchel.gallery import find, papers

    if not names:
        return list(papers().values())
    try:
        return [find(name) for name in names]
    except ValueError as error:
        _fail(str(error))
        raise AssertionError from error


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)
