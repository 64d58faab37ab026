"""P059 preference-oriented fine-tuning: passages of which some are garbled, and a larger model that finds those unlikely."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fenchel.gallery.checks import Check, paired, worst
from fenchel.gallery.figures import by_method, column, dots
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.source_text import (
    WINDOW,
    fine_tune,
    language_model,
    log_likelihood,
    passages,
    sampled,
    source_text,
)
from fenchel.gallery.students import accuracy, fit, nll, scaled
from fenchel.objectives.sequences import preference_sft

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VOCABULARY, PRETRAIN, STEPS, TEST = 500, 600, 200, 3000
LENGTH, PASSAGES, GARBLED = 8, 600, 0.4
ALIGNED, ALIGNED_STEPS = 256, 800  # the hidden layer of the aligned model, and its training
BASE = ("asyncio", "concurrent", "email", "http", "importlib", "json", "logging")
TASK = ("multiprocessing",)
BATCH = 32
# Learning rate and, for the preference, beta: of each chosen on seeds 100 and 101 by the likelihood of held-out text, rates among 0.01, 0.003, 0.001
# and 0.0003, beta among 0.1, 0.3 and 1.
METHODS: dict[str, tuple[float, float | None]] = {
    "SFT": (1e-3, None),
    "PoFT": (1e-3, 0.1),
    "SFT, filtered": (1e-3, None),
    "PoFT, filtered": (1e-3, 0.1),
}


def run(seed: int, scale: float) -> Measurements:
    """One base model, fine-tuned by each method; the weights of garbled and of right passages at the end of PoFT."""
    text, _ = source_text(VOCABULARY, BASE)
    train, heldout = source_text(VOCABULARY, TASK)
    known, steps = sampled(text, 60_000, seed), scaled(STEPS, scale)
    base = language_model(VOCABULARY, seed)
    fine_tune(base, known, "cross_entropy", scaled(PRETRAIN, scale), seed, lr=1e-2)
    aligned = language_model(VOCABULARY, 500 + seed, hidden=ALIGNED)
    fine_tune(aligned, known, "cross_entropy", scaled(ALIGNED_STEPS, scale), 500 + seed, lr=1e-2)
    made, size = torch.Generator().manual_seed(seed), scaled(PASSAGES, scale, least=64)
    data, garbled = with_garbled(passages(train, LENGTH, size, made, every=WINDOW + LENGTH), made)
    for net in (base, aligned):
        net.requires_grad_(False)
    reference = log_likelihood(aligned, data)
    likely = reference.argsort(descending=True)[: round((1 - GARBLED) * len(data))]
    test = sampled(heldout, scaled(TEST, scale, least=128), seed)
    found, weight = {"no tuning": marks(base(test.x), test.y)}, {}
    for name, (rate, beta) in METHODS.items():
        net = copy.deepcopy(base).requires_grad_()
        kept = likely if "filtered" in name else torch.arange(len(data))
        tune(net, data[kept], reference[kept], beta, steps, seed, rate)
        net.requires_grad_(False)
        found[name] = marks(net(test.x), test.y)
        if name == "PoFT" and beta is not None:
            share = torch.sigmoid(beta * (reference - log_likelihood(net, data)))
            weight = {
                "garbled": float(share[garbled].mean()),
                "right": float(share[~garbled].mean()),
            }
    return {"methods": found, "weight": weight, "gradient": gradient(seed)}


def with_garbled(text: Tensor, made: torch.Generator) -> tuple[Tensor, Tensor]:
    """Passages [n, 4 + L] in a share GARBLED of which tokens after the window have traded places among passages, and which those are [n] (bool)."""
    garbled = torch.arange(len(text)) < round(GARBLED * len(text))
    answers = text[garbled, WINDOW:]
    order = torch.randperm(answers.numel(), generator=made)
    mixed = text.clone()
    mixed[garbled, WINDOW:] = answers.flatten()[order].view_as(answers)
    return mixed, garbled


def tune(
    net: nn.Sequential, data: Tensor, reference: Tensor, beta: float | None, steps: int, seed: int, rate: float
) -> None:
    """Fine-tuning on passages: by the preference over a reference [n], or without a beta by their negative log-likelihood."""

    def loss(i: Tensor) -> Tensor:
        logp = log_likelihood(net, data[i])
        return (-logp if beta is None else preference_sft(logp, reference[i], beta=beta)).mean()

    fit(net.parameters(), loss, len(data), steps=steps, seed=seed, lr=rate, batch=BATCH)


def marks(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Accuracy and negative log-likelihood of the next token."""
    return {"accuracy": accuracy(logits, target), "nll": nll(logits, target)}


