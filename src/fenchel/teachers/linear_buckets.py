"""`bucketed_divergence` of hidden @ weight.T, the student's logits never stored.

Of each row the divergence needs k logits and the logsumexp of all others; its gradient is k numbers, and one number times the softmax of all others. A tile
of logits is turned in place into it: one pass of exponentials. Second derivatives run through the generic head, from the row function of `buckets`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..checks import check_reduction
from ..generators import Generator, by_handle
from ..generators import generator as named
from ..head.derived import rows_of, total
from ..head.kept import kept
from ..head.opaque import one_by_one, returned, unmade
from ..head.pairs import rows_that_count
from ..head.projection import MEMORY, rows_per_tile
from ..head.rows import Tile
from ..head.sweep import Head, sweep
from ..head.tiles import tile_function
from ..opaque import opaque
from ..terms import row_divergence, through_softmax
from .buckets import TopK, bucket_rows, check_first, check_rows, check_student, student_temperature
from .tiles import OneHead, check_one_head

__all__ = ["linear_bucketed_divergence"]


def linear_bucketed_divergence(
    teacher: TopK,
    student: OneHead,
    generator: str | Generator = "kl",
    *,
    first: str = "teacher",
    temperature: float | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    mask: Tensor | None = None,
    vocabulary: int | None = None,
    reduction: str = "none",
    memory: int = MEMORY,
) -> Tensor:
    """`bucketed_divergence` of logits = cap(scale (hidden @ weight.T + bias)) that are never stored.

    Args:
        teacher: of `top_k`, a cache, or a sparse teacher; rows [...], a constant.
        student: (hidden [..., D], weight [V, D]) or (hidden, weight, bias [V]).
        generator, first, temperature, vocabulary: as `bucketed_divergence`.
        softcap: cap(x) = softcap tanh(x / softcap).
        scale: a factor on the logits.
        mask: bool [...], the rows that count. The others are dropped before the first product, give 0 and have no gradient.
        reduction: "none" ([...]), "sum", or "mean" over the rows that count; 0, differentiable, if none does.
        memory: bytes that a tile of logits may take.

    Returns:
        [...] or a scalar, float32 at least; >= 0. "mean" and "sum" make their gradients in the forward pass: three products; "none" takes four.

    Raises:
        ValueError, TypeError: as `bucketed_divergence`, and for parts of the head that do not fit.

    Example:
        >>> hidden, weight = torch.randn(6, 8), torch.randn(50, 8)
        >>> from fenchel.teachers.buckets import bucketed_divergence, top_k
        >>> teacher = top_k(torch.randn(6, 50), 4)
        >>> fused = linear_bucketed_divergence(teacher, (hidden, weight), "js")
        >>> torch.allclose(fused, bucketed_divergence(teacher, hidden @ weight.T, "js"), atol=1e-5)
        True

    Source: as `bucketed_divergence`.
    """
    g, order = named(generator), check_first(first)
    check_reduction(reduction)
    hidden, weight, bias = check_one_head("student", student, softcap, scale, vocabulary)
    check_student(teacher, len(weight), None)
    check_rows(teacher, hidden, "student")
    lead = hidden.shape[:-1]
    counted = rows_that_count(mask, lead, hidden.device)
    t = student_temperature(teacher, temperature)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    buckets = teacher.buckets().detach().to(wide).reshape(-1, teacher.k + 1)
    tensors = (
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        bias,
        counted,
        # rows of a sparse teacher may have no class at all, so -1 would not say how many there are
        teacher.indices.reshape(lead.numel(), teacher.k),
        buckets,
    )
    rows = partial(_rows, generator=g, first=first, temperature=t)
    # rows that do not count carry the "label" False, which the generic head ignores
    tile = Tile(rows, softcap, float(scale), rows_per_tile(len(weight), 16, memory), ignore_index=False)
    call = BucketCall(g, order, t, softcap, float(scale), memory, tile)
    if reduction == "none":
        return rows_of(call, *tensors).view(lead)
    size = counted.sum().clamp_min(1) if reduction == "mean" else counted.new_ones((), dtype=torch.int64)
    return total(call, (counted / size.double()).to(wide), *tensors)


def _rows(
    z: Tensor,
    counted: Tensor,
    indices: Tensor,
    buckets: Tensor,
    *,
    generator: Generator,
    first: str,
    temperature: float,
) -> Tensor:
    return torch.where(counted, bucket_rows(z, indices, buckets, generator, first, temperature), 0.0)


@dataclass(frozen=True, eq=False)
class BucketCall:
    """The arguments of one call that are no tensors; those are hidden, weight, bias, the rows that count, indices and the teacher's buckets."""

    g: Generator
    teacher_first: bool
    temperature: float
    softcap: float | None
    scale: float
    memory: int
    tile: Tile
    free = 3
    constants = 0

    def op(self, tensors: tuple[Tensor | None, ...], c: Tensor | None, want: list[bool]) -> Any:
        """`Fast.op`."""
        numbers = (self.g.handle, self.teacher_first, self.temperature, self.softcap, self.scale, self.memory)
        return _buckets(*tensors, c, *numbers, want)  # pyright: ignore[reportArgumentType]


