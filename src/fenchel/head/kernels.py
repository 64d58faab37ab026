"""The row kernels of the exact sparse head: compiled where there is a compiler and a CPU, plain torch elsewhere.

Same functions and same results, up to rounding, as `gathered` and `native`; a missing compiler is logged once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fenchel.head import gathered, native
from fenchel.head.gathered import Moments, Rows

__all__ = ["Moments", "Rows", "above", "gathers", "joined", "moments", "rows_times", "transpose_times", "window"]


def window(logits: Tensor, width: float) -> tuple[Tensor, Rows]:
    """Row maxima `[n]` of logits `[n, V]`, and the entries no further than `width` below them."""
    return (native if native.handles(logits) else gathered).window(logits, width)


def above(logits: Tensor, limit: Tensor) -> Rows:
    """The entries of logits `[n, V]` that are not `<= limit` `[n]`."""
    return (native if native.handles(logits, limit) else gathered).above(logits, limit)


def moments(logits: Tensor, tau: Tensor) -> Moments:
    """Count, sum and sum of squares of the positive part of `logits - tau`, per row of `[n, V]`."""
    return (native if native.handles(logits, tau) else gathered).moments(logits, tau)


def rows_times(rows: Rows, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`rows @ weight`, `[n, V] @ [V, D]`; added to `out` `[n, D]` in place if it is given."""
    return (native if native.multiplies(rows, weight) else gathered).rows_times(rows, weight, out=out)


def transpose_times(rows: Rows, hidden: Tensor, *, out: Tensor) -> Tensor:
    """`out += rows.T @ hidden`, `[V, n] @ [n, D]`, in place into `out` `[V, D]`."""
    return (native if native.multiplies(rows, hidden) else gathered).transpose_times(rows, hidden, out=out)


def gathers(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether entries of a dtype are multiplied by a matrix like x without a widened copy of it."""
    return x.dtype == dtype or (x.dtype == torch.bfloat16 and x.device.type == "cpu")


def joined(parts: list[Rows]) -> Rows:
    """CSR blocks of rows, one below the other."""
    if len(parts) == 1:
        return parts[0]
    ends = torch.tensor([0, *(int(p.row_ptr[-1]) for p in parts)]).cumsum(0)
    pointers = [parts[0].row_ptr[:1]] + [p.row_ptr[1:] + e for p, e in zip(parts, ends, strict=False)]
    return Rows(
        torch.cat(pointers), torch.cat([p.cols for p in parts]), torch.cat([p.vals for p in parts]), parts[0].columns
    )
