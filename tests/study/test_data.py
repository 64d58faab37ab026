"""Tokeniser, training blocks, held-out windows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fenchel.study.corpus import Document
from fenchel.study.data import (
    IGNORED,
    SEPARATOR,
    Data,
    Tokens,
    TrainBlocks,
    fit_tokenizer,
    heldout_windows,
    load_data,
    order_hash,
    prepare,
    save_data,
)
from fenchel.study.errors import StudyError
from fenchel.study.sources import read_documents


@pytest.fixture
def data(corpus: Path) -> Data:
    documents = read_documents(str(corpus))[1]
    return prepare(documents, 300, train_tokens=100_000, heldout_tokens=1000, name="corpus")


def test_tokenizer_encodes_any_text_and_back() -> None:
    tokenizer = fit_tokenizer(["the cat sat on the mat " * 20], 280)
    text = "the zebra — 日本語 \U0001f600\n\t"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert 257 < len(tokenizer) <= 280
    assert tokenizer.eos_token_id == 0
    assert len(tokenizer("the cat")["input_ids"]) < 7


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(StudyError, match="at least 257 entries, got 256"):
        fit_tokenizer(["text"], 256)


def test_prepared_text_is_the_documents_and_held_out_text_is_not_trained_on(corpus: Path, data: Data) -> None:
    whole = {document.name: document.text for document in read_documents(str(corpus))[1]}
    assert len(data.train.names) + len(data.heldout.names) == 60
    assert not set(data.train.names) & set(data.heldout.names)
    for tokens in (data.train, data.heldout):
        for i, name in enumerate(tokens.names):
            ids = tokens.ids[tokens.starts[i] : tokens.starts[i + 1]].tolist()
            assert data.tokenizer.decode(ids) == whole[name] + SEPARATOR
    assert data.facts["tokens_train"] == len(data.train.ids)


def test_preparing_twice_gives_the_same(corpus: Path, data: Data) -> None:
    documents = read_documents(str(corpus))[1]
    again = prepare(documents, 300, train_tokens=100_000, heldout_tokens=1000, name="corpus")
    assert again.facts == data.facts
    assert np.array_equal(again.train.ids, data.train.ids)


def test_no_more_is_encoded_than_is_trained_on(corpus: Path, data: Data) -> None:
    documents = read_documents(str(corpus))[1]
    part = prepare(documents, 300, train_tokens=1000, heldout_tokens=1000, name="corpus")
    assert 1000 <= len(part.train.ids) < len(data.train.ids)
    assert np.array_equal(part.train.ids, data.train.ids[: len(part.train.ids)])


def test_two_documents_are_too_few() -> None:
    with pytest.raises(StudyError, match="at least 3"):
        prepare([Document("a", "x"), Document("b", "y")], 300, train_tokens=10, heldout_tokens=10, name="two")


def test_saved_data_comes_back(tmp_path: Path, data: Data) -> None:
    save_data(data, tmp_path)
    back = load_data(tmp_path)
    assert np.array_equal(back.train.ids, data.train.ids)
    assert np.array_equal(back.heldout.starts, data.heldout.starts)
    assert back.heldout.names == data.heldout.names
    assert back.facts == data.facts
    assert back.tokenizer("def value")["input_ids"] == data.tokenizer("def value")["input_ids"]
    assert back.tokenizer.eos_token_id == data.tokenizer.eos_token_id


def test_block_order_is_decided_by_the_seed_and_covers_an_epoch() -> None:
    ids = np.arange(1000, dtype=np.int32)
    blocks = TrainBlocks(ids, 10, seed=3, count=250)
    firsts = [int(blocks[i]["input_ids"][0]) for i in range(250)]
    assert sorted(firsts[:100]) == sorted(firsts[100:200]) == list(range(0, 1000, 10))
    assert firsts[:100] != firsts[100:200]
    assert order_hash(TrainBlocks(ids, 10, 3, 999), 4) == order_hash(blocks, 4)
    assert order_hash(TrainBlocks(ids, 10, 4, 250), 4) != order_hash(blocks, 4)


def test_less_text_than_one_block_is_refused() -> None:
    with pytest.raises(StudyError, match="9 tokens, fewer than one context of 10"):
        TrainBlocks(np.arange(9, dtype=np.int32), 10, 0, 1)


def test_heldout_windows_spread_over_documents_and_pad_with_ignored_labels() -> None:
    lengths = [100, 1, 25, 7]
    ids = np.arange(sum(lengths), dtype=np.int32)
    tokens = Tokens(ids, np.cumsum([0, *lengths]), ("a", "b", "c", "d"))
    windows = heldout_windows(tokens, 10, most=70, pad=999)
    assert windows.names == ("a", "c", "d"), "a document of one token predicts nothing"
    kept = windows.labels != IGNORED
    assert torch.equal(windows.ids[kept], windows.labels[kept])
    assert bool((windows.ids[~kept] == 999).all())
    assert 70 <= int(kept.sum()) < 80
    assert windows.document.tolist() == sorted(windows.document.tolist())
    for row, document in enumerate(windows.document.tolist()):
        inside = windows.ids[row][kept[row]]
        assert {0: (0, 100), 1: (101, 126), 2: (126, 133)}[document][0] <= int(inside.min())
        assert int(inside.max()) < {0: 100, 1: 126, 2: 133}[document]
    everything = heldout_windows(tokens, 10, most=10_000, pad=999)
    assert int((everything.labels != IGNORED).sum()) == 132
