"""P030 doubly robust: adversarial training whose samples are weighed by the worst distribution near the uniform one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fenchel.gallery.checks import Check, paired, worst
from fenchel.gallery.classifiers import recall
from fenchel.gallery.figures import by_method, column, dots
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import Split, batches, fit, mlp, scaled, split
from fenchel.objectives.risks import cvar, dro, running_log_mean, running_weights, worst_inputs, worst_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# From the adversarial losses [B] of a batch to what is differentiated.
Risk = Callable[[Tensor], Tensor]

TRAIN, STEPS, HIDDEN, BATCH = 1000, 400, 32, 64
REACH = 0.25  # of an attack, per pixel, in standard deviations
RATE = 0.1  # of the running mean
WEAKEST = 0.1  # the share of the test samples that are hit hardest
# Chosen on seeds 100 and 101 by the mean accuracy under attack, in runs of 500 steps; the rate of uniform weights among 0.003, 0.01 and 0.03, the other
# methods on part of a grid that does not hold this temperature at this rate.
LR, TEMPERATURE = 3e-2, 3.0
METHODS = ("uniform", "batch", "running")


def run(seed: int, scale: float) -> Measurements:
    """Each way of weighing adversarial losses, attacked; then the laws of the weights on the losses of the first network."""
    data = split("digits", seed, train=scaled(TRAIN, scale, least=128))
    nets = {name: hardened(data, name, scaled(STEPS, scale), seed) for name in METHODS}
    found = {name: marks(net, data) for name, net in nets.items()}
    losses = attacked_losses(nets["uniform"], data.x, data.y, steps=3).double()
    return {"methods": found, **laws(losses), **bias(losses, scaled(2000, scale, least=200), seed)}


def risk(name: str) -> Risk:
    """How a method weighs the losses of a batch; the running mean is held between batches."""
    if name == "uniform":
        return torch.mean
    if name == "batch":
        return partial(dro, temperature=TEMPERATURE)
    log_mean: Tensor | None = None

    def running(losses: Tensor) -> Tensor:
        nonlocal log_mean
        log_mean = running_log_mean(losses, log_mean, temperature=TEMPERATURE, rate=RATE)
        return (running_weights(losses, log_mean, temperature=TEMPERATURE) * losses).sum()

    return running


def hardened(data: Split, name: str, steps: int, seed: int) -> nn.Sequential:
    """A network trained on the risk of the losses of attacked inputs."""
    net, of = mlp((data.x.shape[1], HIDDEN, data.classes), seed), risk(name)

    def loss(i: Tensor) -> Tensor:
        return of(attacked_losses(net, data.x[i], data.y[i], steps=3))

    fit(net.parameters(), loss, len(data), steps=steps, seed=seed, lr=LR, batch=BATCH)
    return net.requires_grad_(False)


def attacked_losses(net: nn.Sequential, x: Tensor, y: Tensor, *, steps: int) -> Tensor:
    """Cross-entropy [n] at the worst inputs within REACH of each x."""

    def losses(inputs: Tensor) -> Tensor:
        return nn.functional.cross_entropy(net(inputs), y, reduction="none")

    return losses(worst_inputs(losses, x, radius=REACH, steps=steps))


def marks(net: nn.Sequential, data: Split) -> dict[str, float]:
    """Accuracy without attack, and under one: of all, of the class that is hit hardest, and the loss of the weakest samples."""
    x, y = data.x_test, data.y_test
    reached = worst_inputs(
        lambda inputs: nn.functional.cross_entropy(net(inputs), y, reduction="none"), x, radius=REACH, steps=10
    )
    logits = net(reached)
    classes = recall(logits.argmax(-1), y, data.classes)
    losses = nn.functional.cross_entropy(logits, y, reduction="none").double()
    return {
        "clean": float((net(x).argmax(-1) == y).double().mean()),
        "attacked": float((logits.argmax(-1) == y).double().mean()),
        "worst class": float(classes.min()),
        "weakest": float(cvar(losses, WEAKEST)),
    }


def laws(losses: Tensor) -> dict[str, float]:
    """Errors of: the weights as a softmax, the value as a log-mean-exp, and both limits of the temperature."""
    near = partial(dro, temperature=TEMPERATURE)
    flat, greedy = partial(dro, temperature=1e9), partial(dro, temperature=1e-9)
    value = TEMPERATURE * (losses / TEMPERATURE).exp().mean().log()
    return {
        "weights": float((worst_weights(near, losses) - (losses / TEMPERATURE).softmax(0)).abs().max()),
        "value": float((near(losses) - value).abs()),
        "limits": float(torch.maximum((flat(losses) - losses.mean()).abs(), (greedy(losses) - losses.max()).abs())),
    }


def bias(losses: Tensor, count: int, seed: int) -> dict[str, float]:
    """Half the absolute difference of the weights over the data, on average over batches, from the exact ones: of a batch, and running."""
    exact = (losses / TEMPERATURE).softmax(0)
    total = {"batch": torch.zeros_like(exact), "running": torch.zeros_like(exact)}
    seen = torch.zeros_like(exact)
    log_mean: Tensor | None = None
    for i in batches(len(losses), 16, count, seed):
        log_mean = running_log_mean(losses[i], log_mean, temperature=TEMPERATURE, rate=RATE)
        total["batch"][i] += (losses[i] / TEMPERATURE).softmax(0)
        total["running"][i] += running_weights(losses[i], log_mean, temperature=TEMPERATURE)
        seen[i] += 1
    mean = {name: (sums / seen.clamp_min(1)) for name, sums in total.items()}
    return {f"bias, {name}": float((w / w.sum() - exact).abs().sum() / 2) for name, w in mean.items()}


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """The weights are what they should be; then robustness on average and where it is least."""
    got = {key: by_method(measured, METHODS, key) for key in ("attacked", "worst class", "weakest")}
    return [
        worst("weights less softmax(loss / T)", column(measured, "weights"), less_than=1e-9),
        worst("risk less T log mean exp(loss / T)", column(measured, "value"), less_than=1e-9),
        worst("T = 1e9 less the mean, T = 1e-9 less the largest loss", column(measured, "limits"), less_than=1e-6),
        paired(
            "bias of the weights in batches of 16: with the running mean less that of each batch alone",
            column(measured, "bias, running"),
            column(measured, "bias, batch"),
            less_than=0.0,
        ),
        paired(
            "accuracy under attack: gain of the running weights over uniform ones",
            got["attacked"]["running"],
            got["attacked"]["uniform"],
            more_than=0.0,
        ),
        paired(
            "accuracy under attack in the class that is hit hardest: gain over uniform weights",
            got["worst class"]["running"],
            got["worst class"]["uniform"],
            more_than=0.0,
        ),
        paired(
            "mean loss of the weakest tenth under attack, less that of uniform weights",
            got["weakest"]["running"],
            got["weakest"]["uniform"],
            less_than=0.0,
        ),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Robustness on average, of the worst class, and of the weakest samples."""
    panels = {
        "attacked": "accuracy under attack",
        "worst class": "of the worst class",
        "weakest": "loss, weakest tenth",
    }
    for axes, (key, label) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        dots(axes, by_method(measured, METHODS, key), label=label, percent=key != "weakest")


