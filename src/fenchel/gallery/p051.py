"""P051 LegoGCD: discovering classes among unlabelled samples without forgetting the known ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fenchel.gallery.checks import Check, paired, worst
from fenchel.gallery.figures import by_method, column, dots
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import fit, mlp, scaled, split
from fenchel.objectives.representation import cosine_logits, dual_view_divergence, local_entropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, KNOWN, LABELLED, STEPS, DIM, BATCH, LR = 1200, 5, 0.5, 400, 32, 128, 3e-3
STUDENT, TEACHER = 0.1, 0.05  # temperatures of the cosines, SimGCD's
SPREAD = 2.0  # weight of the entropy of the mean prediction
SUPERVISED = 0.35  # share of the labels' loss, SimGCD's
# Weights of LER and DKL.
METHODS = {"SimGCD": (0.0, 0.0), "with LER": (0.1, 0.0), "with DKL": (0.0, 0.1), "LegoGCD": (0.1, 0.1)}


@dataclass(frozen=True)
class Discovery:
    """Images x [n, 8, 8] of classes y [n], of which the first KNOWN are known, and which of them have a label [n]."""

    x: Tensor
    y: Tensor
    labelled: Tensor


def run(seed: int, scale: float) -> Measurements:
    """Accuracy on unlabelled samples of known and novel classes, by method; and the laws of both terms."""
    data = discovery(seed, scaled(TRAIN, scale, least=200))
    found = {name: marks(predicted(data, *weights, scale, seed), data) for name, weights in METHODS.items()}
    return {"methods": found, **laws(seed)}


def discovery(seed: int, count: int) -> Discovery:
    """Digits of which half of those of the known classes, drawn by the seed, have a label."""
    data = split("digits", seed, train=count)
    made = torch.Generator().manual_seed(seed)
    place = torch.empty(10, dtype=torch.long).index_copy(0, torch.randperm(10, generator=made), torch.arange(10))
    y = place[data.y]
    return Discovery(data.x.view(-1, 8, 8), y, (y < KNOWN) & (torch.rand(len(y), generator=made) < LABELLED))


def view(x: Tensor, made: torch.Generator) -> Tensor:
    """Images [n, 8, 8] moved by up to one pixel in each direction, one shift for each, as rows [n, 64]."""
    wide = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    rows, columns = (torch.randint(3, (len(x), 1), generator=made) + torch.arange(8) for _ in range(2))
    return wide[torch.arange(len(x)).view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)].flatten(1)


def predicted(data: Discovery, ler: float, dkl: float, scale: float, seed: int) -> Tensor:
    """Classes [n] after training on labels, on agreement of two views with sharper ones of each other, and on both terms."""
    net = mlp((64, 128, DIM), seed)
    prototypes = nn.Parameter(next(mlp((DIM, 10), seed).parameters()).detach())
    made = torch.Generator().manual_seed(seed)

    def loss(i: Tensor) -> Tensor:
        known, y = data.labelled[i], data.y[i]
        first, second = (cosine_logits(net(view(data.x[i], made)), prototypes, scale=1 / STUDENT) for _ in range(2))
        both = torch.cat((first, second))
        sharp = (torch.cat((second, first)).detach() * (STUDENT / TEACHER)).softmax(-1)
        cluster = -(sharp * both.log_softmax(-1)).sum(-1).mean()
        spread = torch.special.entr(both.softmax(-1).mean(0)).sum()
        labels = nn.functional.cross_entropy(both[known.repeat(2)], y[known].repeat(2))
        total = SUPERVISED * labels + (1 - SUPERVISED) * (cluster - SPREAD * spread)
        if ler:
            total = total + ler * local_entropy(both[~known.repeat(2)], KNOWN)
        return total + dkl * dual_view_divergence(first, second).mean() if dkl else total

    fit([*net.parameters(), prototypes], loss, len(data.x), steps=scaled(STEPS, scale), seed=seed, lr=LR, batch=BATCH)
    with torch.no_grad():
        return cosine_logits(net(data.x.flatten(1)), prototypes, scale=1.0).argmax(-1)


def marks(prediction: Tensor, data: Discovery) -> dict[str, float]:
    """Shares of unlabelled samples that are right under the best renaming of all classes: of known, novel and all classes."""
    from scipy.optimize import linear_sum_assignment

    guess, y = prediction[~data.labelled], data.y[~data.labelled]
    table = torch.zeros(10, 10).index_put_((guess, y), torch.ones(len(y)), accumulate=True)
    names = torch.from_numpy(linear_sum_assignment(table.numpy(), maximize=True)[1])
    right = (names[guess] == y).double()
    return {
        "known": float(right[y < KNOWN].mean()),
        "novel": float(right[y >= KNOWN].mean()),
        "all": float(right.mean()),
    }


def laws(seed: int) -> dict[str, float]:
    """DKL of predictions that agree; how far it is below 2 (total variation)^2 at most; LER where known classes are used alike less -log of their number."""
    made = torch.Generator().manual_seed(seed)
    first, second = 3 * torch.randn(2, 200, 10, generator=made, dtype=torch.float64)
    shift = torch.randn(200, 1, generator=made, dtype=torch.float64)
    apart = (first.softmax(-1) - second.softmax(-1)).abs().sum(-1) / 2
    sure = 20 * torch.eye(10, dtype=torch.float64)[:KNOWN].repeat(3, 1)
    return {
        "agree": float(dual_view_divergence(first, first + shift).abs().max()),
        "differ": float((2 * apart.square() - dual_view_divergence(first, second)).max()),
        "alike": float((local_entropy(sure, KNOWN) + math.log(KNOWN)).abs()),
    }


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """The laws, then known and novel classes."""
    got = {key: by_method(measured, METHODS, key) for key in ("known", "novel")}
    plain, ours = "SimGCD", "LegoGCD"
    return [
        worst("DKL of views whose predictions agree", column(measured, "agree"), less_than=1e-9),
        worst("2 (total variation)^2 of two views less their DKL", column(measured, "differ"), less_than=1e-12),
        worst(
            "LER of known classes that are used alike, plus the log of their number",
            column(measured, "alike"),
            less_than=1e-6,
        ),
        paired(
            "unlabelled samples of known classes: accuracy gain of both terms",
            got["known"][ours],
            got["known"][plain],
            more_than=0.0,
        ),
        paired(
            "unlabelled samples of novel classes: accuracy with both terms less that without",
            got["novel"][ours],
            got["novel"][plain],
            more_than=-0.02,
        ),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Accuracy on known, novel and all classes."""
    for axes, key in zip(figure.subplots(1, 3, sharey=True), ("known", "novel", "all"), strict=True):
        dots(axes, by_method(measured, METHODS, key), label=f"accuracy, {key} classes", percent=True)


