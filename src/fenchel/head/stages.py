"""A tile's function on a shard of a vocabulary, in stages: each ends where numbers are added up over ranks, and the next starts again with those at hand.

So what lies between two reductions over ranks is a function of tiles like any other, and compiled like any other. It computes again what it needs of the
stages before, as a second pass over a row does; what the function writes, it writes in the last.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

from torch import Tensor

from ..vocab import LOCAL, Vocabulary

__all__ = ["in_stages", "vocabulary_of"]


class OnVocabulary(Protocol):
    """What a tile's function is of."""

    @property
    def vocab(self) -> Vocabulary:
        """The vocabulary of which its tiles are a shard."""
        ...


def vocabulary_of(of: Any) -> Vocabulary:
    """The vocabulary in what a tile's function is of; the local one if there is none."""
    return of if isinstance(of, Vocabulary) else getattr(of, "vocab", LOCAL)


def in_stages(
    fn: Callable[..., Any], of: Any, compiled: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[..., Any]:
    """fn(*tensors, of), its stages compiled."""
    vocab = vocabulary_of(of)

    def call(*tensors: Tensor) -> Any:
        known: tuple[tuple[Tensor, ...], ...] = ()
        while True:
            stage = _stage(fn, of, tuple(len(k) for k in known))
            out = compiled(stage)(*tensors, *(x for k in known for x in k))
            if not stage.op:
                return out
            parts = (out,) if isinstance(out, Tensor) else tuple(out)
            known = (*known, vocab.reduce(stage.op, parts, vocab.group))

    return call


class _Reached(Exception):
    """The end of a stage."""

    def __init__(self, op: str, parts: tuple[Tensor, ...]) -> None:
        self.op, self.parts = op, parts


@dataclass(eq=False)
class _Stage:
    """fn of its own tensors, and of the reductions that are known, so many numbers each.

    op: how what it returns is put together over ranks; "" if that is what fn returns. Known once it has run.
    """

    fn: Callable[..., Any]
    of: Any
    counts: tuple[int, ...]
    op: str = ""

    def __call__(self, *tensors: Tensor) -> Any:
        own = len(tensors) - sum(self.counts)
        numbers, counts = iter(tensors[own:]), iter(self.counts)

        def reduce(op: str, parts: tuple[Tensor, ...], group: str) -> tuple[Tensor, ...]:
            count = next(counts, None)
            if count is None:
                raise _Reached(op, parts)
            return tuple(next(numbers) for _ in range(count))

        vocab = replace(vocabulary_of(self.of), reduce=reduce)
        of = vocab if isinstance(self.of, Vocabulary) else replace(self.of, vocab=vocab)
        try:
            result = self.fn(*tensors[:own], of)
        except _Reached as reached:
            self.op = reached.op
            return reached.parts
        self.op = ""
        return result


@cache
def _stage(fn: Callable[..., Any], of: Any, counts: tuple[int, ...]) -> _Stage:
    return _Stage(fn, of, counts)
