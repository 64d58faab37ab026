"""Reductions along the vocabulary: over a tensor's own columns, or over those of all ranks that share one vocabulary.

Of a row, all that is ever needed is its largest entry, a few sums and the entry of its target. Written with those, one body runs dense, by tiles, and with
the vocabulary sharded over a process group, rank after rank holding the columns that follow. There are then two kinds of tensors: *shards* [..., W], other
columns on each rank, and *numbers of rows* [..., 1], the same on every rank, as the loss is. Derivatives follow from the kinds alone:

    sums:    shards -> numbers    an all-reduce, whose pullback is spread
    spread:  numbers -> shards    nothing, and its pullback is an all-reduce of sums

So a number that is used at every token of a row is spread first; to any order, gradients of shards are then those of the one loss, and what every rank
holds whole (the hidden states of a head) is spread too and gets the whole gradient. What is decided is decided on reduced numbers, which are the same bits
on every rank: ranks never part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .opaque import opaque

__all__ = ["LOCAL", "Vocabulary"]


Reduce = Callable[[str, tuple[Tensor, ...], str], tuple[Tensor, ...]]


def all_reduced(op: str, parts: tuple[Tensor, ...], group: str) -> tuple[Tensor, ...]:
    """The sums or the maxima over a group's ranks of numbers of rows [..., 1], in one all-reduce."""
    joined = torch.cat(parts, -1)
    total: Any = _Sum.apply(joined, group) if op == "sum" else _all_reduce(joined, op, group)
    return tuple(x.to(part.dtype) for x, part in zip(total.split(1, -1), parts, strict=True))


