"""P029 domain-specific risk: a head for each angle of rotated digits, and at an angle that none has seen the heads that are near."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fenchel.gallery.checks import Check, paired, worst
from fenchel.gallery.figures import column, dots
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import fit, mlp, scaled
from fenchel.objectives.risks import domain_specific_risk, steered_log_probabilities

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANGLES, TARGET = (0, 20, 40, 60), 80
IMAGES, STEPS, HIDDEN, BATCH = 200, 600, 64, 128
ARRIVING = 32  # target samples at a time
CLASSES = 10
ALIKE = 1e6  # a temperature at which all heads weigh alike
# Chosen on seeds 100 and 101, as the notes say; "angles" is the classifier that tells them apart.
TEMPERATURE = {"entropy": 0.03, "angle": 1.0}
LR = {"ERM": 3e-2, "heads": 3e-3, "angles": 1e-2}
STEER = {"ERM": 1e-4, "heads": 1e-4}  # rate of the steps on target samples
FROZEN = ("ERM", "heads alike", "heads by entropy", "heads by angle")
METHODS = (*FROZEN, "ERM, steered", "heads, steered")


@dataclass(frozen=True)
class Rotated:
    """Digits x [n, 64] of the source angles, their classes y [n] and angles [n]; and others, by angle, with classes y_test [m]."""

    x: Tensor
    y: Tensor
    domain: Tensor
    x_test: dict[int, Tensor]
    y_test: Tensor


def run(seed: int, scale: float) -> Measurements:
    """Accuracy at the source angles and at one beyond; each head there, alone; and the laws of the risk and of the mixture."""
    data, steps = rotated_digits(seed, scaled(IMAGES, scale, least=32)), scaled(STEPS, scale)
    erm, heads = (trained(data, name, steps, seed) for name in ("ERM", "heads"))
    angles = angle_classifier(data, steps, seed)
    near = TEMPERATURE["angle"]
    frozen = {
        "ERM": lambda x: mixed(erm, x, 1.0),
        "heads alike": lambda x: mixed(heads, x, ALIKE),
        "heads by entropy": lambda x: mixed(heads, x, TEMPERATURE["entropy"]),
        "heads by angle": lambda x: mixed(heads, x, near, angles),
    }
    x, y = data.x_test, data.y_test
    new = x[TARGET]
    found = {
        name: {"target": right(of(new), y), "source": sum(right(of(x[a]), y) for a in ANGLES) / len(ANGLES)}
        for name, of in frozen.items()
    }
    found["ERM, steered"] = {"target": right(steered(erm, new, STEER["ERM"], 1.0), y)}
    found["heads, steered"] = {"target": right(steered(heads, new, STEER["heads"], near, angles), y)}
    z = logits(heads, new)
    return {
        "methods": found,
        "alone": [right(z[:, k], y) for k in range(len(ANGLES))],
        "entropy": torch.special.entr(z.softmax(-1)).sum(-1).mean(0).tolist(),
        **laws(seed),
    }


def rotated_digits(seed: int, each: int) -> Rotated:
    """`each` other images for every source angle; the images of the test at all angles."""
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    order = torch.randperm(len(digit), generator=torch.Generator().manual_seed(seed))
    images, y = torch.tensor(pixels, dtype=torch.float32)[order].view(-1, 8, 8) / 8, torch.tensor(digit)[order].long()
    n = each * len(ANGLES)
    parts = [rotated(part, angle) for part, angle in zip(images[:n].split(each), ANGLES, strict=True)]
    tests = {angle: rotated(images[n:], angle) for angle in (*ANGLES, TARGET)}
    return Rotated(torch.cat(parts), y[:n], torch.arange(len(ANGLES)).repeat_interleave(each), tests, y[n:])


def rotated(x: Tensor, degrees: float) -> Tensor:
    """Images [n, 8, 8] turned about their middle, with linear interpolation and zeros outside, as rows [n, 64]."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(x), 2, 3)
    grid = nn.functional.affine_grid(turn, [len(x), 1, 8, 8], align_corners=False)
    return nn.functional.grid_sample(x.unsqueeze(1), grid, align_corners=False).flatten(1)


