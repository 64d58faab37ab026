"""Spans of two tokenizations: aligned as by hand, on random cuts and on real tokenizers; the objectives on them."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import textbook
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.autograd import gradcheck, gradgradcheck

from fenchel.teachers.spans import align, batch_spans, sorted_distance, span_divergence, span_log_likelihood

TEXT = [
    "the model is a map from what is known to what is likely, and the loss says how far off it was",
    "naïve café owners paid 12,50 € for the 🤖 robot 🤖🤖 that wrote this line in São Paulo",
    "def divergence(p, q):\n    return (p * (p / q).log()).sum()\n",
    "a teacher knows more than it says; a student says more than it knows",
]


# Alignment


def cut(n: int, places: list[int]) -> list[tuple[int, int]]:
    """Tokens of a text of n characters, cut at some places."""
    ends = [0, *sorted({x for x in places if 0 < x < n}), n]
    return list(itertools.pairwise(ends))


@given(n=st.integers(1, 20), a=st.lists(st.integers(1, 19)), b=st.lists(st.integers(1, 19)))
def test_spans_end_where_both_have_a_boundary(n, a, b):
    tokens_a, tokens_b = cut(n, a), cut(n, b)
    spans = align(tokens_a, tokens_b)
    # by sets: a span for each stretch between common boundaries
    common = sorted({x for t in tokens_a for x in t} & {x for t in tokens_b for x in t})
    assert spans.count == len(common) - 1
    for ids, tokens in ((spans.a, tokens_a), (spans.b, tokens_b)):
        assert ids.tolist() == [sum(c <= start for c in common) - 1 for start, _ in tokens]
    back = align(tokens_b, tokens_a)
    assert torch.equal(back.a, spans.b)
    assert torch.equal(back.b, spans.a)


@pytest.mark.parametrize(
    ("a", "b", "want_a", "want_b"),
    [
        # special tokens anywhere
        ([(0, 0), (0, 2), (2, 4), (0, 0)], [(0, 4), (0, 0)], [-1, 0, 0, -1], [0, -1]),
        ([(0, 2), (0, 0), (2, 4)], [(0, 2), (2, 4)], [0, -1, 1], [0, 1]),
        # spaces left out by one, by both, and a token of their own
        ([(0, 3), (3, 8)], [(0, 3), (4, 8)], [0, 1], [0, 1]),
        ([(0, 3), (4, 8)], [(0, 3), (4, 8)], [0, 1], [0, 1]),
        ([(0, 4), (4, 8)], [(0, 3), (4, 8)], [0, 1], [0, 1]),
        ([(0, 3), (3, 4), (4, 8)], [(0, 3), (4, 8)], [0, 1, 1], [0, 1]),
        # byte tokens that share a character have no boundary between them
        ([(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], [(0, 2), (2, 3)], [0, 0, 0, 0, 1], [0, 1]),
        ([(0, 1), (1, 2), (1, 2), (2, 3)], [(0, 1), (1, 2), (1, 2), (2, 3)], [0, 1, 1, 2], [0, 1, 1, 2]),
        # one of them truncated, on either side
        ([(0, 2), (2, 4)], [(0, 2), (2, 4), (4, 6), (6, 8)], [0, 1], [0, 1, -1, -1]),
        ([(0, 2), (2, 4)], [(0, 2), (2, 5), (5, 6)], [0, -1], [0, -1, -1]),
        ([(4, 6), (6, 8)], [(0, 2), (2, 4), (4, 6), (6, 8)], [0, 1], [-1, -1, 0, 1]),
        # nothing in common
        ([(0, 2)], [(3, 5)], [-1], [-1]),
        ([(0, 2)], [], [-1], []),
        ([(0, 0)], [(0, 0)], [-1], [-1]),
    ],
)
def test_by_hand(a, b, want_a, want_b):
    spans = align(a, b)
    assert spans.a.tolist() == want_a
    assert spans.b.tolist() == want_b
    assert spans.count == max([-1, *want_a]) + 1 == max([-1, *want_b]) + 1
    assert spans.a.dtype == spans.b.dtype == torch.int64


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([(3, 2)], r"offsets_b: got \(3, 2\) for token 0; pass 0 <= start <= end in characters"),
        ([(0, 2), (-1, 2)], r"offsets_b: got \(-1, 2\) for token 1"),
        ([(2, 4), (0, 2)], "offsets_b: token 1 starts at 0, one before it at 2; pass tokens in the order of the text"),
    ],
)
def test_offsets_that_are_none(offsets, message):
    with pytest.raises(ValueError, match=message):
        align([(0, 4)], offsets)


# Real tokenizers


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    made = {}
    for name, size, pre, decode in (
        ("bytes", 300, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
        ("larger bytes", 420, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
        ("words", 160, pre_tokenizers.WhitespaceSplit(), None),
    ):
        made[name] = tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre
        if decode is not None:
            tokenizer.decoder = decode
        alphabet = pre_tokenizers.ByteLevel.alphabet() if decode else sorted(set("".join(TEXT)))
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(TEXT, trainer)
    return made


@pytest.mark.parametrize(("one", "two"), list(itertools.permutations(["bytes", "larger bytes", "words"], 2)))
def test_real_tokenizers(trained, one, two):
    for text in TEXT:
        a, b = trained[one].encode(text), trained[two].encode(text)
        spans = align(a.offsets, b.offsets)
        assert (spans.a >= 0).all() or "words" in (one, two)
        assert spans.count > len(text.split()) / 2
        covered = []
        for s in range(spans.count):
            texts = []
            for encoded, ids in ((a, spans.a), (b, spans.b)):
                of_span = [encoded.offsets[i] for i in (ids == s).nonzero().flatten().tolist()]
                assert of_span, "a span without tokens of one of them"
                texts.append(text[of_span[0][0] : max(end for _, end in of_span)].strip())
            # the same characters, but for spaces at the ends, which offsets may leave out
            assert texts[0] == texts[1]
            covered.append(texts[0])
        assert "".join("".join(covered).split()) == "".join(text.split())


def test_a_tokenizer_and_itself(trained):
    encoded = trained["bytes"].encode(TEXT[0])
    spans = align(encoded.offsets, encoded.offsets)
    assert spans.a.tolist() == spans.b.tolist() == list(range(len(encoded)))
    # the objective of spans is then that of tokens
    logp = -torch.rand(2, len(encoded), dtype=torch.float64) - 0.1
    p, q = (span_log_likelihood(x, spans.a, spans.count) for x in logp)
    assert torch.equal(p, logp[0])
    assert torch.equal(span_divergence(p, q), span_divergence(logp[0], logp[1]))


def test_batches_and_first_tokens():
    texts = [
        align([(0, 2), (2, 4), (4, 6)], [(0, 0), (0, 4), (4, 6)]),
        align([(0, 3)], [(0, 1), (1, 2), (2, 3), (0, 0)]),
    ]
    both = batch_spans(texts)
    assert both.a.tolist() == [[0, 0, 1], [2, -1, -1]]
    assert both.b.tolist() == [[-1, 0, 1, -1], [2, 2, 2, -1]]
    assert both.count == 3
    assert [x.tolist() for x in both.starts] == [[0, 2, 3], [1, 2, 4]]
    logp = -torch.arange(1.0, 7.0).view(2, 3).requires_grad_()
    sums = span_log_likelihood(logp, both.a, both.count)
    assert sums.tolist() == [-3.0, -3.0, -4.0]
    # tokens of no span may hold anything
    broken = torch.where(both.a >= 0, logp, torch.nan)
    assert torch.autograd.grad(span_log_likelihood(broken, both.a, 3).sum(), logp)[0].tolist() == [[1, 1, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"ids: got shape \[2, 4\], logp has \[2, 3\]"):
        span_log_likelihood(logp, both.b, 3)


# Likelihoods of spans


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js", "hellinger", "alpha:1.5"])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_span_divergence_is_that_of_two_events(name, temperature):
    log_p, log_q = (-(torch.rand(2, 9, dtype=torch.float64) * 30)).unbind()
    p, q = (np.exp(x.numpy() / temperature) for x in (log_p, log_q))
    f = textbook(name).f
    with np.errstate(under="ignore"):
        want = q * f(p / q, np) + (1 - q) * f((1 - p) / (1 - q), np)
    got = span_divergence(log_p, log_q, name, temperature=temperature)
    torch.testing.assert_close(got, torch.from_numpy(want), rtol=1e-7, atol=1e-15)
    assert span_divergence(log_p, log_p, name).abs().max() == 0


def test_likelihoods_at_both_ends():
    log_p = torch.tensor([0.0, 0.0, -1e-8, -300.0, -0.5])
    log_q = torch.tensor([0.0, -0.5, -1e-8, -300.0, 0.0], requires_grad=True)
    value = span_divergence(log_p, log_q)
    assert value.tolist() == pytest.approx([0.0, 0.5, 0.0, 0.0, math.inf])
    (grad,) = torch.autograd.grad(value[:4].sum(), log_q)
    assert grad[:4].tolist() == pytest.approx([0.0, -1.0, 0.0, 0.0], abs=1e-6)


def test_span_derivatives():
    log_p, log_q = (-(torch.rand(2, 4, dtype=torch.float64) * 3 + 0.1)).requires_grad_().unbind()
    assert gradcheck(lambda p, q: span_divergence(p, q, "js", temperature=2.0), (log_p, log_q))
    assert gradgradcheck(lambda p, q: span_divergence(p, q, "js", temperature=2.0), (log_p, log_q), fast_mode=True)


# Sorted distance


@given(seed=st.integers(0, 10**6), vp=st.integers(1, 9), vq=st.integers(1, 9))
def test_sorted_distance_is_what_it_says(seed, vp, vq):
    made = torch.Generator().manual_seed(seed)
    zp, zq = (2 * torch.randn(3, v, generator=made, dtype=torch.float64) for v in (vp, vq))
    got = sorted_distance(zp, zq, temperature=1.7)
    for i in range(3):
        p, q = (np.exp(z[i].numpy() / 1.7) for z in (zp, zq))
        p, q = (np.pad(np.sort(x / x.sum())[::-1], (0, 9 - len(x))) for x in (p, q))
        assert float(got[i]) == pytest.approx(float(np.abs(p - q).sum()), abs=1e-12)
    assert bool(((got >= 0) & (got <= 2)).all())
    order = torch.randperm(vq, generator=made)
    torch.testing.assert_close(sorted_distance(zp, zq[:, order], temperature=1.7), got)
    torch.testing.assert_close(sorted_distance(zq, zp, temperature=1.7), got)
    assert float(sorted_distance(zp, zp.flip(1)).max()) < 1e-15


def test_sorted_distance_with_excluded_classes_and_its_gradient():
    zp = torch.tensor([[1.0, 0.0, -torch.inf, 2.0]], dtype=torch.float64)
    zq = torch.tensor([[0.3, 0.9, -1.0]], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(sorted_distance(zp, zq), sorted_distance(zp[:, [0, 1, 3]], zq))
    assert gradcheck(lambda z: sorted_distance(zp, z), (zq,))
    assert sorted_distance(zp.bfloat16(), zq.detach().bfloat16()).dtype == torch.float32
    assert sorted_distance(torch.zeros(0, 3), torch.zeros(0, 5)).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sorted_distance(torch.zeros(2, 3), torch.zeros(3, 3)),
            r"q_logits: got rows \[3\], p_logits have \[2\]",
        ),
        (lambda: sorted_distance(torch.zeros(2, 0), torch.zeros(2, 3)), r"p_logits: got shape \(2, 0\)"),
        (lambda: sorted_distance(torch.zeros(2, 3), torch.zeros(2, 3).long()), "q_logits: got dtype torch.int64"),
        (lambda: sorted_distance(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0), "temperature: got 0"),
        (
            lambda: span_divergence(torch.zeros(2), torch.zeros(3)),
            r"log_q: got shape \[3\], log_p has \[2\]; pass the same spans",
        ),
        (lambda: span_divergence(torch.zeros(2), [0.0]), "log_q: got list"),
    ],
)
def test_bad_inputs(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
