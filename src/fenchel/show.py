"""`fenchel list` and `fenchel show`: what a generator is, in numbers and pictures, and what an objective is, in words."""

import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from fenchel import Generator, fenchel_young, generator, generator_names, sigmoid, supervised_objective
from fenchel.objectives.names import words
from fenchel.objectives.supervised.names import supervised_described

FORMATS = (".svg", ".png", ".html")
# Families stand in the list with the members that have names of their own.
MEMBERS = {"alpha:A": ("alpha:1.5", "alpha:2"), "js:BETA": ()}
BRAILLE = 0x2800
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


@dataclass(frozen=True)
class Curve:
    """One function to draw: y over x, where y is finite."""

    title: str
    across: str
    x: Tensor
    y: Tensor


def names() -> list[str]:
    """A generator of every kind, by name."""
    return [member for name in generator_names() for member in MEMBERS.get(name, (name,))]


def has_operator(g: Generator) -> bool:
    """Whether the generator has an operator and a loss."""
    return g.unlink is not None


def table() -> Table:
    """All generators and their properties."""
    result = Table(title="generators of f-divergences, with f(1) = f'(1) = 0")
    for column in ("name", "f(u)", "f(0)", "f'(0)", "operator", "source"):
        result.add_column(column, overflow="fold")
    for name in names():
        g = generator(name)
        kind = ("sparse" if g.sparse else "dense") if has_operator(g) else "none"
        result.add_row(name, g.formula, number(g.f0), number(g.df0), kind, g.source)
    return result


def objectives() -> Table:
    """The supervised objectives that are no generator's Fenchel-Young loss."""
    result = Table(title="supervised objectives; a generator's name is its Fenchel-Young loss, and ' + ' adds")
    for column in ("name", "what it is, p = softmax(z), y the label"):
        result.add_column(column, overflow="fold")
    for said in supervised_described().values():
        result.add_row(Text(said.name), Text(said.meaning))
    return result


def number(value: float) -> str:
    """A number for people.

    >>> number(0.5), number(float("inf"))
    ('0.5', '∞')
    """
    return ("∞" if value > 0 else "-∞") if math.isinf(value) else f"{value:.4g}"


def properties(g: Generator) -> list[tuple[str, str]]:
    """What `fenchel show` says of a generator, in words."""
    said = [
        ("f(u)", g.formula),
        ("f(0)", number(g.f0)),
        ("f'(0)", number(g.df0)),
        ("divergence", "D_f(p||q) = sum_j q_j f(p_j / q_j); swapping p and q gives " + g.adjoint.name),
    ]
    if not has_operator(g):
        return [*said, ("operator", "none: f is not strictly convex and differentiable"), ("source", g.source)]
    reach = f"logits more than {number(-g.df0)} below the largest have probability exactly 0 (q = 1)"
    return [
        *said,
        ("operator", reach if g.sparse else "every token keeps a positive probability"),
        ("loss", "l(logits, y) = softmax_value(logits) + D_f(y||q) - <logits, y>, gradient p - y"),
        ("source", g.source),
    ]


def curves(g: Generator) -> list[Curve]:
    """f over u, and with two classes whose scores are (0, s): the probability of the second, and its loss."""
    u = torch.linspace(0.02, 3.0, 200, dtype=torch.float64)
    drawn = [Curve("f(u)", "u", u, g.f(u))]
    if has_operator(g):
        s = torch.linspace(-4.0, 4.0, 201, dtype=torch.float64)
        scores, second = torch.stack([torch.zeros_like(s), s], -1), torch.ones(len(s), dtype=torch.long)
        drawn.append(Curve("operator: probability of the second of two classes", "s", s, sigmoid(s, g)))
        loss = fenchel_young(scores, second, g, reduction="none")
        drawn.append(Curve("loss when the second class is right", "s", s, loss))
    return drawn


