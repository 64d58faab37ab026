"""The divergence between the distributions of two heads, neither head's logits stored: distillation.

A tile holds both heads' logits of some rows; the kernel turns the student's, the teacher's or both in place into the gradient. With a mean or a sum the
gradients are made in the forward pass: four products where only the student has any. Otherwise, and for second derivatives, tiles are recomputed.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..agreement import Meeting, ProcessGroup
from ..checks import check_positive, check_reduction
from ..generators import Generator, by_handle
from ..generators import generator as named
from ..opaque import opaque
from ..terms import check_skew, terms
from ..vocab import LOCAL, Vocabulary
from .derived import rows_of, total
from .divergence_tiles import divergence_
from .kept import kept
from .opaque import one_by_one, returned, unmade
from .pairs import OneHead, rows_that_count, two_heads, two_shards
from .projection import MEMORY, logits_of, ranks_share, rows_per_tile
from .rows import slices_of
from .sweep import Head, sweep
from .triton.use import check_backend, chosen

__all__ = ["linear_divergence"]

# bytes of one head's logits that are worked on at once: the row function has half a dozen temporaries where it is compiled, two dozen elsewhere
BLOCK_BYTES = 2**21
# and on a group, where each block costs its all-reduces
SHARED_BLOCK_BYTES = 2**24


def linear_divergence(
    p: OneHead,
    q: OneHead,
    generator: str | Generator = "kl",
    *,
    temperature: float = 1.0,
    softcap: float | None | tuple[float | None, float | None] = None,
    scale: float | tuple[float, float] = 1.0,
    mask: Tensor | None = None,
    skew: float = 0.0,
    vocabulary: int | None = None,
    reduction: str = "none",
    memory: int = MEMORY,
    backend: str = "auto",
    group: ProcessGroup | None = None,
) -> Tensor:
    """D_f(p || skew p + (1 - skew) q) of p, q = softmax(z / T), z = cap(scale (hidden @ weight.T + bias)) never stored.

    Args:
        p, q: (hidden [..., D], weight [V, D]) or (hidden, weight, bias [V]); p first. To distil a teacher t into a student s, "forward KL" is
            `linear_divergence(t, s)` and "reverse KL" `linear_divergence(s, t)` or `linear_divergence(t, s, "reverse_kl")`. The two widths D may
            differ. Whatever requires a gradient receives it; detach the teacher's tensors where they should not.
        generator: a name or a Generator; all have a divergence, as in `fenchel.divergence`.
        temperature: T > 0, divides both heads' logits. No factor T^2 is applied.
        softcap, scale: cap(x) = softcap tanh(x / softcap), and a factor on the logits; one value for both heads, or a pair (p's, q's).
        mask: bool [...], the rows that count. The others are dropped before the first product, give 0 and have no gradient.
        skew: the weight of p in the mixture, in [0, 1); as in `fenchel.skew_divergence`.
        vocabulary: compare the first K rows of both weights, for models whose vocabularies are padded differently. Nothing is padded in silence:
            different V without it raise.
        reduction: "none" ([...]), "sum", or "mean" over the rows that count; 0, differentiable, if none does.
        memory: bytes that a tile of both heads' logits may take.
        backend: "triton": the tiles' row kernels in Triton, or an error that says why not; "torch": without; "auto": Triton on a GPU, where it can.
        group: the ranks that share the vocabulary (docs/parallel.md): weights and biases are then this rank's shard, of the same classes for both heads;
            hidden states and mask are the same on every rank, whole. Not needed for DTensors, which say it themselves.

    Returns:
        [...] or a scalar, float32 at least; >= 0. Any upstream gradient is right; "mean" and "sum" make their gradients in the forward pass.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, vocabularies that differ, an unknown generator; ranks of a group that disagree,
            on each of them.
        RuntimeError: a sharded vocabulary under torch.compile.

    Example:
        >>> teacher, student = (torch.randn(6, 16), torch.randn(50, 16)), (torch.randn(6, 8), torch.randn(50, 8))
        >>> from fenchel import divergence
        >>> want = divergence(teacher[0] @ teacher[1].T, student[0] @ student[1].T, "js")
        >>> torch.allclose(linear_divergence(teacher, student, "js"), want, atol=1e-5)
        True

    Source: as `fenchel.divergence`; DistiLLM, arXiv 2402.03898, for the skew.
    """
    with Meeting(group) as meeting:
        p, q, mask = two_shards(meeting, ("p", "q"), p, q, mask, vocabulary)
        g = named(generator)
        temperature, skew = check_positive("temperature", temperature), check_skew(skew)
        check_reduction(reduction)
        check_backend(backend)
        pair = two_heads(("p", "q"), p, q, softcap, scale, vocabulary)
        heads, caps, scales, lead = pair.heads, pair.softcap, pair.scale, pair.lead
        counted = rows_that_count(mask, lead, heads[0][0].device)
        v = len(heads[0][1])
        vocab = meeting.agree(
            v,
            {"mask": counted},
            {"p": heads[0][0], "q": heads[1][0]},
            call="linear_divergence",
            generator=g,
            temperature=temperature,
            skew=skew,
            softcap=caps,
            scale=scales,
            reduction=reduction,
            memory=memory,
            backend=backend,
            of_p=ranks_share(*heads[0]),
            of_q=ranks_share(*heads[1]),
        )
    flat = [x for h, w, b in heads for x in (vocab.spread(h.reshape(-1, h.shape[-1])), w, b)]
    tile = PairTile(g, skew, temperature, caps, scales, rows_per_tile(vocab.width(v), 32, memory), vocab)
    call = DivergenceCall(g, skew, temperature, caps, scales, memory, backend, tile, vocab)
    if reduction == "none":
        return rows_of(call, *flat, counted).view(lead)
    size = counted.sum().clamp_min(1) if reduction == "mean" else counted.new_ones((), dtype=torch.int64)
    c = (counted / size.double()).to(_wide(heads[0][0], heads[1][0]))
    return total(call, c, *flat, counted)


def _wide(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


@dataclass(frozen=True, eq=False)
class PairTile:
    """The divergence of some rows, differentiable: for the generic head."""

    g: Generator
    skew: float
    temperature: float
    caps: tuple[float | None, float | None]
    scales: tuple[float, float]
    rows: int
    vocab: Vocabulary = LOCAL
    shared = (1, 2, 4, 5)

    def __call__(
        self, hp: Tensor, wp: Tensor, bp: Tensor | None, hq: Tensor, wq: Tensor, bq: Tensor | None, counted: Tensor
    ) -> Tensor:
        logs = []
        for h, w, b, cap, scale in zip((hp, hq), (wp, wq), (bp, bq), self.caps, self.scales, strict=True):
            z = logits_of(torch.where(counted.unsqueeze(1), h, 0.0), w, b, cap, scale).to(_wide(hp, hq))
            logs.append(self.vocab.log_softmax(z if self.temperature == 1 else z / self.temperature))
        return torch.where(counted, self.vocab.sum(terms(logs[0], logs[1], self.g, self.skew)).squeeze(1), 0.0)

    def slices(self, n: int) -> list[slice]:
        return slices_of(n, self.rows)


@dataclass(frozen=True, eq=False)
class DivergenceCall:
    """The arguments of one call that are no tensors."""

    g: Generator
    skew: float
    temperature: float
    caps: tuple[float | None, float | None]
    scales: tuple[float, float]
    memory: int
    backend: str
    tile: PairTile
    vocab: Vocabulary = LOCAL
    free = 6
    constants = 0

    def op(self, tensors: tuple[Tensor | None, ...], c: Tensor | None, want: list[bool]) -> Any:
        numbers = (self.g.handle, self.skew, self.temperature, *self.caps, *map(float, self.scales), self.memory)
        return _divergence(*tensors, c, *numbers, self.backend, *self.vocab.numbers, want)  # pyright: ignore[reportArgumentType]


@opaque("divergence")
def _divergence(
    hp: Tensor,
    wp: Tensor,
    bp: Tensor | None,
    hq: Tensor,
    wq: Tensor,
    bq: Tensor | None,
    counted: Tensor,
    c: Tensor | None,
    number: int,
    skew: float,
    temperature: float,
    cap_p: float | None,
    cap_q: float | None,
    scale_p: float,
    scale_q: float,
    memory: int,
    backend: str,
    group: str,
    offset: int,
    classes: int,
    widest: int,
    want: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Per-row divergences, and the wanted gradients of sum_i c_i D_i (empty tensors for the others)."""
    keep = kept(counted)
    parts = keep.of(hp), keep.of(hq)
    dtype, vocab = _wide(hp, hq), Vocabulary(group, offset, classes, widest)
    heads = [
        Head(parts[0], wp, bp, cap_p, scale_p, (want[0], want[1], want[2])),
        Head(parts[1], wq, bq, cap_q, scale_q, (want[3], want[4], want[5])),
    ]
    g, needed = by_handle(number), (any(want[:3]), any(want[3:]))
    triton = chosen(backend, hp.device, group, partial(_obstacle, g, skew, dtype))
    kernel = DivergenceKernel(g, skew, temperature, needed, dtype, len(parts[0]) * len(wp), vocab, triton)
    rows, totals = sweep(heads, kernel, None if c is None else keep.of(c).to(dtype), memory, vocab=vocab)
    out = returned(totals[0] + totals[1], (hp, wp, bp, hq, wq, bq), keep)
    return keep.back(rows.to(dtype)), out[0], out[1], out[2], out[3], out[4], out[5]


