"""A live teacher's logits, one tile of rows at a time, without gradients."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..head.pairs import OneHead, one_head
from ..head.projection import MEMORY, logits_into, rows_per_tile
from ..head.rows import slices_of

__all__ = ["OneHead", "check_one_head", "check_vocabulary_of", "logits_by_tile"]


def check_one_head(
    name: str, head: Any, softcap: float | None, scale: float, vocabulary: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states [..., D], weight [V, D] and bias of one head, of its first `vocabulary` classes.

    Raises:
        TypeError, ValueError: not (hidden, weight) or (hidden, weight, bias), parts that do not fit, more classes than there are.
    """
    hidden, weight, bias = one_head(name, head, softcap, scale)
    v = check_vocabulary_of(vocabulary, len(weight))
    return hidden, weight[:v], None if bias is None else bias[:v]


def check_vocabulary_of(vocabulary: int | None, v: int) -> int:
    """How many of V classes count.

    Raises:
        ValueError: not an integer from 1 to V.
    """
    if vocabulary is None:
        return v
    if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or not 1 <= vocabulary <= v:
        raise ValueError(f"vocabulary: got {vocabulary!r} for V = {v}; pass 1 to {v}")
    return vocabulary


@torch.no_grad()
def logits_by_tile(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    memory: int = MEMORY,
) -> Iterator[Tensor]:
    """The logits [n, V] of consecutive rows of hidden [N, D], float32 at least; each tile overwrites the one before."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    # the tile, and as much again for what is made of it
    step = rows_per_tile(len(weight), 2 * dtype.itemsize, memory)
    buffer = hidden.new_empty(min(step, max(1, len(hidden))), len(weight), dtype=dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        for s in slices_of(len(hidden), step):
            tile = buffer[: s.stop - s.start]
            logits_into(tile, hidden[s], weight, bias, softcap, scale)
            yield tile
