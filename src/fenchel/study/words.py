"""Numbers as text, and the sentences of the report: all of them computed from the record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fenchel.study.definitions import METRICS, SENSITIVITY, SMOOTHING, Metric
from fenchel.study.record import Study
from fenchel.study.stats import Comparison, Interval, mean

METRIC = {metric.key: metric for metric in METRICS}
VISIBLE_SHARE = 0.25  # of the step time: below it a head that cost nothing would make training at most 1.33 x as fast
FULL_NAMES = {"kl": "cross-entropy", "js": "Jensen–Shannon", "reverse_kl": "reverse KL", "alpha:2": "sparsemax"}
MARKS = {
    "better": "▲",
    "worse": "▼",
    "higher": "↑",
    "lower": "↓",
    "no clear difference": "≈",
    "identical": "=",
    "not enough runs": "?",
}
MINUS = "−"


def number(value: float | None, unit: str = "number") -> str:
    """A metric's value in its unit.

    Example:
        >>> number(0.3312, "percent"), number(4096, "tokens"), number(None), number(9437184, "bytes")
        ('33.1 %', '4,096', 'n/a', '9.0 MiB')
    """
    if value is None or math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if unit == "percent":
        places = 1 if abs(value) >= 0.01 or value == 0 else 2
        return f"{100 * value:.{places}f} %".replace("-", MINUS)
    if unit == "bytes":
        return f"{value / 2**20:,.1f} MiB"
    magnitude = abs(value)
    places = 0 if magnitude >= 1000 or value == int(value) else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 3
    return f"{value:,.{places}f}".replace("-", MINUS)


def change(comparison: Comparison) -> tuple[str, str, str] | None:
    """Difference and both ends of its interval, in points, per cent or plain units; `None` for the baseline."""
    if comparison.interval is None:
        return None
    values = (comparison.interval.difference, comparison.interval.low, comparison.interval.high)
    if comparison.metric.scale == "ratio":
        ratios = [_exp(v) for v in values]
        # percentages stop being readable where something becomes several times as large
        if max((r for r in ratios if not math.isnan(r)), default=0.0) >= 3:
            return _three("n/a" if math.isnan(r) else f"×{r:.3g}" for r in ratios)
        return _alike([100 * (r - 1) for r in ratios], 1, " %")
    if comparison.metric.unit == "percent":
        return _alike([100 * v for v in values], 2)
    return _alike(values, 4)


def _alike(values: Sequence[float], places: int, after: str = "") -> tuple[str, str, str]:
    # an end of the interval that is not zero must not read as zero: the verdict hangs on it
    while places < 7 and any(v and abs(v) < 0.5 * 10**-places for v in values):
        places += 1
    return _three(_signed(v, places, after) for v in values)


def _three(texts: Iterable[str]) -> tuple[str, str, str]:
    middle, low, high = texts
    return middle, low, high


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)


def _signed(value: float, places: int, after: str = "") -> str:
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return ("+" if value > 0 else MINUS) + "∞"
    # no minus sign in front of nothing but zeros
    shown = round(value, places) + 0.0
    return f"{shown:+.{places}f}{after}".replace("-", MINUS)


def change_unit(metric: Metric) -> str:
    """What the difference is counted in, where the number does not say it."""
    return " points" if metric.scale == "difference" and metric.unit == "percent" else ""


def interval_text(comparison: Comparison) -> str:
    """For example "+1.20 points [+0.80, +1.60]"."""
    parts = change(comparison)
    if parts is None:
        return ""
    if comparison.verdict == "identical":
        return ""
    middle, low, high = parts
    if low == high == "n/a":
        return middle + change_unit(comparison.metric)
    return f"{middle}{change_unit(comparison.metric)} [{low}, {high}]"


def full_name(objective: str) -> str:
    """The objective with what it is commonly called, where that differs."""
    return f"{objective} ({FULL_NAMES[objective]})" if objective in FULL_NAMES else objective


def listing(items: Sequence[str]) -> str:
    """For example "a, b and c"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else ""