def _obstacle(g: Generator, skew: float, dtype: torch.dtype) -> str | None:
    from .triton.functions import divergence_obstacle  # imports triton

    return divergence_obstacle(g, skew, dtype)


@_divergence.register_fake
def _(
    hp: Tensor,
    wp: Tensor,
    bp: Tensor | None,
    hq: Tensor,
    wq: Tensor,
    bq: Tensor | None,
    counted: Tensor,
    c: Tensor | None,
    *rest: Any,
) -> Any:
    rows = hp.new_empty(len(counted), dtype=_wide(hp, hq))
    return rows, *unmade((hp, wp, bp, hq, wq, bq), c, rest[-1])


_divergence.register_vmap(one_by_one(_divergence))


@dataclass(frozen=True)
class DivergenceKernel:
    """Tiles of two heads' logits to the divergences and, in place, to the gradient."""

    g: Generator
    skew: float
    temperature: float
    needed: tuple[bool, bool]
    dtype: torch.dtype
    entries: int
    vocab: Vocabulary = LOCAL
    triton: bool = False

    def __call__(self, logits: list[Tensor], rows: slice, c: Tensor | None) -> tuple[Tensor, None]:
        if self.temperature != 1:
            for z in logits:
                z /= self.temperature
            c = None if c is None else c / self.temperature
        c = None if c is None else c.to(self.dtype).unsqueeze(1)
        zp, zq = logits
        if self.triton:
            from .triton.divergence import divergence_ as by_triton  # imports triton

            upstream = None if c is None else c.squeeze(1)
            return by_triton(zp, zq, upstream, self.needed, self.g, self.skew, self.dtype), None
        bytes_at_once = SHARED_BLOCK_BYTES if self.vocab.group else BLOCK_BYTES
        step = max(1, bytes_at_once // (self.vocab.width(zp.shape[1]) * zp.element_size()))
        of = (self.needed, self.g, self.skew, self.entries, self.vocab)
        parts = [slice(i, i + step) for i in range(0, len(zp), step)]
        return torch.cat([divergence_(zp[s], zq[s], None if c is None else c[s], *of) for s in parts]), None
