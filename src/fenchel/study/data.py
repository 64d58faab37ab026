"""From documents to token ids: the tokeniser, the training blocks in their fixed order, and the held-out windows."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fenchel.integrations.cached import block_rows
from fenchel.integrations.hooks import IGNORED, TEACHER_ROWS
from fenchel.study.corpus import Document, position, split
from fenchel.study.errors import StudyError, one_line
from fenchel.study.words import count

SEPARATOR = "<|endoftext|>"
# Characters of training text that the tokeniser is fitted to: more changes few merges and costs seconds.
FIT_CHARACTERS = 4_000_000
# Documents encoded at a time, so that no more is encoded than the study trains on.
GROUP = 32


@dataclass(frozen=True)
class Tokens:
    """Token ids of documents, one after another, each followed by the separator: ids[starts[i]:starts[i + 1]]."""

    ids: np.ndarray
    starts: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Data:
    """What a study trains and evaluates on; kept in the study's directory, so that a resumed study sees the same."""

    tokenizer: PreTrainedTokenizerBase
    train: Tokens
    heldout: Tokens
    facts: dict[str, int | str | bool]


def fit_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with at most `vocab_size` entries, fitted to `texts`; any text can be encoded with it."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 1:
        raise StudyError(f"a byte-level vocabulary needs at least {len(alphabet) + 1} entries, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[SEPARATOR], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SEPARATOR, pad_token=SEPARATOR)


def load_tokenizer(path: Path, option: str = "--model") -> PreTrainedTokenizerBase:
    """Tokeniser of a checkpoint directory, loaded without executing code from it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{option} {path} has no readable tokeniser: {one_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise StudyError(f"{option} {path}: its tokeniser has no end-of-text token, which separates documents")
    return tokenizer


def separator(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that follows every document."""
    token = tokenizer.eos_token_id
    assert isinstance(token, int)
    return token


def encode(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document], most: int | None = None) -> Tokens:
    """Encode documents in order; stop after the group in which `most` tokens are reached."""
    pieces: list[np.ndarray] = []
    lengths: list[int] = []
    total, end = 0, separator(tokenizer)
    for start in range(0, len(documents), GROUP):
        texts = [document.text for document in documents[start : start + GROUP]]
        for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            pieces.append(np.array([*ids, end], dtype=np.int32))
            lengths.append(len(ids) + 1)
            total += len(ids) + 1
        if most is not None and total >= most:
            break
    names = tuple(document.name for document in documents[: len(lengths)])
    ids = np.concatenate(pieces) if pieces else np.empty(0, np.int32)
    return Tokens(ids, np.cumsum([0, *lengths]), names)


def prepare(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase | int,
    *,
    train_tokens: int,
    heldout_tokens: int,
    name: str,
    truncated: bool = False,
) -> Data:
    """Split, fit a tokeniser (when given a vocabulary size instead of one) and encode.

    Training documents are taken in the order of their hashes until there are `train_tokens`: a random sample of the
    source, so that nothing is encoded that is not trained on. Raises StudyError where there is too little text.
    """
    train, heldout = split(documents)
    if not train:
        raise StudyError(
            f"the data {name} has {count(len(documents), 'document')}: at least 3 are needed to hold some out"
        )
    train = sorted(train, key=lambda document: (position(document.name), document.name))
    heldout = sorted(heldout, key=lambda document: (position(document.name), document.name))
    if isinstance(tokenizer, int):
        tokenizer = fit_tokenizer(_first(train, FIT_CHARACTERS), tokenizer)
    encoded = encode(tokenizer, train, train_tokens)
    held = encode(tokenizer, heldout, heldout_tokens)
    return Data(
        tokenizer,
        encoded,
        held,
        {
            "name": name,
            "documents": len(documents),
            "documents_train": len(encoded.names),
            "documents_heldout": len(held.names),
            "tokens_train": len(encoded.ids),
            "tokens_heldout": len(held.ids),
            "bytes": sum(len(document.text.encode("utf-8", "replace")) for document in documents),
            "truncated": truncated,
            "sha256": hashlib.sha256(encoded.ids.tobytes() + held.ids.tobytes()).hexdigest(),
        },
    )


def _first(documents: Iterable[Document], characters: int) -> Iterable[str]:
    for document in documents:
        if characters <= 0:
            return
        yield document.text[:characters]
        characters -= len(document.text)


