"""P015 equiangular basis vectors: fixed, nearly orthogonal classifiers against a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fenchel.gallery.checks import Check, paired, worst
from fenchel.gallery.figures import column, dots
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import Split, accuracy, fit, mlp, scaled, split
from fenchel.objectives.representation import angles, cosine_logits, equiangular_basis, unit, welch_bound

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, TRAIN, HIDDEN = 600, 500, 64
WIDE, NARROW, SCALE = 16, 6, 14.0
TRAINED, ANGLE, SOFTMAX, FEW = "trained layer", "basis, angle", "basis, softmax", "basis in 6 dimensions"


def run(seed: int, scale: float) -> Measurements:
    """The same hidden layers under a trained last layer and under fixed vectors."""
    data, steps = split("digits", seed, train=scaled(TRAIN, scale, least=100)), scaled(STEPS, scale)
    plain = mlp((64, HIDDEN, WIDE, 10), seed)
    train(plain, data, lambda i: nn.functional.cross_entropy(plain(data.x[i]), data.y[i]), steps, seed)
    found = {TRAINED: accuracy(plain(data.x_test), data.y_test)}
    over = []
    for name, dim in ((ANGLE, WIDE), (SOFTMAX, WIDE), (FEW, NARROW)):
        basis = equiangular_basis(10, dim, seed=seed)
        over.append(float((basis @ basis.T).fill_diagonal_(0).abs().max()) - (1.2 * welch_bound(10, dim) + 0.02))
        net = mlp((64, HIDDEN, dim), seed)

        def loss(i: Tensor, name: str = name, net: nn.Sequential = net, basis: Tensor = basis) -> Tensor:
            if name == ANGLE:
                return angles(net(data.x[i]), basis).gather(1, data.y[i, None]).mean()
            return nn.functional.cross_entropy(cosine_logits(net(data.x[i]), basis, scale=SCALE), data.y[i])

        train(net, data, loss, steps, seed)
        found[name] = accuracy(unit(net(data.x_test)) @ basis.T, data.y_test)
    return {"accuracy": found, "over the bound": max(0.0, *over)}


def train(net: nn.Sequential, data: Split, loss, steps: int, seed: int) -> None:
    """Trains a network, then freezes it."""
    fit(net.parameters(), loss, len(data), steps=steps, seed=seed)
    net.requires_grad_(False)


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """As accurate without a trained head, in as many and in fewer dimensions than classes."""

    def of(name: str) -> list[float]:
        return column(measured, "accuracy", name)

    return [
        paired(
            "accuracy of the spherical distance less that of a trained layer", of(ANGLE), of(TRAINED), more_than=-0.01
        ),
        paired(
            "accuracy of a softmax of cosines less that of a trained layer", of(SOFTMAX), of(TRAINED), more_than=0.0
        ),
        paired("the same in 6 dimensions, fewer than classes", of(FEW), of(TRAINED), more_than=-0.01),
        worst("largest |cosine| over its bound", column(measured, "over the bound"), less_than=1e-6),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Accuracies, and how near the vectors are to orthogonal."""
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    names = list(measured[0]["accuracy"])
    dots(left, {name: column(measured, "accuracy", name) for name in names}, label="accuracy", percent=True)
    basis = equiangular_basis(10, NARROW)
    right.imshow((basis @ basis.T).abs().numpy(), cmap="viridis", vmin=0, vmax=1)
    right.set(title="|cosine| in 6 dimensions", xticks=[], yticks=[])
    right.grid(visible=False)


PAPER = Paper(
    id="P015",
    title="Equiangular Basis Vectors",
    source="arXiv 2303.11637",
    claim="Fixed unit vectors, as nearly orthogonal as the dimension allows, classify at least as well as a trained fully connected layer, "
    "with no parameters in the head.",
    setup="Digits, 500 to train on, 600 steps of Adam at the same learning rate. One hidden layer of 64, then 16 features and a trained "
    "layer, or the features are compared with 10 fixed vectors in 16 or in 6 dimensions: trained on the angle to the class's vector, "
    "as in the paper's abstract, or by cross-entropy of cosines times 14; predicted by the nearest vector.",
    objectives=("equiangular_basis", "angles"),
    run=run,
    judge=judge,
    draw=draw,
    seeds=10,
    notes="The scale of 14 is 1/0.07, a usual temperature of cosines; it was not tuned. The bounds were stated before the run.",
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