PAPER = Paper(
    id="P051",
    title="Solving the Catastrophic Forgetting Problem in Generalized Category Discovery",
    source="Cao et al. 2024",
    claim="Novel classes that are learned from unlabelled samples make a model forget known ones. An entropy over the samples that look known "
    "(LER), and a divergence between predictions of two views (DKL), keep the known classes and help the novel ones too.",
    setup="Digits, 1200: of five classes, drawn by the seed, half the samples are labelled, all else is not. Two layers to 32 dimensions and a "
    "cosine classifier of ten classes, 400 steps of Adam: cross-entropy of labels, agreement of two views (shifts by up to a pixel) with "
    "sharper ones of each other, and the entropy of the mean prediction, as in SimGCD; with LER, DKL or both. Accuracy on the unlabelled "
    "samples after the best renaming of all ten classes.",
    objectives=("local_entropy", "dual_view_divergence"),
    run=run,
    judge=judge,
    draw=draw,
    seeds=6,
    notes="The contrastive losses and the pre-trained images of SimGCD are left out. The weight of the mean entropy (1, 2, 3, 4) and those of LER "
    "and DKL (0.03 to 1) were chosen on seeds 100 and 101 by the accuracy on all classes; from 0.3 for both on, known classes were lost there. "
    "The bounds were stated before the run. A first run on seeds 0 to 7 had a last check, SimGCD against a network trained on the labels alone, "
    "which was dropped: a renaming of all ten classes is unfit for one that predicts five; with it went two seeds, for the time that they took. The two "
    "weights were chosen among three pairs, and DKL at the recorded weight was not tried alone.",
    size=(9.0, 2.3),
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
