"""What an estimator minimises: rows with weights, their loss under an objective, and the measures that priors are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from ..objectives.supervised import LabelObjective, supervised
from .layers import Layers, scores

__all__ = ["Rows", "all_classes", "batches", "check_count", "held_out", "measure", "penalised"]


@dataclass(frozen=True)
class Rows:
    """Rows to learn from: features [N, D], class indices [N], weights [N]."""

    x: Tensor
    y: Tensor
    weight: Tensor

    @staticmethod
    def of(X: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> "Rows":
        """Of arrays.

        Raises:
            ValueError: weights that are all zero.
        """
        if not weights.sum() > 0:
            raise ValueError("sample_weight: got weights that sum to 0; pass a positive one")
        return Rows(torch.tensor(X), torch.tensor(labels, dtype=torch.long), torch.tensor(weights))

    def of_these(self, which: Any) -> "Rows":
        """The rows with these numbers."""
        return Rows(self.x[which], self.y[which], self.weight[which])

    @property
    def mean(self) -> Tensor:
        """The mean weight."""
        return self.weight.mean()


def penalised(
    objective: LabelObjective, layers: Layers, rows: Rows, *, q: Tensor | None, l2: float, mean: Tensor | None = None
) -> Tensor:
    """sum_i w_i L(z_i, y_i; q) / sum_i w_i + l2/2 sum_layers ||W||^2; of a batch, with the mean weight of all rows in place of its own."""
    each = supervised(scores(layers, rows.x), rows.y, objective, q=q, reduction="none")
    penalty = sum((w.square().sum() for w in layers[::2]), torch.zeros((), dtype=torch.float64))
    total = rows.weight.mean() if mean is None else mean
    return (rows.weight * each).mean() / total + l2 / 2 * penalty


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers of an epoch in batches."""
    yield from torch.randperm(n, generator=generator).split(size)


def measure(name: str, given: Any, classes: int, frequencies: np.ndarray | None) -> Tensor | None:
    """A reference measure [V] as it is passed to an estimator: None, "frequencies", or numbers.

    Raises:
        ValueError: another word, frequencies where there are none, other numbers than one positive one for each class.
    """
    if given is None:
        return None
    if isinstance(given, str):
        if given != "frequencies" or frequencies is None:
            raise ValueError(f'{name}: got {given!r}; pass None, "frequencies" (of fit) or {classes} positive numbers')
        given = frequencies / frequencies.sum()
    found = np.asarray(given, dtype=np.float64)
    if found.shape != (classes,) or not ((found > 0) & np.isfinite(found)).all():
        raise ValueError(
            f"{name}: got {found.tolist()}; pass {classes} positive numbers, one for each class in the order of classes_"
        )
    return torch.tensor(found)


def all_classes(given: Any, before: np.ndarray | None) -> np.ndarray:
    """The classes that there will be, sorted: as given, or those of the call before.

    Raises:
        ValueError: none at the first call, fewer than two, or others than before.
    """
    if given is None:
        if before is None:
            raise ValueError("classes: got None at the first call of partial_fit; pass all classes there will be")
        return before
    known = np.unique(np.asarray(given))
    if len(known) < 2:
        raise ValueError(f"classes: got {known.tolist()}; pass two classes or more")
    if before is not None and not np.array_equal(known, before):
        raise ValueError(f"classes: got {known.tolist()} after {before.tolist()}; pass the same, or none")
    return known


def held_out(rows: Rows, share: float, random: np.random.RandomState) -> tuple[Rows, Rows]:
    """The rows to train on, and a share of every class to judge by.

    Raises:
        ValueError: too few rows to hold some of every class out.
    """
    try:
        kept, out = train_test_split(
            np.arange(len(rows.y)), test_size=share, stratify=rows.y.numpy(), random_state=random
        )
    except ValueError as error:
        raise ValueError(f"early_stopping: {len(rows.y)} rows are too few to hold some out: {error}") from error
    return rows.of_these(kept), rows.of_these(out)


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless the value is a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}: got {value!r}; pass a whole number >= 1")
