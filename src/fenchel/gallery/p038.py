"""P038 a long tail as a decision: class weights, a prior in the loss and utilities, on digits of which few are nines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fenchel.gallery.checks import Check, paired, worst
from fenchel.gallery.classifiers import long_tailed, recall
from fenchel.gallery.figures import by_method, column, dots
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import Split, fit, mlp, scaled, split
from fenchel.objectives.supervised import decision, decision_loss, false_head_rate, supervised

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, MOST, LEAST, STEPS, HEADS = 1200, 100, 2, 400, 5
PARTICLES = 3
WORTH = 0.5  # of taking a digit for another one of the tail, where being right is worth 1
METHODS = ("cross-entropy", "rebalanced", "prior", "ensemble", "utilities")


def run(seed: int, scale: float) -> Measurements:
    """Recall of each class and the false head rate, by method."""
    data = long_tailed(split("digits", seed, train=TRAIN), MOST, LEAST)
    steps = scaled(STEPS, scale)
    count = data.y.bincount(minlength=data.classes).float()
    balance = count.mean() / count
    same, tail_first = torch.eye(data.classes), utilities(data.classes)

    def logits(loss: str, member: int = 0) -> Tensor:
        net = mlp((data.x.shape[1], 64, data.classes), 1000 * seed + member)

        def of(i: Tensor) -> Tensor:
            z, y = net(data.x[i]), data.y[i]
            if loss == "cross-entropy":
                return supervised(z, y, "cross_entropy")
            if loss == "prior":
                return supervised(z, y, "cross_entropy", q=count / count.sum())
            utility = tail_first if loss == "utilities" else same
            return decision_loss(z, y, utility, class_weight=balance).mean()

        fit(net.parameters(), of, len(data), steps=steps, seed=seed + 100 * member)
        with torch.no_grad():
            return net(data.x_test)

    rebalanced, useful = (
        torch.stack([logits(loss, member).softmax(-1) for member in range(PARTICLES)])
        for loss in ("rebalanced", "utilities")
    )
    predicted = {
        "cross-entropy": logits("cross-entropy").argmax(-1),
        "rebalanced": decision(rebalanced[0], same),
        "prior": logits("prior").argmax(-1),
        "ensemble": decision(rebalanced, same),
        "utilities": decision(useful, tail_first),
    }
    found = {name: marks(predicted[name], data) for name in METHODS}
    return {"methods": found, "identity": identity(seed)}


def utilities(classes: int) -> Tensor:
    """1 for being right, WORTH for one class of the tail taken for another, 0 otherwise [V, V]."""
    tail = torch.arange(classes) >= HEADS
    return torch.eye(classes) + WORTH * (tail.unsqueeze(1) & tail.unsqueeze(0)) * (1 - torch.eye(classes))


def marks(prediction: Tensor, data: Split) -> dict[str, float]:
    """Mean recall over all classes and over those of the tail, and the share of the tail that is taken for a head class."""
    shares = recall(prediction, data.y_test, data.classes)
    head = torch.arange(data.classes) < HEADS
    return {
        "recall": float(shares.mean()),
        "tail": float(shares[HEADS:].mean()),
        "false head rate": float(false_head_rate(prediction, data.y_test, head)),
    }


def identity(seed: int) -> float:
    """Largest difference of the decision loss with the identity as utility from weighted cross-entropy, in float64."""
    made = torch.Generator().manual_seed(seed)
    z = torch.randn(40, 6, generator=made, dtype=torch.float64)
    y = torch.arange(40) % 6
    weight = torch.rand(6, generator=made, dtype=torch.float64)
    ours = decision_loss(z, y, torch.eye(6, dtype=torch.float64), class_weight=weight)
    return float((ours + weight[y] * z.log_softmax(-1)[torch.arange(40), y]).abs().max())


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """What each part of the framework is worth."""
    got = {key: by_method(measured, METHODS, key) for key in ("recall", "tail", "false head rate")}

    def gain(statement: str, key: str, ours: str, over: str, **bounds: float) -> Check:
        return paired(statement, got[key][ours], got[key][over], **bounds)

    return [
        worst(
            "identity as utility, one particle: the loss less rebalanced cross-entropy",
            column(measured, "identity"),
            less_than=1e-9,
        ),
        gain(
            "mean recall: gain of rebalancing over cross-entropy",
            "recall",
            "rebalanced",
            "cross-entropy",
            more_than=0.0,
        ),
        gain(
            "mean recall: gain of the class prior in the loss over cross-entropy",
            "recall",
            "prior",
            "cross-entropy",
            more_than=0.0,
        ),
        gain(
            "mean recall: gain of three particles over one, rebalanced",
            "recall",
            "ensemble",
            "rebalanced",
            more_than=0.0,
        ),
        gain(
            "false head rate: utilities less the ensemble without",
            "false head rate",
            "utilities",
            "ensemble",
            less_than=0.0,
        ),
        gain("mean recall: utilities less the ensemble without", "recall", "utilities", "ensemble", more_than=-0.02),
        gain(
            "false head rate: utilities less cross-entropy",
            "false head rate",
            "utilities",
            "cross-entropy",
            less_than=0.0,
        ),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Recall and the false head rate."""
    panels = {"recall": "mean recall", "tail": "recall of the tail", "false head rate": "false head rate"}
    for axes, (key, label) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        dots(axes, by_method(measured, METHODS, key), label=label, percent=True)


PAPER = Paper(
    id="P038",
    title="Long-tailed Classification from a Bayesian-decision-theory Perspective",
    source="Li, Cheung & Hu 2023",
    claim="A long tail is a question of decisions: re-balancing and ensembles are cases of one integrated risk, and utilities for the task "
    "at hand, such as those of a tail that must not be taken for the head, lower the false head rate.",
    setup="Digits: 100 zeros to train on, falling geometrically to 2 nines; all classes in the test. One hidden layer of 64, 400 steps of "
    "Adam. Cross-entropy, the same with class weights 1 / frequency, with the class prior as reference measure, three rebalanced "
    "networks, and three with utilities: a class of the tail (5 to 9) taken for another of the tail is worth half of being right, in "
    "training and in the decision.",
    objectives=("decision_loss", "decision", "cross_entropy with q = prior"),
    run=run,
    judge=judge,
    draw=draw,
    seeds=6,
    notes="The particles differ in their start and their batches; the paper's repulsion between them was not seen. The class prior is logit "
    "adjustment (arXiv 2007.07314), for comparison. Nothing was tuned.",
    size=(9.0, 2.6),
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
