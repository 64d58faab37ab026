"""From measurements to rows: medians, ratios within one turn, the share of the machine's ceiling, and whether each bar is met."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from fenchel.bench.bars import bars, peaks
from fenchel.bench.measure import Alone
from fenchel.bench.paths import Path
from fenchel.bench.sizes import Size
from fenchel.bench.work import Share, share


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
    ceiling: Share | None
    targets: tuple[Target, ...]
    note: str | None


def ratio(times: Mapping[str, Sequence[float]], key: str, of: str) -> float | None:
    """Median over the turns of time(key) / time(of)."""
    if key not in times or of not in times:
        return None
    return median(a / b for a, b in zip(times[key], times[of], strict=True))


def row(
    path: Path,
    size: Size,
    facts: Mapping[str, Any],
    times: Mapping[str, Sequence[float]],
    alone: Alone | None,
    error: float | None,
    note: str | None,
) -> Row:
    """The row of a path."""
    own = times.get(path.key)
    targets = []
    for wanted in bars(path.key, path.family, facts):
        measured = ratio(times, path.key, wanted.of)
        if measured is not None:
            targets.append(Target(f"time / {wanted.of}", wanted.most, measured))
    peak = None if alone is None else alone.peak
    if peak is not None:
        targets += [Target("peak MiB", most / 2**20, peak / 2**20) for most in peaks(path.key, path.kind, facts)]
    support = facts["support"].get(path.generator, 1.0)
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
        error,
        share(path.work, size, support, times, path.key),
        tuple(targets),
        note,
    )


def to_dict(row: Row) -> dict[str, Any]:
    """A row for JSON."""
    return asdict(row) | {"targets": [asdict(t) | {"met": t.met} for t in row.targets]}


def from_dict(stored: Mapping[str, Any]) -> Row:
    """The row that `to_dict` wrote."""
    targets = tuple(Target(t["what"], t["most"], t["measured"]) for t in stored["targets"])
    ceiling = None if stored["ceiling"] is None else Share(**stored["ceiling"])
    return Row(**{**stored, "targets": targets, "ceiling": ceiling})
