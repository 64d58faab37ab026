"""Writes docs/distilled.md from docs/distilled.json, the numbers of one run of `fenchel distill` that compared sources.

`python docs/build_distilled.py OUT` takes the numbers from the record in OUT first. The tests fail while the committed page differs from what this writes.
"""

import json
import re
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fenchel.study import distill_sources, words
from fenchel.study.arms import LABELS
from fenchel.study.distill_report import LOSS, read
from fenchel.study.record import Study, load
from fenchel.study.stats import Comparison, Interval, compare

DOCS = Path(__file__).resolve().parent
NUMBERS, PAGE = DOCS / "distilled.json", DOCS / "distilled.md"
METRICS = {metric.key: metric for metric in distill_sources.COMPARED}


def extract(out: Path) -> dict[str, Any]:
    """What the page says of a finished study: values, paired differences and their intervals, nothing per run.

    Raises:
        ValueError: an unfinished study, or one of a single source.
    """
    study = load(out)
    if study.missing:
        raise ValueError(f"{out}: {len(study.missing)} runs are missing; run the same command again")
    sources = distill_sources.sources_in(study)
    if len(sources) < 2:
        raise ValueError(f"{out}: every student learnt from the source {sources[0]}; pass a run with --sources")
    info = study.info
    return {
        # directories by their names: where they were is nobody's
        "command": re.sub(r"(?<= )/\S*/", "", info["command"]),
        "created": info["created"],
        "machine": info["machine"],
        "seeds": len(info["seeds"]),
        "config": info["config"],
        "before": read(out, "before.json"),
        "timing": read(out, "timing.json"),
        "objectives": {key: _to_baseline(study, key) for key in METRICS},
        "sources": {
            key: {row.objective: {s: _numbers(c) for s, c in row.by_source.items()} for row in by_source}
            for key, by_source in ((key, distill_sources.by_source(study, METRICS[key])) for key in METRICS)
        },
    }


def _to_baseline(study: Study, key: str) -> dict[str, Any]:
    """Every objective from its first source, against the baseline of the study."""
    first = {}
    for arm in distill_sources.arms_in(study):
        first.setdefault(arm.objective, arm.name)
    finals = {objective: study.finals()[name] for objective, name in first.items()}
    return {c.objective: _numbers(c) for c in compare(METRICS[key], finals, next(iter(first)))}


def _numbers(comparison: Comparison) -> dict[str, Any]:
    interval = None if comparison.interval is None else asdict(comparison.interval)
    return {"value": comparison.value, "interval": interval, "verdict": comparison.verdict}


def page(record: dict[str, Any]) -> str:
    """The page in Markdown."""
    config = record["config"]
    teacher, student, data = config["teacher"], config["model"], config["data"]
    sources = list(next(iter(next(iter(record["sources"].values())).values())))
    parts = [
        "# Distillation, measured",
        "",
        f"A teacher of {words.count(teacher['layers'], 'layer')} ({teacher['parameters']:,} parameters) and its students of "
        f"{words.count(student['layers'], 'layer')} ({student['parameters']:,}), on {data['name']} (V = {student['vocab_size']:,}). "
        f"Students were trained for {config['steps']:,} steps of {config['batch_size'] * config['context']:,} tokens, with "
        f"{words.count(record['seeds'], 'seed')} each, from the same weights and on the same batches, and measured on "
        f"{config['heldout_tokens']:,} tokens of {words.count(config['heldout_documents'], 'document')} that neither was trained on.",
        "",
        "Brackets are 95 % intervals of paired differences over seeds and documents. ▲ better, ▼ worse, as far as the interval says; "
        "each comparison stands for itself, so a few of so many are wrong.",
        "",
        "```text",
        record["command"],
        "```",
        "",
        f"*{_machine(record)}. Made by `docs/build_distilled.py` from the record of that run.*",
        "",
        "## The objectives",
        "",
        *_objectives(record, sources[0]),
        "",
        "## Where the student learns from",
        "",
        *_sources_said(config, sources),
        "",
    ]
    for key, metric in METRICS.items():
        aim = "higher" if metric.better == "higher" else "lower"
        parts += [f"### {metric.label}", "", f"{metric.meaning} {aim.capitalize()} is better.", ""]
        parts += _table(
            ["objective", *sources],
            (
                [f"`{name}`", *(_cell(cells.get(s), key) for s in sources)]
                for name, cells in record["sources"][key].items()
            ),
        )
        parts += ["", *_counted(record["sources"][key], sources), ""]
    return "\n".join([*parts, *_cost(record)]).rstrip() + "\n"