def gradient(seed: int) -> float:
    """Largest error of: the gradient is sigmoid(reference - log p) times that of -log p, in float64."""
    logp, reference = -10 * torch.rand(2, 200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logp.requires_grad_()
    (slope,) = torch.autograd.grad(preference_sft(logp, reference).sum(), logp)
    return float((slope + torch.sigmoid(reference - logp.detach())).abs().max())


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """The weights, and what they are worth, with and without a filter by the same likelihoods."""

    def differ(statement: str, key: str, ours: str, theirs: str, **bounds: float) -> Check:
        groups = (column(measured, "methods", name, key) for name in (ours, theirs))
        return paired(statement, *groups, **bounds)

    return [
        worst(
            "gradient over that of -log p, less sigmoid(reference - log p)",
            column(measured, "gradient"),
            less_than=1e-9,
        ),
        paired(
            "mean weight at the end: garbled passages less right ones",
            column(measured, "weight", "garbled"),
            column(measured, "weight", "right"),
            less_than=0.0,
        ),
        differ("accuracy: gain of PoFT over SFT", "accuracy", "PoFT", "SFT", more_than=0.0),
        differ("negative log-likelihood, nats: PoFT less SFT", "nll", "PoFT", "SFT", less_than=0.0),
        differ(
            "filtered: accuracy gain of PoFT over SFT", "accuracy", "PoFT, filtered", "SFT, filtered", more_than=0.0
        ),
        differ(
            "accuracy: gain of PoFT over SFT on filtered passages", "accuracy", "PoFT", "SFT, filtered", more_than=0.0
        ),
        differ("accuracy: gain of PoFT over no tuning", "accuracy", "PoFT", "no tuning", more_than=0.0),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Accuracy and likelihood by method."""
    names = ("no tuning", *METHODS)
    left, right = figure.subplots(1, 2, sharey=True)
    dots(left, by_method(measured, names, "accuracy"), label="accuracy", percent=True)
    dots(right, by_method(measured, names, "nll"), label="negative log-likelihood, nats")
    right.locator_params(axis="x", nbins=4)


PAPER = Paper(
    id="P059",
    title="Preference-Oriented Supervised Fine-Tuning: Favoring Target Model Over Aligned Large Language Models",
    source="arXiv 2412.12865",
    claim="To prefer the model over aligned ones on the same demonstrations, instead of raising their likelihood alone, lets the aligned models' "
    "likelihood weigh the data: fine-tuning on data of mixed quality improves, with a filter by quality too.",
    setup="A language model of four tokens' window and 500 words, trained on seven packages of the standard library, and fine-tuned for 200 steps of "
    "Adam on 600 passages of eight tokens of another package; in 40 % of them tokens have traded places across passages. The aligned model has four "
    "times the hidden layer and has seen the seven packages alone. The filter keeps the 60 % that the aligned model holds to be likeliest. Accuracy "
    "and likelihood of the next token in held-out files.",
    objectives=("preference_sft",),
    run=run,
    judge=judge,
    draw=draw,
    seeds=5,
    notes="Derived from the abstract. Learning rates, and beta, were chosen on seeds 100 and 101 for each method by the likelihood of held-out text. "
    "The aligned model was trained for 1200 steps then, and for 800 in the run. "
    "The filter is told the share that is garbled. One aligned model; the paper has several.",
    size=(8.0, 2.3),
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
