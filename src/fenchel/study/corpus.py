"""Documents, the corpus that every machine has, and the split into training and held-out documents."""

import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Not prose that somebody wrote for a reader, or not part of the library at all.
SKIPPED = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
HELDOUT_SHARE = 0.05
HELDOUT_LEAST = 2


@dataclass(frozen=True)
class Document:
    """A named text; the name decides on which side of the split it falls."""

    name: str
    text: str


def standard_library(root: Path | None = None) -> list[Document]:
    """Source files of the Python standard library on this machine, in the order of their paths.

    Tests, installed packages and files that are not UTF-8 are left out.

    >>> documents = standard_library()
    >>> documents[0].name < documents[1].name
    True
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    documents = []
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if SKIPPED.intersection(relative.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, PermissionError):
            continue
        if text.strip():
            documents.append(Document(relative.as_posix(), text))
    return documents


def position(name: str) -> float:
    """Place of a document in [0, 1), a hash of its name: the same on every machine and for any collection.

    >>> round(position("abc.py"), 3)
    0.769
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def split(documents: Sequence[Document], share: float = HELDOUT_SHARE) -> tuple[list[Document], list[Document]]:
    """(training, held-out): held out are documents with a position below `share`, and at least the two lowest.

    A document stays on its side when others are added, unless the collection is so small that the two lowest matter.
    """
    lowest = sorted(range(len(documents)), key=lambda i: (position(documents[i].name), i))[:HELDOUT_LEAST]
    held = set(lowest) | {i for i, document in enumerate(documents) if position(document.name) < share}
    train = [document for i, document in enumerate(documents) if i not in held]
    return train, [document for i, document in enumerate(documents) if i in held]