def _machine(record: dict[str, Any]) -> str:
    m = record["machine"]
    return f"{record['created'][:10]}, {m['processor']}, {words.count(m['threads'], 'thread')}, fenchel {m['fenchel']}, torch {m['torch']}"


def _objectives(record: dict[str, Any], source: str) -> list[str]:
    """Every objective from the first source against the baseline, with teacher and untrained student for scale."""
    before, baseline = record["before"], next(iter(record["objectives"]["teacher_kl"]))
    rows = [
        [f"`{name}`", *(_cell(record["objectives"][key][name], key) for key in METRICS)]
        for name in record["objectives"]["teacher_kl"]
    ]
    student = [words.number(before["student"].get(key), METRICS[key].unit) for key in METRICS]
    teacher = [words.number(before["teacher"].get(key), METRICS[key].unit) for key in METRICS]
    header = ["objective", *(metric.label for metric in METRICS.values())]
    return [
        f"All from the source {source}, compared with `{baseline}`. The held-out loss of the teacher is "
        f"{before['teacher'][LOSS]:.3f} nats per token, that of the untrained student {before['student'][LOSS]:.3f}.",
        "",
        *_table(header, [["*untrained student*", *student], *rows, ["*teacher*", *teacher]]),
        "",
        f"`{LABELS}` is training without the teacher." if LABELS in record["objectives"]["teacher_kl"] else "",
    ]


def _sources_said(config: dict[str, Any], sources: list[str]) -> list[str]:
    meaning = {
        "live": "`live`: batches of the data, the teacher is asked at every step.",
        "cache": f"`cache`: the same batches, the teacher is read from disk ({config['cache']}).",
        "on-policy": f"`on-policy`: {100 * config['on_policy']:g} % of the batches are what the student writes after the first "
        "quarter of each sequence, and the live teacher judges them.",
    }
    return [*(f"- {meaning[s]}" for s in sources), "", f"Differences are to the same objective from `{sources[0]}`."]


def _counted(rows: dict[str, dict[str, Any]], sources: list[str]) -> list[str]:
    """How often each source came out better and worse."""
    said = []
    for source in sources[1:]:
        counts = Counter(cells[source]["verdict"] for cells in rows.values() if source in cells)
        parts = [f"{verdict} for {n}" for verdict, n in counts.most_common()]
        said.append(
            f"- `{source}` against `{sources[0]}`, of {sum(counts.values())} objectives: {words.listing(parts)}."
        )
    return said


def _cost(record: dict[str, Any]) -> list[str]:
    timing = record["timing"]
    if timing is None:
        return []
    seconds = timing["seconds_per_step"]
    return [
        "## What a cache costs and saves",
        "",
        f"A student's step (`{timing['objective']}`) takes {seconds['live']:.4f} s with the live teacher and {seconds['cached']:.4f} s from "
        f"its cache: {timing['speedup']:.2f} times as fast (medians of {timing['steps']} steps of each, in turn). The cache keeps "
        f"{timing['keeps']} in {timing['bytes_per_token']:,.1f} bytes a token; all classes in float16 would take {timing['dense_bytes_per_token']:,}.",
    ]


def _cell(numbers: dict[str, Any] | None, key: str) -> str:
    if numbers is None:
        return ""
    metric, interval = METRICS[key], numbers["interval"]
    known = None if interval is None else Interval(**interval)
    return distill_sources.cell(Comparison(metric, "", numbers["value"], known, numbers["verdict"]), metric)


def _table(header: list[str], rows: Any) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def main() -> None:
    """Take the numbers of a run, if one is named, and write the page."""
    if len(sys.argv) > 1:
        NUMBERS.write_text(json.dumps(extract(Path(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(NUMBERS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"wrote {PAGE.name}")


if __name__ == "__main__":
    main()
