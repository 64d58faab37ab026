"""What the library promises about its heads, as data; whether a run meets it is computed, never written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIB = 2**20
# Shares of V in the support of a sparse generator: peaked below the first, flat above the second.
PEAKED, FLAT = 0.005, 0.10


@dataclass(frozen=True)
class Bar:
    """The time of a path is at most `most` times that of the path `of`."""

    most: float
    of: str


# Bytes beyond inputs and gradients.
PEAK = {"kl": 96 * MIB}
TIME = {"kl": Bar(0.9, "dense"), "js": Bar(1.25, "kl"), "js2": Bar(1.3, "products4")}
SPARSE = ("alpha:1.5", "alpha:2")


def bar(key: str, facts: Mapping[str, Any]) -> Bar | None:
    """The bar of a path in a regime, for sparse generators by the support that was measured there."""
    if key not in SPARSE:
        return TIME.get(key)
    support = facts["support"][key]
    if support < PEAKED:
        return Bar(0.45, "dense")
    return Bar(0.8, "dense") if support <= FLAT else Bar(1.15, "kl")
