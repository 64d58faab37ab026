"""The loop of the specialised heads: a tile of logits is made, a kernel turns it in place into the gradient, and the gradient is multiplied back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..vocab import LOCAL, Vocabulary
from . import kernels
from .kernels import Rows
from .projection import add_gradients, large_pages, logits_into, pull_logits_, rows_per_tile


@dataclass(frozen=True)
class Head:
    """One output projection: cap(scale (hidden @ weight.T + bias)), and which of its gradients are wanted."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    scale: float
    want: tuple[bool, bool, bool]

    @property
    def dtype(self) -> torch.dtype:
        """What logits and accumulators are held in."""
        return torch.promote_types(self.hidden.dtype, torch.float32)

    def zeros(self, i: int) -> Tensor | None:
        """Zeros for a gradient, if it is wanted: 0 of hidden, 1 of weight, 2 of bias."""
        shape = (self.hidden.shape, self.weight.shape, self.weight.shape[:1])[i]
        return large_pages(self.hidden.new_empty(shape, dtype=self.dtype)).zero_() if self.want[i] else None


class Kernel(Protocol):
    """What is done to a tile of rows."""

    def __call__(self, logits: list[Tensor], rows: slice, c: Tensor | None) -> tuple[Tensor, "Sparse | None"]:
        """Per-row values [n, ...]; if c [n] is given, c times the values' gradient: in place of logits[k], or sparse (one head)."""
        ...


class Products(Protocol):
    """Products of CSR rows: `kernels`, or another module with its functions."""

    def rows_times(self, rows: Rows, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
        """`rows @ weight`, added to `out` if it is given."""
        ...

    def transpose_times(self, rows: Rows, hidden: Tensor, *, out: Tensor) -> Tensor:
        """`out += rows.T @ hidden`."""
        ...


@dataclass(frozen=True)
class Sparse:
    """A gradient c (p - y) with few entries: c p in CSR, and -c y; and what multiplies them."""

    p: Rows
    target: Rows
    products: Products = kernels

    def add(
        self, head: Head, hidden: Tensor, d_hidden: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None
    ) -> None:
        """Multiplies back, as `projection.add_gradients`."""
        for rows in (self.p, self.target):
            rows = rows if head.scale == 1 else rows.with_vals(rows.vals * head.scale)
            if d_hidden is not None:
                self.products.rows_times(rows, head.weight, out=d_hidden)
            if d_weight is not None:
                self.products.transpose_times(rows, hidden, out=d_weight)
            if d_bias is not None:
                d_bias.index_add_(0, rows.cols, rows.vals)


def sweep(
    heads: Sequence[Head], kernel: Kernel, c: Tensor | None, memory: int, spare: int = 0, vocab: Vocabulary = LOCAL
) -> tuple[Tensor, list[list[Tensor | None]]]:
    """Values of all rows, and each head's gradients of sum_i c_i value_i.

    Args:
        spare: tiles of scratch that the kernel needs beside the logits.
        vocab: of which the heads are a shard. The gradients of hidden states are then this shard's part.
    """
    with torch.autocast(heads[0].hidden.device.type, enabled=False):  # it would round float32 products
        return _sweep(heads, kernel, c, memory, spare, vocab)


def _sweep(
    heads: Sequence[Head], kernel: Kernel, c: Tensor | None, memory: int, spare: int, vocab: Vocabulary
) -> tuple[Tensor, list[list[Tensor | None]]]:
    n = len(heads[0].hidden)
    # the gradient of the weight, the largest, is made by the first tile that has a share in it
    totals: list[list[Tensor | None]] = [[h.zeros(0), None, h.zeros(2)] if c is not None else [None] * 3 for h in heads]
    capped = sum(h.softcap is not None and c is not None for h in heads)
    itemsize = torch.finfo(heads[0].dtype).bits // 8
    step = rows_per_tile(
        vocab.width(max(len(h.weight) for h in heads)), itemsize * (len(heads) + capped + spare), memory
    )
    # equal tiles: a small last one would multiply slowly
    step = -(-n // max(1, -(-n // step))) if n else 1
    buffers = [large_pages(h.hidden.new_empty(step, len(h.weight), dtype=h.dtype)) for h in heads]
    values = []
    for start in range(0, n, step):
        s = slice(start, min(start + step, n))
        logits = [b[: s.stop - start] for b in buffers]
        for h, z in zip(heads, logits, strict=True):
            logits_into(z, h.hidden[s], h.weight, h.bias, h.softcap, h.scale)
        before = [
            z.clone() if h.softcap is not None and c is not None else None for h, z in zip(heads, logits, strict=True)
        ]
        rows, sparse = kernel(logits, s, None if c is None else c[s])
        values.append(rows)
        if c is None:
            continue
        if sparse is not None:
            [h], [total] = heads, totals
            if total[1] is None:
                total[1] = h.zeros(1)
            sparse.add(h, h.hidden[s], None if total[0] is None else total[0][s], total[1], total[2])
            continue
        for h, z, z0, total in zip(heads, logits, before, totals, strict=True):
            if any(h.want):
                pull_logits_(z, z0, h.softcap, h.scale)
                first = h.want[1] and total[1] is None
                if first:
                    total[1] = large_pages(torch.empty_like(h.weight, dtype=h.dtype))
                part = None if total[0] is None else total[0][s]
                add_gradients(z, h.hidden[s], h.weight, part, total[1], total[2], new=(True, first))
    for h, total in zip(heads, totals, strict=True):
        if c is not None and total[1] is None:
            total[1] = h.zeros(1)
    out = torch.cat(values) if values else heads[0].hidden.new_zeros(0, dtype=heads[0].dtype)
    return out, totals
