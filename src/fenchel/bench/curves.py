"""Cost and memory against N and against V: how they grow, and a plot of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fenchel.bench.results import Row

Sections = Sequence[tuple[Mapping[str, Any], Sequence[Row]]]
MARKERS = "os^Dv*PXdh<>"


@dataclass(frozen=True)
class Curve:
    """One path along one axis, the other dimensions fixed."""

    axis: str
    at: str
    label: str
    kind: str
    x: tuple[int, ...]
    seconds: tuple[float, ...]
    peak: tuple[float | None, ...]

    @property
    def exponent(self) -> float:
        """The k for which seconds grow like x^k, by least squares of the logarithms."""
        return slope([math.log(x) for x in self.x], [math.log(y) for y in self.seconds])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of a line through points, by least squares."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def curves(sections: Sections, axis: str) -> list[Curve]:
    """The curves along "n" or "v", through the shapes that share the other dimensions with most others."""
    other = "v" if axis == "n" else "n"
    by_other: dict[Any, list[tuple[Mapping[str, Any], Sequence[Row]]]] = {}
    for facts, rows in sections:
        by_other.setdefault((facts["d"], facts[other]), []).append((facts, rows))
    chosen = sorted(max(by_other.values(), key=len), key=lambda section: section[0][axis])
    if len(chosen) < 2:
        return []
    facts = chosen[0][0]
    at = f"D = {facts['d']:,}, {other.upper()} = {facts[other]:,}"
    found = []
    for key in dict.fromkeys(row.key for _, rows in chosen for row in rows if row.kind != "bare"):
        points = [(f[axis], row) for f, rows in chosen for row in rows if row.key == key and row.seconds is not None]
        if len(points) > 1:
            x, rows = zip(*points, strict=True)
            peaks = tuple(None if row.peak is None else row.peak / 2**20 for row in rows)
            found.append(Curve(axis, at, rows[0].label, rows[0].kind, x, tuple(row.seconds for row in rows), peaks))
    return found


def summary(sections: Sections) -> list[str]:
    """Lines of Markdown: how time and memory grow."""
    lines = []
    for axis in ("n", "v"):
        drawn = curves(sections, axis)
        if not drawn:
            continue
        ends = f"{axis.upper()} = {drawn[0].x[0]:,} to {drawn[0].x[-1]:,}"
        lines += [
            "",
            f"### Along {axis.upper()}",
            "",
            f"{ends}, {drawn[0].at}. Seconds ∝ {axis.upper()}^k, by least squares.",
            "",
        ]
        lines += ["| path | k | peak MiB at each |", "|---|---:|---|"]
        for c in drawn:
            known = [f"{p:,.0f}" for p in c.peak if p is not None]
            lines.append(f"| {c.label} | {c.exponent:.2f} | {', '.join(known)} |")
    return lines


def plot(sections: Sections, path: Path) -> None:
    """Seconds above, memory below; against N left, against V right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 6.8), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    measures: tuple[tuple[str, Callable[[Curve], Sequence[float | None]]], ...] = (
        ("seconds, forward and backward", lambda c: c.seconds),
        ("MiB beyond inputs and gradients", lambda c: c.peak),
    )
    for column, axis in enumerate(("n", "v")):
        drawn = curves(sections, axis)
        for row, (label, of) in enumerate(measures):
            axes = panels[row][column]
            for i, c in enumerate(drawn):
                points = [(x, y) for x, y in zip(c.x, of(c), strict=True) if y]
                if points:
                    style = {"marker": MARKERS[i % len(MARKERS)], "linestyle": "-" if c.kind == "fused" else "--"}
                    axes.plot(*zip(*points, strict=True), label=c.label, markersize=4, linewidth=1.4, **style)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.grid(color="#e6e6e6")
            axes.tick_params(labelsize=8)
            if column == 0:
                axes.set_ylabel(label, fontsize=9)
            if row == 1:
                axes.set_xlabel(axis.upper(), fontsize=9)
            if row == 0 and drawn:
                axes.set_title(drawn[0].at, fontsize=9)
    panels[0][0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)
