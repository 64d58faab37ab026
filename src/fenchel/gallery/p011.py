"""P011 comp-sum losses: bounds of the zero-one regret and how tight they are, noisy labels, and smooth adversarial training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fenchel.gallery.checks import Check, paired, worst
from fenchel.gallery.classifiers import Method, noisy, trained
from fenchel.gallery.figures import column, dots, lines
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import accuracy, fit, mlp, scaled, split
from fenchel.objectives.supervised import CompSum, adversarial_comp_sum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, STEPS, NOISE = 1000, 400, 0.4
TAUS = (0.5, 1.0, 1.5, 1.7, 2.0)
# Chosen on seeds 100 to 102 among 0.0003, 0.001, 0.003 and 0.01, by accuracy, for each.
RATES = {0.5: 1e-3, 1.0: 1e-3, 1.5: 1e-3, 1.7: 3e-3, 2.0: 3e-3}
REACH = 0.5  # of an attack, per pixel, in standard deviations
NU = 0.2  # chosen on seeds 100 and 101 among 0.03, 0.1, 0.2 and 0.4
DEFENCES = ("cross-entropy", "attacked cross-entropy", "smooth adversarial")


def run(seed: int, scale: float) -> Measurements:
    """The bounds on random distributions, accuracy under noisy labels for every tau, and three ways to train under attack."""
    data, steps = split("digits", seed, train=scaled(TRAIN, scale, least=128)), scaled(STEPS, scale)
    y = noisy(data.y, NOISE, data.classes, seed)
    found = {}
    for tau in TAUS:
        net = trained(data, Method(CompSum(tau), RATES[tau]), seed, steps=steps, y=y)
        found[f"{tau:g}"] = accuracy(net(data.x_test), data.y_test)
    defended = {}
    for name in DEFENCES:
        net = mlp((data.x.shape[1], 64, data.classes), seed)

        def loss(i: Tensor, net: nn.Sequential = net, name: str = name) -> Tensor:
            x, y = data.x[i], data.y[i]
            if name == "cross-entropy":
                return nn.functional.cross_entropy(net(x), y)
            moved = attacked(net, x, y)
            if name == "attacked cross-entropy":
                return nn.functional.cross_entropy(net(moved), y)
            return adversarial_comp_sum(net(x), net(moved), y, tau=1.0, nu=NU).mean()

        fit(net.parameters(), loss, len(data), steps=steps, seed=seed)
        net.requires_grad_(False)
        against = attacked(net, data.x_test, data.y_test, steps=10)
        defended[name] = {
            "clean": accuracy(net(data.x_test), data.y_test),
            "attacked": accuracy(net(against), data.y_test),
        }
    return {"noisy": found, "defended": defended, **bounds(seed, scaled(4000, scale, least=100))}


def attacked(net: nn.Sequential, x: Tensor, y: Tensor, *, steps: int = 3) -> Tensor:
    """x moved by at most REACH in each pixel, by steps along the sign of the gradient of cross-entropy."""
    moved = x.clone()
    for _ in range(steps):
        moved.requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(net(moved), y, reduction="sum"), moved)
        ahead = moved.detach() + 2 * REACH / steps * slope.sign()
        moved = ahead.clamp(x - REACH, x + REACH)
    return moved.detach()


def bounds(seed: int, count: int) -> dict[str, dict[str, float]]:
    """By tau: how far the surrogate's regret is below its bound at worst, three classes; how far above at an even split of two."""
    made = torch.Generator().manual_seed(seed)
    p = torch.rand(count, 3, generator=made, dtype=torch.float64).log().neg().pow(2).clamp_min(1e-12)
    p = p / p.sum(-1, keepdim=True)
    z = 3 * torch.randn(count, 3, generator=made, dtype=torch.float64)
    beta = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    two, undecided = torch.stack(((1 + beta) / 2, (1 - beta) / 2), -1), torch.zeros(99, 2, dtype=torch.float64)
    below, loose = {}, {}
    for tau in TAUS:
        zero_one = p.amax(-1) - p.gather(-1, z.argmax(-1, keepdim=True)).squeeze(-1)
        below[f"{tau:g}"] = max(0.0, float((transformed(zero_one, tau, 3) - regret(p, z, tau)).max()))
        bound, least = transformed(beta, tau, 2), regret(two, undecided, tau)
        loose[f"{tau:g}"] = float((least / bound - 1).abs().max())
    return {"below": below, "loose": loose}


