"""What the custom operators of the heads have in common: how they return gradients, what a compiler is told of these, and vmap.

An operator cannot return None: a gradient that is not wanted is an empty tensor. Tensors come as in `derived`: hidden states, weight and bias of each head.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .kept import Kept

__all__ = ["one_by_one", "returned", "unmade"]


def returned(grads: Sequence[Tensor | None], like: Sequence[Tensor | None], rows: Kept) -> list[Tensor]:
    """Gradients in the dtypes of their tensors; rows: those that were kept of the hidden states, whose others get 0."""
    out = []
    for i, (x, of) in enumerate(zip(grads, like, strict=True)):
        if x is None or of is None:
            out.append(_nothing(like))
        else:
            out.append(rows.back(x.to(of.dtype)) if i % 3 == 0 else x.to(of.dtype))
    return out


def unmade(like: Sequence[Tensor | None], c: Tensor | None, want: Sequence[bool]) -> list[Tensor]:
    """What `returned` returns, as shapes and dtypes alone."""
    return [
        torch.empty_like(x) if w and x is not None and c is not None else _nothing(like)
        for x, w in zip(like, want, strict=True)
    ]


def _nothing(like: Sequence[Tensor | None]) -> Tensor:
    assert like[0] is not None
    return like[0].new_empty(0)


def one_by_one(op: Callable[..., Any]) -> Callable[..., Any]:
    """A vmap rule that calls the operator once for each element of the batch."""

    def rule(info: Any, dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        results = [
            op(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return tuple(torch.stack(r) for r in zip(*results, strict=True)), (0,) * len(results[0])

    return rule
