"""Draws docs/img from the library itself. The tests fail while the committed pictures differ from what this draws."""

import re
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import fenchel

IMG = Path(__file__).parent / "img"
# families are drawn at one parameter
FAMILIES = {"js:BETA": None, "alpha:A": "alpha:1.5"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
STYLE = {
    "svg.hashsalt": "fenchel",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}

Curve = Callable[[str, Tensor], Tensor]


def names() -> tuple[list[str], list[str]]:
    """The generators with full support, and the sparse ones."""
    known = [FAMILIES.get(name, name) for name in fenchel.generator_names()]
    usable = [name for name in known if name is not None and fenchel.generator(name).unlink is not None]
    return [n for n in usable if not fenchel.generator(n).sparse], [n for n in usable if fenchel.generator(n).sparse]


def two_panels(curve: Curve, x: Tensor, labels: tuple[str, str], span: tuple[float, float]) -> plt.Figure:
    """Dense generators left; sparse ones right, with KL in grey to compare with."""
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.2), sharey=True, layout="constrained")
    dense, sparse = names()
    for axis, title, group in zip(axes, ("full support", "sparse"), (dense, sparse), strict=True):
        if group is sparse:
            axis.plot(x, curve("kl", x), color="#9a9a9a", linestyle="--", label="kl")
        for name, colour in zip(group, COLOURS, strict=False):
            axis.plot(x, curve(name, x), color=colour, label=name)
        axis.set(title=title, xlabel=labels[0])
        axis.legend()
    axes[0].set(ylabel=labels[1], ylim=span)
    return figure


def loss(name: str, margin: Tensor) -> Tensor:
    """The Fenchel-Young loss of two classes whose right one leads by `margin`."""
    logits = torch.stack((margin, torch.zeros_like(margin)), -1)
    target = torch.zeros(len(margin), dtype=torch.long)
    return fenchel.fenchel_young(logits, target, name, reduction="none")


def reference_scale() -> plt.Figure:
    """What the scale of q does: nothing for KL, a temperature for the others."""
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.0), sharey=True, layout="constrained")
    s = torch.linspace(-5, 5, 121, dtype=torch.float64)
    for axis, name in zip(axes, ("kl", "alpha:1.5"), strict=True):
        for q, colour, style in zip((0.25, 1.0, 4.0), COLOURS, (":", "-", "--"), strict=False):
            axis.plot(s, fenchel.sigmoid(s, name, q=q), color=colour, linestyle=style, label=f"q = {q:g}")
        axis.set(title=name, xlabel="score difference")
        axis.legend()
    axes[0].set_ylabel("probability")
    return figure


def generators() -> plt.Figure:
    """f of every generator."""
    u = torch.linspace(0.01, 3, 121, dtype=torch.float64)
    return two_panels(lambda name, x: fenchel.generator(name).f(x), u, ("u = p / q", "f(u)"), (-0.05, 2.0))


def operators() -> plt.Figure:
    """softargmax of two classes."""
    s = torch.linspace(-5, 5, 121, dtype=torch.float64)
    return two_panels(lambda name, x: fenchel.sigmoid(x, name), s, ("score difference", "probability"), (-0.03, 1.03))


def losses() -> plt.Figure:
    """The loss of two classes against the margin."""
    m = torch.linspace(-4, 5, 121, dtype=torch.float64)
    return two_panels(loss, m, ("margin: right score - other score", "loss"), (-1.5, 4.0))


def draw(folder: Path) -> list[Path]:
    """Draw every picture into a folder."""
    folder.mkdir(exist_ok=True)
    made = []
    with matplotlib.rc_context(STYLE):
        for picture in (generators, operators, losses, reference_scale):
            figure = picture()
            path = folder / f"{picture.__name__}.svg"
            figure.savefig(path, metadata={"Date": None, "Creator": None})
            plt.close(figure)
            # hundredths of a point are finer than any screen, and the same on every processor
            text = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path.read_text(encoding="utf-8"))
            path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
            made.append(path)
    return made


if __name__ == "__main__":
    print(f"{len(draw(IMG))} pictures in {IMG.name}/")
