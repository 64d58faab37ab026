"""P056 anchored supervised fine-tuning: the drift of dynamic fine-tuning from its base, and what an anchor makes of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import fenchel
from fenchel.gallery.checks import Check, paired, worst
from fenchel.gallery.figures import column, dots
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.source_text import Windows, fine_tune, language_model, sampled, source_text
from fenchel.gallery.students import accuracy, fit, scaled
from fenchel.objectives.distillation import distillation
from fenchel.objectives.supervised import supervised

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VOCABULARY, PRETRAIN, STEPS, TRAIN, TEST = 500, 600, 300, 1500, 3000
BASE = ("asyncio", "concurrent", "email", "http", "importlib", "json", "logging")
TASK = ("multiprocessing",)
METHODS = {"SFT": "cross_entropy", "DFT": "dft", "ASFT": "asft:0.1"}


def run(seed: int, scale: float) -> Measurements:
    """One base model, tuned in three ways: accuracy on the task's held-out files, on the base's, and drift on either."""
    text, others = source_text(VOCABULARY, BASE)
    train, heldout = source_text(VOCABULARY, TASK)
    base = language_model(VOCABULARY, seed)
    fine_tune(base, sampled(text, 60_000, seed), "cross_entropy", scaled(PRETRAIN, scale), seed, lr=1e-2)
    base.requires_grad_(False)
    task, tests = sampled(train, scaled(TRAIN, scale, least=128), seed), {}
    for name, part in (("task", heldout), ("base", others)):
        tests[name] = sampled(part, scaled(TEST, scale, least=128), seed)
    found = {"no tuning": marks(base, base, tests)}
    for name, objective in METHODS.items():
        net = copy.deepcopy(base).requires_grad_()
        if name == "ASFT":
            anchored(net, base, task, objective, scaled(STEPS, scale), seed)
        else:
            fine_tune(net, task, objective, scaled(STEPS, scale), seed, lr=3e-3)
        found[name] = marks(net, base, tests)
    return {"methods": found, "gradient": gradient(seed)}


def anchored(net: nn.Sequential, base: nn.Sequential, text: Windows, objective: str, steps: int, seed: int) -> None:
    """Trains a language model with the base as the teacher of a distillation objective."""

    def loss(i: Tensor) -> Tensor:
        return distillation(objective, base(text.x[i]), net(text.x[i]), text.y[i])

    fit(net.parameters(), loss, len(text), steps=steps, seed=seed, lr=3e-3, batch=128)


@torch.no_grad()
def marks(net: nn.Sequential, base: nn.Sequential, tests: dict[str, Windows]) -> dict[str, float]:
    """Accuracy on both texts and KL(base || model) on the base's."""
    found = {name: accuracy(net(test.x), test.y) for name, test in tests.items()}
    x = tests["base"].x
    return {**found, "drift": float(fenchel.divergence(base(x), net(x), "kl").mean())}


def gradient(seed: int) -> float:
    """Largest difference of the gradient of ASFT from that of 1 - p plus 0.1 times that of KL(base || model), in float64."""
    made = torch.Generator().manual_seed(seed)
    t, s = 2 * torch.randn(2, 40, 6, generator=made, dtype=torch.float64)
    s.requires_grad_()
    y = torch.arange(40) % 6
    (ours,) = torch.autograd.grad(distillation("asft:0.1", t, s, y), s)
    (by_parts,) = torch.autograd.grad(supervised(s, y, "mae") + 0.1 * fenchel.divergence(t, s, "kl").mean(), s)
    return float((ours - by_parts).abs().max())


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """Drift, then accuracy."""

    def of(name: str, key: str) -> list[float]:
        return column(measured, "methods", name, key)

    return [
        worst("gradient less that of 1 - p and of the anchor", column(measured, "gradient"), less_than=1e-9),
        paired("KL to the base, nats: DFT less SFT", of("DFT", "drift"), of("SFT", "drift"), more_than=0.0),
        paired("KL to the base, nats: ASFT less DFT", of("ASFT", "drift"), of("DFT", "drift"), less_than=0.0),
        paired("accuracy on the task: gain of ASFT over DFT", of("ASFT", "task"), of("DFT", "task"), more_than=0.0),
        paired("accuracy on the task: gain of ASFT over SFT", of("ASFT", "task"), of("SFT", "task"), more_than=0.0),
        paired(
            "accuracy on the base's own text: gain of ASFT over SFT",
            of("ASFT", "base"),
            of("SFT", "base"),
            more_than=0.0,
        ),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Drift and accuracies."""
    names = ("no tuning", *METHODS)
    panels = {"drift": "KL to the base, nats", "task": "accuracy on the task", "base": "on the base's text"}
    for axes, (key, label) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        groups = {name: column(measured, "methods", name, key) for name in names}
        dots(axes, groups, label=label, percent=key != "drift")


PAPER = Paper(
    id="P056",
    title="Anchored Supervised Fine-Tuning",
    source="arXiv 2509.23753",
    claim="Weighting each token's log-likelihood by its probability (DFT) drifts away from the base model; with a light KL to the base as "
    "an anchor (ASFT) it is stable, and better than both DFT and plain fine-tuning.",
    setup="A language model of four tokens' window and 500 words, trained on seven packages of the standard library, fine-tuned on 1500 "
    "windows of another for 300 steps of Adam at 0.003. The anchor's weight is 0.1, the authors' default. Accuracy on held-out files "
    "of the task and of the base's packages; drift is KL(base || model) on the latter.",
    objectives=("asft", "dft"),
    run=run,
    judge=judge,
    draw=draw,
    seeds=5,
    notes="Nothing was tuned. The paper's tasks are mathematics, medicine and code, with large models.",
    size=(9.0, 2.3),
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