PAPER = Paper(
    id="P030",
    title="Doubly Robust Instance-Reweighted Adversarial Training",
    source="arXiv 2308.00311",
    claim="Weighing the samples of adversarial training by the worst distribution within reach of a KL penalty gives better accuracy under "
    "attack on average, and makes the samples that are hit hardest safer.",
    setup="Digits, 1000 to train on, one hidden layer of 32, 400 steps of Adam. Attacks go along the sign of the gradient within a quarter "
    "of a standard deviation of each pixel, three steps in training and ten in the test. The adversarial losses of a batch of 64 weigh "
    "alike, as exp(loss / T) over the batch's own mean of it, or over a running mean (rate 0.1), which estimates that of the data: T = 3. "
    "The bias of such weights is measured on the losses of the first network, over 2000 batches of 16.",
    objectives=("worst_inputs", "dro", "running_weights"),
    run=run,
    judge=judge,
    draw=draw,
    seeds=8,
    notes="The paper's algorithm is compositional and bilevel, with a convergence guarantee. Here the inner maximum is a few steps of ascent, "
    "and the running mean is the compositional part: a moving average with one rate, and no correction of it. Reach, learning rate and "
    "temperature were chosen on seeds 100 and 101, in runs of 500 steps and not on a full grid: uniform weights at three rates, the others at fewer. "
    "At a reach of a half no network kept its worst class; small temperatures were tried there alone, helped the weakest samples and cost "
    "accuracy on average. The bounds were stated before the run.",
    size=(9.0, 2.3),
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
