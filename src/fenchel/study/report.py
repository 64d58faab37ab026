"""The study as one self-contained HTML file, and as a table for the terminal."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from fenchel.study import sections, words
from fenchel.study.analysis import Analysis, analyse
from fenchel.study.definitions import METRICS, Metric
from fenchel.study.errors import full_disk
from fenchel.study.markup import Raw, el, join
from fenchel.study.record import NothingFinished, load

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

__all__ = ["NothingFinished", "table", "write"]

NAME = "report.html"
# Objectives that a terminal has room for beside each other, with intervals.
COLUMNS = 4
# The metrics of a terminal's table of more of them.
MANY = ("accuracy_1", "eps_perplexity", "brier", "ece", "tokens_per_second", "head_peak_bytes")


def write(out_dir: Path) -> Path:
    """Writes OUT/report.html from the record under OUT, finished or not, and returns its path.

    The file holds everything it shows: it opens from disk, without a network. The same record gives the same bytes. It
    appears whole or not at all.

    Raises:
        NothingFinished: no run has finished yet.
        StudyError: the record cannot be read, or the disk is full.
    """
    out_dir = Path(out_dir)
    return put(out_dir, render(analyse(load(out_dir))))


def put(out_dir: Path, html: str) -> Path:
    """Writes a page as the report of `out_dir`; it appears whole or not at all."""
    with full_disk(out_dir):
        return _replace(out_dir / NAME, html)


def render(analysis: Analysis) -> str:
    """The whole page."""
    title = f"{words.listing(analysis.study.objectives)} · fenchel compare"
    parts = (
        sections.opening,
        sections.results,
        sections.differences,
        sections.curves,
        sections.reliability,
        sections.speed,
        sections.continuations,
        sections.more,
        sections.definitions,
        sections.provenance,
    )
    return page(title, [part(analysis) for part in parts])


def page(title: str, parts: Sequence[Raw | None]) -> str:
    """A self-contained page of these parts; None is left out."""
    css = resources.files("fenchel.study").joinpath("templates/report.css").read_text(encoding="utf-8")
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Raw(css)),
    )
    body = el("main", *(join(part, Raw("\n")) for part in parts))
    return "<!DOCTYPE html>\n" + el("html", head, Raw("\n"), el("body", body), lang="en") + "\n"


def _replace(path: Path, page: str) -> Path:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".report", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def table(out_dir: Path) -> Group:
    """The results for a terminal: metric by objective, with differences, intervals and verdicts; of many objectives a row each.

    Raises:
        NothingFinished: no run has finished yet.
        StudyError: the record cannot be read.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    analysis = analyse(load(Path(out_dir)))
    study = analysis.study
    caption = words.intervals(analysis.cells)
    if study.missing:
        caption = f"{words.count(len(study.missing), 'run')} missing: run the same command again. {caption}"
    if len(analysis.objectives) > COLUMNS:
        metrics = [words.METRIC[key] for key in MANY]
        return by_objective(analysis, metrics, f"The report has more metrics. {caption}")
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("")
    for name in analysis.objectives:
        shown.add_column(Text(name + (" (baseline)" if name == study.baseline else "")), overflow="fold")
    styles = {"better": "bold blue", "worse": "bold yellow"}
    for metric in METRICS:
        cells = [analysis.cells[metric.key][name] for name in analysis.objectives]
        if all(math.isnan(c.value) for c in cells):
            continue
        row = []
        for c in cells:
            cell = Text(words.number(c.value, metric.unit))
            if c.verdict is not None:
                cell.append(f" {words.MARKS[c.verdict]} {c.verdict}", style=styles.get(c.verdict, "dim"))
                if words.interval_text(c):
                    cell.append("\n" + words.interval_text(c), style="dim")
            row.append(cell)
        shown.add_row(Text(metric.label), *row)
    return _captioned(shown, caption)


def _captioned(shown: Table, caption: str) -> Group:
    # no caption of the table's own: that is wrapped to the table, and cut where the table is wider than the terminal
    from rich.console import Group
    from rich.text import Text

    return Group(shown, Text(caption))


def by_objective(analysis: Analysis, metrics: Sequence[Metric], caption: str) -> Group:
    """Objectives by metrics, with a mark where the interval of the difference leaves zero out."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    marks = f"{words.MARKS['better']} better, {words.MARKS['worse']} worse. {caption}"
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    kept = [m for m in metrics if not all(math.isnan(c.value) for c in analysis.cells[m.key].values())]
    shown.add_column("", overflow="fold", min_width=10)
    for metric in kept:
        shown.add_column(Text(metric.label), overflow="fold")
    for name in analysis.objectives:
        row = [Text(name + (" (baseline)" if name == analysis.study.baseline else ""))]
        for metric in kept:
            c = analysis.cells[metric.key][name]
            mark = words.MARKS[c.verdict] + " " if c.verdict in ("better", "worse") else ""
            row.append(Text(mark + words.number(c.value, metric.unit)))
        shown.add_row(*row)
    return _captioned(shown, marks)
