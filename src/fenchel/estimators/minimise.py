"""Minimising the loss of rows: with all of them at once or in batches, until held-out rows, or the loss itself, say that it is enough."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .layers import Fit, Layers, Watch, adam, lbfgs
from .problem import Rows, batches

__all__ = ["SOLVERS", "epochs", "minimised"]

SOLVERS = ("lbfgs", "adam")
# loss(layers, rows): penalised, weighted mean of rows; with mean=, of a batch
Loss = Callable[..., Tensor]


def minimised(
    loss: Loss,
    rows: Rows,
    held: Rows | None,
    start: Layers,
    generator: torch.Generator,
    *,
    solver: str,
    max_iter: int,
    tol: float,
    batch_size: int,
    learning_rate: float,
    patience: int,
) -> Fit:
    """The layers that a solver finds from a start: its last ones, or the best for the rows held out."""
    judged = rows if held is None else held

    def judge(layers: Layers) -> float:
        with torch.no_grad():
            return float(loss(layers, judged))

    watch = Watch(judge, tol, patience)
    if solver == "lbfgs":
        return lbfgs(lambda layers: loss(layers, rows), start, max_iter, tol, None if held is None else watch)
    found, _ = epochs(
        loss, rows, start, generator, batch_size=batch_size, learning_rate=learning_rate, most=max_iter, watch=watch
    )
    return found


def epochs(
    loss: Loss,
    rows: Rows,
    start: Layers,
    generator: torch.Generator,
    *,
    batch_size: int,
    learning_rate: float,
    most: int,
    watch: Watch | None = None,
    state: dict[str, Any] | None = None,
) -> tuple[Fit, dict[str, Any]]:
    """Epochs of Adam over shuffled batches of rows, each weighed as in the mean of all of them; and Adam's state, to go on from."""
    return adam(
        lambda layers, batch: loss(layers, rows.of_these(batch), mean=rows.mean),
        start,
        partial(batches, len(rows.x), batch_size, generator),
        learning_rate,
        most,
        watch,
        state,
    )
