"""The report: one file, well formed, nothing fetched, nothing unescaped, whatever the state of the study."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from fenchel.study import markup, plots, report, stats, words
from fenchel.study.analysis import analyse
from fenchel.study.definitions import METRICS
from fenchel.study.errors import StudyError
from fenchel.study.record import load

from .make_study import make_study

VOID = {"meta", "br", "hr", "img", "wbr"}
NASTY = '</script><script>alert("x")</script><img src=http://evil/x onerror=alert(1)>'


class Reader(HTMLParser):
    """Checks that every tag is closed in order, and collects what a browser would act on."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.loads, self.ids, self.text, self.references = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)
            self.references += re.findall(r"url\(#([^)]*)\)", value or "")
            if name.startswith("on"):
                raise AssertionError(f"handler {name} in <{tag}>")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    page = Path(path).read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return page, reader, " ".join("".join(reader.text).split())


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    out = make_study(tmp_path_factory.mktemp("full"))
    return out, *read(report.write(out))


def test_is_well_formed_and_loads_nothing(full):
    _, page, reader, _ = full
    assert reader.tags.count("html") == reader.tags.count("body") == reader.tags.count("style") == 1
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(reader.tags)
    assert all(load.startswith("#") for load in reader.loads)
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*[\"']?([^)]*)\)", page))


def test_ids_are_unique_and_every_reference_finds_its_own(full):
    _, _, reader, _ = full
    assert len(reader.ids) == len(set(reader.ids))
    assert {load[1:] for load in reader.loads} | set(reader.references) <= set(reader.ids)
    assert len(reader.loads) > 50


def test_figures_follow_the_page_colours(full):
    _, page, reader, _ = full
    assert reader.tags.count("svg") == 4 + 5 + 4 + 2
    body = page[page.index("<body>") :]
    assert not re.findall(r"(?:fill|stroke): ?#[0-9a-fA-F]{3,6}", body)
    css = page[: page.index("</style>")]
    for name in set(re.findall(r"var\((--[\w-]+)\)", page)):
        assert f"{name}:" in css, name


def test_continuations_and_names_are_escaped(full):
    _, page, reader, text = full
    assert "<script>" not in page
    assert "script" not in reader.tags
    assert 'def walk(top, <script>alert("x")</script>): if a < b && c > d:' in text


def test_says_what_was_measured(full):
    out, _, _, text = full
    final = json.loads((out / "runs" / "alpha_1.5" / "seed0" / "final.json").read_text())
    assert 0.2 < final["summary"]["accuracy_1"] < 0.5
    values = [
        json.loads((out / "runs" / "alpha_1.5" / f"seed{k}" / "final.json").read_text())["summary"]["accuracy_1"]
        for k in range(3)
    ]
    assert f"alpha:1.5 predicts {100 * sum(values) / 3:.1f} % of held-out tokens right" in text
    assert "better" in text
    assert "over 3 seeds and 12 held-out documents" in text
    assert "head (output projection and loss) takes 22 % of the training time of kl" in text
    assert "too little" in text
    assert "fenchel compare --objectives kl,alpha:1.5,alpha:2,js" in text
    for metric in METRICS:
        assert metric.label in text
        assert " ".join(metric.formula.split()) in text


def test_no_number_is_broken(full):
    _, _, _, text = full
    assert not re.search(r"\b(nan|inf|None|NaN)\b", text)


def test_same_record_same_bytes(full, tmp_path):
    out, page, _, _ = full
    make_study(tmp_path / "one", ("alpha:1.5",), (0,))
    first = report.write(tmp_path / "one").read_bytes()
    assert report.write(tmp_path / "one").read_bytes() == first
    assert str(out) not in page
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["report.html", "runs", "study.json"]


