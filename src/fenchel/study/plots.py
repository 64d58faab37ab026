"""Figures of the report as inline SVG, coloured by the page.

Matplotlib draws with stand-in colours that become CSS variables, so that one drawing serves light mode, dark mode and
print, and an objective has one colour and one marker everywhere.
"""

from __future__ import annotations

import functools
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec

import numpy as np

from fenchel.study.markup import Raw, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

P = ParamSpec("P")

COLOURS = 8  # how many the style sheet defines; more objectives repeat them with another marker
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "*", "<", ">")
SYMBOLS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "⬟", "⬢", "★", "◀", "▶")
INK, MUTED, GRID, PAPER = "#0100b1", "#0200b1", "#0300b1", "#0400b1"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--rule)", PAPER: "var(--paper)"}
PANEL = (4.2, 2.75)  # inches: small, so that text stays readable when a phone shows one panel per row


@dataclass(frozen=True)
class Series:
    """One objective's curve: the mean over seeds and the range of the seeds."""

    index: int
    label: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def colour(index: int) -> str:
    """CSS colour of the objective at this place in the list."""
    return f"var(--c{index % COLOURS})"


def symbol(index: int) -> str:
    """Marker of the objective at this place in the list, as a character."""
    return SYMBOLS[index % len(SYMBOLS)]


def _stand_in(index: int) -> str:
    return f"#05{index % COLOURS:02x}b1"


def _lines(label: str, most: int = 22) -> list[str]:
    """A name in two lines at most."""
    return textwrap.wrap(label, most, max_lines=2, placeholder="…", break_on_hyphens=False)


def _styled(draw: Callable[Concatenate[str, P], Raw]) -> Callable[Concatenate[str, P], Raw]:
    @functools.wraps(draw)
    def inner(name: str, *args: P.args, **kwargs: P.kwargs) -> Raw:
        from matplotlib import rc_context

        # names of objectives and data are plain text, whatever dollars they hold
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}):
            return draw(name, *args, **kwargs)

    return inner


def _panel(size: tuple[float, float] = PANEL, left: float = 0.6) -> Axes:
    """Axes with margins in inches: matplotlib's layout engines find the same ones in twice the time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    figure.patch.set_visible(False)
    width, height = size
    axes = figure.add_axes((left / width, 0.48 / height, 1 - (left + 0.12) / width, 1 - 0.56 / height))
    axes.patch.set_visible(False)
    axes.tick_params(colors=MUTED, labelsize=8.5, which="both", length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _room(labels: Iterable[str]) -> float:
    # inches for the longest line of a label at 8.5 points, in a wide font
    return 0.15 + 0.073 * max(len(line) for label in labels for line in _lines(label))


def _height(labels: Sequence[str], row: float) -> float:
    # inches for rows of at least `row`, with room for the lines of the labels
    return 0.62 + len(labels) * max(row, 0.1 + 0.14 * max(len(_lines(label)) for label in labels))


def _label(axes: Axes, x: str, y: str = "") -> None:
    axes.set_xlabel(x, color=MUTED, fontsize=9)
    axes.set_ylabel(y, color=MUTED, fontsize=9)


def _rows_axis(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), ["\n".join(_lines(label)) for label in labels], color=INK)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _svg(axes: Axes, name: str, title: str) -> Raw:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(buffer, format="svg", metadata=nothing)
    return _inline(buffer.getvalue(), name, title)


def _inline(svg: str, name: str, title: str) -> Raw:
    """A standalone SVG file made fit to stand in a page: no prolog, page colours and fonts, ids of its own."""
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    # a style element in one figure would style the whole page
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
    box = re.search(r'viewBox="([^"]*)"', svg)
    if box is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    head = f'<svg class="plot" viewBox="{box[1]}" role="img" xmlns="http://www.w3.org/2000/svg" '
    head += f'xmlns:xlink="http://www.w3.org/1999/xlink"><title>{text(title)}</title>'
    svg = head + svg[svg.index(">") + 1 :]
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    svg = re.sub(r"(font: (?:[\w.]+ )*[\d.]+px) [^;\"]*", r"\1 var(--sans)", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    svg = re.sub(r"#05([0-9a-f]{2})b1", lambda m: f"var(--c{int(m[1], 16)})", svg)
    return Raw(re.sub(r"\n\s*", "\n", svg))


@_styled
def curves(
    name: str, title: str, x: str, series: Sequence[Series], *, scale: Literal["linear", "log", "percent"] = "linear"
) -> Raw:
    """Lines with a marker per evaluation and the range of the seeds as a band."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes = _panel()
    for s in series:
        c = _stand_in(s.index)
        marker = MARKERS[s.index % len(MARKERS)]
        axes.fill_between(s.x, s.low, s.high, color=c, alpha=0.18, linewidth=0)
        axes.plot(s.x, s.mean, color=c, marker=marker, markersize=4, linewidth=1.6, zorder=3)
        if s.index == 0:  # the baseline stays visible as a halo where another curve covers it
            axes.plot(s.x, s.mean, color=c, linewidth=5, alpha=0.25, zorder=2)
    if scale == "log":
        _log_axis(axes, series)
    elif scale == "percent":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g} %"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=x == "steps", steps=[1, 2, 5, 10]))
    _label(axes, x)
    axes.margins(x=0.02)
    return _svg(axes, name, title)


