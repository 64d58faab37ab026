"""P049 progressive purification: candidate sets that a network makes hard, and candidates that are struck as training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fenchel.gallery.checks import Check, mean, paired
from fenchel.gallery.figures import by_method, column, dots, lines
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import Split, accuracy, fit, mlp, scaled, split, teacher
from fenchel.objectives.supervised import purified, supervised

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, STEPS, POINTS = 500, 600, 10
WARM_UP = 1 / 3  # share of the training before the first candidate is struck
FIRST, LAST = 0.9, 0.2  # margins, from the end of the warm-up to the end
HARDEST = 0.7  # chance that the wrong class that is likeliest is a candidate
METHODS = ("all alike", "candidates", "purified", "true labels")


def run(seed: int, scale: float) -> Measurements:
    """Accuracy by method, and the size of the purified sets and the share that holds the true label, over time."""
    data, steps = split("digits", seed, train=scaled(TRAIN, scale, least=128)), scaled(STEPS, scale, least=3 * POINTS)
    sets = hard_candidates(data, seed, scaled(60, scale))
    rows = torch.arange(len(data))
    found, size, kept = {}, [], []
    for name in METHODS:
        net = mlp((data.x.shape[1], 64, data.classes), seed)
        left = sets.clone()

        def loss(i: Tensor, name: str = name, net=net, left: Tensor = left) -> Tensor:
            z = net(data.x[i])
            if name == "true labels":
                return supervised(z, data.y[i], "cross_entropy")
            if name == "all alike":
                return supervised(z, sets[i] / sets[i].sum(-1, keepdim=True), "cross_entropy")
            return supervised(z, left[i], "candidates")

        def each(step: int, _: Tensor, name: str = name, net=net, left: Tensor = left) -> None:
            done = (step / steps - WARM_UP) / (1 - WARM_UP)
            if name != "purified":
                return
            if done >= 0 and step % max(1, steps // 30) == 0:
                with torch.no_grad():
                    left.copy_(purified(net(data.x), left, FIRST + (LAST - FIRST) * done))
            if step % (steps // POINTS) == 0 and len(size) < POINTS:
                size.append(float(left.sum(-1).double().mean()))
                kept.append(float(left[rows, data.y].double().mean()))

        fit(net.parameters(), loss, len(data), steps=steps, seed=seed, each=each)
        with torch.no_grad():
            found[name] = {"accuracy": accuracy(net(data.x_test), data.y_test)}
        if name == "purified":
            size.append(float(left.sum(-1).double().mean()))
            kept.append(float(left[rows, data.y].double().mean()))
    return {"methods": found, "size": size, "kept": kept}


def hard_candidates(data: Split, seed: int, steps: int) -> Tensor:
    """Sets [n, V] (bool): the label, and each other class with a chance that falls with its probability under a little-trained network."""
    net = teacher(data, 900 + seed, hidden=(32,), steps=steps)
    p = net(data.x).softmax(-1).scatter(-1, data.y.unsqueeze(-1), 0.0)
    chance = HARDEST * p / p.amax(-1, keepdim=True)
    drawn = torch.rand(p.shape, generator=torch.Generator().manual_seed(seed)) < chance
    return drawn.scatter(-1, data.y.unsqueeze(-1), value=True)


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """What purification is worth, and what it strikes."""
    got = by_method(measured, METHODS, "accuracy")
    size, kept = column(measured, "size"), column(measured, "kept")
    return [
        paired(
            "accuracy gain of purification over the same loss without",
            got["purified"],
            got["candidates"],
            more_than=0.0,
        ),
        paired(
            "accuracy gain of the likelihood of the set over all candidates alike",
            got["candidates"],
            got["all alike"],
            more_than=0.0,
        ),
        mean("candidates per example at the end", [s[-1] for s in size], less_than=1.2),
        mean("share of examples whose set still holds the true label", [k[-1] for k in kept], more_than=0.9),
        paired("accuracy: purification less true labels", got["purified"], got["true labels"], more_than=-0.05),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Accuracy, and the sets over time."""
    left, right = figure.subplots(1, 2)
    dots(left, by_method(measured, METHODS, "accuracy"), label="accuracy", percent=True)
    steps = [k * STEPS // POINTS for k in range(POINTS + 1)]
    curves = {"candidates per example": column(measured, "size"), "true label kept (share)": column(measured, "kept")}
    lines(right, steps, curves, labels=("step", "purified sets"))


PAPER = Paper(
    id="P049",
    title="Progressive Purification for Instance-Dependent Partial Label Learning",
    source="arXiv 2206.00830",
    claim="Where candidate labels depend on the example, striking those that the model holds to be unlikely, with a margin that shrinks, "
    "enlarges the region where the model is right, and improves other losses for partial labels.",
    setup="Digits, 500 to train on. Each has its label and other classes as candidates, the likelier under a network trained for 60 steps, "
    "the more often: the likeliest in 70 % of the sets. One hidden layer of 64, 600 steps of Adam. Purification begins after a third "
    "of the steps with a margin of 0.9, which falls to 0.2.",
    objectives=("candidates", "purified"),
    run=run,
    judge=judge,
    draw=draw,
    seeds=6,
    notes="The margins were chosen on seeds 100 to 102 among (0.5, 0.5), (0.9, 0.5) and (0.9, 0.2), and the difficulty of the sets too: "
    "with the likeliest wrong class always a candidate, no loss recognised two digits of three there. The rule and its margin are "
    "derived from the abstract.",
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
