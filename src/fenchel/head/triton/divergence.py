"""The divergence of two tiles of logits: values, and the gradients in place, from the terms of `terms` as they stand."""

import torch
import triton.language as tl
from torch import Tensor

from ...generators import Generator
from .functions import divergence_functions
from .launch import jit, launch, row_shape
from .softmax import softmax_rows
from .threshold import TYPES

__all__ = ["divergence_"]


def divergence_(
    zp: Tensor, zq: Tensor, c: Tensor | None, needed: tuple[bool, bool], g: Generator, skew: float, dtype: torch.dtype
) -> Tensor:
    """D_f(p||q) [n] of two tiles of logits [n, V], computed in dtype.

    Given c [n], zp and zq become c times its gradient where needed.
    """
    n, v = zp.shape
    out = torch.empty(n, dtype=dtype, device=zp.device)
    needed = needed if c is not None else (False, False)
    terms, pulled = divergence_functions(g, skew, needed, dtype)
    rows = [x for z in (zp, zq) for x in softmax_rows(z)[:2]]
    shape = row_shape(n, v)
    if n:
        launch(
            _divergence,
            shape.over(n),
            shape,
            zp,
            zq,
            *rows,
            out if c is None else c,
            out,
            n,
            v,
            zp.stride(0),
            zq.stride(0),
            terms=terms,
            pulled=pulled,
            NEEDED_P=needed[0],
            NEEDED_Q=needed[1],
            WIDE=TYPES[dtype],
        )
    return out


@jit
def _log_probability(z, best, spread, begin, columns, inside, WIDE: tl.constexpr):
    logits = tl.load(z + begin + columns, mask=inside, other=float("-inf"))
    return (logits - best - spread).to(WIDE)


@jit
def _divergence(
    zp,
    zq,
    best_p,
    spread_p,
    best_q,
    spread_q,
    c,
    out,
    n,
    v,
    stride_p,
    stride_q,
    terms: tl.constexpr,
    pulled: tl.constexpr,
    NEEDED_P: tl.constexpr,
    NEEDED_Q: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    present = rows < n
    lanes = tl.arange(0, BLOCK)[None, :]
    begin_p = rows.to(tl.int64) * stride_p
    begin_q = rows.to(tl.int64) * stride_q
    best_p = tl.load(best_p + rows, mask=present, other=0.0)
    spread_p = tl.load(spread_p + rows, mask=present, other=0.0)
    best_q = tl.load(best_q + rows, mask=present, other=0.0)
    spread_q = tl.load(spread_q + rows, mask=present, other=0.0)

    values = tl.zeros([ROWS, BLOCK], WIDE)
    slopes_p = tl.zeros([ROWS, BLOCK], WIDE)
    slopes_q = tl.zeros([ROWS, BLOCK], WIDE)
    for start in range(0, v, BLOCK):
        columns = start + lanes
        inside = present & (columns < v)
        log_p = _log_probability(zp, best_p, spread_p, begin_p, columns, inside, WIDE)
        log_q = _log_probability(zq, best_q, spread_q, begin_q, columns, inside, WIDE)
        value, d_p, d_q = terms(log_p, log_q)
        values += tl.where(inside, value, 0.0)
        slopes_p += tl.where(inside, d_p, 0.0)
        slopes_q += tl.where(inside, d_q, 0.0)
    tl.store(out + rows, tl.sum(values, 1, keep_dims=True), mask=present)

    if NEEDED_P or NEEDED_Q:
        total_p = tl.sum(slopes_p, 1, keep_dims=True)
        total_q = tl.sum(slopes_q, 1, keep_dims=True)
        upstream = tl.load(c + rows, mask=present, other=0.0).to(WIDE)
        for start in range(0, v, BLOCK):
            columns = start + lanes
            inside = present & (columns < v)
            log_p = _log_probability(zp, best_p, spread_p, begin_p, columns, inside, WIDE)
            log_q = _log_probability(zq, best_q, spread_q, begin_q, columns, inside, WIDE)
            value, d_p, d_q = terms(log_p, log_q)
            if NEEDED_P:
                gradient = pulled(d_p, log_p, total_p, upstream)
                tl.store(zp + begin_p + columns, gradient.to(zp.dtype.element_ty), mask=inside)
            if NEEDED_Q:
                gradient = pulled(d_q, log_q, total_q, upstream)
                tl.store(zq + begin_q + columns, gradient.to(zq.dtype.element_ty), mask=inside)
