"""Objectives by name: "kl", "js:0.3", "kl:temperature=2,factor=4", "dkd:alpha=1,beta=8", "kl + 0.5*reverse_kl".

Beside those of the generators, the modules of this folder list them, each its own.
"""

from ...generators import Generator, generator_names
from ..names import made, makers, remembered, words
from .divergence import Mixture, Term
from .objective import RowObjective

__all__ = ["distillation_names", "distillation_objective"]

_FOLDER = __name__.rpartition(".")[0]


def distillation_names() -> tuple[str, ...]:
    """The names that `distillation_objective` parses: those of the generators, then the others; parameters follow a colon.

    Example:
        >>> {"kl", "js:BETA", "gjsd", "dkd"} <= set(distillation_names())
        True
    """
    return (*generator_names(), *sorted(makers(_FOLDER)))


def distillation_objective(name: str | Generator | RowObjective) -> RowObjective:
    """The objective with a name; an objective is returned as it is.

    A generator's name is D_f(teacher||student), with the fields of `Term` after its own parameter: "js:0.3", "kl:temperature=2,factor=4". Any other name
    takes its parameters by position or by name: "skew_kl:0.1", "dkd:alpha=1,beta=8". " + ", with the spaces, adds divergences: "kl + 0.5*reverse_kl".

    Raises:
        ValueError: an unknown name (the message lists the known ones), an unknown parameter or one outside its domain.
        TypeError: neither a name, a Generator nor an objective.

    Example:
        >>> distillation_objective("skew_kl:0.1")
        Mixture(terms=(Term(generator='kl', first='teacher', skew=0.1, temperature=1.0, factor=1.0),))
        >>> distillation_objective("kl:temperature=2,factor=4").terms[0].factor
        4
    """
    if isinstance(name, Generator):
        return Mixture((Term(name),))
    if not isinstance(name, str):
        if not isinstance(name, RowObjective):
            raise TypeError(
                f"objective: got {type(name).__name__}; pass a name ({', '.join(distillation_names())}), a Generator, or an object with rows(teacher, "
                "student, target) and needs_target. Objectives of whole batches or of features are called themselves"
            )
        return name
    return _named(name)


def _read(name: str) -> RowObjective:
    parts = [_parse(part.strip()) for part in name.split(" + ")]
    if len(parts) == 1:
        return parts[0]
    terms: list[Term] = []
    for part, text in zip(parts, name.split(" + "), strict=True):
        if not isinstance(part, Mixture):
            raise ValueError(f"objective {name!r}: {text.strip()!r} is not a divergence; only divergences add by name")
        terms.extend(part.terms)
    return Mixture(tuple(terms))


def _parse(name: str) -> RowObjective:
    said = words(name)
    make = makers(_FOLDER).get(said.head)
    if make is not None:
        return made(name, make, said.by_position, said.by_name)
    generator = said.generator(name, distillation_names)
    return Mixture((made(name, Term, (generator,), said.by_name),))


_named = remembered(_read)
