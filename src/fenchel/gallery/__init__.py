"""One runnable file per paper: its claim, the smallest honest experiment, and what came out.

`papers()` finds the modules p001, p065, ... of this folder: adding a paper adds one file.
"""

import functools
import importlib
import pkgutil
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fenchel.gallery.paper import Paper

__all__ = ["find", "papers"]


@functools.cache
def papers() -> "dict[str, Paper]":
    """All papers by id, in the order of their ids.

    Example:
        >>> "P076" in papers()
        True
    """
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if re.fullmatch(r"p\d{3}", m.name))
    found = [importlib.import_module(f"{__name__}.{name}").PAPER for name in names]
    return {paper.id: paper for paper in found}


def find(name: str) -> "Paper":
    """The paper of an id, in capitals or not.

    Raises:
        ValueError: no such paper.

    Example:
        >>> find("p076").id
        'P076'
    """
    known = papers()
    if name.upper() not in known:
        raise ValueError(f"got {name!r}, which is no paper of the gallery: pass one of {', '.join(known)}")
    return known[name.upper()]
