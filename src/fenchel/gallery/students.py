"""Small data sets, small networks and the one training loop that the experiments of the gallery share.

Everything random comes from a seed, nothing from torch's global state, and all tensors are float32 on the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fenchel.objectives.distillation import distillation, distillation_objective

DATA = ("digits", "wine", "breast_cancer", "iris", "diabetes")


@dataclass(frozen=True)
class Split:
    """Train and test part of a data set: x [n, d] float32, y [n] int64 (float32 for a regression, `classes` = 0)."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int

    def __len__(self) -> int:
        """How many training examples there are."""
        return len(self.x)


def split(name: str, seed: int, *, train: int) -> Split:
    """A data set of scikit-learn, shuffled by `seed`: the first `train` examples train, all others test.

    Features are standardised with the training part's mean and standard deviation; constant ones become zero.

    Args:
        name: one of DATA.
        seed: of the shuffle.
        train: number of training examples.

    Raises:
        ValueError: another name, or not so many examples.

    Example:
        >>> data = split("digits", 0, train=1000)
        >>> data.x.shape, data.x_test.shape, data.classes
        (torch.Size([1000, 64]), torch.Size([797, 64]), 10)
    """
    if name not in DATA:
        raise ValueError(f"got data {name!r}: pass one of {', '.join(DATA)}")
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if not 0 < train < len(x):
        raise ValueError(f"got train={train} of {len(x)} examples of {name}: leave some of both")
    regression = name == "diabetes"
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    features = torch.tensor(x, dtype=torch.float64)[order]
    target = torch.tensor(y, dtype=torch.float32 if regression else torch.long)[order]
    mean, deviation = features[:train].mean(0), features[:train].std(0)
    scaled = torch.where(deviation > 0, (features - mean) / deviation, 0.0).float()
    classes = 0 if regression else int(target.max()) + 1
    return Split(scaled[:train], target[:train], scaled[train:], target[train:], classes)


def mlp(widths: Sequence[int], seed: int) -> nn.Sequential:
    """A network of linear layers with ReLU between them, initialised by `seed`; [:-1] of it gives the last features.

    Example:
        >>> mlp((64, 16, 10), seed=0)(torch.zeros(5, 64)).shape
        torch.Size([5, 10])
    """
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i, (d, h) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layers += [nn.ReLU()] * (i > 0) + [nn.Linear(d, h)]
    return nn.Sequential(*layers)