@dataclass(frozen=True)
class Vocabulary:
    """Where a shard lies in the vocabulary; without a group, the whole vocabulary is here.

    Attributes:
        group: the name of the process group that shares the vocabulary; "" for none.
        offset: the classes that lie before this shard.
        size: the classes of all shards; 0 where the whole vocabulary is here.
        widest: the classes of the widest shard. Ranks take the same tiles of rows, whatever their own widths.
        reduce: how numbers are put together over the group.
    """

    group: str = ""
    offset: int = 0
    size: int = 0
    widest: int = 0
    reduce: Reduce = all_reduced

    @property
    def numbers(self) -> tuple[str, int, int, int]:
        """The fields that say which shard this is, as custom operators take them."""
        return self.group, self.offset, self.size, self.widest

    def classes(self, width: int) -> int:
        """The classes of the whole vocabulary, of which `width` are here."""
        return self.size if self.group else width

    def width(self, width: int) -> int:
        """The classes that memory is planned for: those of the widest shard."""
        return self.widest if self.group else width

    def block(self, start: int, width: int) -> "Vocabulary":
        """The columns from `start` on of this shard of `width` by themselves: what is known of rows is known, and nothing is reduced."""
        return Vocabulary(offset=self.offset + start, size=self.classes(width))

    def maxima(self, *shards: Tensor) -> tuple[Tensor, ...]:
        """The largest entry of each row, [..., 1]. On a group: a constant, and one all-reduce."""
        if not self.group:
            return tuple(x.amax(-1, keepdim=True) for x in shards)
        best = (x.detach().amax(-1, keepdim=True) for x in shards)
        # a backend's MAX may lose a NaN; +inf has no finite distance to any logit, so such a row becomes NaN all the same
        return self.reduce("max", tuple(torch.where(b.isnan(), torch.inf, b) for b in best), self.group)

    def amax(self, x: Tensor) -> Tensor:
        """`maxima` of one."""
        return self.maxima(x)[0]

    def across(self, *numbers: Tensor) -> tuple[Tensor, ...]:
        """What shards' parts of numbers of rows [..., 1] add up to, in their dtypes. On a group: one all-reduce."""
        return self.reduce("sum", numbers, self.group) if self.group else numbers

    def sums(self, *shards: Tensor) -> tuple[Tensor, ...]:
        """The sum of each row, [..., 1]. On a group: one all-reduce."""
        return self.across(*(x.sum(-1, keepdim=True) for x in shards))

    def sum(self, x: Tensor) -> Tensor:
        """`sums` of one."""
        return self.sums(x)[0]

    def spread(self, x: Tensor) -> Tensor:
        """What every rank holds alike, to be used by each for its own shard."""
        if not self.group:
            return x
        out: Tensor = _Spread.apply(x, self.group)  # pyright: ignore[reportAssignmentType]
        return out

    def place(self, y: Tensor, width: int) -> tuple[Tensor, Tensor | None]:
        """Where classes y lie in this shard of `width`, and which of them do (None: all); the others are at a place that exists."""
        if not self.size:
            return y, None
        at = y - self.offset
        mine = (at >= 0) & (at < width)
        return torch.where(mine, at, 0), mine

    def pick(self, x: Tensor, y: Tensor) -> Tensor:
        """The entries of x, [N, W] or [W], at the classes y [N]. On a group: one all-reduce."""
        at, mine = self.place(y, x.shape[-1])
        own = x[at] if x.dim() == 1 else x.gather(-1, at.unsqueeze(-1)).squeeze(-1)
        return own if mine is None else self.across(torch.where(mine, own, 0.0).unsqueeze(-1))[0].squeeze(-1)

    def add_at_(self, x: Tensor, y: Tensor, amount: Tensor) -> None:
        """Adds amount [N] to x [N, W] at the classes y [N], in place, where they are."""
        at, mine = self.place(y, x.shape[-1])
        amount = amount if mine is None else torch.where(mine, amount, 0.0)
        x.scatter_add_(1, at.unsqueeze(1), amount.unsqueeze(1))

    def one_hot(self, y: Tensor, like: Tensor) -> Tensor:
        """1 at the classes y [N] and 0 elsewhere, shaped as `like` [N, W]."""
        classes = torch.arange(self.offset, self.offset + like.shape[-1], device=like.device)
        return (y.unsqueeze(-1) == classes).to(like.dtype)

    def found(self, wrong: Tensor) -> str | None:
        """None if nothing is wrong on any rank, else where it is, for an error that all ranks raise. On a group: one all-reduce."""
        if not self.group:
            return "" if bool(wrong.any()) else None
        rank = torch.distributed.get_rank()
        last = int(_all_reduce((rank + 1) * wrong.any().long(), "max", self.group))
        return f" on rank {last - 1}" if last else None

    def log_softmax(self, z: Tensor) -> Tensor:
        """z less its logsumexp. On a group: two all-reduces."""
        if not self.group:
            return torch.log_softmax(z, -1)
        best = self.amax(z)
        return (z - best) - self.spread(self.sum((z - best).exp()).log())

    def logsumexp(self, z: Tensor) -> Tensor:
        """log sum exp z, [...]. On a group: two all-reduces."""
        if not self.group:
            return torch.logsumexp(z, -1)
        best = self.amax(z)
        best = torch.where(best.isfinite(), best, 0.0)
        return (best + self.sum((z - best).exp()).log()).squeeze(-1)


LOCAL = Vocabulary()


class _Sum(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, group: str) -> Tensor:
        return _all_reduce(x, "sum", group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, None]:
        return _Spread.apply(g, ctx.group), None


class _Spread(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, group: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, None]:
        return _Sum.apply(g, ctx.group), None


@opaque("all_reduce")
def _all_reduce(x: Tensor, op: str, group: str) -> Tensor:
    """The sum or the maximum of x over the ranks of a group; half precision is added in float32."""
    from torch._C._distributed_c10d import _resolve_process_group
    from torch.distributed import ReduceOp, all_reduce

    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    out = x.to(wide, copy=True, memory_format=torch.contiguous_format)
    found = _resolve_process_group(group)  # pyright: ignore[reportArgumentType]
    all_reduce(out, {"sum": ReduceOp.SUM, "max": ReduceOp.MAX}[op], found)
    return out.to(x.dtype)


@_all_reduce.register_fake
def _(x: Tensor, op: str, group: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_all_reduce.register_vmap
def _(info: Any, dims: tuple[int, None, None], x: Tensor, op: str, group: str) -> tuple[Tensor, int]:
    return _all_reduce(x, op, group), dims[0]
