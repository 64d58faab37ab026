"""The results as a rich table, Markdown, JSON and a plot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from fenchel.bench import curves
from fenchel.bench.bars import SPARSE
from fenchel.bench.results import Row, Target, to_dict

COLOURS = {"bare": "#9a9a9a", "dense": "#c8683c", "fused": "#2f6db3", "function": "#4f9d69", "peer": "#b9a13c"}
COLUMNS = (
    *("path", "seconds", "× dense CE", "× product", "GFLOP", "MiB moved", "% of ceiling", "peak MiB", "first call s"),
    *("error", "target", "met"),
)
LEGEND = (
    "Seconds of one forward and backward pass: median (least–most). × dense CE and × product: median of the ratios within a "
    "turn. GFLOP and MiB moved: what the path cannot do without. % of ceiling: the time that this takes at the speed of the "
    "bare product, or of the bare copy if that is longer, in the time that was measured. Peak: resident memory beyond inputs "
    "and gradients. First call: on a fifth of the rows in a fresh process, compiling what was not compiled yet. Error: the "
    "largest of value and gradients against dense float64."
)


@dataclass(frozen=True)
class Report:
    """A whole run; `mode` is what was asked for: regimes, grid or scaling."""

    mode: str
    machine: Mapping[str, str]
    size: Mapping[str, Any]
    settings: Mapping[str, Any]
    regimes: Sequence[tuple[Mapping[str, Any], Sequence[Row]]]

    def targets(self) -> list[tuple[str, Row, Target]]:
        """Every bar of every regime."""
        return [(facts["regime"], row, t) for facts, rows in self.regimes for row in rows for t in row.targets]


def _number(x: float | None, form: str) -> str:
    return "" if x is None else format(x, form)


def cells(row: Row) -> list[str]:
    """What stands in the columns."""
    time = row.note or ""
    if row.seconds is not None:
        time = f"{row.seconds:.3g} ({row.least:.3g}–{row.most:.3g})"
    return [
        row.label,
        time,
        _number(row.per_dense, ".2f"),
        _number(row.per_product, ".2f"),
        _number(None if row.ceiling is None else row.ceiling.flops / 1e9, ".3g"),
        _number(None if row.ceiling is None else row.ceiling.bytes / 2**20, ".3g"),
        _number(None if row.ceiling is None else 100 * row.ceiling.share, ".0f"),
        _number(None if row.peak is None else row.peak / 2**20, ".0f"),
        _number(row.first, ".1f"),
        _number(row.error, ".0e"),
        "; ".join(f"{t.what} {t.measured:.3g} ≤ {t.most:g}" for t in row.targets),
        "; ".join("yes" if t.met else "NO" for t in row.targets),
    ]


def title(facts: Mapping[str, Any], size: Mapping[str, Any]) -> str:
    """What a regime is called, with its shape where that is not the run's."""
    name = facts["regime"].capitalize()
    if all(facts[part] == size[part] for part in ("n", "d", "v")):
        return name
    return f"{name}, N = {facts['n']:,}, D = {facts['d']:,}, V = {facts['v']:,}"


def headline(facts: Mapping[str, Any], size: Mapping[str, Any]) -> str:
    """What a regime is, in one line of measured numbers."""
    support = ", ".join(f"{name} {100 * facts['support'][name]:.2g} %" for name in SPARSE)
    said = f"{facts['what']}. N = {facts['n']:,}, D = {facts['d']:,}, V = {facts['v']:,}, {facts['dtype']}; logits' standard deviation {facts['logit_std']:.2g}"
    said += f"; accuracy {100 * facts['accuracy']:.0f} %; support of {support}."
    run = facts["run"]
    if run is not None:
        said += (
            f" Trained with {run['objective']}, step {run['step']} of {size['steps']}"
            f"{'' if run['step'] <= size['steps'] else ' and more'}, {run['tokens_per_step']} tokens a step."
        )
    return said


def rich_tables(report: Report) -> list[Table]:
    """One table per regime, of the columns that a terminal has room for."""
    tables = []
    for facts, rows in report.regimes:
        table = Table(
            title=f"{title(facts, report.size)}: {headline(facts, report.size)}", title_justify="left", box=SIMPLE
        )
        table.add_column("path", no_wrap=True)
        for column in ("seconds", "× dense", "× product", "ceiling", "MiB"):
            table.add_column(column, justify="right")
        table.add_column("target")
        for row in rows:
            label, _, dense, product, _, _, share, peak, *_ = cells(row)
            time = row.note or "" if row.seconds is None else f"{row.seconds:.3g}"
            verdict = "\n".join(
                f"[{'green' if t.met else 'red'}]{t.what} {t.measured:.3g} ≤ {t.most:g}: {'yes' if t.met else 'NO'}[/]"
                for t in row.targets
            )
            style = "bold" if row.kind == "fused" else None
            table.add_row(label, time, dense, product, share and f"{share} %", peak, verdict, style=style)
        tables.append(table)
    return tables


def markdown(report: Report) -> str:
    """The same as Markdown, with the machine and the settings."""
    s = report.size
    about = "; ".join(f"{name}: {value}" for name, value in (*report.machine.items(), *report.settings.items()))
    met = [t.met for _, _, t in report.targets()]
    lines = [
        f"Run `{report.mode}` ({s['name']}). {about}.",
        "",
        *([f"Targets met: {sum(met)} of {len(met)}.", ""] if met else []),
        LEGEND,
        *(curves.summary(report.regimes) if report.mode == "scaling" else []),
    ]
    for facts, rows in report.regimes:
        lines += ["", f"### {title(facts, s)}", "", headline(facts, s), ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 2) + "---|"]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def to_json(report: Report) -> str:
    """Everything that was measured."""
    regimes = []
    for facts, rows in report.regimes:
        regimes.append({"facts": dict(facts), "rows": [to_dict(row) for row in rows]})
    whole = {
        "mode": report.mode,
        "machine": dict(report.machine),
        "size": dict(report.size),
        "settings": dict(report.settings),
        "regimes": regimes,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def plot(report: Report, path: Path) -> None:
    """Seconds of every path, one panel per regime, with the bare product as a line."""
    from matplotlib.figure import Figure

    shown = [(facts, [row for row in rows if row.seconds is not None]) for facts, rows in report.regimes]
    heights = [len(rows) + 1.6 for _, rows in shown]
    figure = Figure(figsize=(8.5, 0.27 * sum(heights) + 0.6), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (facts, rows) in zip(panels, shown, strict=True):
        middle = [row.seconds or 0.0 for row in rows]
        below = [(row.seconds or 0.0) - (row.least or 0.0) for row in rows]
        above = [(row.most or 0.0) - (row.seconds or 0.0) for row in rows]
        bars = {
            "color": [COLOURS[row.kind] for row in rows],
            "xerr": [below, above],
            "error_kw": {"lw": 0.8, "capsize": 2},
        }
        axes.barh(range(len(rows)), middle, height=0.7, **bars)
        axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(title(facts, report.size), fontsize=10, loc="left", fontweight="bold")
        for key, style in (("product", ":"), ("dense", "--")):
            lines = [row.seconds for row in rows if row.key == key]
            for x in lines:
                axes.axvline(x, color=COLOURS["bare" if key == "product" else "dense"], linestyle=style, linewidth=1)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=8)
    panels[-1].set_xlabel(
        "seconds, forward and backward (dotted: one bare product; dashed: dense cross-entropy)", fontsize=9
    )
    figure.savefig(path, dpi=130)
