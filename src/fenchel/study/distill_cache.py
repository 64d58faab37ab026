"""How much of a teacher the k classes of its cache hold, and what to do where that is little."""

from dataclasses import dataclass

import numpy as np

from fenchel.teachers.cache import Cache

# Below this mean a cache leaves out much of what an unsure teacher says.
ENOUGH = 0.9


@dataclass(frozen=True)
class Held:
    """The teacher's probability that the classes of a cache's rows have.

    Attributes:
        k: classes of a row.
        rows: how many rows there are.
        mean: over rows.
        tenth: the 10th percentile over rows.
    """

    k: int
    rows: int
    mean: float
    tenth: float


def held(cache: Cache) -> Held | None:
    """What a cache holds, from its files; None for that of a sparse teacher, which holds all, and for one without rows."""
    if cache.spec.k is None or not len(cache):
        return None
    mass = cache.mass().double().numpy()
    return Held(cache.spec.k, len(cache), float(mass.mean()), float(np.quantile(mass, 0.1)))


def said_of_held(found: Held) -> str:
    """The same in a sentence, with what to do about it in another.

    Example:
        >>> said_of_held(Held(64, 9000, 0.951, 0.82))
        'the 64 classes of a cached row hold 95.1 % of the teacher on average, 82.0 % or less at a tenth of 9,000 tokens'
    """
    text = (
        f"the {found.k} classes of a cached row hold {100 * found.mean:.1f} % of the teacher on average, "
        f"{100 * found.tenth:.1f} % or less at a tenth of {found.rows:,} tokens"
    )
    if found.mean >= ENOUGH:
        return text
    return f"{text}; how the rest is spread is lost to students: pass a larger --cache-k, with a new --cache and --out"
