"""P050 rich features: successive networks that must not use what earlier ones used, distilled into one start for IRM."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fenchel.gallery.checks import Check, mean, paired
from fenchel.gallery.figures import by_method, column, dots
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import accuracy, fit, mlp, scaled, split
from fenchel.objectives.representation import discovery_risk, synthesis_risk
from fenchel.objectives.risks import classifier_gradient, irm_penalty

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS, NOISE, COPIES, REVERSED = 650, 0.25, (0.9, 0.8), 0.1
HIDDEN, ROUNDS, BATCH, LR = 64, 2, 256, 3e-3
DISCOVERY, SYNTHESIS, STEPS = 150, 400, 200
# Without the penalty at first, then with it: both chosen on seeds 100 and 101 by the accuracy with colours reversed, and best for
# a random start and a rich one alike.
WARM_UP, WEIGHT = 100, 3000.0
METHODS = ("ERM", "IRM", "IRM, rich", "IRM, rich, frozen")


@dataclass(frozen=True)
class Coloured:
    """Digits in one of two colours: x [n, 128], the label y [n] as the training sees it, the shape's own label and the colour [n]."""

    x: Tensor
    y: Tensor
    shape: Tensor
    colour: Tensor


def coloured(x: Tensor, digit: Tensor, *, noise: float, agree: float, made: torch.Generator) -> Coloured:
    """Digits of 5 and more against the others: labels flipped at a rate, and a colour that agrees with the label as often as `agree`."""
    shape = (digit >= 5).long()
    y = shape ^ (torch.rand(len(x), generator=made) < noise).long()
    colour = y ^ (torch.rand(len(x), generator=made) >= agree).long()
    channels = torch.nn.functional.one_hot(colour, 2).float()
    return Coloured((channels.unsqueeze(2) * x.unsqueeze(1)).flatten(1), y, shape, colour)


def run(seed: int, scale: float) -> Measurements:
    """What each round of discovery goes by, what the distilled features hold, and IRM from random features and from these."""
    rows = scaled(ROWS, scale, least=64)
    data = split("digits", seed, train=2 * rows)
    x = (data.x - data.x.amin(0)) / 8
    x_test = (data.x_test - data.x.amin(0)) / 8
    made = torch.Generator().manual_seed(seed)
    parts = (slice(rows), slice(rows, None))
    train = [
        coloured(x[part], data.y[part], noise=NOISE, agree=agree, made=made)
        for part, agree in zip(parts, COPIES, strict=True)
    ]
    test = coloured(x_test, data.y_test, noise=0.0, agree=REVERSED, made=made)
    even = coloured(x_test, data.y_test, noise=0.0, agree=0.5, made=made)
    networks = discovered(train, scale, seed)
    rich = distilled(train, networks, scale, seed)
    fresh = mlp((128, HIDDEN, 2), seed)
    nets = {
        "ERM": networks[0],
        "IRM": invariant(fresh, train, scale, seed),
        "IRM, rich": invariant(headed(rich, fresh), train, scale, seed),
        "IRM, rich, frozen": invariant(headed(rich, fresh), train, scale, seed, frozen=True),
    }
    found = {name: accuracy(nets[name](test.x), test.shape) for name in METHODS}
    heads = rich(even.x).view(-1, ROUNDS, 2)
    return {
        "methods": {name: {"accuracy": value} for name, value in found.items()},
        "colour": [accuracy(net(even.x), even.colour) for net in networks],
        "shape": [accuracy(net(even.x), even.shape) for net in networks],
        "distilled": [accuracy(heads[:, r], networks[r](even.x).argmax(-1)) for r in range(ROUNDS)],
    }


def discovered(train: Sequence[Coloured], scale: float, seed: int) -> list[nn.Sequential]:
    """Networks round by round, each on the groups that the earlier ones make."""
    x, y = torch.cat([e.x for e in train]), torch.cat([e.y for e in train])
    right = torch.zeros(0, len(x), dtype=torch.bool)
    networks = []
    for r in range(ROUNDS):
        net = mlp((128, HIDDEN, 2), 10 * seed + r)

        def loss(i: Tensor, net: nn.Sequential = net, right: Tensor = right) -> Tensor:
            return discovery_risk(nn.functional.cross_entropy(net(x[i]), y[i], reduction="none"), right[:, i])

        fit(net.parameters(), loss, len(x), steps=scaled(DISCOVERY, scale), seed=seed + r, lr=LR, batch=BATCH)
        networks.append(net.requires_grad_(False))
        right = torch.cat((right, (net(x).argmax(-1) == y).unsqueeze(0)))
    return networks


