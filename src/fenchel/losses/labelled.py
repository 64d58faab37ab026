"""Any loss of logits and a target per row: what its targets are made of, for `supervised` and for its fused head."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .fenchel_young import spread_target

__all__ = ["Labels", "RowLoss", "labelled_rows"]


class RowLoss(Protocol):
    """A loss of rows; hashable, since what is compiled for it is found by it."""

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """One number per row [N] from logits [N, V] and a target [N, V]: one-hot, zeros and ones, or probabilities; pure, rows independent."""
        ...


@dataclass(frozen=True)
class Labels:
    """What becomes of labels before a loss sees them.

    Attributes:
        label_smoothing: eps in [0, 1], mixes a target with the uniform distribution over the classes whose logit is finite.
        ignore_index: the class of rows that do not count.
    """

    label_smoothing: float = 0.0
    ignore_index: int = -100


def labelled_rows(
    z: Tensor, y: Tensor, log_q: Tensor | None, class_weight: Tensor | None, loss: RowLoss, labels: Labels
) -> Tensor:
    """The loss of each row [N], 0 where it is ignored; differentiable in z.

    Args:
        z: logits [N, V].
        y: class indices [N], or a target [N, V] in the dtype of z.
        log_q: [V], added to the logits.
        class_weight: [V]; a target y becomes w y / sum w y, and its loss is multiplied by sum w y.
    """
    counted = y != labels.ignore_index if y.dim() == 1 else None
    if counted is not None:
        # before all else: rows that are ignored may hold anything
        z, y = torch.where(counted.unsqueeze(1), z, 0.0), torch.where(counted, y, 0)
    share, mass = spread_target(z, y, class_weight, labels.label_smoothing)
    rows = loss.rows(z if log_q is None else z + log_q, share)
    rows = rows if mass is None else rows * mass
    return rows if counted is None else torch.where(counted, rows, 0.0)
