"""A head whose weight's gradient is made class by class: no float32 [V, D] stands beside a gradient in half precision.

The gradient in a class takes a few numbers of each row beside the logit: the threshold, the largest logit. So there are two sweeps. By tiles of rows, as
`sweep`: values and those numbers. By blocks of classes: the logits once more, turned into their gradient; a block's rows of the weight's gradient are one
product over all rows, in float32, rounded once. That is one product more than with an accumulator.
"""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ..vocab import LOCAL, Vocabulary
from .projection import add_gradients, large_pages, logits_into, pull_logits_, rows_per_tile
from .sweep import Head, sweep

__all__ = ["ByClasses", "accumulates", "sweep_by_classes"]


class ByClasses(Protocol):
    """A kernel whose rows can be solved first and differentiated later, some classes at a time."""

    @property
    def values(self) -> int:
        """How many of the numbers of a row are its values: the first ones."""
        ...

    def solve(self, logits: list[Tensor], rows: slice, c: Tensor | None) -> tuple[Tensor, None]:
        """As a `sweep.Kernel` without c: the numbers of a tile's rows, [n, k]."""
        ...

    def gradient_(self, z: Tensor, block: Vocabulary, numbers: Tensor, c: Tensor) -> None:
        """Logits of all rows in a block of classes [N, b] become c [N, ...] times the values' gradient, in place."""
        ...


def accumulates(head: Head) -> bool:
    """Whether `sweep` adds the weight's gradient up in a tensor of another dtype."""
    return head.want[1] and head.weight.dtype != head.dtype


def sweep_by_classes(
    head: Head, kernel: ByClasses, c: Tensor, memory: int, vocab: Vocabulary = LOCAL
) -> tuple[Tensor, list[Tensor | None]]:
    """`sweep` of one head; the weight's gradient comes in its own dtype."""
    with torch.autocast(head.hidden.device.type, enabled=False):  # as `sweep`
        if len(head.hidden):
            numbers, _ = sweep([head], kernel.solve, None, memory, vocab=vocab)
        else:
            numbers, _ = kernel.solve([head.weight.new_empty(0, len(head.weight), dtype=head.dtype)], slice(0), None)
        values = numbers[:, : kernel.values].to(head.dtype)
        return values.squeeze(1) if kernel.values == 1 else values, _gradients(head, kernel, numbers, c, memory, vocab)


def _gradients(
    head: Head, kernel: ByClasses, numbers: Tensor, c: Tensor, memory: int, vocab: Vocabulary
) -> list[Tensor | None]:
    n, (v, d) = len(head.hidden), head.weight.shape
    d_hidden, d_weight, d_bias = head.zeros(0), torch.empty_like(head.weight), head.zeros(2)
    copies = 1 if head.softcap is None else 2
    # a class takes a column of logits and a row of the product
    step = rows_per_tile(copies * n + d, torch.finfo(head.dtype).bits // 8, memory)
    step = -(-v // -(-v // step))  # equal blocks, as `sweep`'s tiles
    logits, products = (large_pages(head.hidden.new_empty(step * x, dtype=head.dtype)) for x in (n, d))
    for start in range(0, v, step):
        some = slice(start, min(start + step, v))
        width = some.stop - start
        part = replace(head, weight=head.weight[some], bias=None if head.bias is None else head.bias[some])
        z, product = logits[: n * width].view(n, width), products[: width * d].view(width, d)
        logits_into(z, part.hidden, part.weight, part.bias, part.softcap, part.scale)
        before = None if part.softcap is None else z.clone()
        kernel.gradient_(z, vocab.block(start, v), numbers, c)
        pull_logits_(z, before, part.softcap, part.scale)
        bias = None if d_bias is None else d_bias[some]
        add_gradients(z, part.hidden, part.weight, d_hidden, product, bias, new=(False, True))
        d_weight[some] = product
    return [d_hidden, d_weight, d_bias]
