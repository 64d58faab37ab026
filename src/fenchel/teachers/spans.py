"""Two tokenizers of one text: the spans at which both have a boundary, and two objectives on them.

Tokens of different tokenizers have no counterparts, but stretches of text have: between two positions where both tokenizations have a boundary, both say
something about the same characters. `align` finds the shortest such spans: the finest segmentation that is coarser than both tokenizations.

    sorted_distance      at a span's start both models predict from the same text: compare their sorted probabilities (ULD)
    span_divergence      both give the span a probability, the product over its tokens: compare "this span" against "anything else" (ALM)
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_floating, check_positive, check_vocabulary
from ..divergences import divergence
from ..generators import Generator
from .complement import log_complement

__all__ = ["Spans", "align", "batch_spans", "sorted_distance", "span_divergence", "span_log_likelihood"]

Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Spans:
    """The common spans of two tokenizations, numbered along the text.

    Attributes:
        a, b: int64 [T_a], [T_b] (or [B, T] of a batch): the span of each token; -1 for tokens of no text (special tokens, padding).
        count: the number of spans S.

    Example:
        >>> spans = align([(0, 2), (2, 4), (4, 7)], [(0, 4), (4, 6), (6, 7)])
        >>> spans.a, spans.b, spans.count
        (tensor([0, 0, 1]), tensor([0, 1, 1]), 2)
    """

    a: Tensor
    b: Tensor
    count: int

    @property
    def starts(self) -> tuple[Tensor, Tensor]:
        """The first token of each span in both tokenizations, [S] each, as positions in `a` and `b`, flattened.

        Example:
            >>> align([(0, 2), (2, 4), (4, 7)], [(0, 4), (4, 6), (6, 7)]).starts
            (tensor([0, 2]), tensor([0, 1]))
        """
        return _first(self.a, self.count), _first(self.b, self.count)


def _first(ids: Tensor, count: int) -> Tensor:
    flat = ids.reshape(-1)
    place = torch.arange(len(flat), device=flat.device)
    there = flat >= 0
    out = torch.full((count,), len(flat), device=flat.device)
    return out.scatter_reduce(0, flat[there], place[there], "amin")


def align(offsets_a: Offsets, offsets_b: Offsets) -> Spans:
    """The shortest spans of text that begin and end at token boundaries of both tokenizations.

    Two tokens have a boundary between them where everything before ends no later than everything after begins; byte-level tokens that share a character have
    none. Characters between tokens that no token covers (a space that the offsets leave out) belong to either side: a boundary may lie anywhere in such a gap.
    Text at the ends that only one tokenization covers, as after a truncation, belongs to no span.

    Args:
        offsets_a, offsets_b: (start, end) in characters of the same text for every token, as fast tokenizers of Hugging Face give with
            `return_offsets_mapping`; empty ones, start = end, are special tokens and belong to no span.

    Raises:
        ValueError: an offset that ends before it starts, or tokens that do not go forward.

    Example:
        >>> spans = align([(0, 0), (0, 3), (3, 8)], [(0, 3), (4, 6), (6, 8), (0, 0)])     # "the sword", spaces kept and left out
        >>> spans.a, spans.b
        (tensor([-1,  0,  1]), tensor([ 0,  1,  1, -1]))
    """
    met = _common(_boundaries("offsets_a", offsets_a), _boundaries("offsets_b", offsets_b))
    return Spans(
        _between([a for a, _ in met], offsets_a), _between([b for _, b in met], offsets_b), max(0, len(met) - 1)
    )


def _text(offsets: Offsets) -> list[int]:
    """The tokens that are text."""
    return [i for i, (start, end) in enumerate(offsets) if end > start]


def _boundaries(name: str, offsets: Offsets) -> list[tuple[int, int, int]]:
    """(t, low, high): a boundary before the t-th token of text, anywhere from low to high; the first and the last where text begins and ends."""
    found, last, reached = [], 0, -1
    for i, (start, end) in enumerate(offsets):
        if not 0 <= start <= end:
            raise ValueError(f"{name}: got ({start}, {end}) for token {i}; pass 0 <= start <= end in characters")
        if end > start and start < last:
            raise ValueError(
                f"{name}: token {i} starts at {start}, one before it at {last}; pass tokens in the order of the text"
            )
        last = start if end > start else last
    text = _text(offsets)
    for t, (start, end) in enumerate(offsets[i] for i in text):
        if reached <= start:
            found.append((t, start if t == 0 else reached, start))
        reached = max(reached, end)
    return [*found, (len(text), reached, reached)] if text else []


def _common(a: list[tuple[int, int, int]], b: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The boundaries that both have, as (t_a, t_b); both lists are in the order of the text, so one pass finds them."""
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        (t_a, low_a, high_a), (t_b, low_b, high_b) = a[i], b[j]
        if high_a < low_b:
            i += 1
        elif high_b < low_a:
            j += 1
        else:
            found.append((t_a, t_b))
            i, j = i + 1, j + 1
    return found


def _between(cuts: list[int], offsets: Offsets) -> Tensor:
    """The span of each token, given before which tokens of text spans begin and end."""
    text, ids = _text(offsets), [-1] * len(offsets)
    for span, (start, end) in enumerate(itertools.pairwise(cuts)):
        for i in text[start:end]:
            ids[i] = span
    return torch.tensor(ids, dtype=torch.int64)