def test_partial_study_says_what_is_missing(tmp_path):
    long = "a_generator_with_a_very_long_name_from_a_notebook:0.12345678"
    names = ("kl", "alpha:1.5", long, "js")
    out = make_study(tmp_path / "s", names, (0, 1), unfinished=(("js", 0), ("js", 1), ("alpha:1.5", 1)))
    with (out / "runs" / "js" / "seed0" / "train.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')  # killed while writing
    _, reader, text = read(report.write(out))
    assert "3 of 8 runs are missing (alpha:1.5 seed 1, js seed 0 and js seed 1)" in text
    assert long in text
    assert reader.tags.count("svg") == 4 + 5 + 3 + 2
    assert "with one seed" in text


def test_baseline_missing_compares_nothing(tmp_path):
    out = make_study(tmp_path / "s", ("kl", "js"), (0,), unfinished=(("kl", 0),))
    _, _, text = read(report.write(out))
    assert "Nothing was compared" in text
    assert "Without a baseline to compare with, js (Jensen–Shannon), predicts" in text


def test_nan_metrics_and_missing_measurements_are_shown_as_such(tmp_path):
    out = make_study(tmp_path / "s", ("kl", "js"), (0, 1))
    for path in (out / "runs").glob("js/*/final.json"):
        final = json.loads(path.read_text())
        final["summary"]["accuracy_1"] = final["summary"]["eps_perplexity"] = math.nan
        final["per_document"]["accuracy_1"][3] = final["per_document"]["log_eps_perplexity"][3] = math.nan
        path.write_text(json.dumps(final))
    for path in (out / "runs").glob("*/*/final.json"):
        final = json.loads(path.read_text())
        final |= {"head_seconds_share": None, "head_peak_bytes": None, "continuation": {"prompt": NASTY, "text": NASTY}}
        path.write_text(json.dumps(final))
    for path in (out / "runs").glob("*/*/eval.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines[2:]:
            line["metrics"]["eps_perplexity"] = math.nan
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, reader, text = read(report.write(out))
    assert "js (Jensen–Shannon) predicts n/a of held-out tokens right" in text
    assert "not enough runs" in text
    assert "was not recorded" in text
    assert "img" not in reader.tags
    assert NASTY in text


def test_unfinished_study_is_a_one_line_error_and_leaves_nothing(tmp_path):
    out = make_study(tmp_path / "s", ("kl",), (0,), unfinished=(("kl", 0),))
    with pytest.raises(report.NothingFinished, match=r"none of its 1 runs finished: .*again"):
        report.write(out)
    assert not (out / "report.html").exists()
    with pytest.raises(StudyError, match=r"holds no study.json: pass"):
        report.write(tmp_path)
    (out / "study.json").write_text('{"objectives": ["kl"]')
    with pytest.raises(StudyError, match=r"cannot read .*study.json"):
        report.write(out)


def test_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    out = tmp_path / "s"
    make_study(out, ("kl",), (0,))
    (out / "report.html").write_text("old")
    monkeypatch.setattr(report, "render", lambda _: "new")
    monkeypatch.setattr(report.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "broken")))
    with pytest.raises(OSError, match="broken"):
        report.write(out)
    assert (out / "report.html").read_text() == "old"
    assert not list(out.glob(".report*"))


def test_terminal_table(full):
    out = full[0]
    console = Console(width=140, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(report.table(out))
    shown = capture.get()
    assert "kl (baseline)" in shown
    assert "▲ better" in shown
    assert "over 3 seeds and 12 held-out documents" in " ".join(shown.split())
    for metric in METRICS:
        assert metric.label in shown


def test_many_objectives_with_long_names_stay_apart(tmp_path):
    sums = [f"cross_entropy + {weight}*log_partition" for weight in ("1e-4", "1e-2")]
    out = make_study(tmp_path / "s", ("kl", "sce:alpha=0.1,beta=1", "focal:gamma=2", "stablemax", *sums), (0, 1))
    _, _, text = read(report.write(out))
    for name in sums:
        # the legend has the whole name, an axis the same in two lines
        assert name in text
        assert re.search(rf"cross_entropy \+\s+{re.escape(name.rpartition(' ')[2])}", text)
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(report.table(out))
    shown = capture.get()
    assert all(part in shown for name in sums for part in name.split())
    assert "kl (baseline)" in " ".join(shown.split())
    assert "better" in shown


def test_a_narrow_terminal_cuts_no_word_of_the_caption(tmp_path):
    names = (
        "kl",
        "focal:gamma=2",
        "sce:alpha=0.1,beta=1",
        "cross_entropy + 1e-4*log_partition",
        "stablemax",
        "alpha:1.5",
    )
    out = make_study(tmp_path / "s", names, (0, 1))
    caption = words.intervals(analyse(load(out)).cells)
    for width in range(70, 90):
        console = Console(width=width, force_terminal=False)
        with console.capture() as capture:
            console.print(report.table(out))
        assert " ".join(capture.get().split()).endswith(" ".join(caption.split())), width


def test_the_results_of_many_objectives_may_be_broken_where_they_read_well(tmp_path):
    out = make_study(tmp_path / "s", ("kl", "sce:alpha=0.1,beta=1", "focal:gamma=2"))
    page, _, _ = read(report.write(out))
    head = page[page.index('class="results"') :].partition("</thead>")[0]
    assert "sce:alpha=0.1,<wbr>beta=1" in head
    brackets = re.findall(r'<span class="delta">[^<\[]+ <span class="term">\[[^<]*, [^<]*\]</span></span>', page)
    assert len(brackets) == page.count('<span class="delta">+') + page.count('<span class="delta">−') + page.count(
        '<span class="delta">×'
    )
    assert brackets


def test_colours_and_markers_tell_many_objectives_apart():
    looks = {(plots.colour(i), plots.symbol(i)) for i in range(20)}
    assert len(looks) == 20


@pytest.mark.parametrize(
    ("raw", "safe"),
    [
        ("<b>&\"'", "&lt;b&gt;&amp;&quot;&#x27;"),
        ("a\x00b\x1bc\ud800d", "a\ufffdb\ufffdc\ufffdd"),
        ("x\u202ey", "x\ufffdy"),
        ("tab\tline\nünïcode ε", "tab\tline\nünïcode ε"),
        ("dos\r\nline", "dos\nline"),
    ],
)
def test_text_is_safe(raw, safe):
    assert markup.text(raw) == safe
    assert markup.text(markup.Raw("<b>")) == "<b>"


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.3312, "percent", "33.1 %"),
        (0.00044, "percent", "0.04 %"),
        (4096.0, "tokens", "4,096"),
        (15.24, "tokens", "15.2"),
        (2.0**20, "bytes", "1.0 MiB"),
        (math.nan, "percent", "n/a"),
        (None, "number", "n/a"),
        (math.inf, "number", "∞"),
    ],
)
def test_numbers(value, unit, shown):
    assert words.number(value, unit) == shown