def trained(data: Rotated, name: str, steps: int, seed: int) -> nn.Sequential:
    """One hidden layer under a head for each source angle, or under a single one that sees all of them."""
    heads = 1 if name == "ERM" else len(ANGLES)
    net, domain = mlp((64, HIDDEN, heads * CLASSES), seed), data.domain % heads

    def loss(i: Tensor) -> Tensor:
        return domain_specific_risk(losses(logits(net, data.x[i]), data.y[i]), domain[i])

    fit(net.parameters(), loss, len(data.x), steps=steps, seed=seed, lr=LR[name], batch=BATCH)
    return net.requires_grad_(False)


def angle_classifier(data: Rotated, steps: int, seed: int) -> nn.Sequential:
    """A network that tells the source angles [n, 4] apart."""
    net = mlp((64, HIDDEN, len(ANGLES)), seed)

    def loss(i: Tensor) -> Tensor:
        return nn.functional.cross_entropy(net(data.x[i]), data.domain[i])

    fit(net.parameters(), loss, len(data.x), steps=steps, seed=seed, lr=LR["angles"], batch=BATCH)
    return net.requires_grad_(False)


def logits(net: nn.Sequential, x: Tensor) -> Tensor:
    """What each head says, [n, heads, classes]."""
    return net(x).view(len(x), -1, CLASSES)


