"""Sections of the report, each a function from the analysis to HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from fenchel.study import plots, words
from fenchel.study.analysis import Analysis, mean_of, pooled_reliability, series, summary_mean
from fenchel.study.definitions import METRICS, SENSITIVITY, Metric
from fenchel.study.markup import Raw, el, join
from fenchel.study.stats import Comparison

CURVES: tuple[tuple[str, str, Literal["percent", "log"]], ...] = (
    ("accuracy_1", "held-out accuracy@1", "percent"),
    ("eps_perplexity", "held-out ε-perplexity", "log"),
)
# Characters of a term of a sum that is not broken at the end of a line, at the hyphen of 1e-4 say.
WHOLE = 24
SHOWN_DIFFERENCES = ("accuracy_1", "eps_perplexity", "brier", "ece")


def name_tag(analysis: Analysis, objective: str) -> Raw:
    """The objective's name after its marker, both in its colour's place."""
    index = analysis.index(objective)
    mark = el(
        "span", plots.symbol(index) + "\N{NO-BREAK SPACE}", style=f"color:{plots.colour(index)}", aria_hidden="true"
    )
    terms = objective.replace(" + ", " +\n").split("\n")
    whole = ["term" if len(term) <= WHOLE else None for term in terms]
    first = el("span", mark, _broken(terms[0]), class_=whole[0])
    others = [
        join(" ", el("span", _broken(term), class_=kind)) for term, kind in zip(terms[1:], whole[1:], strict=True)
    ]
    return el("span", first, *others, class_="name")


def _broken(term: str) -> Raw:
    """A term that may be broken after the commas between its parameters."""
    first, *others = term.split(",")
    return join(first, *(join(",", el("wbr"), part) for part in others))


def legend(analysis: Analysis) -> Raw:
    """Marker and name of every objective."""
    return el("div", *(name_tag(analysis, name) for name in analysis.study.objectives), class_="legend")


def _figure(title: object, plot: Raw) -> Raw:
    return el("figure", el("figcaption", title), plot)


def opening(analysis: Analysis) -> Raw:
    """Title, the computed summary, and what is missing."""
    study = analysis.study
    title = (
        f"{words.listing(study.objectives)}, compared" if len(study.objectives) < 4 else "Training objectives, compared"
    )
    data = study.info.get("config", {}).get("data", {}).get("name")
    by = [str(study.info.get("created", "")).split("T")[0], f"data: {data}" if data else "", "fenchel compare"]
    parts = [el("h1", title), el("p", " · ".join(part for part in by if part), class_="by")]
    if study.missing:
        runs = [f"{name} seed {k}" for name, k in study.missing]
        shown = words.listing(runs) if len(runs) <= 8 else f"{', '.join(runs[:7])} and {len(runs) - 7} more"
        total = len(study.objectives) * len(study.info["seeds"])
        said = f"This study is not finished: {len(runs)} of {total} runs are missing ({shown}). "
        said += "Run the same command again."
        parts.append(el("div", el("strong", said), class_="warn"))
    sentences = words.sentences(study, analysis.cells)
    shares = mean_of(study, "head_seconds_share")
    summary = [
        el("p", words.setting(study)),
        el("ul", *(el("li", s) for s in sentences)),
        el("p", words.head(study, shares)),
    ]
    parts.append(el("div", *summary, class_="summary"))
    return join(*parts)


def results(analysis: Analysis, metrics: Sequence[Metric] = METRICS, intervals: str | None = None) -> Raw:
    """The table: metric by objective, with differences, intervals, what these cover, and verdicts."""
    head = el("tr", el("th", "metric", scope="col"), *(_column(analysis, name) for name in analysis.objectives))
    rows = []
    for metric in metrics:
        cells = analysis.cells[metric.key]
        if all(math.isnan(c.value) for c in cells.values()):
            continue
        best = _best(metric, list(cells.values()))
        tds = [_cell(cells[name], best) for name in analysis.objectives]
        aim = {"higher": "higher is better", "lower": "lower is better", "neither": ""}[metric.better]
        rows.append(el("tr", el("th", metric.label, el("span", aim, class_="delta"), scope="row"), *tds))
    table = el("table", el("thead", head), el("tbody", *rows), class_="results")
    return join(
        el("h2", "Results"),
        el("div", table, class_="scroll", tabindex="0", role="region", aria_label="Results"),
        el("p", words.intervals(analysis.cells) if intervals is None else intervals, class_="note"),
        el("p", "Underlined: the best mean of the row. Means are over finished seeds.", class_="note"),
    )


def _column(analysis: Analysis, name: str) -> Raw:
    role = el("span", "baseline", class_="delta") if name == analysis.study.baseline else None
    return el("th", name_tag(analysis, name), role, scope="col")


def _best(metric: Metric, cells: list[Comparison]) -> float | None:
    values = [c.value for c in cells if not math.isnan(c.value)]
    if metric.better == "neither" or len(values) < 2 or len(set(values)) == 1:
        return None
    return max(values) if metric.better == "higher" else min(values)


def _cell(comparison: Comparison, best: float | None) -> Raw:
    value = el("span", words.number(comparison.value, comparison.metric.unit), class_="value")
    if comparison.value == best:
        value = el("span", value, class_="best")
    if comparison.interval is None or comparison.verdict is None:
        return el("td", value)
    kind = comparison.verdict if comparison.verdict in ("better", "worse") else "even"
    chip = el("span", f"{words.MARKS[comparison.verdict]} {comparison.verdict}", class_=f"chip {kind}")
    difference, bracket, ends = words.interval_text(comparison).partition("[")
    return el("td", value, " ", chip, el("span", difference, el("span", bracket + ends, class_="term"), class_="delta"))


def differences(analysis: Analysis, shown: Sequence[str] = SHOWN_DIFFERENCES) -> Raw | None:
    """The intervals of some metrics as a picture."""
    panels = []
    for key in shown:
        cells, rows = analysis.cells[key], []
        metric = next(iter(cells.values())).metric
        for objective, c in cells.items():
            if c.interval is None or not math.isfinite(c.interval.low + c.interval.high):
                continue
            ends = (c.interval.difference, c.interval.low, c.interval.high)
            if metric.scale == "ratio":
                ends = tuple(100 * (math.exp(v) - 1) for v in ends)
            elif metric.unit == "percent":
                ends = tuple(100 * v for v in ends)
            rows.append((analysis.index(objective), objective, *ends))
        if rows:
            unit = "per cent" if metric.scale == "ratio" else "points" if metric.unit == "percent" else metric.label
            side = "right is better" if metric.better == "higher" else "left is better"
            title = f"{metric.label}: difference to {analysis.study.baseline}"
            panels.append(_figure(title, plots.differences(f"diff-{key}", title, f"{unit} ({side})", rows)))
    if not panels:
        return None
    return join(el("h2", "Differences to the baseline"), legend(analysis), el("div", *panels, class_="grid"))


def curves(analysis: Analysis) -> Raw | None:
    """Held-out metrics over steps and over wall time, and the support."""
    panels = []
    for key, label, scale in CURVES:
        for x, said in (("step", "steps"), ("seconds", "training seconds")):
            drawn = series(analysis, key, x)
            if drawn:
                title = f"{label} over {'steps' if x == 'step' else 'wall time'}"
                name = f"{key}-{x}".replace("_", "-")
                panels.append(_figure(title, plots.curves(name, title, said, drawn, scale=scale)))
    support = series(analysis, "support_mean", "step")
    if support:
        title = "support size over steps (tokens with p > 0)"
        panels.append(_figure(title, plots.curves("support", title, "steps", support, scale="log")))
    if not panels:
        return None
    every = analysis.study.info.get("config", {}).get("curve_share", 1)
    part = f" Points of the curves use one in {every} held-out windows, final figures all of them." if every > 1 else ""
    note = (
        "Lines are means over seeds and bands reach from the least to the greatest seed. Wall time counts training, "
        "not "
        "evaluation. Training losses are not drawn: those of different objectives have different units." + part
    )
    return join(
        el("h2", "Learning curves"), legend(analysis), el("div", *panels, class_="grid"), el("p", note, class_="note")
    )


def reliability(analysis: Analysis) -> Raw:
    """One reliability plot per objective, over all seeds."""
    panels = []
    for name in analysis.objectives:
        index = analysis.index(name)
        plot = plots.reliability(f"reliability-{index}", name, index, pooled_reliability(analysis.study, name))
        panels.append(_figure(name_tag(analysis, name), plot))
    note = (
        "Confidence is the largest probability of a prediction, in 15 bins; the area of a point is its share of the "
        "tokens. Below the diagonal a model is surer than it is right."
    )
    return join(el("h2", "Calibration"), el("div", *panels, class_="grid small"), el("p", note, class_="note"))


def speed(analysis: Analysis) -> Raw:
    """Time per token with the head's part in it, and the head's memory."""
    study = analysis.study
    rate, share = mean_of(study, "tokens_per_second"), mean_of(study, "head_seconds_share")
    memory, dense = mean_of(study, "head_peak_bytes"), mean_of(study, "dense_logits_bytes")
    panels = []
    times = []
    for name in analysis.objectives:
        per = 1e6 / rate[name] if rate[name] else math.nan
        head = share[name] * per
        times.append((analysis.index(name), name, head, per if math.isnan(head) else per - head))
    if any(math.isfinite(t[3]) for t in times):
        title = "training time per 1,000 tokens (solid: the head)"
        panels.append(_figure(title, plots.stacked("time", title, "milliseconds", times)))
    bars = [(analysis.index(n), n, memory[n] / 2**20, (dense[n] - memory[n]) / 2**20) for n in analysis.objectives]
    if any(math.isfinite(b[2]) for b in bars):
        bars = [(i, n, m, max(rest, 0.0)) for i, n, m, rest in bars]
        title = "head memory (solid), dense logits (pale, where larger)"
        panels.append(_figure(title, plots.stacked("memory", title, "MiB", bars)))
    header = ("objective", "tokens/second", "time in the head", "head memory", "dense logits")
    rows = [
        el(
            "tr",
            el("td", name_tag(analysis, name)),
            el("td", words.number(rate[name], "per_second")),
            el("td", words.number(share[name], "percent")),
            el("td", words.number(memory[name], "bytes")),
            el("td", words.number(dense[name], "bytes")),
        )
        for name in analysis.objectives
    ]
    table = el("table", el("thead", el("tr", *(el("th", h) for h in header))), el("tbody", *rows))
    return join(
        el("h2", "Speed and memory"),
        el("div", *panels, class_="grid"),
        el("div", table, class_="scroll"),
        el("p", words.METRIC["head_peak_bytes"].meaning, class_="note"),
    )


def continuations(analysis: Analysis) -> Raw | None:
    """What each model writes after the same prompt, of its first finished seed."""
    cards = []
    for name, finals in analysis.study.finals().items():
        seed, final = next(iter(finals.items()))
        sample = final.get("continuation")
        if sample:
            title = el("h3", name_tag(analysis, name), el("span", f" seed {seed}", class_="note"))
            text = el("pre", el("span", sample["prompt"], class_="prompt"), sample["text"])
            cards.append(el("div", title, text, class_="continuation"))
    if not cards:
        return None
    note = "Each model goes on from the same prompt (grey), sampled from its own distribution: one sample, no evidence."
    return join(el("h2", "Sampled continuations"), el("p", note, class_="note"), el("div", *cards, class_="grid"))


def more(analysis: Analysis) -> Raw:
    """Numbers that qualify those above: other smoothings, the median support, the softmax likelihood."""
    rows = [("support_median", "median support size", "tokens")]
    rows += [(f"eps_perplexity_mass_{s:g}", f"ε-perplexity with λ = {s:g}", "number") for s in SENSITIVITY]
    rows += [("nll_softmax", "nats per token under the softmax of the logits", "number")]
    body = []
    for key, label, unit in rows:
        means = summary_mean(analysis.study, key)
        cells = [el("td", words.number(means[name], unit)) for name in analysis.objectives]
        body.append(el("tr", el("th", label, scope="row"), *cells))
    head = el("tr", el("th", ""), *(el("th", name_tag(analysis, name), scope="col") for name in analysis.objectives))
    note = (
        "A sparse model pays for each impossible token according to λ, so read ε-perplexity at more than one. The "
        "softmax likelihood is for reference: only cross-entropy (kl) is trained for it."
    )
    table = el("div", el("table", el("thead", head), el("tbody", *body), class_="results"), class_="scroll")
    return join(el("h2", "More numbers"), table, el("p", note, class_="note"))


def definitions(analysis: Analysis) -> Raw:
    """Formula and meaning of every metric."""
    terms = []
    for metric in METRICS:
        source = el("span", f" {metric.source}.", class_="note") if metric.source else None
        terms.append(el("dt", metric.label))
        terms.append(el("dd", el("code", metric.formula), el("br"), metric.meaning, source))
    note = (
        f"p is the model's own distribution, that of the objective it was trained with{words.predictions(analysis.study)}. "
        "It is zero outside the support of a sparse generator. y is the token that follows, V the size of the vocabulary; "
        "means are over held-out tokens."
    )
    return join(el("h2", "Definitions"), el("p", note), el("dl", *terms))


def provenance(analysis: Analysis) -> Raw:
    """How to reproduce, the full configuration and the machine."""
    info = analysis.study.info
    command = info.get("command")
    how = el("pre", command, class_="command") if command else el("p", "The command line was not recorded.")
    tables = []
    for title in ("config", "machine", "calibration"):
        facts = [fact for fact in _flat(info.get(title) or {}) if fact[0] != "sizes"]
        if facts:
            body = [el("tr", el("td", key), el("td", value)) for key, value in facts]
            tables.append(join(el("h3", title), el("table", el("tbody", *body), class_="facts")))
    hashes = []
    for name, finals in analysis.study.finals().items():
        for seed, final in finals.items():
            if "init_hash" not in final:
                continue
            data = f"initial weights {final.get('init_hash')}, data order {final.get('data_hash')}"
            hashes.append(el("tr", el("td", f"{name} seed {seed}"), el("td", data)))
    runs = (
        el("details", el("summary", "Hashes of initial weights and data order"), el("table", *hashes, class_="facts"))
        if hashes
        else None
    )
    size = f"Preset {info['preset']}, record" if info.get("preset") else "Record"
    return join(
        el("h2", "How to reproduce"),
        how,
        el("p", f"{size} of {info.get('created')}.", class_="note"),
        runs,
        el("h2", "Configuration and machine"),
        *tables,
    )


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [
            pair for key, inner in value.items() for pair in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))]
