"""Any row-wise function of two models' logits, tile by tile: the generic head of two heads, and the checks that all such heads share."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..agreement import Meeting
from .projection import MEMORY, autocast, check_head, logits_of, rows_per_tile
from .rows import RowFunction, Rows, applied, slices_of

__all__ = ["linear_pair_rows"]

OneHead = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None]


def linear_pair_rows(
    fn: RowFunction,
    teacher: OneHead,
    student: OneHead,
    *row_args: Tensor,
    softcap: float | None | tuple[float | None, float | None] = None,
    scale: float | tuple[float, float] = 1.0,
    mask: Tensor | None = None,
    vocabulary: int | None = None,
    memory: int = MEMORY,
) -> Tensor:
    """fn(teacher_logits, student_logits, *row_args) of two heads whose logits are never stored.

    logits = cap(scale (hidden @ weight.T + bias)), cap(x) = softcap tanh(x / softcap), for each of the two.

    Args:
        fn: takes two tensors of logits [n, V] (float32 at least) and the same n rows of each of row_args, gives one row per row: [n] or [n, ...]. It
            must treat rows independently and be made of differentiable torch operations.
        teacher, student: (hidden [..., D], weight [V, D]) or (hidden, weight, bias [V]). The two widths D may differ. Whatever requires a gradient
            receives it; detach the teacher's tensors where they should not.
        row_args: tensors [..., *], one entry or row per row of the hidden states. Floating ones receive gradients too.
        softcap, scale: one value for both heads, or a pair (the teacher's, the student's).
        mask: bool [...], the rows that count. The others are dropped before the first product, give 0 and have no gradient, whatever they hold.
        vocabulary: compare the first K rows of both weights, for models whose vocabularies are padded differently. Nothing is padded in silence:
            different V without it raise.
        memory: bytes that a tile of both heads' logits may take.

    Returns:
        [...] or [..., *], float32 at least. Any upstream gradient; double backward, vmap, torch.func and, without a mask, compile(fullgraph) are right.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, vocabularies that differ.

    Example:
        >>> teacher, student = (torch.randn(6, 16), torch.randn(50, 16)), (torch.randn(6, 8), torch.randn(50, 8))
        >>> gap = linear_pair_rows(lambda t, s: (t - s).square().mean(-1), teacher, student)
        >>> want = (teacher[0] @ teacher[1].T - student[0] @ student[1].T).square().mean(-1)
        >>> torch.allclose(gap, want, rtol=1e-4)
        True
    """
    pair = two_heads(("teacher", "student"), teacher, student, softcap, scale, vocabulary)
    n = pair.lead.numel()
    for i, a in enumerate(row_args):
        if not isinstance(a, Tensor) or a.shape[: len(pair.lead)] != pair.lead:
            got = f"shape {tuple(a.shape)}" if isinstance(a, Tensor) else type(a).__name__
            raise ValueError(
                f"row_args[{i}]: got {got}; pass a tensor whose leading shape is that of the hidden states, {list(pair.lead)}"
            )
    (ht, wt, bt), (hs, ws, bs) = pair.heads
    by_row = [
        ht.reshape(n, ht.shape[-1]),
        hs.reshape(n, hs.shape[-1]),
        *(a.reshape(n, *a.shape[len(pair.lead) :]) for a in row_args),
    ]
    keep = None
    if mask is not None:
        keep = rows_that_count(mask, pair.lead, ht.device).nonzero().squeeze(1)
        by_row = [x[keep] for x in by_row]
    tile = PairTile(fn, pair.softcap, pair.scale, rows_per_tile(len(wt), 8, memory))
    # off, so that the backward pass, which autocast does not reach, recomputes what the forward pass computed
    with torch.autocast(ht.device.type, enabled=False):
        rows: Tensor = applied(Rows, tile, by_row[0], wt, bt, by_row[1], ws, bs, *by_row[2:])
    if keep is not None:
        rows = rows.new_zeros(n, *rows.shape[1:]).index_copy(0, keep, rows)
    return rows.view(*pair.lead, *rows.shape[1:])


@dataclass(frozen=True, eq=False)
class PairTile:
    """What is done to a tile of rows of two heads."""

    fn: RowFunction
    softcap: tuple[float | None, float | None]
    scale: tuple[float, float]
    rows: int
    shared = (1, 2, 4, 5)

    def __call__(
        self, ht: Tensor, wt: Tensor, bt: Tensor | None, hs: Tensor, ws: Tensor, bs: Tensor | None, *args: Tensor
    ) -> Tensor:
        teacher = logits_of(ht, wt, bt, self.softcap[0], self.scale[0])
        student = logits_of(hs, ws, bs, self.softcap[1], self.scale[1])
        dtype = torch.promote_types(teacher.dtype, student.dtype)
        return self.fn(teacher.to(dtype), student.to(dtype), *args)

    def slices(self, n: int) -> list[slice]:
        return slices_of(n, self.rows)


@dataclass(frozen=True)
class Pair:
    """Two heads over the same rows and the same columns; `heads` are (hidden [..., D], weight [V, D], bias [V] or None)."""

    heads: tuple[tuple[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor | None]]
    softcap: tuple[float | None, float | None]
    scale: tuple[float, float]
    lead: torch.Size


def two_heads(
    names: tuple[str, str], first: Any, second: Any, softcap: Any, scale: Any, vocabulary: int | None
) -> Pair:
    """Both heads, checked.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, vocabularies that differ.
    """
    caps, scales = _one_or_two("softcap", softcap), _one_or_two("scale", scale)
    one, two = (
        one_head(name, head, cap, s) for name, head, cap, s in zip(names, (first, second), caps, scales, strict=True)
    )
    lead = one[0].shape[:-1]
    if two[0].shape[:-1] != lead:
        raise ValueError(
            f"{names[1]}: got hidden states {list(two[0].shape[:-1])}, {names[0]} has {list(lead)}; pass the same rows to both heads"
        )
    if one[0].device != two[0].device:
        raise ValueError(f"{names[1]}: got device {two[0].device}, {names[0]} is on {one[0].device}; move one of them")
    return Pair(_common(names, one, two, vocabulary), caps, scales, lead)


def two_shards(
    meeting: Meeting, names: tuple[str, str], first: Any, second: Any, mask: Any, vocabulary: int | None
) -> tuple[Any, Any, Any]:
    """Both heads and the mask, this rank's part of what is a DTensor.

    Raises:
        ValueError: a layout that does not fit, or a vocabulary to be cut that is sharded.
    """
    heads = []
    for name, head in zip(names, (first, second), strict=True):
        if isinstance(head, (tuple, list)) and len(head) in (2, 3):
            hidden, *shards = head
            head = (meeting.whole(name, hidden), *(meeting.shard(name, x) for x in shards))
        heads.append(head)
    if meeting.group is not None and vocabulary is not None:
        raise ValueError(
            f"vocabulary: got {vocabulary} for heads that are sharded; leave it out, and mask tokens that one model lacks by a bias of -inf"
        )
    return heads[0], heads[1], meeting.whole("mask", mask)


def _one_or_two(name: str, x: Any) -> tuple[Any, Any]:
    if isinstance(x, (tuple, list)):
        if len(x) != 2:
            raise ValueError(
                f"{name}: got {len(x)} values; pass one for both heads, or a pair (the first's, the second's)"
            )
        return x[0], x[1]
    return x, x


def one_head(name: str, head: Any, softcap: float | None, scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states [..., D], weight [V, D] and bias [V] or None, checked.

    Raises:
        ValueError, TypeError: not (hidden, weight) or (hidden, weight, bias), parts that do not fit together.
    """
    if not isinstance(head, (tuple, list)) or len(head) not in (2, 3):
        got = f"{len(head)} entries" if isinstance(head, (tuple, list)) else type(head).__name__
        raise TypeError(f"{name}: got {got}; pass (hidden, weight) or (hidden, weight, bias)")
    hidden, weight, bias = autocast(*head, *[None] * (3 - len(head)))
    try:
        check_head(hidden, weight, bias, softcap, scale)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    return hidden, weight, bias


