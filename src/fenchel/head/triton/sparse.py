"""Sparse rows of logits and their gathered products: the functions of `gathered`, with the same results whenever they run.

Entries are counted, their places summed up, and written in order; a product is summed by one program for each row of its result, so nothing is atomic.
"""

import torch
import triton.language as tl
from torch import Tensor

from ..kernels import Rows
from .launch import gather_shape, jit, launch, row_shape
from .threshold import TYPES

__all__ = ["above", "rows_times", "transpose_times"]


def above(logits: Tensor, limit: Tensor) -> Rows:
    """The entries of logits `[n, V]` that are not `<= limit` `[n]`."""
    n, v = logits.shape
    row_ptr = torch.zeros(n + 1, dtype=torch.int64, device=logits.device)
    counts, shape = torch.empty(n, dtype=torch.int64, device=logits.device), row_shape(n, v)
    sizes = (n, v, logits.stride(0))
    if n:
        launch(_count, shape.over(n), shape, logits, limit, counts, *sizes)
    torch.cumsum(counts, 0, out=row_ptr[1:])
    entries = int(row_ptr[-1])
    cols = torch.empty(entries, dtype=torch.int32, device=logits.device)
    vals = torch.empty(entries, dtype=logits.dtype, device=logits.device)
    if entries:
        launch(_fill, shape.over(n), shape, logits, limit, row_ptr, cols, vals, *sizes)
    return Rows(row_ptr, cols, vals, v)


def rows_times(rows: Rows, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`rows @ weight`, `[n, V] @ [V, D]`; added to `out` `[n, D]` in place if it is given. weight may be narrower than the entries."""
    n, d = rows.shape[0], weight.shape[1]
    out = torch.zeros(n, d, dtype=rows.vals.dtype, device=weight.device) if out is None else out
    every = torch.arange(n, device=weight.device)
    return _product(rows.row_ptr, rows.cols, rows.vals, weight, every, out)


def transpose_times(rows: Rows, hidden: Tensor, *, out: Tensor) -> Tensor:
    """`out += rows.T @ hidden`, `[V, n] @ [n, D]`, in place into `out` `[V, D]`. hidden may be narrower than the entries."""
    order = torch.argsort(rows.cols, stable=True)
    touched, counts = torch.unique_consecutive(rows.cols[order], return_counts=True)
    pointers = torch.zeros(len(touched) + 1, dtype=torch.int64, device=hidden.device)
    torch.cumsum(counts, 0, out=pointers[1:])
    return _product(pointers, rows.row_index()[order], rows.vals[order], hidden, touched, out)


def _product(pointers: Tensor, index: Tensor, vals: Tensor, x: Tensor, into: Tensor, out: Tensor) -> Tensor:
    """out[into[i]] += sum of vals[k] x[index[k]] over k from pointers[i] to pointers[i + 1]."""
    d, shape = x.shape[1], gather_shape(x.shape[1])
    if len(into) and d:
        grid = (len(into), -(-d // shape.columns))
        strides = (x.stride(0), x.stride(1), out.stride(0), out.stride(1))
        launch(_gather, grid, shape, pointers, index, vals, x, into, out, d, *strides, WIDE=TYPES[vals.dtype])
    return out


@jit
def _kept(logits, limit, rows, columns, n, v, stride):
    """A block of logits, and which of them are above the limit or NaN."""
    inside = (rows < n) & (columns < v)
    value = tl.load(logits + rows.to(tl.int64) * stride + columns, mask=inside, other=0.0)
    return value, inside & ~(value <= tl.load(limit + rows, mask=rows < n, other=0.0))


@jit
def _count(logits, limit, counts, n, v, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    found = tl.zeros([ROWS, BLOCK], tl.int32)
    for start in range(0, v, BLOCK):
        _, keep = _kept(logits, limit, rows, start + tl.arange(0, BLOCK)[None, :], n, v, stride)
        found += keep.to(tl.int32)
    tl.store(counts + rows, tl.sum(found, 1, keep_dims=True).to(tl.int64), mask=rows < n)


@jit
def _fill(logits, limit, row_ptr, cols, vals, n, v, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    place = tl.load(row_ptr + rows, mask=rows < n, other=0)
    for start in range(0, v, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        value, keep = _kept(logits, limit, rows, columns, n, v, stride)
        kept = keep.to(tl.int32)
        at = place + tl.cumsum(kept, 1) - 1
        tl.store(cols + at, columns + tl.zeros([ROWS, 1], tl.int32), mask=keep)
        tl.store(vals + at, value, mask=keep)
        place += tl.sum(kept, 1, keep_dims=True)


@jit
def _gather(
    pointers,
    index,
    vals,
    x,
    into,
    out,
    d,
    x_row,
    x_column,
    out_row,
    out_column,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    begin = tl.load(pointers + i)
    end = tl.load(pointers + i + 1)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    sums = tl.zeros([ROWS, BLOCK], WIDE)
    for start in range(0, (end - begin).to(tl.int32), ROWS):
        k = begin + start + tl.arange(0, ROWS)[:, None]
        there = k < end
        row = tl.load(index + k, mask=there, other=0).to(tl.int64)
        value = tl.load(vals + k, mask=there, other=0.0)
        given = tl.load(x + row * x_row + columns * x_column, mask=there & (columns < d), other=0.0).to(WIDE)
        sums += value * given
    place = out + tl.load(into + i).to(tl.int64) * out_row + columns * out_column
    total = tl.sum(sums, 0, keep_dims=True)
    tl.store(place, tl.load(place, mask=columns < d, other=0.0) + total.to(out.dtype.element_ty), mask=columns < d)
