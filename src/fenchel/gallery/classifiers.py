"""Labels as they come: noisy, long-tailed; and classifiers that are trained on them with any supervised objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fenchel.gallery.students import Split, fit, mlp
from fenchel.objectives.supervised import supervised, supervised_objective
from fenchel.objectives.supervised.objective import LabelObjective


@dataclass(frozen=True)
class Method:
    """How a classifier is trained: an objective that `supervised` takes, and the learning rate to begin with."""

    objective: str | LabelObjective = "cross_entropy"
    lr: float = 1e-2


def noisy(target: Tensor, rate: float, classes: int, seed: int) -> Tensor:
    """Symmetric noise: a share `rate` of the labels [n], each replaced by another class, all others alike.

    Example:
        >>> y = torch.arange(10)
        >>> int((noisy(y, 0.4, 10, seed=0) != y).sum())
        4
    """
    made = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(target), generator=made)[: round(rate * len(target))]
    shift = torch.randint(1, classes, (len(chosen),), generator=made)
    found = target.clone()
    found[chosen] = (target[chosen] + shift) % classes
    return found


def long_tailed(data: Split, most: int, least: int) -> Split:
    """The training part with `most` examples of class 0 down to `least` of the last, geometrically; the test part as it is.

    Example:
        >>> from fenchel.gallery.students import split
        >>> tail = long_tailed(split("digits", 0, train=1200), 90, 5)
        >>> tail.y.bincount().tolist()
        [90, 65, 47, 34, 25, 18, 13, 10, 7, 5]
    """
    counts = [round(most * (least / most) ** (k / (data.classes - 1))) for k in range(data.classes)]
    kept = torch.cat([(data.y == k).nonzero().squeeze(1)[:count] for k, count in enumerate(counts)])
    kept = kept.sort().values
    return replace(data, x=data.x[kept], y=data.y[kept])


def classes_apart(data: Split, seen: int, seed: int) -> tuple[Split, Split]:
    """`seen` classes that are drawn by `seed`, and all others: both parts of each, its classes numbered from 0.

    Example:
        >>> from fenchel.gallery.students import split
        >>> seen, unseen = classes_apart(split("digits", 0, train=1000), 6, seed=0)
        >>> seen.classes, seen.y.unique().tolist(), unseen.y_test.unique().tolist()
        (6, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3])
    """
    order = torch.randperm(data.classes, generator=torch.Generator().manual_seed(seed))
    place = torch.empty_like(order).index_copy(0, order, torch.arange(data.classes))

    def part(first: int, last: int) -> Split:
        train, test = ((first <= place[y]) & (place[y] < last) for y in (data.y, data.y_test))
        y, y_test = place[data.y[train]] - first, place[data.y_test[test]] - first
        return Split(data.x[train], y, data.x_test[test], y_test, last - first)

    return part(0, seen), part(seen, data.classes)


def trained(
    data: Split,
    method: Method,
    seed: int,
    *,
    steps: int,
    hidden: Sequence[int] = (64,),
    y: Tensor | None = None,
    q: Tensor | None = None,
    net: nn.Sequential | None = None,
    each: Callable[[int, Tensor], None] | None = None,
) -> nn.Sequential:
    """A network trained with an objective; all methods of a seed start from the same weights and see the same batches.

    Args:
        data, seed, steps, each: as `fit`.
        method: the objective and its learning rate.
        hidden: widths of the hidden layers.
        y: what to train on instead of the labels: classes [n], or sets of classes [n, V].
        q: class prior [V], which `supervised` takes.
        net: the network to train, instead of a new one.
    """
    net = mlp((data.x.shape[1], *hidden, data.classes), seed) if net is None else net
    y = data.y if y is None else y
    objective = supervised_objective(method.objective)

    def loss(i: Tensor) -> Tensor:
        return supervised(net(data.x[i]), y[i], objective, q=q)

    fit(net.parameters(), loss, len(data), steps=steps, seed=seed, lr=method.lr, each=each)
    return net.requires_grad_(False)


def recall(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """The share of each class's rows that are recognised [V]; 0 for a class without rows."""
    hit = (prediction == target).double()
    sums = torch.zeros(classes, dtype=torch.float64).index_add_(0, target, hit)
    return sums / target.bincount(minlength=classes).clamp_min(1)