def _common(
    names: tuple[str, str],
    one: tuple[Tensor, Tensor, Tensor | None],
    two: tuple[Tensor, Tensor, Tensor | None],
    vocabulary: int | None,
) -> tuple[tuple[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor | None]]:
    """Both heads over the same columns."""
    sizes = len(one[1]), len(two[1])
    if vocabulary is None:
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{names[1]}: got a weight with V = {sizes[1]}, {names[0]} has {sizes[0]}; if they differ in padding alone, "
                "pass vocabulary = the number of real tokens"
            )
        return one, two
    if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or not 1 <= vocabulary <= min(sizes):
        raise ValueError(
            f"vocabulary: got {vocabulary!r} for heads of V = {sizes[0]} and {sizes[1]}; pass 1 to {min(sizes)}"
        )
    (h1, w1, b1), (h2, w2, b2) = one, two
    cut = slice(vocabulary)
    return (h1, w1[cut], None if b1 is None else b1[cut]), (h2, w2[cut], None if b2 is None else b2[cut])


def rows_that_count(mask: Tensor | None, lead: torch.Size, device: torch.device) -> Tensor:
    """The rows that count, bool [N].

    Raises:
        TypeError: not a bool tensor.
        ValueError: a shape or device that does not fit.
    """
    if mask is None:
        return torch.ones(lead.numel(), dtype=torch.bool, device=device)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(
            f"mask: got {mask.dtype if isinstance(mask, Tensor) else type(mask).__name__}; pass bool {list(lead)}, True where a row counts"
        )
    if mask.shape != lead or mask.device != device:
        raise ValueError(f"mask: got shape {list(mask.shape)} on {mask.device}; pass {list(lead)} on {device}")
    return mask.reshape(-1)
