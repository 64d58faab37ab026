"""Mixture of denoisers: blocks of tokens with spans taken out, and the spans to be written, for models that read from left to right.

    text       a b c d e f g h i
    input      [R] a b <0> e f g <1> i
    target     <0> c d <1> h

Regular denoisers take out many short spans, extreme ones long spans or half of the text, and the sequential one all that follows a place: a prefix
language model. Each block begins with a token that names its denoiser; fine-tuning chooses a mode by the same token.

Laws (tested): input and target together are the text again; as many tokens are taken out, in as many spans, as the denoiser says; no two spans touch.

Source: Tay et al., arXiv 2205.05131 (UL2). The abstract names the mixture and the modes; the settings of `UL2` are recalled, and how spans are drawn
is T5's (Raffel et al., arXiv 1910.10683), also recalled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .hooks import IGNORED

__all__ = ["UL2", "Denoiser", "DenoisingCollator", "denoise", "restore"]


@dataclass(frozen=True)
class Denoiser:
    """How much of a text is taken out, and in pieces of which length.

    Attributes:
        rate: in (0, 1), the share of the tokens that are taken out.
        span: >= 1, the mean length of a span; None: one span, at the end of the text, so that `rate` is the mean of a share that is uniform in (0, 2 rate).
        mode: of the token that names it, e.g. "[R]"; its id is given to the collator.

    Example:
        >>> Denoiser(0.15, 3.0, "[R]").spans(20, torch.Generator().manual_seed(0))
        [(17, 20)]

    Source: arXiv 2205.05131.
    """

    rate: float
    span: float | None
    mode: str

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate: got {self.rate}; pass a share in (0, 1)")
        if self.span is not None and not 1 <= self.span < float("inf"):
            raise ValueError(f"span: got {self.span}; pass a length >= 1, or None for what follows a place")
        if self.span is None and self.rate > 0.5:
            raise ValueError(f"rate: got {self.rate}; the mean of a uniform share is at most 0.5")

    def spans(self, length: int, generator: torch.Generator | None = None) -> list[tuple[int, int]]:
        """What is taken out of a text, as (start, end) in order; at least one token goes and at least one stays.

        Raises:
            ValueError: a text of fewer than two tokens.
        """
        if length < 2:
            raise ValueError(f"length: got {length}; pass a text of two tokens at least")
        if self.span is None:
            share = 2 * self.rate * float(torch.rand((), generator=generator))
            return [(length - min(max(1, round(share * length)), length - 1), length)]
        taken = min(max(1, round(self.rate * length)), length - 1)
        count = min(max(1, round(taken / self.span)), taken, length - taken)
        out, kept = _parts(taken, count, generator), _parts(length - taken, count, generator)
        spans, at = [], 0
        for stay, go in zip(kept, out, strict=True):
            spans.append((at + stay, at + stay + go))
            at += stay + go
        return spans


def _parts(total: int, count: int, generator: torch.Generator | None) -> list[int]:
    """`total` as a sum of `count` positive numbers, each such sum as likely."""
    cuts = (torch.randperm(total - 1, generator=generator)[: count - 1] + 1).sort().values.tolist()
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


# two regular, four extreme and the sequential denoiser
UL2 = (
    Denoiser(0.15, 3.0, "[R]"),
    Denoiser(0.15, 8.0, "[R]"),
    Denoiser(0.5, 3.0, "[X]"),
    Denoiser(0.5, 8.0, "[X]"),
    Denoiser(0.15, 64.0, "[X]"),
    Denoiser(0.5, 64.0, "[X]"),
    Denoiser(0.25, None, "[S]"),
)


def denoise(tokens: Tensor, spans: Sequence[tuple[int, int]], sentinels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A text without its spans, and the spans: a sentinel stands for each in the input, and before each in the target.

    Args:
        tokens: [T] int64.
        spans: (start, end) in order, none empty, none overlapping.
        sentinels: ids that stand in no text, as many as there are spans at least.

    Returns:
        Input and target, int64.

    Raises:
        ValueError: spans that do not fit, too few sentinels, a sentinel in the text.

    Example:
        >>> denoise(torch.arange(6), [(1, 3), (5, 6)], [100, 101])
        (tensor([  0, 100,   3,   4, 101]), tensor([100,   1,   2, 101,   5]))

    Source: arXiv 1910.10683.
    """
    if tokens.dim() != 1 or tokens.dtype != torch.int64:
        raise ValueError(f"tokens: got {tokens.dtype} {list(tokens.shape)}; pass [T] int64")
    edges = [0, *(edge for span in spans for edge in span), len(tokens)]
    if any(a > b for a, b in zip(edges[:-1], edges[1:], strict=True)) or any(a == b for a, b in spans):
        raise ValueError(f"spans: got {list(spans)} for {len(tokens)} tokens; pass (start, end) in order, none empty")
    if len(sentinels) < len(spans):
        raise ValueError(f"sentinels: got {len(sentinels)} for {len(spans)} spans; pass one for each")
    marks = torch.tensor(list(sentinels), dtype=torch.int64)
    if bool(torch.isin(tokens, marks).any()):
        raise ValueError("tokens: got a sentinel within the text; pass ids that no text has")
    source, target, at = [], [], 0
    for mark, (start, end) in zip(marks.split(1), spans, strict=False):
        source += [tokens[at:start], mark]
        target += [mark, tokens[start:end]]
        at = end
    return torch.cat((*source, tokens[at:])), torch.cat((*target, tokens[:0]))


