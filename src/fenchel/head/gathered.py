"""Sparse rows of logits and their gathered products, in plain torch: any device, any float type.

`native.py` has the same functions in C, for CPUs. Both keep an entry unless it is provably out, so a row that holds a
NaN, or has a NaN for its limit, carries the NaN on instead of losing it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# bytes of a product, or of what is gathered and widened for it, that exist at once
BYTES = 8 * 2**20


@dataclass(frozen=True)
class Rows:
    """Some entries of each row of an `[n, columns]` matrix: row i holds the entries `row_ptr[i]` to `row_ptr[i + 1]`.

    `row_ptr` int64 `[n + 1]`, `cols` int32 `[nnz]` ascending within a row, `vals` `[nnz]`.

    >>> rows = above(torch.tensor([[1.0, 5.0, 4.0]]), torch.tensor([2.0]))
    >>> rows.cols.tolist(), rows.vals.tolist(), rows.row_ptr.tolist()
    ([1, 2], [5.0, 4.0], [0, 2])
    """

    row_ptr: Tensor
    cols: Tensor
    vals: Tensor
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, columns)` of the matrix."""
        return self.row_ptr.numel() - 1, self.columns

    @property
    def density(self) -> float:
        """Share of the matrix that is held; 0 for an empty matrix."""
        return self.cols.numel() / max(1, self.shape[0] * self.columns)

    def row_index(self) -> Tensor:
        """Row of each entry, int64 `[nnz]`."""
        counts = self.row_ptr.diff()
        return torch.repeat_interleave(counts, output_size=self.cols.numel())

    def with_vals(self, vals: Tensor) -> Rows:
        """The same entries with other values, `[nnz]`."""
        if vals.shape != self.cols.shape:
            raise ValueError(f"got vals of shape {tuple(vals.shape)}; pass one per entry, {tuple(self.cols.shape)}")
        return replace(self, vals=vals)


@dataclass(frozen=True)
class Moments:
    """Per row, `[n]`: how many entries exceed tau (int64), the sum of their excesses, and the sum of the squares."""

    count: Tensor
    sum: Tensor
    squares: Tensor


def limits_of_window(row_max: Tensor, width: float) -> Tensor:
    """The number just below `row_max - width`, so that an entry exactly `width` below the maximum is above it."""
    return torch.nextafter(row_max - width, torch.full_like(row_max, -torch.inf))


def window(logits: Tensor, width: float) -> tuple[Tensor, Rows]:
    """Row maxima `[n]` of logits `[n, V]`, and the entries no further than `width` below them.

    A row of -inf has no entries; a row with a NaN has the maximum NaN and keeps all of them.

    >>> row_max, rows = window(torch.tensor([[0.0, 3.0, 1.0], [0.0, 0.0, -9.0]]), 2.0)
    >>> row_max.tolist(), rows.cols.tolist(), rows.row_ptr.tolist()
    ([3.0, 0.0], [1, 2, 0, 1], [0, 2, 4])
    """
    row_max = logits.amax(1)
    return row_max, above(logits, limits_of_window(row_max, width))


def above(logits: Tensor, limit: Tensor) -> Rows:
    """The entries of logits `[n, V]` that are not `<= limit` `[n]`."""
    keep = ~(logits <= limit[:, None])
    row, col = keep.nonzero(as_tuple=True)
    row_ptr = torch.zeros(logits.shape[0] + 1, dtype=torch.int64, device=logits.device)
    torch.cumsum(keep.sum(1), 0, out=row_ptr[1:])
    return Rows(row_ptr, col.to(torch.int32), logits[row, col], logits.shape[1])


def moments(logits: Tensor, tau: Tensor) -> Moments:
    """Count, sum and sum of squares of the positive part of `logits - tau`, per row of `[n, V]`.

    With tau on the scale of the logits they hold sum p and its derivative by tau: sum and -count for alpha = 2,
    squares / 4 and -sum / 2 for alpha = 1.5.

    >>> m = moments(torch.tensor([[1.0, 3.0, 4.0]]), torch.tensor([2.0]))
    >>> m.count.item(), m.sum.item(), m.squares.item()
    (2, 3.0, 5.0)
    """
    excess = logits - tau[:, None]
    positive = ~(excess <= 0)
    excess = torch.where(positive, excess, 0)
    return Moments(positive.sum(1), excess.sum(1), (excess * excess).sum(1))


def rows_times(rows: Rows, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`rows @ weight`, `[n, V] @ [V, D]`; added to `out` `[n, D]` in place if it is given. A weight in another dtype is widened where it is gathered."""
    _check_factor(weight, rows)
    if weight.dtype == rows.vals.dtype:
        product = _csr(rows.row_ptr, rows.cols, rows.vals, rows.shape) @ weight
        return product if out is None else out.add_(product)
    out = rows.vals.new_zeros(rows.shape[0], weight.shape[1]) if out is None else out
    touched, column = torch.unique(rows.cols, return_inverse=True)
    step = _step(weight.shape[1], rows.vals)
    for start in range(0, touched.numel(), step):
        some = touched[start : start + step]
        inside = (column >= start) & (column < start + step)
        row_ptr = torch.cat((rows.row_ptr[:1], inside.cumsum(0)))[rows.row_ptr]
        part = _csr(row_ptr, column[inside] - start, rows.vals[inside], (rows.shape[0], len(some)))
        out += part @ weight.index_select(0, some).to(rows.vals.dtype)
    return out


def transpose_times(rows: Rows, hidden: Tensor, *, out: Tensor) -> Tensor:
    """`out += rows.T @ hidden`, `[V, n] @ [n, D]`, in place into `out` `[V, D]`. hidden may be narrower than the entries."""
    _check_factor(hidden, rows)
    touched, column = torch.unique(rows.cols, return_inverse=True)
    order = torch.argsort(column, stable=True)
    col_ptr = torch.zeros(touched.numel() + 1, dtype=torch.int64, device=hidden.device)
    torch.cumsum(torch.bincount(column, minlength=touched.numel()), 0, out=col_ptr[1:])
    index, vals, wide = rows.row_index()[order], rows.vals[order], hidden.to(rows.vals.dtype)
    step = _step(hidden.shape[1], vals)
    for start in range(0, touched.numel(), step):
        pointers = col_ptr[start : start + step + 1]
        first, last = pointers[[0, -1]].tolist()
        size = (len(pointers) - 1, hidden.shape[0])
        some = _csr(pointers - first, index[first:last], vals[first:last], size)
        out.index_add_(0, touched[start : start + step], some @ wide)
    return out


def _check_factor(x: Tensor, rows: Rows) -> None:
    if torch.promote_types(x.dtype, rows.vals.dtype) != rows.vals.dtype:
        raise TypeError(f"got a matrix of {x.dtype} for rows of {rows.vals.dtype}; pass that type or a narrower one")


def _step(columns: int, like: Tensor) -> int:
    """How many rows of so many columns may be made at once."""
    return max(1, BYTES // max(1, columns * like.element_size()))


def _csr(row_ptr: Tensor, cols: Tensor, vals: Tensor, size: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # torch calls its CSR tensors beta; what we use of them is covered by our tests
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        return torch.sparse_csr_tensor(row_ptr, cols.to(torch.int64), vals, size, check_invariants=False)
