"""Any loss of logits and a label per row, of hidden @ weight.T, the logits never stored.

Value and gradient of the loss are recorded as one row program (`tiles`): a row's label stands as its one-hot row only inside it, as the comparison of each
class with the label. With a uniform upstream gradient (mean, sum) gradients are made in the forward pass, so a step costs three products. Targets that are
tables, and label smoothing combined with class weights, run through the generic head. Second derivatives always do: the row function is the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..losses.fenchel_young import check_values, reduce, spread_target
from ..losses.labelled import Labels, RowLoss, labelled_rows
from ..opaque import differentiable, opaque
from .derived import rows_of, total
from .kept import kept
from .opaque import one_by_one, returned, unmade
from .projection import rows_per_tile
from .rows import Rows, Tile, applied
from .sweep import Head, sweep
from .tiles import tile_function

__all__ = ["labelled_head", "pulled_"]

# class numbers are compared in the dtype of logits: float32 holds all of them below this
EXACT = 2**24


def labelled_head(
    loss: RowLoss,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    *,
    log_q: Tensor | None,
    class_weight: Tensor | None,
    labels: Labels,
    size: Tensor,
    softcap: float | None,
    scale: float,
    reduction: str,
    memory: int,
) -> Tensor:
    """`labelled_rows` of hidden states [..., D] and a head, reduced; the arguments are checked.

    Args:
        y: class indices [N], or targets [N, V].
        log_q, class_weight: [V] in the dtype of logits.
        size: what "mean" divides by.
    """
    lead, flat = hidden.shape[:-1], hidden.reshape(-1, hidden.shape[-1])
    v = len(weight)
    indices = y.dim() == 1
    fn = partial(_labelled, log_q=log_q, class_weight=class_weight, loss=loss, labels=labels)
    tile = Tile(fn, softcap, scale, rows_per_tile(v, 16, memory), labels.ignore_index if indices else None)
    if not indices or (labels.label_smoothing > 0 and class_weight is not None) or v > EXACT:
        with torch.autocast(hidden.device.type, enabled=False):
            rows: Tensor = applied(Rows, tile, flat, weight, bias, y)
        return reduce(rows, size, reduction, lead)
    call = LabelledCall(_number(loss), labels, softcap, scale, memory, tile)
    tensors = (flat, weight, bias, y, log_q, class_weight)
    if reduction == "none":
        return rows_of(call, *tensors).view(lead)
    each = torch.ones_like(size) if reduction == "sum" else 1 / torch.where(size > 0, size, 1.0)
    c = torch.where(y != labels.ignore_index, each, 0.0).to(torch.promote_types(hidden.dtype, torch.float32))
    return total(call, c, *tensors)


def _labelled(
    z: Tensor, y: Tensor, *, log_q: Tensor | None, class_weight: Tensor | None, loss: RowLoss, labels: Labels
) -> Tensor:
    y = y.to(z.dtype) if y.dim() == 2 else y
    return labelled_rows(z, y, log_q, class_weight, loss, labels)


_losses: list[RowLoss] = []
_numbers: dict[RowLoss, int] = {}


def _number(loss: RowLoss) -> int:
    """The number that stands for a loss among the arguments of an operator."""
    if loss not in _numbers:
        _losses.append(loss)
        _numbers[loss] = len(_losses) - 1
    return _numbers[loss]


# what torch.compiler.assume_constant_result does, without importing the compiler
vars(_number)["_dynamo_marked_constant"] = True


@dataclass(frozen=True, eq=False)
class LabelledCall:
    """One call: what is no tensor. Its tensors are hidden, weight, bias, y, log q and the class weights."""

    number: int
    labels: Labels
    softcap: float | None
    scale: float
    memory: int
    tile: Tile
    free = 3
    constants = 2

    def op(self, tensors: tuple[Tensor | None, ...], c: Tensor | None, want: list[bool]) -> Any:
        """`Fast.op`."""
        eps, ignored = self.labels.label_smoothing, self.labels.ignore_index
        return _labelled_op(*tensors, c, eps, ignored, self.softcap, self.scale, self.number, self.memory, want)


@opaque("labelled")
def _labelled_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    log_q: Tensor | None,
    class_weight: Tensor | None,
    c: Tensor | None,
    smoothing: float,
    ignore_index: int,
    softcap: float | None,
    scale: float,
    number: int,
    memory: int,
    want: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per-row losses, and the wanted gradients of sum_i c_i loss_i (empty tensors for the others)."""
    check_values(y, len(weight), ignore_index)
    counted = kept(y != ignore_index)
    part, labels, row_c = counted.of(hidden), counted.of(y), None if c is None else counted.of(c)
    head = Head(part, weight, bias, softcap, scale, (want[0], want[1], want[2]))
    kernel = LabelledKernel(
        Labelled(_losses[number], smoothing), labels, log_q, class_weight, part.shape[0] * len(weight)
    )
    rows, [grads] = sweep([head], kernel, row_c, memory)
    out = returned(grads, (hidden, weight, bias), counted)
    return counted.back(rows), out[0], out[1], out[2]


@_labelled_op.register_fake
def _(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
    out = unmade((hidden, weight, bias), rest[2], rest[-1])
    return rows, out[0], out[1], out[2]


_labelled_op.register_vmap(one_by_one(_labelled_op))


@dataclass(frozen=True)
class Labelled:
    """What a tile's program is of."""

    loss: RowLoss
    smoothing: float


@dataclass(frozen=True)
class LabelledKernel:
    """What is constant over tiles."""

    of: Labelled
    y: Tensor
    log_q: Tensor | None
    class_weight: Tensor | None
    entries: int

    def __call__(self, logits: list[Tensor], rows: slice, c: Tensor | None) -> tuple[Tensor, None]:
        """Losses of a tile's rows; with c, the logits become c times their gradient."""
        z, y = logits[0], self.y[rows]
        classes = torch.arange(z.shape[1], dtype=z.dtype, device=z.device)
        given = (z, classes, y.to(z.dtype).unsqueeze(1)) + (() if self.log_q is None else (self.log_q,))
        weight = None if self.class_weight is None else self.class_weight[y]
        if c is None:
            losses = tile_function(values, self.of, self.entries)(*given)
        else:
            c = (c if weight is None else c * weight).to(z.dtype)
            losses = tile_function(gradient_, self.of, self.entries)(*given, c.unsqueeze(1))
        return losses if weight is None else losses * weight, None


def values(z: Tensor, classes: Tensor, y: Tensor, *rest: Any) -> Tensor:
    """The losses [n] of logits z [n, V] with the classes' numbers [V], labels [n, 1] and, where it is there, log q [V]."""
    *log_q, of = rest
    target, _ = spread_target(z, (classes == y).to(z.dtype), None, of.smoothing)
    return of.loss.rows(z + log_q[0] if log_q else z, target)


def gradient_(z: Tensor, classes: Tensor, y: Tensor, *rest: Any) -> Tensor:
    """`values`; z becomes c [n, 1], the last tensor, times their gradient."""
    *log_q, c, of = rest
    return pulled_(values, z, (classes, y, *log_q, of), c)


def pulled_(fn: Callable[..., Tensor], z: Tensor, rest: tuple[Any, ...], c: Tensor) -> Tensor:
    """fn(z, *rest) [n]; z becomes c [n, 1] times its gradient."""
    with differentiable():
        at = z.detach().requires_grad_()
        losses = fn(at, *rest)
        [grad] = torch.autograd.grad(losses, at, c.squeeze(1), materialize_grads=True)
    z.copy_(grad)
    return losses.detach()
