"""The generators that every generic test runs over: one literal table, limit parameters and user-made ones included."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from torch import Tensor

from fenchel import Generator, generator


@dataclass(frozen=True)
class Case:
    """A generator and what it should be: `scale` times the textbook's `book`."""

    g: Generator
    book: str
    scale: float = 1.0
    mine: bool = False

    @property
    def label(self) -> str:
        """The name of the case in a test's id."""
        return f"from_f {self.book}" if self.mine else self.g.name


# name, the textbook's row, the scale
NAMED: tuple[tuple[str, str, float], ...] = (
    ("kl", "kl", 1),
    ("reverse_kl", "reverse_kl", 1),
    ("jeffreys", "jeffreys", 1),
    ("js", "js", 1),
    ("js:0.1", "js:0.1", 1),
    ("js:0.9", "js:0.9", 1),
    ("hellinger", "hellinger", 1),
    ("chi2", "chi2", 1),
    ("neyman", "neyman", 1),
    ("le_cam", "le_cam", 1),
    ("alpha:0", "reverse_kl", 1),
    ("alpha:1", "kl", 1),
    ("alpha:0.5", "alpha:0.5", 1),
    ("alpha:0.95", "alpha:0.95", 1),
    ("alpha:1.05", "alpha:1.05", 1),
    ("alpha:1.5", "alpha:1.5", 1),
    ("alpha:2", "chi2", 1),
    ("alpha:3", "alpha:3", 1),
    ("alpha:-1", "neyman", 1),
    ("alpha:-2", "alpha:-2", 1),
    ("2*js", "js", 2),
    ("0.3*alpha:1.5", "alpha:1.5", 0.3),
)

# The textbook's row, and f as a user would write it: with and without the term that makes f'(1) = 0.
WRITTEN: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("kl", lambda u: u * u.log()),
    ("reverse_kl", lambda u: -u.log()),
    ("jeffreys", lambda u: (u - 1) * u.log()),
    ("js", lambda u: (u * u.log() - (u + 1) * ((u + 1) / 2).log()) / 2),
    ("hellinger", lambda u: (u.sqrt() - 1) ** 2),
    ("chi2", lambda u: (u * u - 1) / 2),
    ("le_cam", lambda u: (u - 1) ** 2 / (u + 1)),
    ("alpha:1.5", lambda u: (u**1.5 - 1) / 0.75),
)

BUILT_IN = tuple(Case(generator(name), book, scale) for name, book, scale in NAMED)
MINE = tuple(Case(Generator.from_f(f, name=f"my {book}"), book, mine=True) for book, f in WRITTEN)
TABLE = BUILT_IN + MINE
# alpha:0 and alpha:1 are the generators reverse_kl and kl themselves
DISTINCT = tuple({id(case.g): case for case in BUILT_IN}.values())


def over(cases: tuple[Case, ...]) -> pytest.MarkDecorator:
    """Runs a test with `case` from each of the cases."""
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.label)
