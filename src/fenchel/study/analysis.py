"""What the report shows, computed once from the record: comparisons, curves, shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fenchel.study import stats
from fenchel.study.definitions import METRICS, Metric
from fenchel.study.plots import Series, band
from fenchel.study.record import NothingFinished, Run, Study


@dataclass(frozen=True)
class Analysis:
    """A study with its comparisons, `cells[metric][objective]`."""

    study: Study
    cells: dict[str, dict[str, stats.Comparison]]

    @property
    def objectives(self) -> list[str]:
        """Those with a finished run."""
        return list(self.study.finals())

    def index(self, objective: str) -> int:
        """The objective's place in the study, which gives it its colour and marker."""
        return self.study.objectives.index(objective)


def analyse(study: Study, metrics: Sequence[Metric] = METRICS) -> Analysis:
    """Compares every objective with the baseline in every metric.

    Raises:
        NothingFinished: no run of the study has finished.
    """
    finals = study.finals()
    if not finals:
        total = len(study.missing)
        raise NothingFinished(
            f"got a study with none of its {total} runs finished: run the same command again to go on"
        )
    cells = {m.key: {c.objective: c for c in stats.compare(m, finals, study.baseline)} for m in metrics}
    return Analysis(study, cells)


def mean_of(study: Study, key: str) -> dict[str, float]:
    """Mean over finished seeds of a number of the final record, NaN where a run did not record it."""
    means = {}
    for name, finals in study.finals().items():
        means[name] = stats.mean([final.get(key) for final in finals.values()])
    return means


def summary_mean(study: Study, key: str) -> dict[str, float]:
    """Mean over finished seeds of a number of the final summary."""
    means = {}
    for name, finals in study.finals().items():
        means[name] = stats.mean([final["summary"].get(key) for final in finals.values()])
    return means


def series(analysis: Analysis, key: str, x: str) -> list[Series]:
    """Curves of an evaluated metric against "step" or "seconds", per objective, over its finished runs.

    An objective without a finished run is drawn as far as all of its runs came.
    """
    study, drawn = analysis.study, []
    for index, (name, by_seed) in enumerate(study.runs.items()):
        runs = [run for run in by_seed.values() if run.finished] or list(by_seed.values())
        points = _common(runs, lambda run: {e["step"]: (e[x], e["metrics"].get(key)) for e in run.evals})
        if points:
            xs, mean, low, high = band(points)
            drawn.append(Series(index, name, xs, mean, low, high))
    return drawn


Points = dict[int, tuple[float, float | None]]


def _common(runs: list[Run], read: Callable[[Run], Points]) -> list[tuple[list[float], list[float]]]:
    """Per run its x and y at the steps where all runs have a number."""
    tables = [{step: p for step, p in read(run).items() if p[1] is not None} for run in runs]
    tables = [table for table in tables if table]
    if not tables:
        return []
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    return [([float(t[s][0]) for s in steps], [float(t[s][1]) for s in steps]) for t in tables] if steps else []  # type: ignore[arg-type]


def pooled_reliability(study: Study, objective: str) -> list[dict]:
    """The reliability table over all finished seeds of an objective."""
    tables = [final["reliability"] for final in study.finals()[objective].values()]
    pooled = []
    for rows in zip(*tables, strict=True):
        seen = [row for row in rows if row["count"]]
        count = sum(row["count"] for row in seen)
        means = {
            key: sum(row[key] * row["count"] for row in seen) / count if count else None
            for key in ("confidence", "accuracy")
        }
        pooled.append({"bin": rows[0]["bin"], "count": count, **means})
    return pooled