def losses(z: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each head, [n, heads]."""
    return -z.log_softmax(-1).gather(-1, y.view(-1, 1, 1).expand(-1, z.shape[1], 1)).squeeze(-1)


def mixed(net: nn.Sequential, x: Tensor, temperature: float, angles: nn.Sequential | None = None) -> Tensor:
    """Log-probabilities [n, classes] of the heads, weighed by their entropy of a sample, or by -log of its angle's probability."""
    gap = None if angles is None else -angles(x).log_softmax(-1)
    return steered_log_probabilities(logits(net, x), gap=gap, temperature=temperature)


def steered(
    start: nn.Sequential, x: Tensor, rate: float, temperature: float, angles: nn.Sequential | None = None
) -> Tensor:
    """The same while samples arrive: each batch is predicted, then followed by a step down the entropy of its predictions."""
    net = copy.deepcopy(start).requires_grad_()
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    said = []
    for part in x.split(ARRIVING):
        log_p = mixed(net, part, temperature, angles)
        said.append(log_p.detach())
        optimizer.zero_grad()
        torch.special.entr(log_p.exp()).sum(-1).mean().backward()
        optimizer.step()
    return torch.cat(said)


def right(log_p: Tensor, y: Tensor) -> float:
    """Share of rows whose likeliest class is the true one."""
    return float((log_p.argmax(-1) == y).double().mean())


def laws(seed: int) -> dict[str, float]:
    """Errors of: the risk as risks of one domain each; the limits of the temperature; the mixture's loss above the mean of the heads' losses."""
    made = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(300, 4, CLASSES, generator=made, dtype=torch.float64)
    y, domain = (torch.randint(k, (300,), generator=made) for k in (CLASSES, 4))
    gap = torch.rand(300, 4, generator=made, dtype=torch.float64)
    own = [nn.functional.cross_entropy(z[domain == k, k], y[domain == k]) for k in range(4)]
    p = z.softmax(-1)
    nearest = p[torch.arange(300), gap.argmin(1)]
    greedy, flat = (steered_log_probabilities(z, gap=gap, temperature=t).exp() for t in (1e-9, 1e9))
    mixture = -steered_log_probabilities(z, gap=gap, temperature=0.5).gather(1, y.unsqueeze(1)).squeeze(1)
    mean = ((-gap / 0.5).softmax(1) * losses(z, y)).sum(1)
    return {
        "risk": float((domain_specific_risk(losses(z, y), domain) - torch.stack(own).mean()).abs()),
        "limits": float(torch.maximum((greedy - nearest).abs().max(), (flat - p.mean(1)).abs().max())),
        "convex": float((mixture - mean).max()),
    }


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """The laws; then the new angle, the old ones, and steering."""

    def of(name: str, key: str = "target") -> list[float]:
        return column(measured, "methods", name, key)

    entropy = column(measured, "entropy")
    return [
        worst("the risk less the mean of risks of one domain each", column(measured, "risk"), less_than=1e-9),
        worst(
            "T = 1e-9 less the nearest head, T = 1e9 less the mean of all", column(measured, "limits"), less_than=1e-6
        ),
        worst(
            "loss of a mixture less the weighted mean of the heads' losses", column(measured, "convex"), less_than=1e-12
        ),
        paired(
            "new angle: entropy of the farthest head's predictions less that of the nearest, nats",
            [e[0] for e in entropy],
            [e[-1] for e in entropy],
            more_than=0.0,
        ),
        paired(
            "new angle: accuracy gain of heads by entropy over ERM", of("heads by entropy"), of("ERM"), more_than=0.0
        ),
        paired("new angle: accuracy gain of heads by angle over ERM", of("heads by angle"), of("ERM"), more_than=0.0),
        paired(
            "new angle: accuracy gain of heads by angle over heads alike",
            of("heads by angle"),
            of("heads alike"),
            more_than=0.0,
        ),
        paired(
            "source angles: accuracy of heads by angle less ERM",
            of("heads by angle", "source"),
            of("ERM", "source"),
            more_than=-0.01,
        ),
        paired(
            "new angle: accuracy gain of steering, heads by angle",
            of("heads, steered"),
            of("heads by angle"),
            more_than=0.0,
        ),
        paired(
            "new angle, both steered: accuracy gain of heads by angle over ERM",
            of("heads, steered"),
            of("ERM, steered"),
            more_than=0.0,
        ),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Accuracy at the new angle and at the old ones, and of each head alone at the new one."""
    left, middle, far = figure.subplots(1, 3)
    for axes, key, names in ((left, "target", METHODS), (middle, "source", FROZEN)):
        groups = {name: column(measured, "methods", name, key) for name in names}
        where = f"{TARGET}°" if key == "target" else "the source angles"
        dots(axes, groups, label=f"accuracy at {where}", percent=True)
    alone = column(measured, "alone")
    heads = {f"head of {angle}°": [a[k] for a in alone] for k, angle in enumerate(ANGLES)}
    dots(far, heads, label=f"alone at {TARGET}°", percent=True)


PAPER = Paper(
    id="P029",
    title="Domain-Specific Risk Minimization for Out-of-Distribution Generalization",
    source="arXiv 2208.08661",
    claim="A classifier for each source domain, mixed at test time by an estimate of its gap to the sample at hand, does better on a new domain "
    "than one classifier for all and as well on the sources; steering the parameters on the samples that arrive adds to it.",
    setup="Digits turned by 0, 20, 40 and 60 degrees, 200 images for each, and by 80 in the test. One hidden layer of 64 under one head (ERM) "
    "or under a head for each angle, 600 steps of Adam. Heads are mixed alike, by the entropy of their predictions, or by -log of the "
    "probability of their angle under a classifier of the source angles. Steering: target samples arrive 32 at a time, and after each "
    "batch is predicted one step of Adam lowers the entropy of the mixture's predictions.",
    objectives=("domain_specific_risk", "steered_log_probabilities"),
    run=run,
    judge=judge,
    draw=draw,
    seeds=10,
    notes="How the paper estimates the gap was not seen. The entropy was planned alone; on seeds 100 and 101 the heads were as sure where they were "
    "wrong, whether it was taken by sample or by batch, so the classifier of angles and its checks were added there. It gave nearly all weight to "
    "the head of 60 degrees. Four sets of angles were looked at, with ERM alone. Chosen there by accuracy at 80 degrees: learning rates among 0.003, 0.01 "
    "and 0.03 for ERM and for heads by angle, the temperature of entropies from 0.03 to 1 and of angles among 0.3, 1 and 3, and the rate of "
    "steering from 0.0001 to 0.003, of which the smallest was best and did not help ERM. The rate of the classifier was chosen by "
    "its own accuracy. Each head sees a quarter of the images that ERM sees. The bounds were stated before seeds 0 to 9 were run.",
    size=(10.0, 2.4),
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
