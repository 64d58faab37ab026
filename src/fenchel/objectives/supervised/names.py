"""Supervised objectives by name: "alpha:1.5", "gce:0.7", "focal:gamma=2", "nce + 0.5*rce".

Beside those of the generators, whose names are Fenchel-Young losses, the modules of this folder list them, each its own.
"""

import re

from ...generators import Generator, generator_names
from ..described import Described, described
from ..names import made, makers, remembered, words
from .fenchel_young import FenchelYoung
from .objective import LabelObjective
from .sums import Sum

__all__ = ["supervised_names", "supervised_objective"]

_FOLDER = __name__.rpartition(".")[0]
_WEIGHTED = re.compile(r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\*(.+)")


def supervised_names() -> tuple[str, ...]:
    """The names that `supervised_objective` parses: those of the generators, then the others; parameters follow a colon.

    Example:
        >>> {"kl", "alpha:A", "gce", "focal", "entropy_penalty"} <= set(supervised_names())
        True
    """
    return (*generator_names(), *sorted(makers(_FOLDER)))


def supervised_described() -> dict[str, Described]:
    """What the names are that are no generator's, in the order of the alphabet.

    Example:
        >>> supervised_described()["gce"].name
        'gce:q=0.7'
    """
    return {name: described(name, make) for name, make in sorted(makers(_FOLDER).items())}


def supervised_objective(name: str | Generator | LabelObjective) -> LabelObjective:
    """The objective with a name; an objective is returned as it is.

    A generator's name is its Fenchel-Young loss, "alpha:1.5" or "js:0.3,temperature=2". Any other name takes its parameters by position or by name:
    "gce:0.7", "sce:alpha=0.1,beta=1". " + ", with the spaces, adds, and "C*" before one of these names multiplies: "nce + 0.5*rce". Before a generator's name
    C* makes the generator C f, as everywhere, whose loss is that at the temperature C: multiply "fenchel_young:alpha:1.5" instead.

    Raises:
        ValueError: an unknown name (the message lists the known ones), an unknown parameter or one outside its domain.
        TypeError: neither a name, a Generator nor an objective.

    Example:
        >>> supervised_objective("gce:0.5")
        CompSum(tau=1.5)
        >>> supervised_objective("cross_entropy + 0.1*entropy_penalty").terms[1]
        (0.1, EntropyPenalty())
    """
    if isinstance(name, Generator):
        return FenchelYoung(name)
    if isinstance(name, str):
        return _named(name)
    if isinstance(name, type) or not isinstance(name, LabelObjective):
        raise TypeError(
            f"objective: got {name!r}; pass a name ({', '.join(supervised_names())}), a Generator, or an object with takes and rows(logits, target), a frozen "
            "dataclass. Objectives of several tensors are called themselves"
        )
    try:
        hash(name)
    except TypeError:
        raise TypeError(
            f"objective: got {type(name).__name__}, which has no hash; make it a frozen dataclass of numbers"
        ) from None
    return name


def _read(name: str) -> LabelObjective:
    terms = [_weighted(part.strip()) for part in name.split(" + ")]
    [(weight, only)] = terms[:1]
    return only if len(terms) == 1 and weight == 1 else Sum(tuple(terms))


def _weighted(part: str) -> tuple[float, LabelObjective]:
    found = _WEIGHTED.fullmatch(part)
    if found is None or words(found[2]).head not in makers(_FOLDER):
        return 1.0, _parse(part)
    return float(found[1]), _parse(found[2])


def _parse(name: str) -> LabelObjective:
    said = words(name)
    make = makers(_FOLDER).get(said.head)
    if make is not None:
        return made(name, make, said.by_position, said.by_name)
    generator = said.generator(name, supervised_names)
    return made(name, FenchelYoung, (generator,), said.by_name)


_named = remembered(_read)
