"""P060 limiting confidence: cross-entropy against the loss of pass@N, on digits of which few are labelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fenchel.gallery.checks import Check, paired, worst
from fenchel.gallery.figures import column, lines
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import fit, mlp, scaled, split
from fenchel.objectives.sequences import coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, STEPS, POINTS = 100, 600, 12
TRIES = (1, 4, 16)  # N, of the loss and of the test


def run(seed: int, scale: float) -> Measurements:
    """For each N of the loss, pass@N for each N of the test over the training; and the loss's gradient against its formula."""
    data, steps = split("digits", seed, train=TRAIN), scaled(STEPS, scale, least=POINTS)
    every = steps // POINTS
    found = {}
    for n in TRIES:
        net = mlp((data.x.shape[1], 64, data.classes), seed)
        curves: dict[str, list[float]] = {f"{k}": [] for k in TRIES}

        def loss(i: Tensor, net: nn.Sequential = net, n: int = n) -> Tensor:
            return coverage(own(net(data.x[i]), data.y[i]), n).mean()

        def each(step: int, _: Tensor, net: nn.Sequential = net, curves: dict[str, list[float]] = curves) -> None:
            if step % every == every - 1 and len(curves["1"]) < POINTS:
                with torch.no_grad():
                    logp = own(net(data.x_test), data.y_test).double()
                for k in TRIES:
                    curves[f"{k}"].append(float(-torch.expm1(k * torch.log1p(-logp.exp().clamp_max(1 - 1e-12))).mean()))

        fit(net.parameters(), loss, len(data), steps=steps, seed=seed, lr=3e-3, batch=32, each=each)
        found[f"{n}"] = curves
    return {"pass": found, **gradient(seed)}


def own(logits: Tensor, target: Tensor) -> Tensor:
    """log p of the target [n]."""
    return logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)


def gradient(seed: int) -> dict[str, float]:
    """N = 1 less cross-entropy; and the gradient over that of cross-entropy less N (1 - p)^(N - 1) p / (1 - (1 - p)^N)."""
    p = torch.rand(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    logp = p.log().requires_grad_()
    errors = []
    for n in TRIES:
        (slope,) = torch.autograd.grad(coverage(logp, n).sum(), logp)
        factor = n * (1 - p) ** (n - 1) * p / -torch.expm1(n * torch.log1p(-p))
        errors.append(float((-slope - factor).abs().max()))
    return {"factor": max(errors), "one": float((coverage(logp, 1) + logp).detach().abs().max())}


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """Overconfidence of cross-entropy first, then what the matched loss gains."""

    def last(loss: int, test: int) -> list[float]:
        return [curve[-1] for curve in column(measured, "pass", f"{loss}", f"{test}")]

    early = [curve[0] for curve in column(measured, "pass", "1", "16")]
    return [
        worst("N = 1: the loss less cross-entropy", column(measured, "one"), less_than=1e-12),
        worst("gradient over that of cross-entropy, less its formula", column(measured, "factor"), less_than=1e-9),
        paired(
            "cross-entropy: pass@16 at the end less that after a twelfth of training", last(1, 16), early, less_than=0.0
        ),
        paired("pass@16: gain of the loss with N = 16 over cross-entropy", last(16, 16), last(1, 16), more_than=0.0),
        paired("pass@4: gain of the loss with N = 4 over cross-entropy", last(4, 4), last(1, 4), more_than=0.0),
        paired("pass@16: gain of the loss with N = 16 over that with N = 4", last(16, 16), last(4, 16), more_than=0.0),
        paired("pass@1: gain of cross-entropy over the loss with N = 16", last(1, 1), last(16, 1), more_than=0.0),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Failures of N tries over the training, for each N of the test."""
    steps = [(k + 1) * STEPS // POINTS for k in range(POINTS)]
    panels = figure.subplots(1, len(TRIES))
    for axes, test in zip(panels, TRIES, strict=True):
        curves = {
            "cross-entropy" if n == 1 else f"N = {n}": [
                [100 * (1 - x) for x in curve] for curve in column(measured, "pass", f"{n}", f"{test}")
            ]
            for n in TRIES
        }
        lines(axes, steps, curves, labels=("step", f"100 - pass@{test}, %"))
        axes.set_ylim(bottom=0)
        axes.legend().set_visible(test == TRIES[1])


PAPER = Paper(
    id="P060",
    title="Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves Mathematical Reasoning",
    source="arXiv 2502.07154",
    claim="Where a model is asked N times, cross-entropy makes it too sure: pass@N falls as training goes on. The loss -log(1 - (1 - p)^N) "
    "limits confidence and makes pass@N better.",
    setup="Digits, 100 to train on, one hidden layer of 64, 600 steps of Adam. An answer is a class drawn from the softmax, pass@N the "
    "chance that one of N draws is right, computed from the probability. Losses with N = 1 (cross-entropy), 4 and 16, tests with the "
    "same.",
    objectives=("coverage",),
    run=run,
    judge=judge,
    draw=draw,
    seeds=6,
    notes="An answer is one token here; the paper's are proofs and derivations. All losses have the learning rate 0.003, and nothing was "
    "tuned.",
    size=(9.0, 2.6),
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
