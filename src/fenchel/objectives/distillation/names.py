"""Objectives by name: "kl", "js:0.3", "kl:temperature=2,factor=4", "dkd:alpha=1,beta=8", "kl + 0.5*reverse_kl".

The names are read from the modules of this folder, each of which lists its own in `OBJECTIVES`, when a name is first asked for: adding an objective
edits one file.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

from ...generators import Generator, generator_names
from .divergence import Mixture, Term
from .objective import RowObjective

__all__ = ["distillation_names", "distillation_objective"]


def distillation_names() -> tuple[str, ...]:
    """The names that `distillation_objective` parses: those of the generators, then the others; parameters follow a colon.

    Example:
        >>> {"kl", "js:BETA", "gjsd", "dkd"} <= set(distillation_names())
        True
    """
    return (*generator_names(), *sorted(_makers()))


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
    found: RowObjective = getattr(_known, _learn(name))
    return found


class _Known:
    """Objectives as attributes: a compiler follows an attribute, but not how a name is read."""


_known = _Known()
_attribute: dict[str, str] = {}


def _learn(name: str) -> str:
    """The attribute of a name."""
    if name not in _attribute:
        objective = _read(name)
        _attribute[name] = f"objective_{len(_attribute)}"
        setattr(_known, _attribute[name], objective)
    return _attribute[name]


# what torch.compiler.assume_constant_result does, without importing the compiler: it has names read while it traces
vars(_learn)["_dynamo_marked_constant"] = True


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
    head, _, text = name.partition(":")
    words = [w.strip() for w in text.split(",")] if text else []
    by_position = [_value(w) for w in words if "=" not in w]
    by_name = {k.strip(): _value(v.strip()) for k, _, v in (w.partition("=") for w in words if "=" in w)}
    make = _makers().get(head)
    if make is not None:
        return _made(name, make, by_position, by_name)
    own = [w for w in words if "=" not in w]
    family = head.partition("*")[2] or head
    if len(own) > 1 or family not in {known.partition(":")[0] for known in generator_names()}:
        raise ValueError(f"objective: got {name!r}; known: {', '.join(distillation_names())}")
    return Mixture((_made(name, Term, [":".join([head, *own])], by_name),))


def _made(name: str, make: Callable[..., Any], by_position: list[Any], by_name: dict[str, Any]) -> Any:
    signature = inspect.signature(make)
    try:
        bound = signature.bind(*by_position, **by_name)
    except TypeError as error:
        raise ValueError(f"objective {name!r}: {error}; parameters: {', '.join(signature.parameters)}") from None
    return make(*bound.args, **bound.kwargs)


def _value(text: str) -> Any:
    """A number where it reads as one, True or False, or the text."""
    for read in (int, float, {"true": True, "false": False}.__getitem__):
        try:
            return read(text)
        except (ValueError, KeyError):
            pass
    return text


@cache
def _makers() -> dict[str, Callable[..., RowObjective]]:
    found: dict[str, Callable[..., RowObjective]] = {}
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        listed = vars(importlib.import_module(f"{package}.{module.name}")).get("OBJECTIVES", {})
        if twice := found.keys() & listed.keys():
            raise RuntimeError(f"{package}.{module.name}: the names {sorted(twice)} are taken")
        found |= listed
    return found
