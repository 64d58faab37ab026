"""A network of dense layers as plain tensors, and two ways to fit it: L-BFGS on all rows, Adam on batches."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Fit", "Layers", "Watch", "adam", "initial", "lbfgs", "scores"]

# weights and biases in turn: [D, H], [H], ..., [H, V], [V]
Layers = tuple[Tensor, ...]
Loss = Callable[[Layers], Tensor]
# the last layer starts near zero and not at it, where losses of standardised or squared logits have no slope
START = 1e-2
# what L-BFGS remembers is enough for a line search to go wrong this often before it gives up
LINE_SEARCH = 50


def initial(widths: Sequence[int], generator: torch.Generator) -> Layers:
    """Layers of these widths, float64: Glorot's uniform weights, the last layer near zero, biases zero.

    Example:
        >>> [tuple(x.shape) for x in initial((4, 3, 2), torch.Generator())]
        [(4, 3), (3,), (3, 2), (2,)]
    """
    layers: list[Tensor] = []
    last = len(widths) - 2
    for i, (d, h) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        bound = math.sqrt(6 / (d + h)) * (START if i == last else 1.0)
        uniform = torch.rand(d, h, generator=generator, dtype=torch.float64)
        layers += [bound * (2 * uniform - 1), torch.zeros(h, dtype=torch.float64)]
    return tuple(layers)


def scores(layers: Layers, x: Tensor) -> Tensor:
    """The last layer's output [N, V] for x [N, D], with ReLU between layers."""
    for i in range(0, len(layers), 2):
        x = (torch.relu(x) if i else x) @ layers[i] + layers[i + 1]
    return x


@dataclass
class Watch:
    """The best layers so far by a judge, and whether there has been none better for `patience` rounds.

    Attributes:
        judge: the number of a fit; lower is better.
        tol: how much lower counts.
        patience: rounds without that before the fit ends.
    """

    judge: Callable[[Layers], float]
    tol: float
    patience: int
    best: float = math.inf
    layers: Layers = ()
    waited: int = 0
    _mark: float = field(default=math.inf, repr=False)

    def enough(self, layers: Layers) -> bool:
        """Judge one round's layers; True when the fit ends."""
        value = self.judge(layers)
        if value < self.best:
            self.best, self.layers = value, tuple(x.detach().clone() for x in layers)
        if value < self._mark - self.tol:
            self._mark, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.patience


@dataclass(frozen=True)
class Fit:
    """What a fit found.

    Attributes:
        layers: of the last round, or the best of a watched fit.
        rounds: iterations of L-BFGS, or epochs of Adam.
        converged: whether it ended before `most` rounds.
    """

    layers: Layers
    rounds: int
    converged: bool


def lbfgs(loss: Loss, start: Layers, most: int, tol: float, watch: Watch | None = None) -> Fit:
    """Minimise a loss of all rows until the largest entry of its gradient is below tol, or the watch has enough.

    Source: Byrd et al. 1995, as in scipy.optimize.minimize.
    """
    from scipy.optimize import minimize

    def apart(flat: np.ndarray) -> Layers:
        pieces = torch.tensor(flat).split([x.numel() for x in start])
        return tuple(piece.view(x.shape) for piece, x in zip(pieces, start, strict=True))

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        layers = tuple(x.requires_grad_() for x in apart(flat))
        at = loss(layers)
        slopes = torch.autograd.grad(at, layers)
        return at.item(), torch.cat([slope.flatten() for slope in slopes]).numpy()

    def seen(intermediate_result: Any) -> None:
        if watch is not None and watch.enough(apart(intermediate_result.x)):
            raise StopIteration

    found = minimize(
        value,
        torch.cat([x.flatten() for x in start]).numpy(),
        jac=True,
        method="L-BFGS-B",
        callback=seen,
        options={
            "maxiter": most,
            "maxfun": 20 * most,
            "gtol": tol,
            "ftol": 64 * np.finfo(float).eps,
            "maxls": LINE_SEARCH,
        },
    )
    layers = apart(found.x) if watch is None or not watch.layers else watch.layers
    return Fit(layers, max(1, int(found.nit)), int(found.nit) < most)


def adam(
    loss: Callable[[Layers, Tensor], Tensor],
    start: Layers,
    batches: Callable[[], Iterator[Tensor]],
    rate: float,
    most: int,
    watch: Watch | None = None,
    state: dict[str, Any] | None = None,
) -> tuple[Fit, dict[str, Any]]:
    """Epochs of Adam over batches of rows until the watch has enough; and Adam's state, to go on from.

    Args:
        loss: of layers and the rows of a batch.
        start: layers.
        batches: the row numbers of an epoch's batches.
        rate: the learning rate.
        most: epochs.
        watch: judges every epoch.
        state: of the call that this one goes on from.
    """
    layers = tuple(x.clone().requires_grad_() for x in start)
    optimizer = torch.optim.Adam(layers, rate)
    if state is not None:
        optimizer.load_state_dict(state)
    rounds, ended = 0, False
    while rounds < most and not ended:
        for rows in batches():
            optimizer.zero_grad()
            loss(layers, rows).backward()
            optimizer.step()
        rounds += 1
        ended = watch is not None and watch.enough(layers)
    found = watch.layers if watch is not None and watch.layers else tuple(x.detach() for x in layers)
    return Fit(found, rounds, ended), optimizer.state_dict()
