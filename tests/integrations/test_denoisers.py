"""Mixture of denoisers: nothing is lost, and what is taken out is what the denoiser says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fenchel.integrations.denoisers import UL2, Denoiser, DenoisingCollator, denoise, restore

MARKS = range(1000, 1400)
denoisers = st.sampled_from([*UL2, Denoiser(0.9, 1.0, "[X]"), Denoiser(0.01, 500.0, "[R]"), Denoiser(0.5, None, "[S]")])


@given(denoisers, st.integers(2, 700), st.integers(0, 99))
def test_the_text_comes_back(denoiser, length, seed):
    text = torch.randint(1000, (length,), generator=torch.Generator().manual_seed(seed))
    spans = denoiser.spans(length, torch.Generator().manual_seed(seed))
    source, target = denoise(text, spans, MARKS)
    assert torch.equal(restore(source, target, MARKS), text)
    taken = sum(b - a for a, b in spans)
    assert len(source) == length - taken + len(spans)
    assert len(target) == taken + len(spans)
    assert 0 < taken < length
    # a token stays before each span, so that no two of them touch
    assert all(b > a for a, b in zip([0, *(b for _, b in spans)], [a for a, _ in spans], strict=False))
    assert spans[-1][1] == length
    if denoiser.span is not None:
        assert taken == min(max(1, round(denoiser.rate * length)), length - 1)
        assert len(spans) == min(max(1, round(taken / denoiser.span)), taken, length - taken)


def test_rates_and_lengths_over_many_texts():
    made = torch.Generator().manual_seed(0)
    spans = [s for _ in range(200) for s in Denoiser(0.15, 3.0, "[R]").spans(512, made)]
    lengths = torch.tensor([b - a for a, b in spans], dtype=torch.float64)
    assert float(lengths.sum()) / (200 * 512) == pytest.approx(0.15, abs=1e-3)
    assert float(lengths.mean()) == pytest.approx(3.0, abs=0.05)
    assert len(lengths.unique()) > 8
    prefix = [Denoiser(0.25, None, "[S]").spans(512, made) for _ in range(400)]
    assert all(len(s) == 1 and s[0][1] == 512 for s in prefix)
    assert sum(512 - s[0][0] for s in prefix) / (400 * 512) == pytest.approx(0.25, abs=0.02)


def collator(**changed):
    fields = {"modes": {"[R]": 990, "[X]": 991, "[S]": 992}, "sentinels": MARKS, "pad": 999} | changed
    return DenoisingCollator(**fields)


def test_a_batch():
    made = torch.Generator().manual_seed(1)
    texts = [torch.randint(900, (n,), generator=made) for n in (40, 300, 2, 129)]
    collate = collator()
    batch = collate([{"input_ids": t.tolist(), "attention_mask": [1] * len(t)} for t in texts])
    assert {k: v.shape for k, v in batch.items()} == dict.fromkeys(batch, batch["input_ids"].shape)
    for text, row, mask, labels in zip(texts, *batch.values(), strict=True):
        n = int(mask.sum())
        assert mask.tolist() == [1] * n + [0] * (len(row) - n)
        assert bool((row[n:] == 999).all())
        target = labels >= 0
        assert torch.equal(labels[target], row[target])
        assert int(row[0]) in (990, 991, 992)
        start = int(target.nonzero()[0])
        # labels are one piece, up to the end of the row
        assert target.tolist() == [False] * start + [True] * (n - start) + [False] * (len(row) - n)
        assert torch.equal(restore(row[1:start], row[start:n], MARKS), text)


def test_draws_repeat_and_every_denoiser_comes():
    block = [{"input_ids": list(range(600))}] * 4
    first, second, other = collator(), collator(), collator(seed=1)
    runs = [[c(block)["input_ids"] for _ in range(20)] for c in (first, second, other)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
    assert {int(row[0]) for batch in runs[0] for row in batch} == {990, 991, 992}


def test_a_model_trains_on_it():
    """The labels of a collated batch are what the head of a causal model predicts: one loss over the target alone."""
    batch = collator()([{"input_ids": list(range(50))}])
    labels = batch["labels"][0, 1:]
    logits = torch.randn(len(labels), 1500)
    kept = labels >= 0
    want = torch.nn.functional.cross_entropy(logits[kept], labels[kept])
    import fenchel

    torch.testing.assert_close(fenchel.fenchel_young(logits, labels), want)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Denoiser(1.0, 3.0, "[R]"), r"rate: got 1.0"),
        (lambda: Denoiser(0.1, 0.5, "[R]"), r"span: got 0.5"),
        (lambda: Denoiser(0.6, None, "[S]"), r"rate: got 0.6"),
        (lambda: Denoiser(0.1, 3.0, "[R]").spans(1), r"length: got 1"),
        (lambda: denoise(torch.zeros(3), [(0, 1)], [9]), r"tokens: got torch.float32"),
        (lambda: denoise(torch.arange(3), [(1, 1)], [9]), r"spans: got \[\(1, 1\)\]"),
        (lambda: denoise(torch.arange(3), [(1, 4)], [9]), r"spans: got"),
        (lambda: denoise(torch.arange(9), [(4, 5), (2, 3)], [19, 20]), r"spans: got"),
        (lambda: denoise(torch.arange(9), [(1, 2), (4, 5)], [19]), r"sentinels: got 1 for 2 spans"),
        (lambda: denoise(torch.arange(9), [(1, 2)], [3]), r"tokens: got a sentinel within the text"),
        (lambda: restore(torch.tensor([0, 100]), torch.tensor([101, 5]), [100, 101]), r"got sentinels that differ"),
        (lambda: collator(modes={"[R]": 1}), r"modes: got no id for \[S\], \[X\]"),
        (lambda: collator(pad=1000), r"got an id twice"),
        (lambda: collator(denoisers=()), r"denoisers: got none"),
        (lambda: collator(sentinels=[1000])([{"input_ids": list(range(600))}] * 9), r"sentinels: got 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