def batch_spans(spans: Sequence[Spans]) -> Spans:
    """Several texts as one: token ids [B, T_a] and [B, T_b], padded on the right with -1, spans numbered through.

    Example:
        >>> one, two = align([(0, 2)], [(0, 2)]), align([(0, 1), (1, 2)], [(0, 1), (1, 2)])
        >>> both = batch_spans([one, two])
        >>> both.a, both.count
        (tensor([[ 0, -1],
                [ 1,  2]]), 3)
    """
    before, rows_a, rows_b = 0, [], []
    for s in spans:
        rows_a.append(torch.where(s.a >= 0, s.a + before, -1))
        rows_b.append(torch.where(s.b >= 0, s.b + before, -1))
        before += s.count
    pad = torch.nn.utils.rnn.pad_sequence
    return Spans(pad(rows_a, True, -1), pad(rows_b, True, -1), before)


def span_log_likelihood(logp: Tensor, ids: Tensor, count: int) -> Tensor:
    """log p of each span given the text before it, [S]: the sum over its tokens.

    Args:
        logp: the log-probability of every token given those before it, [T] or [B, T], as `fenchel.linear_logp` gives.
        ids: `Spans.a` or `Spans.b`, the same shape.
        count: `Spans.count`.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> span_log_likelihood(torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([0, 0, 1]), 2)
        tensor([-3.0000, -0.5000])
    """
    check_floating("logp", logp, "[..., T]")
    if logp.shape != ids.shape:
        raise ValueError(f"ids: got shape {list(ids.shape)}, logp has {list(logp.shape)}; pass the span of every token")
    wide = logp.reshape(-1).to(torch.promote_types(logp.dtype, torch.float32))
    there = ids.reshape(-1) >= 0
    return wide.new_zeros(count).index_add(0, ids.reshape(-1)[there], wide[there])


def span_divergence(
    log_p: Tensor, log_q: Tensor, generator: str | Generator = "kl", *, temperature: float = 1.0
) -> Tensor:
    """D_f of two events, "this span" and "anything else": q f(p/q) + (1 - q) f((1 - p)/(1 - q)), one number per span.

    Likelihoods of spans are all that two tokenizers have in common, and two numbers p and q that are no distribution have no divergence; with the complement
    they do. By the data-processing inequality it is at most the divergence of the distributions over all texts of the span's place. With a temperature T
    both likelihoods are raised to the power 1/T first: those of long spans are close to zero, where the complement says little.

    What the likelihoods condition on is the text before *as tokenized*: a tokenizer may give no mass to going on within a word it would have made one token.
    The paper leaves out spans where this bias differs too much; here that is the caller's, by a mask on the result.

    Args:
        log_p, log_q: [S] log-likelihoods, <= 0, of `span_log_likelihood`; p is first, so pass the teacher's first for forward divergences.
        generator: a name or a Generator.
        temperature: T > 0.

    Returns:
        [S], differentiable; zero iff p = q.

    Raises:
        ValueError, TypeError: shapes that differ, not floating, an unknown generator.

    Example:
        >>> p, q = torch.tensor([0.9, 0.5]).log(), torch.tensor([0.6, 0.5]).log()
        >>> span_divergence(p, q)                  # 0.9 log 0.9/0.6 + 0.1 log 0.1/0.4
        tensor([0.2263, 0.0000])

    Source: Minixhofer, Vulic & Ponti, arXiv 2503.20083 (approximate likelihood matching: binarised f-divergences of aligned chunks). The exact placement of the
    temperature is derived from that description, not copied.
    """
    t = check_positive("temperature", temperature)
    p, q = _events("log_p", log_p, t), _events("log_q", log_q, t)
    if p.shape != q.shape:
        raise ValueError(f"log_q: got shape {list(log_q.shape)}, log_p has {list(log_p.shape)}; pass the same spans")
    return divergence(p, q, generator)


def _events(name: str, log_p: Tensor, temperature: float) -> Tensor:
    """log p and log(1 - p), [S, 2]."""
    check_floating(name, log_p, "[S]")
    x = log_p.to(torch.promote_types(log_p.dtype, torch.float32)) / temperature
    return torch.stack((x, log_complement(x)), -1)


def sorted_distance(p_logits: Tensor, q_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """sum_i |p_(i) - q_(i)| of both distributions sorted from the largest, the shorter one filled with zeros; one number per row.

    Which class is which does not matter, so the vocabularies need nothing in common. It is the optimal-transport distance of the two where moving mass
    between any two classes costs the same; zero iff the two are permutations of each other, at most 2. It sees how sure a teacher is, not of what: use it
    beside the likelihood of the text, as the paper does.

    Args:
        p_logits: [..., V_p]; -inf for a class that is excluded.
        q_logits: [..., V_q], the same rows: for two tokenizations, those that predict the first token of each span (`Spans.starts`).
        temperature: T > 0, divides both logits.

    Returns:
        [...], float32 at least, differentiable in both (almost everywhere, as |x| is).

    Raises:
        ValueError, TypeError: rows that differ, an empty vocabulary, not floating.

    Example:
        >>> sorted_distance(torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.8]).log())
        tensor(0.2000)

    Source: Boizard et al., arXiv 2402.12030 (universal logit distillation).
    """
    t = check_positive("temperature", temperature)
    dtype = torch.promote_types(torch.promote_types(p_logits.dtype, q_logits.dtype), torch.float32)
    rows = []
    for name, z in (("p_logits", p_logits), ("q_logits", q_logits)):
        check_floating(name, z, "[..., V]")
        check_vocabulary(name, z)
        rows.append(torch.softmax(z.to(dtype) / t, -1).sort(-1, descending=True).values)
    p, q = rows
    if p.shape[:-1] != q.shape[:-1]:
        raise ValueError(
            f"q_logits: got rows {list(q.shape[:-1])}, p_logits have {list(p.shape[:-1])}; pass the same rows"
        )
    both = min(p.shape[-1], q.shape[-1])
    # of the longer one's rest, its own mass
    return (p[..., :both] - q[..., :both]).abs().sum(-1) + p[..., both:].sum(-1) + q[..., both:].sum(-1)
