"""The report of `fenchel distill`: the study's page, with what teacher and students have to do with each other in front."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fenchel.study import distill_sources, report, sections, words
from fenchel.study.analysis import Analysis, analyse, mean_of, summary_mean
from fenchel.study.arms import LABELS
from fenchel.study.distill_cache import Held, said_of_held
from fenchel.study.errors import StudyError
from fenchel.study.fidelity import MEASURES
from fenchel.study.markup import Raw, el, join
from fenchel.study.record import load
from fenchel.study.stats import Comparison, compare

if TYPE_CHECKING:
    from rich.table import Table

LOSS = "nll_softmax"
# What the summary says a sentence of; with more arms it would be a page of them.
SENTENCES = 8
# What the table of both models says of each: key of a summary, label, unit.
ROWS = (
    (LOSS, "held-out loss, nats per token", "number"),
    ("accuracy_1", "held-out accuracy@1", "percent"),
    ("teacher_kl", "KL(teacher‖student)", "number"),
    ("teacher_tv", "TV(teacher, student)", "number"),
    ("agreement", "agrees with the teacher", "percent"),
)


def write(out: Path) -> Path:
    """Writes OUT/report.html from the record under OUT, finished or not, and returns its path.

    Raises:
        NothingFinished: no run has finished yet.
        StudyError: the record cannot be read, or the disk is full.
    """
    of_cache = read(out, "cache.json")
    held = None if of_cache is None else Held(**of_cache)
    return report.put(out, render(analyse(load(out)), read(out, "before.json"), held, read(out, "timing.json")))


def read(out: Path, name: str) -> dict[str, Any] | None:
    """A JSON file of the record, None where there is none."""
    path = out / name
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise StudyError(f"cannot read {path}: {error}") from error


def render(analysis: Analysis, before: dict[str, Any] | None, held: Held | None, timing: dict[str, Any] | None) -> str:
    """The whole page."""
    parts = [
        opening(analysis, before, held, timing),
        models(analysis, before),
        sections.results(analysis),
        fidelities(analysis),
        distill_sources.section(analysis),
        sections.differences(analysis),
        sections.curves(analysis),
        speed(analysis, timing),
        sections.reliability(analysis),
        sections.continuations(analysis),
        definitions(analysis),
        sections.provenance(analysis),
    ]
    return report.page(f"{words.listing(analysis.study.objectives)} · fenchel distill", parts)


def opening(analysis: Analysis, before: dict[str, Any] | None, held: Held | None, timing: dict[str, Any] | None) -> Raw:
    """Title, what was done, and what it came to."""
    study = analysis.study
    config = study.info.get("config", {})
    by = [str(study.info.get("created", "")).split("T")[0], f"data: {config['data']['name']}", "fenchel distill"]
    parts = [el("h1", "A student and its teacher"), el("p", " · ".join(part for part in by if part), class_="by")]
    if study.missing:
        total = len(study.objectives) * len(study.info["seeds"])
        said = (
            f"This study is not finished: {len(study.missing)} of {total} runs are missing. Run the same command again."
        )
        parts.append(el("div", el("strong", said), class_="warn"))
    teacher, student = config["teacher"], config["model"]
    kind = "objective" if len(distill_sources.sources_in(study)) == 1 else "arm"
    setting = (
        f"A student of {words.count(student['layers'], 'layer')} and {student['parameters']:,} parameters was trained for "
        f"{config['steps']:,} steps of {config['batch_size'] * config['context']:,} tokens, with "
        f"{words.count(len(study.info['seeds']), 'seed')} for each of {words.count(len(study.objectives), kind)}; its "
        f"teacher has {words.count(teacher['layers'], 'layer')} and {teacher['parameters']:,} parameters."
    )
    items = [el("li", said) for said in sentences(analysis, before)]
    if held is not None:
        text = said_of_held(held)
        items.append(el("li", f"{text[0].upper()}{text[1:]}."))
    if timing is not None:
        items.append(el("li", cost(timing)))
    parts.append(el("div", el("p", setting), el("ul", *items), class_="summary"))
    return join(*parts)


def sentences(analysis: Analysis, before: dict[str, Any] | None) -> list[str]:
    """A sentence for each objective: loss, accuracy, and how much of the way to the teacher; of many, for those with the least loss and for the last."""
    loss, accuracy = summary_mean(analysis.study, LOSS), summary_mean(analysis.study, "accuracy_1")
    said, names = [], list(analysis.objectives)
    if len(names) > SENTENCES:
        names = sorted(names, key=lambda name: loss[name])
        names = [*names[: SENTENCES - 1], names[-1]]
        said.append(
            f"The {SENTENCES - 1} with the least held-out loss, and the one with the most; the table has all of them:"
        )
    for name in names:
        text = (
            f"{named(name)}: {loss[name]:.3f} nats per held-out token, {words.number(accuracy[name], 'percent')} right"
        )
        # the held-out loss of softmaxes says how far a student came only where the teacher's predictions are one
        if before is not None and analysis.study.info["config"]["teacher_generator"] == "kl":
            start, goal = before["student"][LOSS], before["teacher"][LOSS]
            if start > goal:
                way = (start - loss[name]) / (start - goal)
                text += f"; {100 * way:.0f} % of the way from the untrained student ({start:.3f}) to the teacher ({goal:.3f})"
        said.append(text + ".")
    return said


def named(objective: str) -> str:
    """An objective with what it is."""
    return "labels (no teacher)" if objective == LABELS else objective


def cost(timing: dict[str, Any]) -> str:
    """What a cache saves and takes."""
    seconds, each, dense = timing["seconds_per_step"], timing["bytes_per_token"], timing["dense_bytes_per_token"]
    return (
        f"A student's step takes {seconds['live']:.4f} s with the live teacher and {seconds['cached']:.4f} s from its cache, "
        f"{timing['speedup']:.2f} times as fast ({timing['objective']}, medians of {timing['steps']} steps of each, in turn, on "
        f"this machine). The cache keeps {timing['keeps']} in {each:,.0f} bytes a token; all "
        f"classes in float16 would take {dense:,}."
    )


def models(analysis: Analysis, before: dict[str, Any] | None) -> Raw | None:
    """Teacher, untrained student and trained students side by side."""
    if before is None:
        return None
    names = analysis.objectives
    columns = [sections.name_tag(analysis, name) for name in names]
    head = el("tr", *(el("th", part, scope="col") for part in ("", "teacher", "student before", *columns)))
    body = []
    for key, label, unit in ROWS:
        means = summary_mean(analysis.study, key)
        cells = [before["teacher"].get(key), before["student"].get(key), *(means[name] for name in names)]
        body.append(el("tr", el("th", label, scope="row"), *(el("td", words.number(x, unit)) for x in cells)))
    table = el("table", el("thead", head), el("tbody", *body), class_="results")
    note = (
        "Means over finished seeds, each over all held-out windows; the student before training is that of seed 0. "
        "Loss and KL: of softmax at temperature 1 for every model, whatever it was trained with."
    )
    box = el("div", table, class_="scroll", tabindex="0", role="region", aria_label="Teacher and students")
    return join(el("h2", "Teacher and students"), box, el("p", note, class_="note"))


def compared(analysis: Analysis) -> dict[str, dict[str, Comparison]]:
    """How near each objective brings the student to the teacher, against the baseline, with intervals."""
    finals = analysis.study.finals()
    return {m.key: {c.objective: c for c in compare(m, finals, analysis.study.baseline)} for m in MEASURES}


def fidelities(analysis: Analysis) -> Raw:
    """The same as a table with differences."""
    cells, rows = compared(analysis), []
    for metric in MEASURES:
        values = []
        for name in analysis.objectives:
            c = cells[metric.key][name]
            text = words.number(c.value, metric.unit)
            if c.verdict is not None:
                text += f" {words.MARKS[c.verdict]} {words.interval_text(c)}"
            values.append(el("td", text))
        rows.append(el("tr", el("th", metric.label, scope="row"), *values))
    head = el("tr", el("th", ""), *(el("th", sections.name_tag(analysis, n), scope="col") for n in analysis.objectives))
    table = el("div", el("table", el("thead", head), el("tbody", *rows)), class_="scroll")
    note = f"Brackets: paired differences to {named(analysis.study.baseline)}, as in the table above."
    return join(el("h2", "Nearness to the teacher"), table, el("p", note, class_="note"))


def speed(analysis: Analysis, timing: dict[str, Any] | None) -> Raw:
    """How fast each objective trained, and what the cache saved."""
    rate, share = mean_of(analysis.study, "tokens_per_second"), mean_of(analysis.study, "head_seconds_share")
    config = analysis.study.info["config"]
    tokens = config["batch_size"] * config["context"]
    header = ("objective", "seconds a step", "tokens/second", "in teacher and heads")
    rows = []
    for name in analysis.objectives:
        seconds = tokens / rate[name] if rate[name] else math.nan
        cells = (f"{seconds:.4f}", words.number(rate[name], "per_second"), words.number(share[name], "percent"))
        rows.append(el("tr", el("td", sections.name_tag(analysis, name)), *(el("td", cell) for cell in cells)))
    table = el("table", el("thead", el("tr", *(el("th", text) for text in header))), el("tbody", *rows))
    said = [el("p", cost(timing), class_="note")] if timing is not None else []
    return join(el("h2", "Speed"), el("div", table, class_="scroll"), *said)


def definitions(analysis: Analysis) -> Raw:
    """What the numbers mean, those of the teacher first."""
    terms = []
    for metric in MEASURES:
        terms += [el("dt", metric.label), el("dd", el("code", metric.formula), el("br"), metric.meaning)]
    note = (
        "s and t are the softmax of the student's and the teacher's logits; for the total variation, what they predict. "
        "Below, p is what a student predicts: softmax whatever it was trained with, but the softargmax of F for "
        "fenchel_young:F."
    )
    return join(
        el("h2", "Definitions: teacher and student"), el("p", note), el("dl", *terms), sections.definitions(analysis)
    )


def table(out: Path) -> "Table":
    """Teacher and students for a terminal, a row each: a study may have many.

    Raises:
        NothingFinished: no run has finished yet.
        StudyError: the record cannot be read.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    analysis, before = analyse(load(out)), read(out, "before.json") or {"teacher": {}, "student": {}}
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for label in ("", *(label for _, label, _ in ROWS)):
        shown.add_column(Text(label), overflow="fold")
    means = {key: summary_mean(analysis.study, key) for key, _, _ in ROWS}
    models = {
        "teacher": before["teacher"],
        "student before": before["student"],
        **{named(name): {key: means[key][name] for key in means} for name in analysis.objectives},
    }
    for name, numbers in models.items():
        shown.add_row(Text(name), *(Text(words.number(numbers.get(key), unit)) for key, _, unit in ROWS))
    return shown
