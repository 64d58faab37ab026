"""Any loss of logits and a label per row, of a vocabulary that several ranks share: dense, and of hidden states a tile at a time.

Value and gradient are one program (`on_ranks`) of a shard of logits and of its targets, the same for class indices, whose one-hot rows are made for a tile,
for sets and for probabilities. It has first derivatives alone: those of its gradient raise.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..losses.labelled import Labels, RowLoss, labelled_rows
from ..vocab import Vocabulary
from .derived import rows_of, total
from .kept import kept
from .labelled import pulled_
from .lowered import Unwritable
from .on_ranks import Sharded, recorded_rows, sharded
from .opaque import returned
from .sweep import Head, sweep
from .tiles import tile_function

__all__ = ["SharedTargets", "Table", "check_shareable", "shared_head", "shared_rows"]


@dataclass(frozen=True)
class Table:
    """A loss of a table of targets, with log q and class weights, or without."""

    loss: RowLoss
    labels: Labels
    has_q: bool
    has_weight: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the tensors of `values` are."""
        return ("entry", "entry", *["column"] * (self.has_q + self.has_weight))


def values(z: Tensor, target: Tensor, *rest: Any) -> Tensor:
    """The losses [n] of logits and targets [n, V], with log q [V] and class weights [V] where they are there."""
    *columns, of = rest
    log_q = columns[0] if of.has_q else None
    class_weight = columns[-1] if of.has_weight else None
    return labelled_rows(z, target, log_q, class_weight, of.loss, of.labels)


def gradient_(z: Tensor, target: Tensor, *rest: Any) -> Tensor:
    """`values`; z becomes c [n, 1], the last tensor, times their gradient."""
    *columns, c, of = rest
    return pulled_(values, z, (target, *columns, of), c)


@dataclass(frozen=True, eq=False)
class SharedTargets:
    """What the rows of a shard of logits are compared with.

    Attributes:
        y: class indices [N] of the whole vocabulary, or this shard of targets [N, V].
        log_q, class_weight: this shard of them, [V].
    """

    table: Table
    y: Tensor
    log_q: Tensor | None
    class_weight: Tensor | None
    vocab: Vocabulary

    @property
    def counted(self) -> Tensor:
        """Which rows count, [N]."""
        every = torch.ones(len(self.y), dtype=torch.bool, device=self.y.device)
        return self.y != self.table.labels.ignore_index if self.y.dim() == 1 else every

    def evaluated_(self, z: Tensor, rows: slice, c: Tensor | None, entries: int) -> Tensor:
        """The losses [n] of a tile of logits; given c [n], z becomes c times their gradient."""
        y, table = self.y[rows], self.table
        target = self.vocab.one_hot(y, z) if y.dim() == 1 else y.to(z.dtype)
        columns = [x.to(z.dtype) for x in (self.log_q, self.class_weight) if x is not None]
        if c is None:
            on = Sharded(values, table, table.kinds, self.vocab)
            return tile_function(sharded, on, entries)(z, target, *columns)
        on = Sharded(gradient_, table, (*table.kinds, "row"), self.vocab)
        return tile_function(sharded, on, entries)(z, target, *columns, c.to(z.dtype).unsqueeze(1))


def check_shareable(table: Table, dtype: torch.dtype) -> None:
    """Raises unless the loss and its gradient have a program.

    Raises:
        TypeError: they have none.
    """
    try:
        recorded_rows(values, table, table.kinds, dtype)
        recorded_rows(gradient_, table, (*table.kinds, "row"), dtype)
    except Unwritable as why:
        raise TypeError(
            f"objective: {type(table.loss).__name__} on a vocabulary that ranks share must be made of elementwise operations and of sums and maxima over "
            f"classes, and has {why}; gather the logits (full_tensor) and leave group out"
        ) from None


def shared_rows(z: Tensor, targets: SharedTargets) -> Tensor:
    """The loss of each row [N] of this shard of logits [N, V], 0 where it is ignored."""
    counted = targets.counted
    if targets.y.dim() == 1:
        # before all else: rows that are ignored may hold anything
        z, targets = torch.where(counted.unsqueeze(1), z, 0.0), replace(targets, y=torch.where(counted, targets.y, 0))
    rows: Any = _Rows.apply(z, targets)
    return torch.where(counted, rows, 0.0)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, targets: SharedTargets) -> Tensor:
        c = z.new_ones(len(z)) if ctx.needs_input_grad[0] else None
        grad = z.detach() if c is None else z.detach().clone()
        rows = targets.evaluated_(grad, slice(None), c, z.numel())
        ctx.save_for_backward(grad)
        return rows

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise _once()
        [grad] = ctx.saved_tensors
        return g.unsqueeze(1) * grad, None


def _once() -> RuntimeError:
    return RuntimeError(
        "second derivatives: a supervised objective on a vocabulary that ranks share has first ones only; gather the logits (full_tensor) for more"
    )


def shared_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: SharedTargets,
    *,
    size: Tensor,
    softcap: float | None,
    scale: float,
    reduction: str,
    memory: int,
) -> Tensor:
    """`shared_rows` of hidden states [..., D], the same on every rank, and of this rank's shard of a head, reduced; the arguments are checked."""
    lead, flat = hidden.shape[:-1], targets.vocab.spread(hidden.reshape(-1, hidden.shape[-1]))
    call = SharedCall(targets, softcap, scale, memory)
    if reduction == "none":
        return rows_of(call, flat, weight, bias).view(lead)
    each = torch.ones_like(size) if reduction == "sum" else 1 / torch.where(size > 0, size, 1.0)
    return total(call, torch.where(targets.counted, each, 0.0), flat, weight, bias)


@dataclass(frozen=True, eq=False)
class SharedCall:
    """One call of a head: what is no tensor of it."""

    targets: SharedTargets
    softcap: float | None
    scale: float
    memory: int
    free = 3
    constants = 0

    @property
    def tile(self) -> Any:
        """`Fast.tile`, which second derivatives are made of."""
        raise _once()

    def op(self, tensors: tuple[Tensor | None, ...], c: Tensor | None, want: list[bool]) -> Any:
        """`Fast.op`."""
        hidden, weight, bias = tensors
        assert hidden is not None
        assert weight is not None
        targets = self.targets
        counted = kept(targets.counted)
        part = counted.of(hidden.detach())
        head = Head(part, weight.detach(), bias, self.softcap, self.scale, (want[0], want[1], want[2]))
        kernel = _kernel(replace(targets, y=counted.of(targets.y)), part.shape[0] * len(weight))
        row_c = None if c is None else counted.of(c)
        rows, [grads] = sweep([head], kernel, row_c, self.memory, 1, targets.vocab)
        return counted.back(rows), *returned(grads, tensors, counted)


def _kernel(targets: SharedTargets, entries: int) -> Callable[..., tuple[Tensor, None]]:
    """What is done to a tile of logits."""
    return lambda logits, rows, c: (targets.evaluated_(logits[0], rows, c, entries), None)
