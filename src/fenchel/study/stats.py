"""Paired differences between objectives, with bootstrap intervals over seeds and held-out documents.

Every objective is trained on the same seeds (same initialisation, same data order) and measured on the same documents,
so that values form a table `[seeds, documents]` per objective, and two objectives are compared cell by cell. Seeds and
documents are both samples of what could have been, and they are crossed: each seed meets each document. So each
resample draws rows and columns of the table, independently, with replacement (the pigeonhole bootstrap, mildly
conservative: Owen and Eckles, 2012, arXiv:1106.2125), and the interval is the central 95 % of the resampled
differences.

Resampling n values understates the spread of their mean by sqrt((n - 1)/n), and knows nothing of the heavier tails of
small samples. With three seeds this is no detail: where the seeds dominate, the plain interval holds the truth some
75 % of the time. So the two main effects are widened by sqrt(n/(n - 1)) * t / z, with t and z the 97.5 % quantiles of
Student's t with n - 1 degrees of freedom and of the normal law: the two corrections of Hesterberg (2015), What Teachers
Should Know About the Bootstrap, The American Statistician 69, applied to the deviations, since a quantile cannot leave
three values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from fenchel.study.definitions import Better, Metric

LEVEL = 0.95
RESAMPLES = 2000
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
# 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom; the series of student_quantile is accurate above
_T = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139)

Verdict = Literal["better", "worse", "higher", "lower", "no clear difference", "identical", "not enough runs"]
Link = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A difference candidate - baseline with its 95 % interval, which is NaN where nothing could be resampled."""

    difference: float
    low: float
    high: float
    seeds: int
    documents: int

    @property
    def covers(self) -> str:
        """What the interval accounts for, in words."""
        sources = [name for name, n in (("seeds", self.seeds), ("held-out documents", self.documents)) if n > 1]
        return " and ".join(sources) if sources else "nothing: one seed and one document"


LINKS: dict[str, Link] = {
    "mean": lambda x: x[..., 0],
    "abs_sum": lambda x: np.abs(x).sum(-1),
    "log": lambda x: np.log(x[..., 0]),
}


def student_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t (Cornish-Fisher series above 10 degrees of freedom, error below 2e-4).

    Example:
        >>> round(student_quantile(2), 3), round(student_quantile(40), 3)
        (4.303, 2.021)
    """
    if freedom < 1:
        raise ValueError(f"got {freedom} degrees of freedom: pass at least 1")
    if freedom <= len(_T):
        return _T[freedom - 1]
    z, n = _Z, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def paired_interval(
    candidate: np.ndarray,
    baseline: np.ndarray,
    weight: np.ndarray,
    link: Link = LINKS["mean"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Difference of the mean over seeds of link(weighted mean over documents), with its interval.

    Args:
        candidate: `[S, D, K]`: K columns for S seeds and D documents.
        baseline: `[S, D, K]` of the baseline, same seeds and documents in the same order.
        weight: `[D]` non-negative weight of each document (its tokens); cells of weight zero are not read.
        link: `[..., K]` to `[...]`, from weighted means to the compared quantity.
        resamples: number of bootstrap resamples.
        seed: of the resampling; the same arguments give the same interval.

    Raises:
        ValueError: shapes that disagree, or weights that are negative, not finite or all zero.

    Example:
        >>> table = np.arange(6.0).reshape(2, 3, 1)
        >>> paired_interval(table + 1, table, np.ones(3))
        Interval(difference=1.0, low=1.0, high=1.0, seeds=2, documents=3)
    """
    if candidate.shape != baseline.shape or candidate.ndim != 3 or weight.shape != candidate.shape[1:2]:
        got = f"{candidate.shape}, {baseline.shape} and weights {weight.shape}"
        raise ValueError(f"got tables {got}: pass two of [seeds, documents, columns] and [documents]")
    if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.sum() > 0):
        raise ValueError("got document weights that are negative, not finite or all zero: pass token counts")
    seeds, documents = candidate.shape[:2]
    both = np.stack([candidate, baseline]).astype(np.float64)
    both = np.where(weight[:, None] > 0, both, 0.0)

    def per_seed(weights: np.ndarray) -> np.ndarray:
        """Compared difference per seed, `[..., S]`, for document weights `[..., D]`."""
        total = weights.sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.einsum("...d,osdk->...osk", weights, both, optimize=True) / total[..., None, None, None]
            values = link(means)
            return values[..., 0, :] - values[..., 1, :]

    here = per_seed(weight.astype(np.float64))  # [S]
    estimate = float(here.mean())
    if seeds * documents == 1 or not math.isfinite(estimate):
        return Interval(estimate, math.nan, math.nan, seeds, documents)

    draw = np.random.default_rng(seed)
    seed_draws = draw.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds  # [B, S]
    counts = draw.multinomial(documents, np.full(documents, 1 / documents), size=resamples)
    weights = counts * weight.astype(np.float64)
    # a resample of documents without a single token says nothing
    weights = np.where(weights.sum(-1, keepdims=True) > 0, weights, weight)
    there = per_seed(weights)  # [B, S]
    by_seed = (seed_draws * (here - estimate)).sum(-1)
    by_document = there.mean(-1) - estimate
    together = (seed_draws * (there - estimate)).sum(-1)
    interaction = together - by_seed - by_document
    resampled = estimate + _widen(seeds) * by_seed + _widen(documents) * by_document + interaction
    if not np.isfinite(resampled).all():
        return Interval(estimate, math.nan, math.nan, seeds, documents)
    if np.ptp(there) == 0 and np.ptp(here) == 0:
        # rounding of the sums above would open an interval around an exact constant
        return Interval(estimate, estimate, estimate, seeds, documents)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high), seeds, documents)


