"""What a paper's claim comes down to: statements about intervals, and a verdict that follows from them.

A check names its bounds before the run. It passes if its whole interval keeps them, so that neither a lucky mean nor a
wide interval passes. Nothing here can be set by hand: `passes` and `verdict` are computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fenchel.study.stats import student_quantile

Verdict = Literal["shown", "partly", "not shown"]


@dataclass(frozen=True)
class Check:
    """One statement, its estimate with a 95 % interval, and the bounds that the interval has to keep."""

    statement: str
    estimate: float
    low: float
    high: float
    more_than: float | None = None
    less_than: float | None = None

    def __post_init__(self) -> None:
        """Refuses a check that any result would pass."""
        if self.more_than is None and self.less_than is None:
            raise ValueError(f"got no bound for {self.statement!r}: pass more_than, less_than or both")

    @property
    def passes(self) -> bool:
        """Whether the interval lies within the bounds; an interval that could not be computed (NaN) does not."""
        above = self.more_than is None or self.low > self.more_than
        below = self.less_than is None or self.high < self.less_than
        return above and below and not math.isnan(self.low) and not math.isnan(self.high)

    @property
    def needed(self) -> str:
        """The bounds in words.

        Example:
            >>> Check("gain", 0.3, 0.1, 0.5, more_than=0.0).needed
            '> 0'
        """
        sides = ((">", self.more_than), ("<", self.less_than))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in sides if bound is not None)


def mean(
    statement: str, values: Sequence[float], *, more_than: float | None = None, less_than: float | None = None
) -> Check:
    """The mean of one value per seed, with Student's t interval.

    Values that are all the same have an interval of no width. One seed has no interval, and passes nothing.

    Example:
        >>> check = mean("accuracy", [0.9, 0.92, 0.91], more_than=0.85)
        >>> round(check.low, 3), round(check.high, 3), check.passes
        (0.885, 0.935, True)
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError(f"got no values for {statement!r}: pass one per seed")
    middle = float(x.mean())
    half = student_quantile(x.size - 1) * float(x.std(ddof=1)) / math.sqrt(x.size) if x.size > 1 else math.nan
    return Check(statement, middle, middle - half, middle + half, more_than, less_than)


def paired(
    statement: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    more_than: float | None = None,
    less_than: float | None = None,
) -> Check:
    """The mean difference ours - theirs over seeds that both share, with Student's t interval of the differences.

    Example:
        >>> paired("gain", [0.91, 0.93, 0.92], [0.90, 0.91, 0.91], more_than=0.0).passes
        False
        >>> paired("no worse than a point", [0.91, 0.93, 0.92], [0.90, 0.91, 0.91], more_than=-0.01).passes
        True
    """
    if len(ours) != len(theirs):
        raise ValueError(f"got {len(ours)} and {len(theirs)} values for {statement!r}: pass one of each per seed")
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return mean(statement, differences, more_than=more_than, less_than=less_than)


def worst(statement: str, errors: Sequence[float], *, less_than: float) -> Check:
    """The largest of one error per seed, for what must hold always: an identity, a sign, a bound.

    Example:
        >>> worst("rows sum to one", [1e-16, 2e-16], less_than=1e-12).passes
        True
    """
    if not errors:
        raise ValueError(f"got no values for {statement!r}: pass one per seed")
    top = float(np.max(np.asarray(errors, dtype=np.float64)))
    return Check(statement, top, top, top, less_than=less_than)


def verdict(checks: Sequence[Check]) -> Verdict:
    """Shown if all checks pass, partly if some do, not shown if none does.

    Example:
        >>> verdict([mean("gain", [0.1, 0.1], more_than=0.0), mean("speed", [0.9, 0.9], more_than=1.0)])
        'partly'
    """
    if not checks:
        raise ValueError("got no checks: a paper states at least one")
    passed = sum(check.passes for check in checks)
    return "shown" if passed == len(checks) else "partly" if passed else "not shown"
