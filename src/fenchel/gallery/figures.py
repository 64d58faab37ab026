"""Figures of the gallery: one style, a few ways of showing seeds, and SVG files that are the same every time."""

from __future__ import annotations

import io
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from fenchel.gallery.paper import Measurements, Paper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
GREY = "#8a8a8a"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def dots(axes: Axes, groups: Mapping[str, Sequence[float]], *, label: str, percent: bool = False) -> None:
    """A row per method: a dot per seed, joined seed by seed, and a bar at the mean.

    The first method is on top; lines between the rows show that seeds are paired.
    """
    names = list(groups)
    factor = 100.0 if percent else 1.0
    table = np.array([list(groups[name]) for name in names], dtype=np.float64) * factor
    places = np.arange(len(names))
    axes.plot(table, places, color=GREY, alpha=0.3, linewidth=0.7)
    for place, row in zip(places, table, strict=True):
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(row, np.full(row.size, place), "o", color=colour, alpha=0.55, markersize=4, markeredgewidth=0)
        axes.plot([row.mean()] * 2, [place - 0.28, place + 0.28], color=colour, linewidth=2.6)
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{label}, %" if percent else label)


def lines(
    axes: Axes, x: Sequence[float], groups: Mapping[str, Sequence[Sequence[float]]], *, labels: tuple[str, str]
) -> None:
    """A curve per method: the mean over seeds, and the range of the seeds as a band. Each group is [seeds, points]."""
    for place, (name, runs) in enumerate(groups.items()):
        colour = COLOURS[place % len(COLOURS)]
        table = np.array([list(run) for run in runs], dtype=np.float64)
        axes.fill_between(x, table.min(0), table.max(0), color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, table.mean(0), color=colour, label=name)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.legend()


def column(measured: Sequence[Measurements], *keys: str) -> list:
    """One entry of every seed, found by its keys from the outside in.

    Example:
        >>> column([{"KD": {"ece": 0.1}}, {"KD": {"ece": 0.2}}], "KD", "ece")
        [0.1, 0.2]
    """
    return [reduce(operator.getitem, keys, m) for m in measured]


def by_method(measured: Sequence[Measurements], names: Iterable[str], key: str) -> dict[str, list]:
    """One entry of every seed for each of the methods, as `dots` and `lines` take them."""
    return {name: column(measured, "methods", name, key) for name in names}


def accuracy_and_likelihood(figure: Figure, measured: Sequence[Measurements], names: Iterable[str]) -> None:
    """The marks of the methods' students (`students.marks`), two panels."""
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, label in ((left, "accuracy", "accuracy"), (right, "nll", "negative log-likelihood, nats")):
        dots(axes, by_method(measured, names, key), label=label, percent=key == "accuracy")


def svg(paper: Paper, measured: Sequence[Measurements]) -> str:
    """The figure of a paper as an SVG file: no dates, the same ids every time."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "svg.hashsalt": paper.id}):
        figure = Figure(figsize=paper.size, layout="constrained")
        paper.draw(figure, measured)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    # hundredths of a point are finer than any screen; what lies between tags is read by people, and stays as it is
    text = re.sub(r"<[^!>][^>]*>", lambda tag: re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", tag[0]), text)
    return re.sub(r"[ \t]+\n", "\n", text)