def _log_axis(axes: Axes, series: Sequence[Series]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not any(v > 0 for s in series for v in s.mean):
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    # fewer than two decades show too few powers of ten to read values from
    few = high / low < 300
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if few else (1,), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


@_styled
def reliability(name: str, label: str, index: int, bins: Sequence[dict]) -> Raw:
    """Accuracy against confidence per bin; the area of a point is the bin's share of the tokens."""
    axes = _panel((2.7, 2.5), left=0.52)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    seen = [b for b in bins if b["count"]]
    total = sum(b["count"] for b in seen) or 1
    confidence = [b["confidence"] for b in seen]
    accuracy = [b["accuracy"] for b in seen]
    c = _stand_in(index)
    axes.vlines(confidence, confidence, accuracy, color=c, linewidth=1.4, alpha=0.6)
    axes.scatter(
        confidence,
        accuracy,
        s=[10 + 220 * b["count"] / total for b in seen],
        color=c,
        alpha=0.8,
        linewidth=0,
        clip_on=False,
    )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    _label(axes, "confidence", "accuracy@1")
    return _svg(axes, name, f"Reliability of {label}")


@_styled
def differences(name: str, title: str, x: str, rows: Sequence[tuple[int, str, float, float, float]]) -> Raw:
    """Interval per objective around a line at zero; `rows` are (index, label, difference, low, high)."""
    from matplotlib.ticker import MaxNLocator

    labels = [row[1] for row in rows]
    axes = _panel((PANEL[0], _height(labels, 0.32)), _room(labels))
    axes.axvline(0, color=INK, linewidth=1)
    for place, (index, _, middle, low, high) in enumerate(rows):
        c = _stand_in(index)
        axes.plot([low, high], [place, place], color=c, linewidth=2.4, solid_capstyle="round", alpha=0.75)
        axes.plot([middle], [place], color=c, marker=MARKERS[index % len(MARKERS)], markersize=6, linestyle="")
    _rows_axis(axes, labels)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, symmetric=False))
    _label(axes, x)
    return _svg(axes, name, title)


@_styled
def stacked(name: str, title: str, x: str, rows: Sequence[tuple[int, str, float, float]]) -> Raw:
    """Horizontal bars of two parts; `rows` are (index, label, solid part, pale part), NaN parts are not drawn."""
    labels = [row[1] for row in rows]
    axes = _panel((PANEL[0], _height(labels, 0.36)), _room(labels))
    for place, (index, _, solid, pale) in enumerate(rows):
        c = _stand_in(index)
        start = 0.0 if math.isnan(solid) else solid
        if start:
            axes.barh(place, solid, color=c, height=0.62)
        if not math.isnan(pale):
            axes.barh(place, pale, left=start, color=c, alpha=0.35, height=0.62)
    _rows_axis(axes, labels)
    _label(axes, x)
    return _svg(axes, name, title)


def band(
    runs: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> tuple[list[float], list[float], list[float], list[float]]:
    """x, mean, least and greatest over runs given as (x, y) with places in common; x is averaged too."""
    x = np.array([r[0] for r in runs], dtype=float)
    y = np.array([r[1] for r in runs], dtype=float)
    return x.mean(0).tolist(), y.mean(0).tolist(), y.min(0).tolist(), y.max(0).tolist()