def restore(source: Tensor, target: Tensor, sentinels: Sequence[int]) -> Tensor:
    """The text of an input and a target: each span in the place of its sentinel.

    Raises:
        ValueError: the two do not have the same sentinels in the same order.

    Example:
        >>> restore(torch.tensor([0, 100, 3, 4, 101]), torch.tensor([100, 1, 2, 101, 5]), [100, 101])
        tensor([0, 1, 2, 3, 4, 5])
    """
    marks = torch.tensor(list(sentinels), dtype=torch.int64)
    here, there = (torch.isin(x, marks).nonzero().squeeze(1).tolist() for x in (source, target))
    if source[here].tolist() != target[there].tolist() or there[:1] not in ([], [0]):
        raise ValueError("got sentinels that differ between input and target: pass the two halves of one text")
    parts, at = [], 0
    for place, start, end in zip(here, there, [*there[1:], len(target)], strict=True):
        parts += [source[at:place], target[start + 1 : end]]
        at = place + 1
    return torch.cat((*parts, source[at:]))


@dataclass(frozen=True)
class DenoisingCollator:
    """Makes batches of blocks: a denoiser for each, drawn uniformly, as mode, input and target in one row; labels on the target alone.

    For causal language models: `FenchelTrainer(..., data_collator=DenoisingCollator(...))`, or any Trainer.

    Attributes:
        modes: the id of each mode's token.
        sentinels: ids that stand in no text.
        pad: the id of padding, which is masked.
        denoisers: to draw from.
        seed: of all draws: the k-th batch is the same in every run; pass another one to each worker.

    Example:
        >>> collate = DenoisingCollator({"[R]": 90, "[X]": 91, "[S]": 92}, sentinels=range(100, 140), pad=0)
        >>> batch = collate([{"input_ids": list(range(1, 41))}, {"input_ids": list(range(1, 31))}])
        >>> sorted(batch), batch["input_ids"].shape == batch["labels"].shape
        (['attention_mask', 'input_ids', 'labels'], True)

    Raises:
        ValueError: a denoiser whose mode has no id, ids that are used twice, no denoisers.

    Source: arXiv 2205.05131.
    """

    modes: Mapping[str, int]
    sentinels: Sequence[int]
    pad: int
    denoisers: Sequence[Denoiser] = UL2
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.denoisers:
            raise ValueError("denoisers: got none; pass one at least")
        if missing := sorted({d.mode for d in self.denoisers} - set(self.modes)):
            raise ValueError(f"modes: got no id for {', '.join(missing)}; pass one for each mode")
        ids = [*self.modes.values(), *self.sentinels, self.pad]
        if len(set(ids)) < len(ids):
            raise ValueError("modes, sentinels, pad: got an id twice; pass ids that differ")
        object.__setattr__(self, "_generator", torch.Generator().manual_seed(self.seed))

    def __call__(self, blocks: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """input_ids, attention_mask and labels, [B, T] each, padded on the right.

        Args:
            blocks: each with "input_ids", two tokens at least; other entries are dropped, since positions change.

        Raises:
            ValueError: a block that is too short, has a sentinel in it, or needs more sentinels than there are.
        """
        rows = [self._row(torch.as_tensor(block["input_ids"], dtype=torch.int64)) for block in blocks]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad([row for row, _ in rows], batch_first=True, padding_value=self.pad),
            "attention_mask": pad([torch.ones_like(row) for row, _ in rows], batch_first=True),
            "labels": pad([labels for _, labels in rows], batch_first=True, padding_value=IGNORED),
        }

    def _row(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        generator: torch.Generator = vars(self)["_generator"]
        denoiser = self.denoisers[int(torch.randint(len(self.denoisers), (), generator=generator))]
        source, target = denoise(tokens, denoiser.spans(len(tokens), generator), self.sentinels)
        row = torch.cat((torch.tensor([self.modes[denoiser.mode]]), source, target))
        labels = row.clone()
        labels[: 1 + len(source)] = IGNORED
        return row, labels