def cell(key, *ends):
    interval = stats.Interval(*ends, 3, 9)
    metric = next(m for m in METRICS if m.key == key)
    return stats.Comparison(metric, "js", 1.0, interval, stats.verdict(interval, metric.better))


@pytest.mark.parametrize(
    ("key", "ends", "shown"),
    [
        ("accuracy_1", (0.012, 0.008, 0.016), "+1.20 points [+0.80, +1.60]"),
        ("accuracy_1", (0.012, 0.00001, 0.016), "+1.200 points [+0.001, +1.600]"),
        ("eps_perplexity", (math.log(0.9), math.log(0.8), math.log(0.95)), "−10.0 % [−20.0 %, −5.0 %]"),
        ("tokens_per_second", (math.log(5), math.log(4), math.log(6)), "×5 [×4, ×6]"),
        ("brier", (-0.01, -0.02, 0.001), "−0.0100 [−0.0200, +0.0010]"),
        ("brier", (0.0, 0.0, 0.0), ""),
        ("tokens_per_second", (math.log(1.1), math.nan, math.nan), "+10.0 %"),
    ],
)
def test_differences_as_text(key, ends, shown):
    assert words.interval_text(cell(key, *ends)) == shown


@pytest.mark.parametrize(("share", "said"), [(0.1, "too little"), (0.5, "enough for its speed to show")])
def test_head_paragraph_follows_the_share(full, share, said):
    study = load(full[0])
    assert said in words.head(study, {"kl": share})
    assert "not recorded" in words.head(study, {"kl": math.nan})


def test_budget_is_chosen_from_the_measured_share(full):
    study = load(full[0])
    sizes = [
        {"budget": 1.0, "vocab_size": 1024, "hidden_size": 64, "head_share": 0.6},
        {"budget": 5.0, "vocab_size": 4096, "hidden_size": 128, "head_share": 0.5},
        {"budget": 20.0, "vocab_size": 8192, "hidden_size": 192, "head_share": 0.5},
        {"budget": 50.0, "vocab_size": 16384, "hidden_size": 256, "head_share": 0.75},
    ]
    study.info["calibration"] = {"sizes": sizes}
    # odds at this size 0.1/0.9 against counted 1, so the largest has odds 3 * 0.111 = 1/3: a quarter
    assert "--budget 50, whose vocabulary of 16,384 should bring the head to about 25 %" in words.head(
        study, {"kl": 0.1000001}
    )


def test_documentation_has_every_metric_with_its_formula():
    page = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8").replace("\\|", "|")
    for metric in METRICS:
        assert f"| {metric.label} | `{metric.formula}` | {metric.better} |" in page


def test_warns_where_predictions_got_worse_in_training(tmp_path):
    out = make_study(tmp_path / "s", ("kl", "dft"), (0, 1))
    study = load(out)
    assert "before it was trained" not in " ".join(words.sentences(study, analyse(study).cells))
    for path in (out / "runs" / "dft").glob("*/eval.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line, value in ((lines[0], 1024.0), (lines[-1], 20_000.0)):
            line["metrics"]["eps_perplexity"] = value
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = load(out)
    baseline, said = words.sentences(study, analyse(study).cells)
    assert "before it was trained" not in baseline
    assert "worse than before it was trained (20,000, and 1,024 then, on the windows" in said


def test_warns_where_the_smoothing_decides(tmp_path):
    out = make_study(tmp_path / "s", ("kl", "alpha:1.5"), (0,))
    warning = "lower than the baseline's for λ = 0.01 and 0.1 and higher for λ = 0.001: which is better depends"
    study = load(out)
    assert warning in " ".join(words.sentences(study, analyse(study).cells))
    path = out / "runs" / "alpha_1.5" / "seed0" / "final.json"
    final = json.loads(path.read_text())
    final["summary"]["eps_perplexity_mass_0.001"] = 1.0
    path.write_text(json.dumps(final))
    study = load(out)
    said = " ".join(words.sentences(study, analyse(study).cells))
    assert "which is better depends" not in said
    assert "counting 5.7 % of tokens that it calls impossible" in said
