"""P066 BD-KD: a student and a teacher that learn together, with balanced divergences against forward KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import fenchel
from fenchel.gallery.checks import Check, paired, worst
from fenchel.gallery.figures import column, dots
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import Split, as_function, fit, marks, mlp, scaled, split
from fenchel.objectives.distillation.bd_kd import BDKD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, TRAIN, RATE = 500, 500, 1e-2
METHODS = {
    "forward KL": "kl:temperature=4,factor=16",
    "reverse KL": "reverse_kl:temperature=4,factor=16",
    "BD-KD": "bd_kd:temperature=4,factor=16",
}
ROWS = 64


def run(seed: int, scale: float) -> Measurements:
    """Pairs that learn together under each of the student's losses, from the same weights on the same batches."""
    data = split("digits", seed, train=max(128, round(TRAIN * scale)))
    pairs = {name: together(data, loss, seed, scaled(STEPS, scale)) for name, loss in METHODS.items()}
    logits = {name: (teacher(data.x_test), student(data.x_test)) for name, (teacher, student) in pairs.items()}
    teacher, student = (z[:ROWS].double() for z in logits["BD-KD"])
    return {
        "student": {name: marks(z[1], data.y_test) for name, z in logits.items()},
        "teacher": {name: marks(z[0], data.y_test) for name, z in logits.items()},
        "limits": limits(teacher, student),
        "reverse weight": weights(teacher, student),
    }


def together(data: Split, objective: str, seed: int, steps: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Teacher and student, each with the labels and with the other; only the student's loss differs between methods."""
    teacher = mlp((data.x.shape[1], 128, 128, data.classes), seed)
    student = mlp((data.x.shape[1], 16, data.classes), 500 + seed)
    to_student, to_teacher = as_function(objective), as_function(METHODS["forward KL"])
    assert to_student is not None
    assert to_teacher is not None
    cross_entropy = nn.functional.cross_entropy

    def loss(i: Tensor) -> Tensor:
        t, s, y = teacher(data.x[i]), student(data.x[i]), data.y[i]
        # each is a constant in the other's loss: `distillation` detaches what it is given first
        return cross_entropy(t, y) + to_teacher(s, t, y) + cross_entropy(s, y) + to_student(t, s, y)

    fit([*teacher.parameters(), *student.parameters()], loss, len(data), steps=steps, seed=seed, lr=RATE)
    return teacher.requires_grad_(False), student.requires_grad_(False)


def limits(teacher: Tensor, student: Tensor) -> float:
    """The largest difference of weights (1, 0) and (0, 1) from forward and reverse KL."""
    forward = BDKD(reverse=0.0).rows(teacher, student) - fenchel.divergence(teacher, student)
    reverse = BDKD(forward=0.0).rows(teacher, student) - fenchel.divergence(student, teacher)
    return float(torch.stack((forward, reverse)).abs().max())


def weights(teacher: Tensor, student: Tensor) -> dict[str, list[float]]:
    """The weight of the reverse KL against how much less sure the student is than the teacher, in nats of entropy."""
    log_t, log_s = teacher.log_softmax(-1), student.log_softmax(-1)
    gap = -(log_s.exp() * log_s).sum(-1) + (log_t.exp() * log_t).sum(-1)
    return {"gap": gap.tolist(), "weight": BDKD().reverse_weight(log_t, log_s).tolist()}


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """Calibration and accuracy of the student, and a teacher that is not held back."""

    def of(who: str, name: str, key: str) -> list[float]:
        return [m[who][name][key] for m in measured]

    ours, theirs = "BD-KD", "forward KL"
    return [
        paired(
            "calibration error of the student less forward KL's",
            of("student", ours, "ece"),
            of("student", theirs, "ece"),
            less_than=0.0,
        ),
        paired(
            "accuracy gain of the student over forward KL",
            of("student", ours, "accuracy"),
            of("student", theirs, "accuracy"),
            more_than=0.0,
        ),
        paired(
            "accuracy of the teacher less forward KL's: no worse by more than half a point",
            of("teacher", ours, "accuracy"),
            of("teacher", theirs, "accuracy"),
            more_than=-0.005,
        ),
        worst(
            "weights (1, 0) and (0, 1) less forward and reverse KL, largest difference",
            column(measured, "limits"),
            less_than=1e-9,
        ),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Accuracy and calibration of the students, and how the weight moves."""
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    for axes, key, label in ((left, "accuracy", "accuracy"), (middle, "ece", "calibration error")):
        groups = {name: [m["student"][name][key] for m in measured] for name in METHODS}
        dots(axes, groups, label=f"student's {label}", percent=True)
    middle.set_yticklabels([])
    points = [m["reverse weight"] for m in measured]
    gap, weight = ([x for p in points for x in p[key]] for key in ("gap", "weight"))
    right.plot(gap[:150], weight[:150], "o", markersize=2.5, alpha=0.4, markeredgewidth=0, color="#009e73")
    right.set(xlabel="H(student) - H(teacher)", ylabel="weight of reverse KL")


PAPER = Paper(
    id="P066",
    title="BD-KD: Balancing the Divergences for Online Knowledge Distillation",
    source="arXiv 2212.12965",
    claim="When teacher and student learn together, balancing forward and reverse KL sample by sample in the student's loss "
    "improves the student's accuracy and calibration without limiting the teacher.",
    setup="Digits, 500 to train on. A teacher with two layers of 128 and a student with one of 16 start together; each has "
    "cross-entropy and 16 times a divergence to the other at T = 4, 500 steps of Adam. The teacher's is always forward KL; the "
    "student's is forward KL (mutual learning), reverse KL, or the balance of the two. The learning rate is "
    "0.01 for all, not tuned.",
    objectives=("bd_kd",),
    run=run,
    judge=judge,
    draw=draw,
    seeds=8,
    notes="The weights of a sample follow the entropies of both models, which is derived from the abstract: see the docstring "
    "of `bd_kd`. At its default sharpness they stay near one half, as the figure shows: most samples have two sure models.",
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
