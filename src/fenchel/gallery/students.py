"""Small data sets, small networks and the one training loop that the experiments of the gallery share.

Everything random comes from a seed, nothing from torch's global state, and all tensors are float32 on the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


def teacher(data: Split, seed: int, *, hidden: Sequence[int] = (128, 128), steps: int = 1500) -> nn.Sequential:
    """A network trained on the labels with cross-entropy, then frozen."""
    net = mlp((data.x.shape[1], *hidden, data.classes), seed)
    cross_entropy = nn.functional.cross_entropy
    fit(net.parameters(), lambda i: cross_entropy(net(data.x[i]), data.y[i]), len(data), steps=steps, seed=seed)
    return net.requires_grad_(False)


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