def save_data(data: Data, directory: Path) -> None:
    """Write data to an existing directory."""
    data.tokenizer.save_pretrained(directory)
    for side, tokens in (("train", data.train), ("heldout", data.heldout)):
        np.savez(directory / f"{side}.npz", ids=tokens.ids, starts=tokens.starts)
    names = {"train": data.train.names, "heldout": data.heldout.names, "facts": data.facts}
    (directory / "documents.json").write_text(json.dumps(names), encoding="utf-8")


def load_data(directory: Path) -> Data:
    """What `save_data` wrote."""
    written = json.loads((directory / "documents.json").read_text(encoding="utf-8"))
    sides = {}
    for side in ("train", "heldout"):
        with np.load(directory / f"{side}.npz", allow_pickle=False) as arrays:
            sides[side] = Tokens(arrays["ids"], arrays["starts"], tuple(written[side]))
    tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    return Data(tokenizer, sides["train"], sides["heldout"], written["facts"])


class TrainBlocks(Dataset[dict[str, Tensor]]):
    """Blocks of `context` tokens in an order that `seed` alone decides, `count` of them, over as many epochs as needed.

    Item i is the same whatever was read before it: a resumed run reads the same batches as an uninterrupted one, and
    every objective reads the same batches as the others. With `rows`, an item says which rows of a teacher cache, made
    of `every_block`, belong to its tokens.
    """

    def __init__(self, ids: np.ndarray, context: int, seed: int, count: int, *, rows: bool = False) -> None:
        self.context, self.count, self.rows = context, count, rows
        blocks = len(ids) // context
        if blocks == 0:
            raise StudyError(f"the training text has {len(ids)} tokens, fewer than one context of {context}: pass more")
        self.ids = ids
        epochs = -(-count // blocks)
        self.order = np.concatenate([np.random.default_rng([seed, e]).permutation(blocks) for e in range(epochs)])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = int(self.order[index]) * self.context
        ids = torch.from_numpy(self.ids[start : start + self.context].astype(np.int64))
        item = {"input_ids": ids, "labels": ids.clone()}
        if self.rows:
            item[TEACHER_ROWS] = block_rows(int(self.order[index]), self.context)
        return item


def every_block(ids: np.ndarray, context: int) -> Tensor:
    """All blocks [M, context] of a training text, in its order."""
    blocks = len(ids) // context
    return torch.from_numpy(ids[: blocks * context].astype(np.int64)).reshape(blocks, context)


def order_hash(blocks: TrainBlocks, batch_size: int, batches: int = 8) -> str:
    """sha256 of the token ids of the first batches in their order."""
    digest = hashlib.sha256()
    for index in range(min(len(blocks), batch_size * batches)):
        digest.update(blocks[index]["input_ids"].numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Windows:
    """Held-out windows [W, T]: `labels` are -100 where there is nothing to predict, `document` [W] counts from 0."""

    ids: Tensor
    labels: Tensor
    document: Tensor
    names: tuple[str, ...]


def heldout_windows(tokens: Tokens, context: int, most: int, pad: int) -> Windows:
    """Windows of at most `context` tokens, about `most` tokens in all, spread over the documents.

    One window of every document in turn, taken from all over it (files begin alike: licences, imports), until `most`
    tokens are reached. Windows of fewer than two tokens predict nothing and are left out.
    """
    windows: list[tuple[int, np.ndarray]] = []
    total = turn = 0
    orders = [
        np.random.default_rng([turn_seed, 0]).permutation(max(1, -(-int(length) // context)))
        for turn_seed, length in enumerate(np.diff(tokens.starts))
    ]
    while total < most and any(turn < len(order) for order in orders):
        for document, order in enumerate(orders):
            if turn >= len(order) or total >= most:
                continue
            start = int(tokens.starts[document]) + int(order[turn]) * context
            ids = tokens.ids[start : min(start + context, int(tokens.starts[document + 1]))]
            if len(ids) >= 2:
                windows.append((document, ids))
                total += len(ids)
        turn += 1
    if not windows:
        raise StudyError("the held-out documents have no window of two tokens: pass more or longer documents")
    used = sorted({document for document, _ in windows})
    windows.sort(key=lambda window: window[0])
    padded = np.full((len(windows), context), pad, np.int64)
    labels = np.full((len(windows), context), IGNORED, np.int64)
    for row, (_, ids) in enumerate(windows):
        padded[row, : len(ids)] = ids
        labels[row, : len(ids)] = ids
    return Windows(
        torch.from_numpy(padded),
        torch.from_numpy(labels),
        torch.tensor([used.index(document) for document, _ in windows]),
        tuple(tokens.names[document] for document in used),
    )
