"""From measurements to rows: medians, ratios within one turn, and whether each bar is met."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from fenchel.bench.bars import PEAK, bar
from fenchel.bench.measure import Alone
from fenchel.bench.paths import Path


@dataclass(frozen=True)
class Target:
    """A bar and what was measured against it."""

    what: str
    most: float
    measured: float

    @property
    def met(self) -> bool:
        """Whether it is met; NaN is not."""
        return self.measured <= self.most


@dataclass(frozen=True)
class Row:
    """One path in one regime. Ratios are medians of ratios within a turn; None is what was not measured, and `note` why."""

    key: str
    label: str
    kind: str
    seconds: float | None
    least: float | None
    most: float | None
    per_dense: float | None
    per_product: float | None
    peak: int | None
    first: float | None
    error: float | None
    targets: tuple[Target, ...]
    note: str | None


def ratio(times: Mapping[str, Sequence[float]], key: str, of: str) -> float | None:
    """Median over the turns of time(key) / time(of)."""
    if key not in times or of not in times:
        return None
    return median(a / b for a, b in zip(times[key], times[of], strict=True))


def row(
    path: Path,
    facts: Mapping[str, Any],
    times: Mapping[str, Sequence[float]],
    alone: Alone | None,
    errors: Mapping[str, float],
    note: str | None,
    judged: bool,
) -> Row:
    """The row of a path; `judged` says whether the run has the size that bars are set for."""
    own = times.get(path.key)
    targets = []
    wanted = bar(path.key, facts) if judged else None
    if wanted is not None:
        measured = ratio(times, path.key, wanted.of)
        if measured is not None:
            targets.append(Target(f"time / {wanted.of}", wanted.most, measured))
    peak = None if alone is None else alone.peak
    if judged and path.key in PEAK and peak is not None:
        targets.append(Target("peak MiB", PEAK[path.key] / 2**20, peak / 2**20))
    return Row(
        path.key,
        path.label,
        path.kind,
        None if own is None else median(own),
        None if own is None else min(own),
        None if own is None else max(own),
        ratio(times, path.key, "dense"),
        ratio(times, path.key, "product"),
        peak,
        None if alone is None else alone.first,
        errors.get(path.key),
        tuple(targets),
        note,
    )