@opaque("buckets")
def _buckets(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    counted: Tensor,
    indices: Tensor,
    buckets: Tensor,
    c: Tensor | None,
    number: int,
    teacher_first: bool,
    temperature: float,
    softcap: float | None,
    scale: float,
    memory: int,
    want: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per-row divergences, and the wanted gradients of sum_i c_i D_i (empty tensors for the others)."""
    keep = kept(counted)
    part = keep.of(hidden)
    head = Head(part, weight, bias, softcap, scale, (want[0], want[1], want[2]))
    entries = len(part) * len(weight)
    kernel = BucketKernel(by_handle(number), teacher_first, temperature, keep.of(indices), keep.of(buckets), entries)
    rows, [grads] = sweep([head], kernel, None if c is None else keep.of(c).to(head.dtype), memory)
    out = returned(grads, (hidden, weight, bias), keep)
    return keep.back(rows), out[0], out[1], out[2]


@_buckets.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    counted: Tensor,
    indices: Tensor,
    buckets: Tensor,
    c: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
    out = unmade((hidden, weight, bias), c, rest[-1])
    return rows, out[0], out[1], out[2]


_buckets.register_vmap(one_by_one(_buckets))


@dataclass(frozen=True)
class BucketKernel:
    """A tile of logits to the divergences and, in place, to their gradient.

    With b the bucket logits and d = dD/db: dD/dz_j = d_i for the i-th class of the teacher, and d_T exp(z_j - b_T) for the others.
    """

    g: Generator
    teacher_first: bool
    temperature: float
    indices: Tensor
    buckets: Tensor
    entries: int

    def __call__(self, logits: list[Tensor], rows: slice, c: Tensor | None) -> tuple[Tensor, None]:
        z, indices = logits[0], self.indices[rows]
        if self.temperature != 1:
            z /= self.temperature
            c = None if c is None else c / self.temperature
        row, place = (indices >= 0).nonzero(as_tuple=True)
        column = indices[row, place]
        own = z.new_full(indices.shape, -torch.inf)
        own[row, place] = z[row, column]
        z[row, column] = -torch.inf
        best, spread = tile_function(_exponentials_, None, self.entries)(z)
        student = torch.log_softmax(torch.cat((own, best + spread.log()), 1), 1)
        value, d = self._small(torch.log_softmax(self.buckets[rows], 1), student, c is not None)
        if c is not None and d is not None:
            d = through_softmax(d, student) * c.unsqueeze(1)
            z *= torch.where(spread > 0, d[:, -1:] / spread, 0.0)
            z[row, column] = d[row, place]
        return value, None

    def _small(self, teacher: Tensor, student: Tensor, derivative: bool) -> tuple[Tensor, Tensor | None]:
        """The divergence of the buckets, and its derivative in the student's log-probabilities."""
        if self.teacher_first:
            value, _, d = row_divergence(teacher, student, self.g, grad_p=False, grad_q=derivative)
        else:
            value, d, _ = row_divergence(student, teacher, self.g, grad_p=derivative, grad_q=False)
        return value, d


def _exponentials_(z: Tensor, _: None) -> tuple[Tensor, Tensor]:
    """The largest entry and the sum of the exponentials of what the others are less, each [n, 1]; z becomes those exponentials."""
    best = z.amax(1, keepdim=True)
    best = torch.where(best == -torch.inf, 0.0, best)
    z.copy_(torch.exp(z - best))
    return best, z.sum(1, keepdim=True)
