"""What names of objectives have in common: "dkd:alpha=1,beta=8", read by the folder that the objectives stand in.

Each module of such a folder lists its own names in `OBJECTIVES`, which are read when a name is first asked for: adding an objective edits one file.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from ..generators import generator_names

__all__ = ["Words", "made", "makers", "remembered", "split_names", "words"]

Made = TypeVar("Made")


@dataclass(frozen=True)
class Words:
    """A name in its parts.

    Attributes:
        head: what stands before the colon.
        plain: the parameters by position, as they are written.
        by_name: the others.

    Example:
        >>> words("js:0.3,temperature=2")
        Words(head='js', plain=('0.3',), by_name={'temperature': 2})
    """

    head: str
    plain: tuple[str, ...]
    by_name: dict[str, Any]

    @property
    def by_position(self) -> tuple[Any, ...]:
        """The parameters by position."""
        return tuple(_value(w) for w in self.plain)

    def generator(self, name: str, known: Callable[[], tuple[str, ...]]) -> str:
        """The generator's name that these begin with: "js:0.3", "2*kl".

        Raises:
            ValueError: there is none. name, and the names that are known, are for the message.
        """
        family = self.head.partition("*")[2] or self.head
        if len(self.plain) > 1 or family not in {each.partition(":")[0] for each in generator_names()}:
            raise ValueError(f"objective: got {name!r}; known: {', '.join(known())}")
        return ":".join([self.head, *self.plain])


def words(name: str) -> Words:
    """A name in its parts."""
    head, _, text = name.partition(":")
    found = [w.strip() for w in text.split(",")] if text else []
    by_name = {k.strip(): _value(v.strip()) for k, _, v in (w.partition("=") for w in found if "=" in w)}
    return Words(head, tuple(w for w in found if "=" not in w), by_name)


def split_names(text: str) -> tuple[str, ...]:
    """Names of objectives separated by commas, some of which separate the parameters of one.

    Example:
        >>> split_names("kl, dkd:alpha=1,beta=8, js:0.3, renyi:2,temperature=3")
        ('kl', 'dkd:alpha=1,beta=8', 'js:0.3', 'renyi:2,temperature=3')
        >>> split_names("probability:1,0.05 + 0.1*log_partition, gce:0.7")
        ('probability:1,0.05 + 0.1*log_partition', 'gce:0.7')
    """
    names: list[str] = []
    for piece in text.split(","):
        # what ends a name may be followed by another term of its sum
        first = piece.partition(" + ")[0]
        parameter = "=" in first.partition(":")[0] or not isinstance(_value(first.strip()), str)
        if names and parameter:
            names[-1] += "," + piece.strip()
        else:
            names.append(piece.strip())
    return tuple(names)


def made(name: str, make: Callable[..., Made], by_position: tuple[Any, ...], by_name: dict[str, Any]) -> Made:
    """make of the parameters in a name.

    Raises:
        ValueError: parameters that it has not, or needs.
    """
    signature = inspect.signature(make)
    try:
        bound = signature.bind(*by_position, **by_name)
    except TypeError as error:
        raise ValueError(f"objective {name!r}: {error}; parameters: {', '.join(signature.parameters)}") from None
    return make(*bound.args, **bound.kwargs)


@cache
def makers(package: str) -> dict[str, Callable[..., Any]]:
    """What the modules of a package list in `OBJECTIVES`: a name, and what makes the objective of its parameters."""
    found: dict[str, Callable[..., Any]] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        listed = vars(importlib.import_module(f"{package}.{module.name}")).get("OBJECTIVES", {})
        if twice := found.keys() & listed.keys():
            raise RuntimeError(f"{package}.{module.name}: the names {sorted(twice)} are taken")
        found |= listed
    return found


class _Known:
    """Objectives as attributes: a compiler follows an attribute, but not how a name is read."""


def remembered(read: Callable[[str], Made]) -> Callable[[str], Made]:
    """read, which reads each name once, and in a way that a compiler may trace."""
    known, attribute = _Known(), dict[str, str]()

    def learn(name: str) -> str:
        if name not in attribute:
            objective = read(name)
            attribute[name] = f"objective_{len(attribute)}"
            setattr(known, attribute[name], objective)
        return attribute[name]

    # what torch.compiler.assume_constant_result does, without importing the compiler: it has names read while it traces
    vars(learn)["_dynamo_marked_constant"] = True
    return lambda name: getattr(known, learn(name))


def _value(text: str) -> Any:
    """A number where it reads as one, True or False, or the text."""
    for read in (int, float, {"true": True, "false": False}.__getitem__):
        try:
            return read(text)
        except (ValueError, KeyError):
            pass
    return text
