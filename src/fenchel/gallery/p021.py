"""P021 odd-k-out learning: cross-entropy of sets against cross-entropy of samples, on few and imbalanced digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fenchel.gallery.checks import Check, paired
from fenchel.gallery.figures import by_method, column, dots
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import Split, fit, marks, mlp, scaled, split
from fenchel.objectives.representation import odd_k_out_rows, odd_k_out_sets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, TRAIN, RARE = 2000, 600, 0.1
METHODS = ("cross-entropy", "cross-entropy, classes alike", "odd-1-out")


def long_tail(y: Tensor, scale: float) -> Tensor:
    """Indices that leave class k a share that falls geometrically from 1 for class 0 to RARE for class 9; two of each at least."""
    kept = []
    for k in range(10):
        mine = (y == k).nonzero().squeeze(1)
        kept.append(mine[: scaled(len(mine) * RARE ** (k / 9), 1.0, least=2)])
    return torch.cat(kept)


def run(seed: int, scale: float) -> Measurements:
    """The same network from the same weights under each objective; every step reads 63 samples."""
    data = split("digits", seed, train=scaled(TRAIN, scale, least=150))
    kept = long_tail(data.y, scale)
    few = Split(data.x[kept], data.y[kept], data.x_test, data.y_test, data.classes)
    found = {name: trained(few, name, scaled(STEPS, scale), seed) for name in METHODS}
    return {"methods": {name: marks(net(few.x_test), few.y_test) for name, net in found.items()}, "samples": len(few)}


def trained(data: Split, method: str, steps: int, seed: int) -> nn.Sequential:
    """A network after training by one of the methods."""
    net = mlp((64, 64, 10), seed)
    made = torch.Generator().manual_seed(seed)
    share = 1 / torch.bincount(data.y).double()[data.y]

    def loss(index: Tensor) -> Tensor:
        if method == "odd-1-out":
            sets, y = odd_k_out_sets(data.y, 1, 21, generator=made)
            return odd_k_out_rows(net(data.x[sets]), y).mean()
        if method == "cross-entropy, classes alike":
            index = torch.multinomial(share, 63, replacement=True, generator=made)
        return nn.functional.cross_entropy(net(data.x[index]), data.y[index])

    fit(net.parameters(), loss, len(data), steps=steps, seed=seed, batch=63)
    return net.requires_grad_(False)


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """More accurate and better calibrated than both ways of taking samples one by one."""

    def of(name: str, key: str) -> list[float]:
        return column(measured, "methods", name, key)

    plain, alike, ours = METHODS
    return [
        paired("accuracy gain over cross-entropy", of(ours, "accuracy"), of(plain, "accuracy"), more_than=0.0),
        paired("calibration error less that of cross-entropy", of(ours, "ece"), of(plain, "ece"), less_than=0.0),
        paired(
            "accuracy gain over cross-entropy with classes alike",
            of(ours, "accuracy"),
            of(alike, "accuracy"),
            more_than=-0.01,
        ),
        paired(
            "calibration error less that of cross-entropy with classes alike",
            of(ours, "ece"),
            of(alike, "ece"),
            less_than=0.0,
        ),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Accuracy and calibration error of each method."""
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, label in ((left, "accuracy", "accuracy"), (right, "ece", "calibration error")):
        dots(axes, by_method(measured, METHODS, key), label=label, percent=True)


PAPER = Paper(
    id="P021",
    title="Set Learning for Accurate and Calibrated Models",
    source="arXiv 2307.02245",
    claim="Cross-entropy of sets, a pair of one class and odd examples, gives better accuracy and calibration than cross-entropy of single "
    "examples on limited and imbalanced data, without changing the model or its use.",
    setup="600 digits to train on, thinned so that class k keeps a share of 10^(-k/9): class 9 a tenth. Test digits keep all their classes "
    "alike. A network with one layer of 64, 2000 steps of Adam at the same learning rate, 63 samples each: drawn one by one, one by "
    "one with classes alike, or as 21 sets of a pair and an odd one.",
    objectives=("odd_k_out_rows",),
    run=run,
    judge=judge,
    draw=draw,
    seeds=6,
    notes="The bounds were stated before the run. Sets are drawn with classes alike, so that the second baseline, which is too, tells how "
    "much of the gain is sampling alone. 2000 steps were chosen among 600 and 2000 on seeds that are not used here: after 600, odd-1-out "
    "is as accurate, but unsure and worse calibrated, since a set is easier to get right than a sample.",
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
