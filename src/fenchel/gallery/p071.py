"""P071 NKD and USKD: renormalised non-target classes with a teacher, and soft labels without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

import fenchel
from fenchel.gallery.checks import Check, paired, worst
from fenchel.gallery.figures import accuracy_and_likelihood, column
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import KD, LABELS, Classroom, Recipe, classroom, fit, marks, mlp, scaled, taught
from fenchel.objectives.distillation.dkd import DKD
from fenchel.objectives.distillation.nkd import NKD
from fenchel.objectives.distillation.uskd import USKD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, HIDDEN, ROWS = 500, (16, 16), 64
METHODS = {
    "labels alone": LABELS,
    "USKD": None,
    "KL, T = 8": KD,
    "NKD": Recipe("nkd:gamma=6.4,temperature=8", cross_entropy=1.0, lr=3e-2),
}
SELF = USKD()


def run(seed: int, scale: float) -> Measurements:
    """Students with and without a teacher, and the decomposition on the logits of real digits."""
    room, steps = classroom(seed, scale), scaled(STEPS, scale)
    nets = {
        name: self_taught(room, seed, steps)
        if recipe is None
        else taught(room, recipe, seed, steps=steps, hidden=HIDDEN)
        for name, recipe in METHODS.items()
    }
    data = room.data
    student = nets["labels alone"](data.x_test[:ROWS]).double()
    return {
        "methods": {name: marks(net(data.x_test), data.y_test) for name, net in nets.items()},
        "teacher": marks(room.teacher_test, data.y_test),
        **decomposition(room.teacher_test[:ROWS].double(), student, data.y_test[:ROWS]),
    }


def self_taught(room: Classroom, seed: int, steps: int) -> nn.Sequential:
    """A student that is its own teacher: an auxiliary head on the first layer ranks the classes together with the output."""
    data = room.data
    net = mlp((data.x.shape[1], *HIDDEN, data.classes), 500 + seed)
    head = mlp((HIDDEN[0], data.classes), 900 + seed)

    def loss(i: Tensor) -> Tensor:
        middle = net[:2](data.x[i])
        logits = net[2:](middle)
        logp = logits.log_softmax(-1).gather(-1, data.y[i][:, None])[:, 0]
        # the auxiliary head learns from the middle layer without changing it
        return SELF.rows(head(middle.detach()), logits, data.y[i], SELF.weight(logp)).mean()

    fit([*net.parameters(), *head.parameters()], loss, len(data), steps=steps, seed=seed, lr=LABELS.lr)
    return net.requires_grad_(False)


def decomposition(teacher: Tensor, student: Tensor, target: Tensor) -> dict[str, float]:
    """KL(t||s) less the sum of its two parts, and NKD less its definition, on logits [N, V]: the largest errors."""
    t, s = teacher.softmax(-1), student.softmax(-1)
    y = target[:, None]
    target_part = DKD(alpha=1.0, beta=0.0).rows(teacher, student, target)
    other_part = DKD(alpha=0.0, beta=1.0).rows(teacher, student, target)
    missing = fenchel.divergence(teacher, student) - target_part - (1 - t.gather(-1, y)[:, 0]) * other_part
    rest = [p.scatter(-1, y, 0.0) / p.scatter(-1, y, 0.0).sum(-1, keepdim=True) for p in (t, s)]
    log_rest = rest[1].scatter(-1, y, 1.0).log()
    by_hand = -t.gather(-1, y)[:, 0] * s.gather(-1, y)[:, 0].log() - (rest[0] * log_rest).sum(-1)
    wrong = NKD(gamma=1.0).rows(teacher, student, target) - by_hand
    return {"decomposition": float(missing.abs().max()), "definition": float(wrong.abs().max())}


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """NKD against KL, USKD against the labels, and the two identities."""

    def accuracy(name: str) -> list[float]:
        return column(measured, "methods", name, "accuracy")

    return [
        paired("accuracy gain of NKD over KL distillation", accuracy("NKD"), accuracy("KL, T = 8"), more_than=0.0),
        paired("accuracy gain of NKD over the labels alone", accuracy("NKD"), accuracy("labels alone"), more_than=0.0),
        paired(
            "accuracy gain of USKD over the labels alone", accuracy("USKD"), accuracy("labels alone"), more_than=0.0
        ),
        worst("KL less the sum of its target and non-target parts", column(measured, "decomposition"), less_than=1e-9),
        worst("NKD less its definition by hand", column(measured, "definition"), less_than=1e-9),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Accuracy and likelihood of each student."""
    accuracy_and_likelihood(figure, measured, METHODS)


PAPER = Paper(
    id="P071",
    title="From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels",
    source="arXiv 2303.13005",
    claim="Distillation splits into a target and a non-target part; renormalising the non-target classes (NKD) beats KL "
    "distillation, and soft labels made without a teacher (USKD) beat the labels alone.",
    setup="Digits, 500 to train on. A teacher with two layers of 128, students with two of 16, 500 steps of Adam. NKD (T = 8, gamma = 0.1 T²) is added "
    "to cross-entropy, as by its authors; KL distillation is 0.9 T² KL + 0.1 cross-entropy. USKD has an auxiliary head on the first "
    "layer and its authors' weights. Learning rates, temperatures and gamma were tuned on seeds that are not used here; USKD has the "
    "rate of the labels alone. Identities on "
    "64 unseen digits, in float64.",
    objectives=("nkd", "USKD", "dkd"),
    run=run,
    judge=judge,
    draw=draw,
    seeds=8,
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
