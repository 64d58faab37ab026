"""Tokens of the standard library's source, and a language model that sees four of them: small enough to train in a second."""

from __future__ import annotations

import functools
import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fenchel.gallery.students import fit
from fenchel.objectives.supervised import supervised
from fenchel.study.corpus import Document, split, standard_library

WINDOW = 4
TOKEN = re.compile(r"\w+|[^\w\s]|\n *")
PACKAGES = ("asyncio", "concurrent", "email", "http", "importlib", "json", "logging", "multiprocessing")


@dataclass(frozen=True)
class Windows:
    """Windows of tokens [n, 4] and the token that follows each [n], numbers in [0, V)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self.x)


@functools.cache
def source_text(vocabulary: int, packages: tuple[str, ...] = PACKAGES) -> tuple[Windows, Windows]:
    """Training and held-out windows of packages of the standard library; held out are whole files, as in `fenchel compare`.

    A token is a word, a mark, or the end of a line with the indentation of the next. Tokens are numbered by their frequency in PACKAGES; 0 stands for
    whatever is not among the V - 1 most frequent.

    Example:
        >>> train, heldout = source_text(200, ("json",))
        >>> train.x.shape[1], int(train.y.max()) < 200, len(heldout) > 100
        (4, True, True)
    """
    number = _numbers(vocabulary)
    sides: tuple[list[int], list[int]] = ([], [])
    for name in packages:
        for ids, part in zip(sides, split(_documents(name)), strict=True):
            ids += [number.get(token, 0) for document in part for token in _tokens(document)]
    windows = [torch.tensor(ids).unfold(0, WINDOW + 1, 1) for ids in sides]
    train, heldout = (Windows(w[:, :-1].contiguous(), w[:, -1].contiguous()) for w in windows)
    return train, heldout


@functools.cache
def _numbers(vocabulary: int) -> dict[str, int]:
    counts = Counter(token for name in PACKAGES for document in _documents(name) for token in _tokens(document))
    return {token: k for k, (token, _) in enumerate(counts.most_common(vocabulary - 1), 1)}


@functools.cache
def _documents(package: str) -> tuple[Document, ...]:
    return tuple(standard_library(Path(sysconfig.get_paths()["stdlib"]) / package))


def _tokens(document: Document) -> list[str]:
    return TOKEN.findall(document.text)


def language_model(vocabulary: int, seed: int, *, width: int = 32, hidden: int = 64) -> nn.Sequential:
    """Embeddings of the window's tokens side by side, one hidden layer, an output embedding.

    Example:
        >>> language_model(50, seed=0)(torch.zeros(3, 4, dtype=torch.long)).shape
        torch.Size([3, 50])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Embedding(vocabulary, width),
            nn.Flatten(),
            nn.Linear(WINDOW * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, vocabulary),
        )


def sampled(windows: Windows, count: int, seed: int) -> Windows:
    """`count` windows drawn without replacement, all of them where there are fewer."""
    chosen = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))[:count]
    return Windows(windows.x[chosen], windows.y[chosen])


def passages(windows: Windows, length: int, count: int, made: torch.Generator, *, every: int) -> Tensor:
    """`count` passages [n, 4 + length] of a text, drawn without replacement from those that begin at each `every`-th token: a window and what follows it.

    Example:
        >>> _, heldout = source_text(200, ("json",))
        >>> passages(heldout, 8, 30, torch.Generator(), every=12).shape
        torch.Size([30, 12])
    """
    text = torch.cat((windows.x[0], windows.y)).unfold(0, WINDOW + length, every)
    return text[torch.randperm(len(text), generator=made)[:count]]


def log_likelihood(net: nn.Module, text: Tensor) -> Tensor:
    """log p [...] of what follows the window in passages [..., 4 + length], summed over its tokens.

    Example:
        >>> log_likelihood(language_model(50, seed=0), torch.zeros(3, 2, 12, dtype=torch.long)).shape
        torch.Size([3, 2])
    """
    x, y = text.unfold(-1, WINDOW, 1)[..., :-1, :], text[..., WINDOW:]
    return net(x.flatten(0, -2)).log_softmax(-1).gather(-1, y.flatten().unsqueeze(-1)).view_as(y).sum(-1)


@dataclass(frozen=True)
class Tagged:
    """Texts [n, before] of tokens, and the sets of labels [n, L] (bool) that go with each: several, most of them rare."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.x)


def tagged(windows: Windows, vocabulary: int, *, first: int, before: int, ahead: int, count: int, seed: int) -> Tagged:
    """`count` places drawn from a text: `before` tokens, and as labels those of the `ahead` tokens that follow numbered `first` or more.

    Tokens are numbered by frequency: with first = 41 the labels are words, marks and ends of lines are not. Places that no label follows are left out.

    Example:
        >>> found = tagged(source_text(200, ("json",))[0], 200, first=41, before=8, ahead=16, count=100, seed=0)
        >>> found.x.shape, found.y.shape, bool(found.y.any(1).all())
        (torch.Size([100, 8]), torch.Size([100, 159]), True)
    """
    places = windows.x[:, 0].unfold(0, before + ahead, 1)
    labels = places[:, before:]
    kept = (labels >= first).any(1).nonzero().squeeze(1)
    kept = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:count]]
    sets = torch.zeros(len(kept), vocabulary, dtype=torch.bool).scatter(1, labels[kept], value=True)
    return Tagged(places[kept, :before], sets[:, first:])


def rest_of_line(vocabulary: int) -> tuple[Tensor, Tensor]:
    """Pairs of tokens within a line [n, 2], of all files, and how many tokens there are to the end of the line [n], the last of the pair among them.

    Example:
        >>> pairs, rest = rest_of_line(200)
        >>> pairs.shape[1], int(rest.min()), len(pairs) == len(rest)
        (2, 1, True)
    """
    tokens = torch.cat([part.x[:, 0] for part in source_text(vocabulary)])
    ends = torch.isin(tokens, torch.tensor([k for token, k in _numbers(vocabulary).items() if token[0] == "\n"]))
    here = torch.arange(len(tokens))
    end = torch.where(ends, here, len(tokens)).flip(0).cummin(0).values.flip(0)
    within = ~(ends[:-1] | ends[1:]) & (end[1:] < len(tokens))
    return torch.stack((tokens[:-1], tokens[1:]), 1)[within], (end - here)[1:][within]


def fine_tune(net: nn.Sequential, text: Windows, objective: str, steps: int, seed: int, *, lr: float) -> None:
    """Trains a language model on windows with any supervised objective."""

    def loss(i: Tensor) -> Tensor:
        return supervised(net(text.x[i]), text.y[i], objective)

    fit(net.parameters(), loss, len(text), steps=steps, seed=seed, lr=lr, batch=128)