def regret(p: Tensor, z: Tensor, tau: float) -> Tensor:
    """Conditional risk of the logits z under labels drawn from p, less the least there is [n]."""
    a = tau - 1
    # of 1 - p_y, all of the mass on the likeliest class
    certain = torch.where(p == p.amax(-1, keepdim=True), 0.0, -torch.inf)
    best = (p.log() / (1 - a) if a < 1 else certain).log_softmax(-1)
    loss = CompSum(tau)
    return loss.rows(z, p) - loss.rows(best, p)


def transformed(beta: Tensor, tau: float, n: int) -> Tensor:
    """T_tau(beta): the least regret of the comp-sum loss at which the zero-one regret can be beta, for n classes."""
    if tau == 1:
        return ((1 + beta) * torch.log1p(beta) + (1 - beta) * torch.log1p(-beta)) / 2
    if tau >= 2:
        return beta / ((tau - 1) * n ** (tau - 1))
    r = 1 / (2 - tau)
    middle = (((1 + beta) ** r + (1 - beta) ** r) / 2) ** (2 - tau)
    if tau < 1:
        return 2 ** (1 - tau) / (1 - tau) * (1 - middle)
    return (middle - 1) / ((tau - 1) * n ** (tau - 1))


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """The bounds, then noisy labels, then attacks."""

    def under_noise(tau: float) -> list[float]:
        return column(measured, "noisy", f"{tau:g}")

    def defended(name: str, key: str) -> list[float]:
        return column(measured, "defended", name, key)

    ours, usual, plain = "smooth adversarial", "attacked cross-entropy", "cross-entropy"
    return [
        worst(
            "zero-one regret above what the surrogate's regret allows, any tau, in the surrogate's units",
            [max(m["below"].values()) for m in measured],
            less_than=1e-9,
        ),
        worst(
            "relative distance from the bound where it is tight, two classes, any tau",
            [max(m["loose"].values()) for m in measured],
            less_than=1e-6,
        ),
        paired(
            "40 % of labels wrong: accuracy gain of generalised cross-entropy (tau = 1.7) over cross-entropy",
            under_noise(1.7),
            under_noise(1.0),
            more_than=0.0,
        ),
        paired(
            "40 % of labels wrong: accuracy gain of cross-entropy over tau = 0.5",
            under_noise(1.0),
            under_noise(0.5),
            more_than=0.0,
        ),
        paired(
            "accuracy under attack: gain of smooth adversarial cross-entropy over cross-entropy",
            defended(ours, "attacked"),
            defended(plain, "attacked"),
            more_than=0.0,
        ),
        paired(
            "accuracy under attack: gain over cross-entropy of attacked inputs",
            defended(ours, "attacked"),
            defended(usual, "attacked"),
            more_than=0.0,
        ),
        paired(
            "accuracy without attack: gain over cross-entropy of attacked inputs",
            defended(ours, "clean"),
            defended(usual, "clean"),
            more_than=0.0,
        ),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Accuracy over tau under noise, and with and without an attack."""
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
    curve = [[100 * m["noisy"][f"{tau:g}"] for tau in TAUS] for m in measured]
    lines(left, TAUS, {"40 % of labels wrong": curve}, labels=("tau", "accuracy, %"))
    for axes, key, label in ((middle, "attacked", "accuracy under attack"), (right, "clean", "without")):
        dots(axes, {name: column(measured, "defended", name, key) for name in DEFENCES}, label=label, percent=True)
    right.set_yticklabels([])


PAPER = Paper(
    id="P011",
    title="Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
    source="arXiv 2304.07288",
    claim="Comp-sum losses, from sum-exponential over cross-entropy to mean absolute error, bound the zero-one regret by their own, and "
    "tightly; their smooth adversarial variants beat the usual adversarial training, without attack too.",
    setup="Bounds: 4000 random distributions on three classes with random logits, in float64. Noise: 1000 digits, 40 % of whose labels are "
    "another class, one hidden layer of 64, 400 steps of Adam, the learning rate chosen for each tau on other seeds. Attacks: 1000 "
    "digits with right labels, steps along the sign of the gradient within half a standard deviation of each pixel, three in training "
    "and ten in the test; the usual way is cross-entropy of the attacked inputs.",
    objectives=("comp_sum", "gce", "mae", "adversarial_comp_sum"),
    run=run,
    judge=judge,
    draw=draw,
    seeds=6,
    notes="The bounds' formulas are as recalled, and the checks are what confirms them; tight is a bound that an undecided prediction on "
    "two classes attains. The paper does not claim robustness to noisy labels: that the larger tau, the less a wrong label counts, is "
    "what generalised cross-entropy is used for. rho and nu of the smooth adversarial loss were not seen: rho is 1, and nu = 0.2 was "
    "chosen on other seeds for accuracy with and without attack.",
    size=(9.0, 2.6),
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
