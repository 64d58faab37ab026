"""The arguments of the two front doors of supervised objectives, checked; and what ranks that share a vocabulary must agree on."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...checks import check_floating, check_smoothing
from ...head.labelled_on_ranks import SharedTargets, Table
from ...losses.fenchel_young import check_class_weight, check_target, check_values, mean_size
from ...losses.labelled import Labels
from ...vocab import LOCAL, Vocabulary
from .objective import DISTRIBUTION, LABELS, SET, LabelObjective

__all__ = ["Given", "given"]


@dataclass(frozen=True)
class Given:
    """The checked arguments of both doors.

    Attributes:
        y: class indices [N], or targets [N, V]: zeros and ones of `sets`, or probabilities.
        nonempty: whether a set must have a class.
    """

    objective: LabelObjective
    y: Tensor
    sets: bool
    nonempty: bool
    log_q: Tensor | None
    class_weight: Tensor | None
    labels: Labels

    @property
    def table(self) -> Table:
        """What the program of a shard is of."""
        return Table(self.objective, self.labels, self.log_q is not None, self.class_weight is not None)

    def shared(self, vocab: Vocabulary) -> SharedTargets:
        """What the rows of a shard of logits are compared with."""
        return SharedTargets(self.table, self.y, self.log_q, self.class_weight, vocab)

    @property
    def facts(self) -> dict[str, Any]:
        """What ranks that share a vocabulary must agree on."""
        o = self.objective
        return {
            # asked for where there are ranks alone: a compiler cannot follow it
            "objective": lambda: repr(o) if dataclasses.is_dataclass(o) else type(o).__name__,
            "target": "class indices" if self.y.dim() == 1 else "sets" if self.sets else "probabilities",
            "q": self.log_q,
            "class weights": self.class_weight,
            "label_smoothing": self.labels.label_smoothing,
            "ignore_index": self.labels.ignore_index,
        }

    @property
    def indices(self) -> dict[str, Tensor]:
        """What every rank must hold the same of."""
        return {"target": self.y} if self.y.dim() == 1 else {}

    def checked(self, width: int, vocab: Vocabulary = LOCAL) -> Tensor:
        """A zero, once the targets are known to be what the objective takes."""
        if not self.sets:
            return check_values(self.y, width, self.labels.ignore_index, vocab)
        if self.nonempty and not torch.compiler.is_compiling() and bool((vocab.sum(self.y) == 0).any()):
            raise ValueError(
                "target: got a row without any class; pass one class or more per row, or leave the row out"
            )
        return self.y.new_zeros(())

    def size(self, vocab: Vocabulary = LOCAL) -> Tensor:
        """What "mean" divides by."""
        if self.y.dim() == 1:
            counted = self.y != self.labels.ignore_index
            return mean_size(self.y, counted, self.class_weight, vocab)
        return torch.full((), float(len(self.y)), device=self.y.device)


def given(
    objective: LabelObjective,
    shape: torch.Size,
    device: torch.device,
    target: Any,
    q: float | Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    dtype: torch.dtype,
) -> Given:
    """The arguments for logits of `shape`.

    Raises:
        ValueError, TypeError: as `supervised`.
    """
    v, kind = shape[-1], type(objective).__name__
    labels = Labels(check_smoothing(label_smoothing), ignore_index)
    class_weight = check_class_weight("weight", weight, v, device, dtype)
    if isinstance(target, Tensor) and target.device != device:
        raise ValueError(f"target: got device {target.device}, the logits are on {device}; move one of them")
    if labels.label_smoothing > 0 and not objective.takes >= DISTRIBUTION:
        raise ValueError(f"label_smoothing: got {label_smoothing}, but {kind} takes no probabilities; leave it out")
    sets = isinstance(target, Tensor) and target.dtype == torch.bool
    if sets:
        y = _sets(objective, shape, target, dtype)
        if weight is not None or label_smoothing > 0:
            raise ValueError("target: got sets of classes with class weights or label smoothing; leave these out")
    else:
        y, indices = check_target(shape, target, ignore_index, dtype)
        if not indices and not objective.takes >= DISTRIBUTION:
            others = ", or sets [..., V] (bool)" if objective.takes >= SET else ""
            raise ValueError(f"target: got probabilities, but {kind} does not take them; pass class indices{others}")
    nonempty = not objective.takes >= LABELS
    return Given(objective, y, sets, nonempty, _log_q(q, v, device, dtype), class_weight, labels)


def _sets(objective: LabelObjective, shape: torch.Size, target: Tensor, dtype: torch.dtype) -> Tensor:
    """Sets of classes as zeros and ones [N, V]."""
    if not objective.takes >= SET:
        kind = type(objective).__name__
        raise ValueError(f"target: got sets of classes (bool), but {kind} does not take them; pass class indices")
    if target.shape != shape:
        raise ValueError(f"target: got sets of shape {list(target.shape)}; pass bool {list(shape)}, as the logits")
    return target.reshape(-1, shape[-1]).to(dtype)


def _log_q(q: float | Tensor | None, v: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """log q [V], or None for a q that is the same for all classes."""
    if q is None:
        return None
    if not isinstance(q, Tensor):
        q = torch.as_tensor(q, dtype=dtype, device=device)
    check_floating("q", q, f"[{v}]")
    if tuple(q.shape) not in ((), (v,)) or q.device != device or q.requires_grad:
        raise ValueError(
            f"q: got shape {list(q.shape)} on {q.device}; pass a number or a constant [V] = [{v}] on {device} (a measure per row needs a generator's loss)"
        )
    if not torch.compiler.is_compiling() and not bool(((q > 0) & (q < torch.inf)).all()):
        raise ValueError("q: got a class that is not positive and finite; pass positive numbers (add a small count)")
    return None if q.dim() == 0 else q.to(dtype).log()
