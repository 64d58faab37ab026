"""What the library promises about its heads, as data; whether a run meets it is computed, never written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIB = 2**20
# Shares of V in the support of a sparse generator: peaked below the first, flat above the second.
PEAKED, FLAT = 0.005, 0.10
# Shapes (N, D, V) that they are set for; those of half precision hold for any.
SHAPES = ((2048, 512, 32768), (2048, 1024, 131072))


@dataclass(frozen=True)
class Bar:
    """The time of a path is at most `most` times that of the path `of`."""

    most: float
    of: str


@dataclass(frozen=True)
class Regimes:
    """Bars of a sparse head by the support that was measured."""

    peaked: Bar
    early: Bar
    flat: Bar

    def at(self, support: float) -> Bar:
        """The one for a share of V in the support."""
        return self.peaked if support < PEAKED else self.early if support <= FLAT else self.flat


# The generators whose heads are judged by their support.
SPARSE = ("alpha:1.5", "alpha:2")
# Where the key is a family, they are for its generators that have none of their own.
# The first head that was built:
FIRST: dict[str, Bar | Regimes] = {
    "kl": Bar(0.9, "dense"),
    "js": Bar(1.25, "kl"),
    "pair:js": Bar(1.3, "products4"),
    **dict.fromkeys(SPARSE, Regimes(Bar(0.45, "dense"), Bar(0.8, "dense"), Bar(1.15, "kl"))),
}
# The limit of a CPU, in bare products:
LIMIT: dict[str, Bar | Regimes] = {
    "kl": Bar(3.1, "product"),
    **dict.fromkeys(SPARSE, Regimes(Bar(1.1, "product"), Bar(1.8, "product"), Bar(3.4, "product"))),
    **dict.fromkeys(("js", "hellinger"), Bar(3.6, "product")),
    **dict.fromkeys(("le_cam", "alpha:1.25"), Bar(4.5, "product")),
    "young": Bar(6.0, "product"),
    **dict.fromkeys(("pair:kl", "pair:reverse_kl", "pair:js"), Bar(4.6, "product")),
    "pair": Bar(6.0, "product"),
    "pair-each": Bar(6.8, "product"),
    "logp": Bar(5.4, "product"),
    "supervised": Bar(1.3, "kl"),
}
# Half precision, beside torch's own:
HALF: dict[str, Bar | Regimes] = {"young": Bar(1.0, "dense"), "pair": Bar(1.0, "dense-js2")}

# Bytes beyond inputs and gradients, at any N: of the first head that was built, and of every head.
PEAK = {"kl": 96 * MIB}
PEAK_OF_HEADS = 64 * MIB


def compared(key: str, family: str) -> set[str]:
    """The paths that any bar of a path refers to."""
    found: set[str] = set()
    for table in (FIRST, LIMIT, HALF):
        bar = table.get(key, table.get(family))
        found |= {b.of for b in ((bar.peaked, bar.early, bar.flat) if isinstance(bar, Regimes) else (bar,)) if b}
    return found


def bars(key: str, family: str, facts: Mapping[str, Any]) -> list[Bar]:
    """The bars of a path in a regime, for sparse generators by the support that was measured there."""
    half = facts["dtype"] != "float32"
    if not half and (facts["n"], facts["d"], facts["v"]) not in SHAPES:
        return []
    found = [table.get(key, table.get(family)) for table in ((HALF,) if half else (FIRST, LIMIT))]
    return [b.at(facts["support"][key]) if isinstance(b, Regimes) else b for b in found if b is not None]


def peaks(key: str, kind: str, facts: Mapping[str, Any]) -> list[int]:
    """The most bytes that a path may take, by each bar."""
    if (facts["n"], facts["d"], facts["v"]) not in SHAPES or facts["dtype"] != "float32" or kind != "fused":
        return []
    return [*([PEAK[key]] if key in PEAK else []), PEAK_OF_HEADS]