def _widen(n: int) -> float:
    return math.sqrt(n / (n - 1)) * student_quantile(n - 1) / _Z if n > 1 else 0.0


def verdict(interval: Interval, better: Better) -> Verdict:
    """Whether the interval excludes zero, and what that means for a metric where `better` is so.

    Example:
        >>> verdict(Interval(0.2, 0.1, 0.3, 3, 50), "lower")
        'worse'
    """
    if math.isnan(interval.low) or math.isnan(interval.high):
        return "not enough runs"
    if interval.difference == interval.low == interval.high == 0:
        return "identical"
    if interval.low <= 0 <= interval.high:
        return "no clear difference"
    up = interval.low > 0
    if better == "neither":
        return "higher" if up else "lower"
    return "better" if up == (better == "higher") else "worse"


@dataclass(frozen=True)
class Comparison:
    """One cell of the table: a metric of an objective, and its difference to the baseline's."""

    metric: Metric
    objective: str
    value: float
    interval: Interval | None
    verdict: Verdict | None


def compare(
    metric: Metric,
    runs: dict[str, dict[int, dict]],
    baseline: str,
    *,
    resamples: int = RESAMPLES,
) -> list[Comparison]:
    """One metric for every objective, against the baseline on the seeds that both have finished.

    Args:
        metric: of `fenchel.study.definitions.METRICS`.
        runs: per objective and seed, the run's final record (`summary`, `per_document`, and the run's own numbers).
        baseline: the objective that the others are compared with.
        resamples: of the bootstrap.

    Returns:
        a `Comparison` per objective with a finished run, in the order of `runs`; no interval for the baseline itself,
        nor where no seed is shared.
    """
    rows = []
    for objective, finals in runs.items():
        if not finals:
            continue
        value = mean([_value(metric, final) for final in finals.values()])
        shared = sorted(set(finals) & set(runs.get(baseline, {})))
        if objective == baseline or not shared:
            rows.append(Comparison(metric, objective, value, None, None))
            continue
        weight, (ours, theirs) = _tables(metric, [[r[k] for k in shared] for r in (finals, runs[baseline])])
        interval = paired_interval(ours, theirs, weight, LINKS[metric.link], resamples=resamples)
        rows.append(Comparison(metric, objective, value, interval, verdict(interval, metric.better)))
    return rows


def mean(values: Sequence[float | None]) -> float:
    """Mean of the values, NaN if one of them is missing."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if len(known) == len(values) else math.nan


def _value(metric: Metric, final: dict) -> float | None:
    return final["summary"].get(metric.key) if metric.columns else final.get(metric.key)


def _tables(metric: Metric, groups: list[list[dict]]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Document weights `[D]`, and per group of runs the table `[S, D, K]`."""
    if not metric.columns:
        values = [[_value(metric, final) for final in group] for group in groups]
        return np.ones(1), [np.array(v, dtype=np.float64)[:, None, None] for v in values]
    counts = [final["per_document"]["tokens"] for group in groups for final in group]
    if any(count != counts[0] for count in counts):
        raise ValueError("got runs that were measured on different held-out documents: compare runs of one study only")
    tables = [
        np.array([[final["per_document"][c] for c in metric.columns] for final in group], dtype=np.float64)
        for group in groups
    ]
    return np.array(counts[0], dtype=np.float64), [table.transpose(0, 2, 1) for table in tables]
