"""What the objectives of a folder say of themselves: their docstrings, by name."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Described", "described"]

_SOURCE = re.compile(r"Source: (.*?)(?:\n\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Described:
    """An objective in words.

    Attributes:
        name: with its parameters and their defaults.
        meaning: the first line of its docstring, a formula mostly.
        source: where it is from, or "".
    """

    name: str
    meaning: str
    source: str


def described(name: str, make: Callable[..., Any]) -> Described:
    """What `make`, which makes the objective called `name`, says of it.

    Example:
        >>> from fenchel.objectives.supervised import Focal
        >>> described("focal", Focal)
        Described(name='focal:gamma=2', meaning='-(1 - p_y)^gamma log p_y.', source='Lin et al., arXiv 1708.02002.')
    """
    doc = inspect.getdoc(make) or ""
    source = _SOURCE.search(doc)
    known = {p.name: p.default for p in inspect.signature(make).parameters.values()}
    shown_as = {k: f"{v:g}" if isinstance(v, float) else v for k, v in known.items()}
    parameters = ",".join(f"{k}={v}" for k, v in shown_as.items() if v is not inspect.Parameter.empty)
    return Described(
        f"{name}{':' if parameters else ''}{parameters}",
        doc.splitlines()[0],
        " ".join(source[1].split()) if source else "",
    )
