"""The report of `fenchel compare --task classification`, in the style of the study of language models."""

from pathlib import Path
from typing import TYPE_CHECKING

from fenchel.study import plots, report, sections, words
from fenchel.study.analysis import Analysis, analyse, pooled_reliability
from fenchel.study.definitions import Metric
from fenchel.study.markup import Raw, el, join
from fenchel.study.record import load

if TYPE_CHECKING:
    from rich.console import Group

# fmt: off
METRICS = (
    Metric("accuracy", "accuracy", "higher", (), "mean of 1[argmax p = y]", "Share of rows whose most probable class is theirs.", unit="percent"),
    Metric("macro_f1", "macro-F1", "higher", (), "mean over classes of 2 TP / (2 TP + FP + FN)", "Every class counts the same, however rare.", unit="percent"),
    Metric("log_loss", "log-loss", "lower", (), "mean of −log((1 − λ) p_y + λ/V), λ = 0.01",
           "In nats, after a hundredth of the probability is spread over the classes: a sparse model can give a label probability zero."),
    Metric("brier", "Brier score", "lower", (), "mean of Σ_j (p_j − 1[j = y])²", "From 0 to 2, defined for zero probabilities.",
           source="Brier (1950), Verification of forecasts expressed in terms of probability"),
    Metric("ece", "calibration error", "lower", (), "Σ_b |Σ_{i in bin b} (c_i − 1[hit_i])| / N, 15 bins",
           "Between confidence c = max_j p_j and accuracy, in 15 equal bins of confidence.", unit="percent",
           source="Guo et al. (2017), On Calibration of Modern Neural Networks, arXiv:1706.04599"),
    Metric("zero_target", "labels at zero", "lower", (), "mean of 1[p_y = 0]", "Share of rows whose own class is called impossible.", unit="percent"),
    Metric("support", "support size", "neither", (), "mean of #{j : p_j > 0}", "Classes with positive probability."),
)
# fmt: on
SHOWN = ("accuracy", "macro_f1", "log_loss", "brier", "ece")


def write(out: Path) -> Path:
    """Writes OUT/report.html from the record under OUT and returns its path.

    Raises:
        StudyError: the record cannot be read, or the disk is full.
    """
    return report.put(out, render(analyse(load(out), METRICS)))


def render(analysis: Analysis) -> str:
    """The whole page."""
    parts = [
        opening(analysis),
        sections.results(analysis, METRICS, intervals(analysis)),
        sections.differences(analysis, SHOWN),
        reliability(analysis),
        definitions(),
        sections.provenance(analysis),
    ]
    return report.page(f"{words.listing(analysis.study.objectives)} · fenchel compare", parts)


def opening(analysis: Analysis) -> Raw:
    """Title, what was done, and what it came to."""
    study = analysis.study
    config = study.info["config"]
    by = (str(study.info["created"]).split("T")[0], f"data: {config['data']['name']}", "fenchel compare")
    told = []
    if config["noise"]:
        told.append(f"{words.number(config['noise'], 'percent')} of the training labels are replaced by another class")
    if config["long_tail"] < 1:
        told.append(
            f"the last class keeps {words.number(config['long_tail'], 'percent')} as many training rows as the first"
        )
    setting = (
        f"{config['data']['name']} has {config['data']['rows']:,} rows of {words.count(config['data']['features'], 'feature')} in "
        f"{words.count(len(config['classes']), 'class', 'classes')}. A linear classifier was trained with "
        f"{words.count(len(study.objectives), 'objective')}, and every row predicted by a model that had not seen it: "
        f"{words.count(config['folds'], 'fold')}, {words.count(len(study.info['seeds']), 'seed')}."
        + (f" {words.listing(told).capitalize()}; the predicted rows are as they were." if told else "")
    )
    items = []
    for name in analysis.objectives:
        accuracy, brier = analysis.cells["accuracy"][name], analysis.cells["brier"][name]
        judged = [
            f"{words.interval_text(c)}: {c.verdict}" if words.interval_text(c) else c.verdict for c in (accuracy, brier)
        ]
        said = [f" ({j})" if j else "" for j in judged]
        items.append(
            f"{words.full_name(name)}: {words.number(accuracy.value, 'percent')} right{said[0]}, Brier score {words.number(brier.value)}{said[1]}."
        )
    return join(
        el("h1", "Objectives of a classifier, compared"),
        el("p", " · ".join(by), class_="by"),
        el("div", el("p", setting), el("ul", *(el("li", item) for item in items)), class_="summary"),
    )


def intervals(analysis: Analysis) -> str:
    """What the intervals cover."""
    seeds = len(analysis.study.info["seeds"])
    if seeds == 1:
        return "One seed has no intervals: pass --seeds 5."
    return (
        f"Brackets hold 95 % intervals of the paired difference to the baseline over {seeds} seeds, each another split into folds, of the same rows: they say "
        "how much the split and the noise matter, not how other rows would do."
    )


def reliability(analysis: Analysis) -> Raw:
    """A reliability plot per objective, over all seeds."""
    panels = []
    for name in analysis.objectives:
        index = analysis.index(name)
        plot = plots.reliability(f"reliability-{index}", name, index, pooled_reliability(analysis.study, name))
        panels.append(el("figure", el("figcaption", sections.name_tag(analysis, name)), plot))
    note = "The area of a point is its share of the rows. Below the diagonal a model is surer than it is right."
    return join(el("h2", "Calibration"), el("div", *panels, class_="grid small"), el("p", note, class_="note"))


def definitions() -> Raw:
    """What every number is."""
    rows = [
        el(
            "tr",
            el("td", m.label),
            el("td", el("code", m.formula)),
            el("td", " ".join(t for t in (m.meaning, m.source) if t)),
        )
        for m in METRICS
    ]
    return join(el("h2", "Definitions"), el("div", el("table", el("tbody", *rows), class_="facts"), class_="scroll"))


def table(out: Path) -> "Group":
    """The results for a terminal: objectives by metrics, a mark where the interval of the difference leaves zero out."""
    analysis = analyse(load(out), METRICS)
    return report.by_objective(analysis, METRICS, intervals(analysis))