def fit(
    parameters: Iterable[Tensor],
    loss: Callable[[Tensor], Tensor],
    n: int,
    *,
    steps: int,
    seed: int,
    lr: float = 3e-3,
    batch: int = 64,
    each: Callable[[int, Tensor], None] | None = None,
) -> None:
    """Minimises a loss with Adam; the learning rate falls linearly to zero.

    Args:
        parameters: what is trained.
        loss: from the indices [batch] of training examples to a scalar.
        n: number of training examples; each epoch goes through a new shuffle of them.
        steps, seed, lr, batch: the usual.
        each: called with the step (0, 1, ...) and its loss after the backward pass, before the update.
    """
    optimizer = torch.optim.Adam(list(parameters), lr=lr, fused=True)
    for step, index in enumerate(batches(n, batch, steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        value = loss(index)
        value.backward()
        if each is not None:
            each(step, value.detach())
        optimizer.step()


def batches(n: int, batch: int, steps: int, seed: int) -> Iterable[Tensor]:
    """`steps` batches of indices: shuffles of 0 .. n-1 one after the other, the rest of each left out."""
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch, n)
    done = 0
    while done < steps:
        order = torch.randperm(n, generator=generator)
        for start in range(0, n - batch + 1, batch):
            if done == steps:
                return
            yield order[start : start + batch]
            done += 1


def teacher(data: Split, seed: int, *, hidden: Sequence[int] = (128, 128), steps: int = 800) -> nn.Sequential:
    """A network trained on the labels with cross-entropy, then frozen."""
    net = mlp((data.x.shape[1], *hidden, data.classes), seed)
    cross_entropy = nn.functional.cross_entropy
    fit(net.parameters(), lambda i: cross_entropy(net(data.x[i]), data.y[i]), len(data), steps=steps, seed=seed)
    return net.requires_grad_(False)


@dataclass(frozen=True)
class Classroom:
    """Data, and what a trained teacher says about it: logits [n, classes] of both parts."""

    data: Split
    teacher: Tensor
    teacher_test: Tensor


def classroom(seed: int, scale: float = 1.0, *, train: int = 500, hidden: Sequence[int] = (128, 128)) -> Classroom:
    """Digits and a teacher trained on the labels of `train` of them."""
    data = split("digits", seed, train=max(128, round(train * scale)))
    net = teacher(data, seed, hidden=hidden, steps=scaled(800, scale))
    return Classroom(data, net(data.x), net(data.x_test))


@dataclass(frozen=True)
class Recipe:
    """How a student is taught: cross_entropy * CE(labels) + weight * objective(teacher, student), both means over the batch.

    Fields:
        objective: a name that `distillation` parses, or a function of (teacher, student, target), logits [N, V] twice and
            classes [N], to a scalar; None for the labels alone.
        weight, cross_entropy, lr: as above, and the learning rate to begin with.
    """

    objective: str | Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    weight: float = 1.0
    cross_entropy: float = 0.0
    lr: float = 1e-2

    def loss(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The loss as a function of (teacher, student, target)."""
        of = as_function(self.objective)
        cross_entropy = nn.functional.cross_entropy

        def loss(teacher: Tensor, student: Tensor, target: Tensor) -> Tensor:
            value = self.cross_entropy * cross_entropy(student, target)
            return value if of is None else value + self.weight * of(teacher, student, target)

        return loss


def as_function(objective: str | Callable | None) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """The mean of a named row objective over a batch; a function or None as it is."""
    if not isinstance(objective, str):
        return objective
    chosen = distillation_objective(objective)
    needs = chosen.needs_target
    return lambda teacher, student, target: distillation(chosen, teacher, student, target if needs else None)


# Chosen on seeds 100 to 105, which no experiment uses, by the accuracy of the student below: learning rates among 0.003,
# 0.01 and 0.03, temperatures among 1, 2, 4, 8 and 16.
LABELS = Recipe(cross_entropy=1.0, lr=1e-2)
KD = Recipe("kl:temperature=8,factor=64", weight=0.9, cross_entropy=0.1, lr=3e-2)


def taught(
    room: Classroom, recipe: Recipe, seed: int, *, steps: int, hidden: Sequence[int] = (16,), batch: int = 64
) -> nn.Sequential:
    """A student of the teacher in a classroom; all recipes of a seed start from the same weights and see the same batches."""
    data, loss = room.data, recipe.loss()
    net = mlp((data.x.shape[1], *hidden, data.classes), 500 + seed)

    def of_batch(i: Tensor) -> Tensor:
        return loss(room.teacher[i], net(data.x[i]), data.y[i])

    fit(net.parameters(), of_batch, len(data), steps=steps, seed=seed, lr=recipe.lr, batch=batch)
    return net.requires_grad_(False)


def marks(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Accuracy, calibration error and negative log-likelihood."""
    return {
        "accuracy": accuracy(logits, target),
        "ece": calibration_error(logits, target),
        "nll": nll(logits, target),
    }


def scaled(number: int, scale: float, *, least: int = 4) -> int:
    """A number of steps or examples at a scale.

    Example:
        >>> scaled(1000, 0.05), scaled(1000, 0.0001)
        (50, 4)
    """
    return max(least, round(number * scale))


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of rows [N, V] whose largest logit is the target [N]."""
    return float((logits.argmax(-1) == target).double().mean())


def nll(logits: Tensor, target: Tensor) -> float:
    """Mean negative log-likelihood."""
    return float(nn.functional.cross_entropy(logits.double(), target))


def calibration_error(logits: Tensor, target: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean |confidence - accuracy| over bins of equal width, weighted by their rows.

    Example:
        >>> calibration_error(torch.tensor([[9.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1])) > 0.49
        True
    """
    p, guess = logits.double().softmax(-1).max(-1)
    place = (p * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, (guess == target).double() - p)
    return float(gap.abs().sum() / len(target))
