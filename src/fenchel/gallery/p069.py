"""P069 two teachers: a tough and a tolerant one assist a small regression of landmarks, on occluded digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fenchel.gallery.checks import Check, paired, worst
from fenchel.gallery.figures import COLOURS, column, dots
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import fit, mlp, scaled
from fenchel.objectives.distillation.landmarks import Assist, TwoTeachers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, STEPS, TEACHER_STEPS, COMPONENTS, RATE = 1000, 800, 1000, 3, 3e-3
KD = TwoTeachers()
ALONE = replace(KD, tough=Assist(weight=0.0), tolerant=Assist(weight=0.0))
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # student, truth, tough, tolerant: [N, D] each
METHODS: dict[str, Loss] = {
    "L2": lambda s, y, tough, tolerant: (s - y).square().mean(),
    "L1": lambda s, y, tough, tolerant: (s - y).abs().mean(),
    "main loss alone": lambda s, y, tough, tolerant: ALONE.rows(s, y, tough=tough, tolerant=tolerant).mean(),
    "L2 to tough teacher": lambda s, y, tough, tolerant: ((s - y).square() + (s - tough).square()).mean(),
    "KD-Loss": lambda s, y, tough, tolerant: KD.rows(s, y, tough=tough, tolerant=tolerant).mean(),
}


def faces(seed: int, train: int) -> tuple[Tensor, Tensor]:
    """Digits with a square of 3 x 3 pixels hidden [N, 64], and eight landmarks of the whole digit [N, 8] in [-1/2, 1/2].

    Landmarks: where the ink of three bands of rows is centred from left to right, that of three bands of columns from top
    to bottom, and that of the whole digit both ways. A band without ink has its landmark in the middle.
    """
    from sklearn.datasets import load_digits

    made = torch.Generator().manual_seed(seed)
    whole = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32).reshape(-1, 8, 8)
    whole = whole[torch.randperm(len(whole), generator=made)] / 16
    place = torch.linspace(-0.5, 0.5, 8)
    bands = (slice(0, 3), slice(3, 5), slice(5, 8), slice(0, 8))
    across = [(whole[:, b].sum(1) * place).sum(-1) / whole[:, b].sum((1, 2)).clamp_min(1e-6) for b in bands]
    down = [(whole[:, :, b].sum(2) * place).sum(-1) / whole[:, :, b].sum((1, 2)).clamp_min(1e-6) for b in bands]
    corner = torch.randint(0, 6, (len(whole), 2), generator=made)
    near = [(torch.arange(8) >= c.unsqueeze(1)) & (torch.arange(8) < c.unsqueeze(1) + 3) for c in corner.T]
    hidden = near[0].unsqueeze(2) & near[1].unsqueeze(1)
    x = whole.masked_fill(hidden, 0.0).flatten(1)
    return (x - x[:train].mean(0)) / (x[:train].std(0) + 0.1), torch.stack([*across, *down], 1)


def softened(y: Tensor, train: int) -> Tensor:
    """Landmarks of a shape model: their mean plus the largest principal components of the training shapes."""
    middle = y[:train].mean(0)
    axes = torch.linalg.svd(y[:train] - middle, full_matrices=False)[2][:COMPONENTS]
    return middle + (y - middle) @ axes.T @ axes


def run(seed: int, scale: float) -> Measurements:
    """Test errors of the teachers and of one student per loss; pulls of the assistive losses away from the truth."""
    train = scaled(TRAIN, scale, least=128)
    x, y = faces(seed, train)
    soft = softened(y, train)

    def trained(hidden: tuple[int, ...], loss: Callable[[Tensor, Tensor], Tensor], steps: int, start: int, rate: float):
        net = mlp((64, *hidden, 8), start)
        fit(net.parameters(), lambda i: loss(net(x[i]), i), train, steps=scaled(steps, scale), seed=seed, lr=rate)
        return net.requires_grad_(False)

    tough = trained((128, 128), lambda s, i: (s - y[i]).square().mean(), TEACHER_STEPS, seed, 1e-3)
    tolerant = trained((128, 128), lambda s, i: (s - soft[i]).square().mean(), TEACHER_STEPS, seed + 100, 1e-3)
    by_tough, by_tolerant = tough(x), tolerant(x)

    def error(prediction: Tensor) -> float:
        return float((prediction[train:] - y[train:]).abs().mean())

    students = {
        name: trained((12,), lambda s, i, f=loss: f(s, y[i], by_tough[i], by_tolerant[i]), STEPS, seed + 200, RATE)
        for name, loss in METHODS.items()
    }
    return {
        "students": {name: error(net(x)) for name, net in students.items()},
        "teachers": {"tough teacher": error(by_tough), "tolerant teacher": error(by_tolerant)},
        "away": away(students["L2"](x), y, by_tough, by_tolerant),
    }


def away(s: Tensor, y: Tensor, tough: Tensor, tolerant: Tensor) -> dict[str, float]:
    """The share of coordinates where the pull of a teacher is away from the truth: assistive losses, and squared distance."""
    s = s.detach().clone().requires_grad_()
    assist = KD.tough((s - y).abs(), (tough - y).abs()) + KD.tolerant((s - y).abs(), (tolerant - y).abs())
    found = {}
    for name, loss in (("assist", assist), ("squared", (s - tough).square())):
        (g,) = torch.autograd.grad(loss.sum(), s)
        found[name] = float((g * (s - y) < 0).double().mean())
    return found


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """The pulls, and the student's error."""

    def of(name: str) -> list[float]:
        return [m["students"][name] for m in measured]

    tough = [m["teachers"]["tough teacher"] for m in measured]
    return [
        worst(
            "share of coordinates that an assistive loss pulls away from the truth",
            [m["away"]["assist"] for m in measured],
            less_than=1e-9,
        ),
        paired("error of the tough teacher less that of the L2 student", tough, of("L2"), less_than=0.0),
        paired("error of the student: KD-Loss less L2", of("KD-Loss"), of("L2"), less_than=0.0),
        paired(
            "error of the student: KD-Loss less its main loss alone",
            of("KD-Loss"),
            of("main loss alone"),
            less_than=0.0,
        ),
        paired("error of the student: KD-Loss less L1", of("KD-Loss"), of("L1"), less_than=0.0),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """The loss of one coordinate, and errors."""
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    e = torch.linspace(0, 1.0, 401).unsqueeze(1)
    zero = torch.zeros_like(e)
    for colour, (name, by_tough, by_tolerant) in zip(
        COLOURS, (("good teachers", 0.02, 0.1), ("poor teachers", 0.4, 0.6)), strict=False
    ):
        loss = KD.rows(e, zero, tough=zero + by_tough, tolerant=zero + by_tolerant)
        left.plot(e.squeeze(1), loss, color=colour, label=f"{name}: errors {by_tough:g}, {by_tolerant:g}")
    left.set(xlabel="student's error", ylabel="KD-Loss")
    left.legend(fontsize=7)
    groups = {name: [m["students"][name] for m in measured] for name in METHODS}
    teachers = {name: [t[name] for t in column(measured, "teachers")] for name in ("tough teacher", "tolerant teacher")}
    dots(right, {**groups, **teachers}, label="mean absolute error on unseen digits")


PAPER = Paper(
    id="P069",
    title="Facial Landmark Points Detection Using Knowledge Distillation-Based Neural Networks",
    source="arXiv 2111.07047",
    claim="Two teachers, one trained on the landmarks and one on landmarks softened by a shape model, assist a lightweight "
    "student towards the truth by a loss that never pulls away from it, and make it more accurate.",
    setup=f"Digits with a hidden square of 3 x 3 pixels, {TRAIN} to train on; eight landmarks are where the ink of bands of the whole "
    f"digit is centred. Teachers have 128 and 128 hidden units, and are trained by L2 on the landmarks, or on their first "
    f"{COMPONENTS} principal components; students have 12 hidden units and {STEPS} steps of Adam ({RATE:g}).",
    objectives=("two_teachers",),
    run=run,
    judge=judge,
    draw=draw,
    notes="No faces: the gallery downloads nothing. KD-Loss also changes the loss of the truth, to one that is linear near it; the main loss "
    "alone and L1 tell how much of the gain is due to that and not to the teachers.",
    seeds=6,
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
