"""One objective from several sources: what its students lose or gain where the teacher is a cache, or where they write the text themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fenchel.study import words
from fenchel.study.analysis import Analysis
from fenchel.study.arms import LABELS, ON_POLICY, Arm
from fenchel.study.definitions import METRICS, Metric
from fenchel.study.fidelity import MEASURES
from fenchel.study.markup import Raw, el, join
from fenchel.study.record import Study
from fenchel.study.stats import Comparison, compare

ACCURACY = next(metric for metric in METRICS if metric.key == "accuracy_1")
COMPARED = (*MEASURES, ACCURACY)


@dataclass(frozen=True)
class Row:
    """An objective's students by their source, each compared with those of the objective's first source."""

    objective: str
    by_source: Mapping[str, Comparison]


def arms_in(study: Study) -> list[Arm]:
    """The arms of a distillation study, in its order."""
    return [Arm(**arm) for arm in study.info["config"]["arms"]]


def sources_in(study: Study) -> list[str]:
    """The sources of the arms that a teacher takes part in, in their order."""
    return list(dict.fromkeys(arm.source for arm in arms_in(study) if arm.objective != LABELS))


def by_source(study: Study, metric: Metric) -> list[Row]:
    """A row for every objective with a finished run and a teacher."""
    arms, finals = arms_in(study), study.finals()
    rows = []
    for objective in dict.fromkeys(arm.objective for arm in arms if arm.objective != LABELS):
        source = {arm.name: arm.source for arm in arms if arm.objective == objective}
        runs = {name: finals[name] for name in source if name in finals}
        if runs:
            compared = compare(metric, runs, next(iter(source)))
            rows.append(Row(objective, {source[c.objective]: c for c in compared}))
    return rows


def cell(comparison: Comparison | None, metric: Metric) -> str:
    """A value with its difference to the first source, "" where there is no finished run."""
    if comparison is None:
        return ""
    value = words.number(comparison.value, metric.unit)
    if comparison.verdict is None:
        return value
    return f"{value} {words.MARKS[comparison.verdict]} {words.interval_text(comparison)}".rstrip()


def section(analysis: Analysis) -> Raw | None:
    """The differences between sources, a table for each measure; None where there is one source."""
    sources = sources_in(analysis.study)
    if len(sources) < 2:
        return None
    tables = [_table(metric, by_source(analysis.study, metric), sources) for metric in COMPARED]
    return join(el("h2", "Where the student learns from"), *tables, el("p", note(analysis.study), class_="note"))


def note(study: Study) -> str:
    """What the sources are, and what the brackets hold."""
    sources = sources_in(study)
    said = f"Brackets: 95 % intervals of the paired difference to the same objective from the source {sources[0]}."
    if ON_POLICY in sources:
        share = study.info["config"]["on_policy"]
        said += f" {ON_POLICY}: {100 * share:g} % of the batches are what the student writes after a quarter of each sequence."
    return said


def _table(metric: Metric, rows: Sequence[Row], sources: Sequence[str]) -> Raw:
    head = el("tr", *(el("th", text, scope="col") for text in (metric.label, *sources)))
    body = [
        el("tr", el("th", row.objective, scope="row"), *(el("td", cell(row.by_source.get(s), metric)) for s in sources))
        for row in rows
    ]
    return el("div", el("table", el("thead", head), el("tbody", *body)), class_="scroll")