def distilled(train: Sequence[Coloured], networks: Sequence[nn.Sequential], scale: float, seed: int) -> nn.Sequential:
    """One hidden layer with a head [n, 2] for each network, side by side."""
    x = torch.cat([e.x for e in train])
    told = torch.stack([net(x) for net in networks])
    net = mlp((128, HIDDEN, 2 * len(networks)), seed)

    def loss(i: Tensor) -> Tensor:
        return synthesis_risk(told[:, i], net(x[i]).view(len(i), -1, 2).transpose(0, 1))

    fit(net.parameters(), loss, len(x), steps=scaled(SYNTHESIS, scale), seed=seed, lr=LR, batch=BATCH)
    return net.requires_grad_(False)


def headed(rich: nn.Sequential, fresh: nn.Sequential) -> nn.Sequential:
    """The distilled hidden layer under the head of a fresh network."""
    return nn.Sequential(rich[0], rich[1], fresh[-1])


def invariant(
    start: nn.Sequential, train: Sequence[Coloured], scale: float, seed: int, *, frozen: bool = False
) -> nn.Sequential:
    """A network after some steps on the mean risk of the environments, then more with the mean penalty; the head alone if frozen."""
    net = copy.deepcopy(start).requires_grad_()
    trained, one = list((net[-1] if frozen else net).parameters()), torch.ones(1, 1)
    risk = nn.functional.binary_cross_entropy_with_logits
    n = len(train[0].x)

    def loss(weight: float) -> Tensor:
        total = torch.zeros(())
        for e in train:
            z = net(e.x)
            score, target = z[:, 1:] - z[:, :1], e.y.float().unsqueeze(1)
            total = total + risk(score, target) / max(1.0, weight)
            if weight:
                total = total + irm_penalty(classifier_gradient(risk, score, one, target))
        return total / len(train)

    # whole environments: the square of a batch's gradient is no estimate of the square
    fit(trained, lambda _: loss(0.0), n, steps=scaled(WARM_UP, scale), seed=seed, lr=1e-2, batch=n)
    fit(trained, lambda _: loss(WEIGHT), n, steps=scaled(STEPS, scale), seed=seed, lr=LR, batch=n)
    return net.requires_grad_(False)


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """Different features round by round, kept by one representation, and what it is worth to IRM."""
    got = by_method(measured, METHODS, "accuracy")
    shape = column(measured, "shape")
    rich, plain = got["IRM, rich"], got["IRM"]
    middle = {name: sum(values) / len(values) for name, values in got.items()}
    return [
        mean("first round: agreement with the colour", [c[0] for c in column(measured, "colour")], more_than=0.9),
        paired(
            "agreement with the shape: gain of the second round over the first",
            [s[1] for s in shape],
            [s[0] for s in shape],
            more_than=0.1,
        ),
        mean(
            "distilled: agreement of each head with its own network, the lesser",
            [min(d) for d in column(measured, "distilled")],
            more_than=0.85,
        ),
        paired("colours reversed: accuracy gain of IRM from rich features over ERM", rich, got["ERM"], more_than=0.0),
        paired("colours reversed: gain of IRM from rich features over a random start", rich, plain, more_than=0.0),
        paired(
            "distance from the mean over seeds: from rich features less from a random start",
            [abs(x - middle["IRM, rich"]) for x in rich],
            [abs(x - middle["IRM"]) for x in plain],
            less_than=0.0,
        ),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """What the rounds go by, and accuracy where the colour misleads."""
    left, right = figure.subplots(1, 2)
    rounds = {
        f"round {r + 1}: {key}": [values[r] for values in column(measured, key)]
        for r in range(ROUNDS)
        for key in ("colour", "shape")
    }
    dots(left, rounds, label="agreement where colours are random", percent=True)
    dots(right, by_method(measured, METHODS, "accuracy"), label="accuracy, colours reversed", percent=True)


PAPER = Paper(
    id="P050",
    title="Rich Feature Construction for the Optimization-Generalization Dilemma",
    source="arXiv 2203.15516",
    claim="Training networks in succession so that none can use what the ones before it used, and distilling all into one representation, "
    "gives a start from which penalties for invariance, hard to optimise otherwise, reach their goal, and with little variance.",
    setup="Digits of 5 and more against the others, 1300 to train on; a quarter of the labels are flipped, and a colour, the channel in "
    "which the digit stands, agrees with the label in 90 % of one environment and 80 % of the other. In the test it agrees in 10 %, and "
    "labels are right. One hidden layer of 64. Two rounds of discovery of 150 steps of Adam, 400 of synthesis, then IRM: 100 steps "
    "without the penalty and 200 with 3000 times it, on whole environments, from random or distilled features, or on the latter frozen.",
    objectives=("discovery_risk", "synthesis_risk", "irm_penalty"),
    run=run,
    judge=judge,
    draw=draw,
    seeds=6,
    notes="The paper's own test at a small scale. Steps without the penalty, its weight (10 to 10000) and the learning rate were chosen on seeds "
    "100 and 101 by the accuracy with colours reversed, for every start: the same were best for a random and a rich one, which were alike "
    "there, and without the first steps IRM fell back to a constant score from all of them. The bounds were stated before the run.",
    size=(8.6, 2.4),
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
