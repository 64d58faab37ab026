"""P068 self-distillation solved: closed forms against iterates, and the weight of the true targets without a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fenchel.gallery.checks import Check, paired, worst
from fenchel.gallery.figures import GREY, dots, lines
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import fit, mlp, scaled, split
from fenchel.objectives.distillation.self_distillation import (
    limit_penalty,
    optimal_weight,
    self_distilled,
    shrinkage,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, VALIDATION = 150, 100
PENALTY, WIDTH, WEIGHT = 0.1, 4.0, 0.3
STEPS, NET_STEPS, GRID = 10, 400, (0.0, 0.25, 0.5, 0.75, 1.0)


def run(seed: int, scale: float) -> Measurements:
    """Kernel ridge regression on diabetes with its closed forms, and the same weight for a network."""
    data = split("diabetes", seed, train=TRAIN + VALIDATION)
    x, x_all = data.x[:TRAIN].double(), torch.cat((data.x[TRAIN:], data.x_test)).double()
    y_all = torch.cat((data.y, data.y_test)).double()
    y_all = (y_all - y_all[:TRAIN].mean()) / y_all[:TRAIN].std()
    y, y_valid, y_test = y_all.split((TRAIN, VALIDATION, len(y_all) - TRAIN - VALIDATION))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-torch.cdist(a, b).square() / (2 * WIDTH**2)).exp()

    k, cross = kernel(x, x), kernel(x_all, x)
    measured = closed_forms(k, y)
    errors: dict[str, list[float]] = {}
    gap = 0.0
    for name in ("chosen at each step", "no true targets", f"{WEIGHT:g}"):
        weights: list[float] = []
        errors[name] = [error(self_distilled(k, y, PENALTY, weights, cross=cross), y_test)]
        for _ in range(STEPS):
            if name == "chosen at each step":
                best, searched = both_weights(k, cross, y, y_valid, weights)
                gap = max(gap, abs(best - searched))
                weights.append(best)
            else:
                weights.append(0.0 if name == "no true targets" else WEIGHT)
            errors[name].append(error(self_distilled(k, y, PENALTY, weights, cross=cross), y_test))
    return {**measured, "search": gap, "errors": errors, "network": network(data.x, y_all, data.x_test, seed, scale)}


def error(prediction: Tensor, truth: Tensor) -> float:
    """Mean squared error on the last points; targets have variance one."""
    return float((prediction[-len(truth) :] - truth).square().mean())


def closed_forms(k: Tensor, y: Tensor) -> dict[str, float]:
    """Largest differences: shrinkage of the initial fit, and infinitely many steps, against steps that are solved one by one."""
    d, basis = torch.linalg.eigh(k)
    ridge = k + PENALTY * torch.eye(len(k), dtype=k.dtype)
    target, worst_of = y, 0.0
    for step in range(400):
        fitted = k @ torch.linalg.solve(ridge, target)
        if step <= STEPS:
            formula = basis @ (shrinkage(d.clamp_min(0), PENALTY, WEIGHT, step) * (basis.T @ y))
            worst_of = max(worst_of, float((formula - fitted).abs().max()))
        target = WEIGHT * y + (1 - WEIGHT) * fitted
    larger = limit_penalty(PENALTY, WEIGHT)
    once = k @ torch.linalg.solve(k + larger * torch.eye(len(k), dtype=k.dtype), y)
    return {"iterates": worst_of, "limit": float((once - fitted).abs().max())}


def both_weights(k: Tensor, cross: Tensor, y: Tensor, y_valid: Tensor, weights: Sequence[float]) -> tuple[float, float]:
    """The weight of the next step: by formula, clamped to [0, 1], and by a search in steps of 0.001, both on validation points."""
    points = cross[: len(y_valid)]
    from_targets = self_distilled(k, y, PENALTY, [], cross=points)
    from_teacher = self_distilled(k, y, PENALTY, [*weights, 0.0], cross=points)
    best = float(optimal_weight(from_targets, from_teacher, y_valid).clamp(0, 1))
    grid = [i / 1000 for i in range(1001)]
    mixed = torch.tensor(grid, dtype=y.dtype).unsqueeze(1) * (from_targets - from_teacher) + from_teacher
    return best, grid[int((mixed - y_valid).square().mean(1).argmin())]


def network(x: Tensor, y_all: Tensor, x_test: Tensor, seed: int, scale: float) -> dict[str, float]:
    """Test errors of a network distilled into itself: the weight by formula (one more training), and by training one per weight."""
    targets, y_valid = y_all[:TRAIN].float(), y_all[TRAIN : TRAIN + VALIDATION].float()
    y_test = y_all[TRAIN + VALIDATION :].float()

    def trained(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        net = mlp((x.shape[1], 32, 1), seed)
        loss = lambda i: (net(x[i]).squeeze(1) - labels[i]).square().mean()
        fit(net.parameters(), loss, TRAIN, steps=scaled(NET_STEPS, scale), seed=seed, lr=1e-2)
        with torch.no_grad():
            made = net(torch.cat((x, x_test))).squeeze(1)
        return made[:TRAIN], made[TRAIN : TRAIN + VALIDATION], made[TRAIN + VALIDATION :]

    first = trained(targets)
    again = trained(first[0])
    best = float(optimal_weight(first[1], again[1], y_valid).clamp(0, 1))
    chosen = trained(best * targets + (1 - best) * first[0])
    tried = [trained(w * targets + (1 - w) * first[0]) for w in GRID]
    searched = min(range(len(GRID)), key=lambda n: float((tried[n][1] - y_valid).square().mean()))
    return {
        "first fit": error(first[2], y_test),
        "by formula": error(chosen[2], y_test),
        "by search": error(tried[searched][2], y_test),
        "weight": best,
        "searched weight": GRID[searched],
    }


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """The closed forms, the weight, and what it is good for."""

    def of(name: str, step: int) -> list[float]:
        return [m["errors"][name][step] for m in measured]

    def net(name: str) -> list[float]:
        return [m["network"][name] for m in measured]

    chosen = of("chosen at each step", -1)
    return [
        worst(
            "closed form of each step, furthest from the steps themselves",
            [m["iterates"] for m in measured],
            less_than=1e-9,
        ),
        worst(
            "ridge regression with the penalty over w, furthest from 400 steps",
            [m["limit"] for m in measured],
            less_than=1e-9,
        ),
        worst(
            "weight by formula, furthest from that of a search in steps of 0.001",
            [m["search"] for m in measured],
            less_than=0.00051,
        ),
        paired(
            "test error after ten steps: weights by formula less no true targets",
            chosen,
            of("no true targets", -1),
            less_than=0.0,
        ),
        paired(
            "test error: ten steps with weights by formula less the first fit",
            chosen,
            of("chosen at each step", 0),
            less_than=0.0,
        ),
        paired(
            "test error of a network: weight by formula less by search, within 0.02",
            net("by formula"),
            net("by search"),
            less_than=0.02,
        ),
        paired(
            "test error of a network: weight by formula less the first fit",
            net("by formula"),
            net("first fit"),
            less_than=0.0,
        ),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Test error by step, and of the network."""
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    # relative to each seed's first fit: seeds differ more in how hard their test points are
    curves = {
        f"w: {name}": [[e / m["errors"][name][0] for e in m["errors"][name]] for m in measured]
        for name in measured[0]["errors"]
    }
    lines(left, range(STEPS + 1), curves, labels=("step of self-distillation", "test error / that of the first fit"))
    left.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0.15, 1.02))
    left.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    names = ("first fit", "by formula", "by search")
    dots(
        right,
        {name: [math.log(m["network"][name]) for m in measured] for name in names},
        label="log test error, network",
    )


PAPER = Paper(
    id="P068",
    title="Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by Self-Distillation",
    source="arXiv 2102.13088",
    claim="Self-distillation with a share w of true targets is a function of the first fit, infinitely many steps amplify the "
    "penalty to penalty/w, and the best w at each step has a closed form that replaces a grid search.",
    setup=f"Diabetes: {TRAIN} to train on, {VALIDATION} to choose w, the rest to test. Kernel ridge regression with a Gaussian kernel of "
    f"width {WIDTH:g} and penalty {PENALTY:g}, {STEPS} steps, against steps solved one by one and a search over 1001 weights. A network of 32 "
    f"hidden units ({NET_STEPS} steps of Adam): w from two trainings, against one training for each of {len(GRID)} weights.",
    objectives=("self_distillation",),
    run=run,
    judge=judge,
    draw=draw,
    notes="The penalty is small on purpose: self-distillation amplifies it, and can only help a fit that has too little of it.",
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