def text_plot(curve: Curve, width: int = 60, height: int = 10) -> str:
    """The curve in Braille characters with its range: two dots across and four down in each."""
    low, high = float(curve.y.min()), float(curve.y.max())
    span = high - low or 1.0
    cells = [[0] * width for _ in range(height)]
    left, right = float(curve.x[0]), float(curve.x[-1])
    for x, y in zip(curve.x.tolist(), curve.y.tolist(), strict=True):
        across = round((x - left) / (right - left) * (2 * width - 1))
        down = round((high - y) / span * (4 * height - 1))
        cells[down // 4][across // 2] |= DOTS[across % 2][down % 4]
    marks = [number(high).rjust(9)] + [" " * 9] * (height - 2) + [number(low).rjust(9)]
    rows = [f"{mark} │" + "".join(chr(BRAILLE + cell) for cell in row) for mark, row in zip(marks, cells, strict=True)]
    ends = number(left) + f"{curve.across}".center(width - len(number(left)) - len(number(right))) + number(right)
    return "\n".join([f"{'':9}  {curve.title}", *rows, f"{'':9} └{'─' * width}", f"{'':11}{ends}"])


def show(name: str, console: Console) -> None:
    """Print the properties and plots of a generator, or what a supervised objective is.

    Raises:
        ValueError: neither.
    """
    try:
        g = generator(name)
    except ValueError:
        objective = supervised_objective(name)
        console.print(
            _facts(
                name,
                [
                    *meanings(name),
                    ("in Python", f"fenchel.supervised(logits, target, {name!r})"),
                    ("object", repr(objective)),
                ],
            )
        )
        return
    console.print(_facts(g.name, properties(g)))
    for curve in curves(g):
        console.print()
        console.print(text_plot(curve), markup=False, highlight=False, no_wrap=True, overflow="crop")


def meanings(name: str) -> list[tuple[str, str]]:
    """Each term of a supervised objective that is known by its name, in words, with its source.

    Example:
        >>> meanings("focal:1 + 0.1*kl")
        [('focal:gamma=2', '-(1 - p_y)^gamma log p_y.'), ('source', 'Lin et al., arXiv 1708.02002.')]
    """
    known, told = supervised_described(), []
    for term in name.split(" + "):
        said = known.get(words(term.strip()).head.rpartition("*")[2])
        if said is not None:
            told += [(said.name, said.meaning), *([("source", said.source)] if said.source else [])]
    return told


def _facts(title: str, rows: list[tuple[str, str]]) -> Table:
    facts = Table(show_header=False, box=None, title=Text(title, style="bold"), title_justify="left")
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for key, value in rows:
        facts.add_row(Text(key), Text(value))
    return facts


def save(name: str, path: Path) -> None:
    """Write the plots of a generator as .svg or .png, or with its properties as one .html file that needs no other.

    Raises:
        ValueError: an unknown generator, or a path with another ending.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--out {path}: pass a path that ends in {', '.join(FORMATS)}")
    g = generator(name)
    if path.suffix.lower() != ".html":
        _figure(g).savefig(path, dpi=150)
        return
    import io

    svg = io.StringIO()
    _figure(g).savefig(svg, format="svg")
    picture = svg.getvalue()[svg.getvalue().index("<svg") :]
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in properties(g))
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(g.name)}</title>'
        "<style>body{font:16px sans-serif;max-width:70em;margin:2em auto;padding:0 1em}svg{width:100%;height:auto}"
        "th{text-align:left;padding-right:2em;font-weight:normal;color:#666}</style>"
        f"<h1>{escape(g.name)}</h1><table>{rows}</table>{picture}</html>\n",
        encoding="utf-8",
    )


def _figure(g: Generator) -> Any:
    from matplotlib.figure import Figure

    drawn = curves(g)
    figure = Figure(figsize=(4.5 * len(drawn), 3.6), layout="constrained")
    for axes, curve in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        axes.plot(curve.x, curve.y)
        axes.set_title(curve.title, fontsize=10)
        axes.set_xlabel(curve.across)
        axes.grid(alpha=0.3)
    figure.suptitle(g.name)
    return figure