def count(n: int, singular: str, plural: str = "") -> str:
    """For example "3 seeds"."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def setting(study: Study) -> str:
    """First sentence: what was trained on what."""
    config = study.info.get("config", {})
    data, model = config.get("data", {}), config.get("model", {})
    size = []
    if model.get("parameters"):
        n = model["parameters"]
        size.append(f"{n / 1e6:.3g} million parameters" if n >= 1e6 else count(n, "parameter"))
    if config.get("vocab_size"):
        size.append(f"a vocabulary of {config['vocab_size']:,}")
    if config.get("steps"):
        size.append(count(config["steps"], "step"))
    if config.get("batch_size") and config.get("context"):
        size.append(f"{config['batch_size'] * config['context']:,} tokens a step")
    corpus = f"On this corpus ({data['name']})" if data.get("name") else "On this corpus"
    at = f" at this size ({', '.join(size)})" if size else ""
    trained = f"{count(len(study.objectives), 'objective')} trained with {count(len(study.info['seeds']), 'seed')} each"
    rate = f" at the same learning rate ({config['lr']:g})" if config.get("lr") else ""
    return f"{corpus}{at}, {trained}, from the same initialisations, on the same batches{rate and ' and'}{rate}."


def predictions(study: Study) -> str:
    """What the models predict with, objectives of the same together, to follow a statement about it; "" where the record does not say."""
    by_operator: dict[str, list[str]] = {}
    for name, operator in study.info.get("config", {}).get("predictions", {}).items():
        by_operator.setdefault(operator, []).append(name)
    said = [f"{operator} for {listing(names)}" for operator, names in by_operator.items()]
    return f": {'; '.join(said)}" if said else ""


def sentences(study: Study, cells: dict[str, dict[str, Comparison]]) -> list[str]:
    """One sentence per objective with a finished run; `cells` is per metric and objective."""
    said = []
    for objective in study.finals():
        accuracy, perplexity = cells["accuracy_1"][objective], cells["eps_perplexity"][objective]
        here = f"predicts {number(accuracy.value, 'percent')} of held-out tokens right"
        there = f"has an ε-perplexity of {number(perplexity.value)}"
        if accuracy.interval is None:
            role = "The baseline, " if objective == study.baseline else "Without a baseline to compare with, "
            said.append(f"{role}{full_name(objective)}, {here} and {there}.")
            continue
        zero = cells["zero_target_share"][objective].value
        if zero > 0:
            there += f", counting {number(zero, 'percent')} of tokens that it calls impossible"
        parts = [f"{here} ({_judged(accuracy)})", f"{there} ({_judged(perplexity)})"]
        speed = cells["tokens_per_second"][objective]
        if speed.interval is not None and not math.isnan(speed.interval.difference):
            parts.append(f"trains {_exp(speed.interval.difference):.2f} × as fast ({speed.verdict})")
        warnings = _worse_than_untrained(study, objective) + _smoothing(study, objective)
        said.append(f"{full_name(objective)} {listing(parts)}.{warnings}")
    return said


def _worse_than_untrained(study: Study, objective: str) -> str:
    """A warning where the predictions of held-out text got worse from before the training to its end."""
    runs = [run for run in study.runs[objective].values() if run.finished and run.evals]
    before, after = (mean([run.evals[at]["metrics"].get("eps_perplexity") for run in runs]) for at in (0, -1))
    if not after > before:
        return ""
    return (
        f" By ε-perplexity it predicts worse than before it was trained ({number(after)}, and {number(before)} then, on the "
        "windows of the learning curve), at this learning rate and in this many steps."
    )


def _smoothing(study: Study, objective: str) -> str:
    """A warning where the comparison of epsilon-perplexities depends on how much of the probability is spread out."""
    ours, theirs = study.finals()[objective], study.finals()[study.baseline]
    shared = sorted(set(ours) & set(theirs))
    keys = {SMOOTHING: "eps_perplexity"} | {s: f"eps_perplexity_mass_{s:g}" for s in SENSITIVITY}
    lower, higher = [], []
    for smoothing in sorted(keys):
        pairs = [[runs[k]["summary"].get(keys[smoothing], math.nan) for runs in (ours, theirs)] for k in shared]
        difference = sum(mine - base for mine, base in pairs)
        # NaN is neither lower nor higher
        if difference < 0:
            lower.append(f"{smoothing:g}")
        if difference > 0:
            higher.append(f"{smoothing:g}")
    if not (lower and higher):
        return ""
    return (
        f" Its ε-perplexity is lower than the baseline's for λ = {listing(lower)} and higher for "
        f"λ = {listing(higher)}: which is better depends on what an impossible token should cost."
    )


def _judged(comparison: Comparison) -> str:
    measured = interval_text(comparison)
    return f"{measured}: {comparison.verdict}" if measured else str(comparison.verdict)


def intervals(cells: dict[str, dict[str, Comparison]]) -> str:
    """What the intervals cover, and how many false differences to expect among so many."""
    compared = [c for row in cells.values() for c in row.values() if c.interval is not None]
    quality: list[Interval] = [c.interval for c in cells["accuracy_1"].values() if c.interval is not None]
    if not quality:
        return (
            "Nothing was compared: that takes a finished run of the baseline and of another objective on the same seed."
        )
    seeds, documents = min(i.seeds for i in quality), quality[0].documents
    said = "Brackets hold 95 % bootstrap intervals of the paired difference to the baseline, "
    if seeds == 1:
        said += f"over {count(documents, 'held-out document')} only: with one seed, what another would give is open."
    else:
        said += f"over {count(seeds, 'seed')} and {count(documents, 'held-out document')}"
        said += "; for speed and memory, over seeds alone."
    judged = sum(c.verdict not in (None, "identical", "not enough runs") for c in compared)
    if judged > 1:
        said += (
            f" The table makes {judged} comparisons and each stands for itself: if no objective differed from the "
            f"baseline in anything, about {0.05 * judged:.2g} would still be called different."
        )
    return said


def head(study: Study, shares: dict[str, float]) -> str:
    """What this size says about the speed of the head, from the share of the step time that the head takes."""
    known = {name: share for name, share in shares.items() if not math.isnan(share)}
    if not known:
        return "The head's share of the step time was not recorded, so nothing is said about the head's speed."
    name = study.baseline if study.baseline in known else next(iter(known))
    share = known[name]
    bound = f"{1 / (1 - share):.2f}" if share < 1 else "∞"
    said = (
        f"At this size the head (output projection and loss) takes {100 * share:.0f} % of the training time of {name}"
    )
    if share >= VISIBLE_SHARE:
        return said + (
            f": enough for its speed to show. A head that cost nothing would train {bound} × as fast. Quality is "
            "what the number of steps and the size of the model make it: a longer run can rank the objectives "
            "differently."
        )
    return said + (
        f". That is too little for the head's speed to show: a head that cost nothing would train only {bound} × as "
        f"fast. Read this report for quality per step; {_larger(study, share)}"
    )


def _larger(study: Study, share: float) -> str:
    """The least budget whose size should show the head: the measured share, scaled by counted multiplications."""
    sizes = (study.info.get("calibration") or {}).get("sizes") or []
    model = study.info.get("config", {}).get("model", {})
    here = [s for s in sizes if all(s[k] == model.get(k) for k in ("vocab_size", "hidden_size"))]
    if here and share > 0:
        slower = (share / (1 - share)) / (here[0]["head_share"] / (1 - here[0]["head_share"]))
        for size in sorted(sizes, key=lambda s: s["budget"]):
            odds = slower * size["head_share"] / (1 - size["head_share"])
            if size["budget"] > here[0]["budget"] and odds / (1 + odds) >= VISIBLE_SHARE:
                return (
                    f"for speed, run fenchel compare --budget {size['budget']:g}, whose vocabulary of "
                    f"{size['vocab_size']:,} should bring the head to about {100 * odds / (1 + odds):.0f} % "
                    "(from this run's share and the multiplications counted)."
                )
    return "for speed, run fenchel compare --budget 60, or a model with a larger vocabulary for its width."
