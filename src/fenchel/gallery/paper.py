"""What a file of the gallery declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fenchel.gallery.checks import Check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What one seed measured: numbers, texts and (nested) lists or dicts of them, as JSON holds them. No NaN, no infinity.
Measurements = Mapping[str, Any]


@dataclass(frozen=True)
class Paper:
    """One paper: its claim, an experiment, and what the experiment has to show.

    `run` measures; `judge` and `draw` are pure functions of what was measured, so that the verdict, the page and the
    figure can be made again from the committed numbers, and a test does so.

    Fields:
        id: of the paper in the gallery, "P065"; the module is called p065.
        title: of the paper.
        source: where to read it: "arXiv 2506.12542", or an address.
        claim: the paper's central claim, one sentence.
        setup: the experiment in plain sentences: data, models, steps, what is compared, how the baseline was tuned.
        objectives: what users type to get the paper's method, e.g. ("pld",).
        run: `run(seed, scale)` -> Measurements. `scale` = 1 is the experiment; the tests pass a small fraction, which
            should shrink data and steps until a seed takes well under a second. All randomness comes from `seed`.
        judge: `judge([measurements of each seed])` -> checks, with bounds stated before the run; `notes` say where one was
            changed after a look at reported seeds.
        draw: `draw(figure, [measurements of each seed])` fills an empty matplotlib figure.
        seeds: how many seeds the experiment has, 0, 1, ...
        notes: what differs from the paper, or what a reader should know about the result; may be empty.
        size: of the figure in inches.
    """

    id: str
    title: str
    source: str
    claim: str
    setup: str
    objectives: tuple[str, ...]
    run: Callable[[int, float], Measurements]
    judge: Callable[[Sequence[Measurements]], list[Check]]
    draw: Callable[[Figure, Sequence[Measurements]], None]
    seeds: int = 10
    notes: str = ""
    size: tuple[float, float] = (7.6, 2.8)
