"""P067 dual-head distillation: a loss of logits on a head of its own, against both losses on one head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fenchel.gallery.checks import Check, mean, paired
from fenchel.gallery.figures import COLOURS, GREY, by_method, column, dots
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import Classroom, batches, classroom, fit, marks, mlp, scaled
from fenchel.objectives.distillation.dual_head import BinaryKL, BinaryKLNorm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, HIDDEN, RATE = 500, (32, 16), 1e-2
WEIGHT = 1.0  # of the loss of logits
PLAIN, NORM = BinaryKL(temperature=2.0, factor=4.0), BinaryKLNorm(temperature=2.0, factor=4.0)
# name: the loss of logits, whether the labels are used, whether the loss of logits has a head of its own
METHODS = {
    "labels alone": (None, True, False),
    "logits alone": (PLAIN, False, False),
    "both, one head": (PLAIN, True, False),
    "both, two heads": (NORM, True, True),
}
MOMENTS, BATCHES = 8, 8  # at which the gradients of the single head are compared, and over how many batches


def run(seed: int, scale: float) -> Measurements:
    """A student per method, and the angle between the two losses' gradients while both train one head."""
    room, steps = classroom(seed, scale), scaled(STEPS, scale, least=MOMENTS)
    found, angles = {}, {}
    for name, (of_logits, labels, two) in METHODS.items():
        logits, cosines = train(room, of_logits, labels, two, seed, steps, watch=name == "both, one head")
        found[name] = marks(logits, room.data.y_test)
        if cosines:
            angles = {part: [c[part] for c in cosines] for part in ("head", "backbone")}
    return {"methods": found, "teacher": marks(room.teacher_test, room.data.y_test), "cosines": angles}


def train(
    room: Classroom,
    of_logits: BinaryKL | BinaryKLNorm | None,
    labels: bool,
    two: bool,
    seed: int,
    steps: int,
    watch: bool,
) -> tuple[Tensor, list[dict[str, float]]]:
    """Test logits of the head that predicts, and the cosines if they were watched."""
    data = room.data
    net = mlp((data.x.shape[1], *HIDDEN, data.classes), 500 + seed)
    auxiliary = mlp((HIDDEN[-1], data.classes), 900 + seed)
    backbone, head = net[:-1], net[-1]

    def parts(i: Tensor) -> list[Tensor]:
        h = backbone(data.x[i])
        found = [nn.functional.cross_entropy(head(h), data.y[i])] if labels else []
        if of_logits is not None:
            found.append(WEIGHT * of_logits.rows(room.teacher[i], (auxiliary if two else head)(h)).mean())
        return found

    cosines: list[dict[str, float]] = []
    every = steps // MOMENTS

    def each(step: int, _: Tensor) -> None:
        if watch and step % every == every - 1 and len(cosines) < MOMENTS:
            cosines.append(angle(parts, backbone, head, len(data), seed))

    parameters = [*net.parameters(), *(auxiliary.parameters() if two else ())]
    fit(parameters, lambda i: torch.stack(parts(i)).sum(), len(data), steps=steps, seed=seed, lr=RATE, each=each)
    with torch.no_grad():
        return net(data.x_test), cosines


def angle(
    parts: Callable[[Tensor], list[Tensor]], backbone: nn.Module, head: nn.Module, n: int, seed: int
) -> dict[str, float]:
    """Mean cosine, over batches, between the gradients of the two losses in the classifier and in the backbone."""
    total = {"head": 0.0, "backbone": 0.0}
    for i in batches(n, 64, BATCHES, seed + 1):
        first, second = parts(i)
        for name, module in (("head", head), ("backbone", backbone)):
            parameters = list(module.parameters())
            g = [
                torch.cat([x.flatten() for x in torch.autograd.grad(loss, parameters, retain_graph=True)])
                for loss in (first, second)
            ]
            total[name] += float(torch.cosine_similarity(g[0], g[1], dim=0)) / BATCHES
    return total


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """The conflict in the head and its absence in the backbone, what one head costs, and what two give."""

    def accuracy(name: str) -> list[float]:
        return column(measured, "methods", name, "accuracy")

    def late(part: str) -> list[float]:
        # the second half of the training: neural collapse is about its end
        return [sum(c[part][MOMENTS // 2 :]) / (MOMENTS - MOMENTS // 2) for c in column(measured, "cosines")]

    one, two = accuracy("both, one head"), accuracy("both, two heads")
    return [
        mean("cosine of the two gradients in the classifier, second half of the training", late("head"), less_than=0.0),
        mean(
            "cosine of the two gradients in the backbone, second half of the training", late("backbone"), more_than=0.0
        ),
        paired(
            "accuracy of both losses on one head less the labels alone", one, accuracy("labels alone"), less_than=0.0
        ),
        paired(
            "accuracy of both losses on one head less the logits alone", one, accuracy("logits alone"), less_than=0.0
        ),
        paired("accuracy gain of two heads over one", two, one, more_than=0.0),
        paired("accuracy gain of two heads over the labels alone", two, accuracy("labels alone"), more_than=0.0),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """The cosines over time, and accuracies."""
    left, right = figure.subplots(1, 2)
    x = [(k + 1) / MOMENTS for k in range(MOMENTS)]
    for part, colour in (("backbone", COLOURS[2]), ("head", COLOURS[1])):
        for cosine in column(measured, "cosines"):
            left.plot(x, cosine[part], color=colour, alpha=0.35, linewidth=0.8)
        average = [sum(c[part][k] for c in column(measured, "cosines")) / len(measured) for k in range(MOMENTS)]
        left.plot(x, average, color=colour, label={"head": "classifier"}.get(part, part))
    left.axhline(0, color=GREY, linewidth=1)
    left.set(xlabel="share of the training", ylabel="cosine of the two losses' gradients")
    left.legend()
    dots(right, by_method(measured, METHODS, "accuracy"), label="accuracy", percent=True)


PAPER = Paper(
    id="P067",
    title="Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head",
    source="arXiv 2411.08937",
    claim="On one classifier, cross-entropy and a loss of logits contradict each other, though not in the backbone, and together "
    "are worse than either; a second head for the loss of logits keeps the benefit without the harm.",
    setup="Digits, 500 to train on. A teacher with two layers of 128, students with layers of 32 and 16, 500 steps of Adam at 0.01, not tuned. The loss "
    "of logits is 4 times BinaryKL at T = 2 with weight one, and BinaryKLNorm on the second head, as by the authors; predictions come "
    "from the first head. Cosines are means over 8 batches at 8 moments of the training on one head.",
    objectives=("dual_head", "binary_kl", "binary_kl_norm"),
    run=run,
    judge=judge,
    draw=draw,
    seeds=8,
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
