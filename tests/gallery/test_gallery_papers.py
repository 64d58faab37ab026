"""Every paper: a small version of its experiment runs, is judged and drawn; its committed result is what the page says."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from fenchel.gallery import find, papers
from fenchel.gallery.checks import mean
from fenchel.gallery.figures import svg
from fenchel.gallery.page import page
from fenchel.gallery.paper import Paper
from fenchel.gallery.result import RESULTS, Result, execute, judge, load, rounded, save

DOCS = Path(__file__).resolve().parents[2] / "docs"
SMALL = 0.02


@pytest.mark.parametrize("name", list(papers()))
def test_a_small_version_runs(name):
    paper = find(name)
    result = execute(paper, seeds=2, scale=SMALL)
    checks, verdict = judge(paper, result)
    assert result.seeds == 2
    assert verdict in ("shown", "partly", "not shown")
    assert len({check.statement for check in checks}) == len(checks)
    committed = load(RESULTS, [name])[name]
    # what the committed run measured has the shape of what the file measures now
    assert [set(m) for m in committed.measured] == [set(result.measured[0])] * committed.seeds
    assert committed.seeds == paper.seeds
    assert committed.scale == 1


def test_the_same_seed_measures_the_same():
    paper = find("P065")
    first, second = (execute(paper, seeds=2, scale=SMALL).measured for _ in range(2))
    assert first == second
    assert first[0] != first[1]


def test_a_run_leaves_torch_as_it_was():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    execute(find("P065"), seeds=1, scale=SMALL)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", list(papers()))
def test_what_a_paper_declares(name):
    paper = find(name)
    assert re.fullmatch(r"P\d{3}", paper.id)
    assert type(paper).__module__ == "fenchel.gallery.paper"
    assert paper.claim.endswith(".")
    assert paper.setup.endswith(".")
    assert "  " not in paper.claim + paper.setup + paper.notes
    assert re.fullmatch(r"arXiv \d{4}\.\d{4,5}|https://\S+|.* \d{4}", paper.source)
    assert paper.seeds >= 5


def test_unknown_papers_are_refused():
    with pytest.raises(ValueError, match=r"^got 'P999', which is no paper of the gallery: pass one of P0"):
        find("P999")


def build():
    spec = importlib.util.spec_from_file_location("docs_build_gallery", DOCS / "build_gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers_and_rest(text: str) -> tuple[list[float], str]:
    number = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
    return [float(found) for found in number.findall(text)], number.sub("0", text)


def test_page_and_figures_are_those_of_the_results():
    made = build().made()
    there = {"gallery.md", *(f"gallery/{path.name}" for path in (DOCS / "gallery").iterdir())}
    assert there == set(made)
    for name, text in made.items():
        committed = (DOCS / name).read_text(encoding="utf-8")
        if name.endswith(".md"):
            assert committed == text, "docs/gallery.md is stale: run `python docs/build_gallery.py`"
        else:
            (old, old_rest), (new, new_rest) = numbers_and_rest(committed), numbers_and_rest(text)
            assert old_rest == new_rest, f"{name} is stale: run `python docs/build_gallery.py`"
            assert new == pytest.approx(old, abs=0.02)
            assert len(text.encode()) < 60_000


@pytest.fixture
def paper() -> Paper:
    def draw(figure, measured):
        figure.subplots().plot([m["x"] for m in measured])

    return Paper(
        id="P000",
        title="A title",
        source="arXiv 0000.00000",
        claim="It grows.",
        setup="A line.",
        objectives=("none",),
        run=lambda seed, scale: {"x": seed + scale / 3},
        judge=lambda measured: [mean("x", [m["x"] for m in measured], more_than=1.0)],
        draw=draw,
    )


def result_of(values: list[float]) -> Result:
    return Result("P000", 1.0, [{"x": x} for x in values], 1.0, "a date", "a commit", "a processor", 2, "versions")


def test_the_verdict_of_a_page_follows_its_numbers(paper):
    for values, word in (([2.0, 2.1, 2.2], "shown"), ([0.0, 0.1, 0.2], "not shown")):
        text = page({"P000": paper}, {"P000": result_of(values)})
        assert f"**Verdict: {word}.**" in text
        assert f"| [P000](#p000-a-title) | A title | `none` | {word}" in text
    assert "not run yet" in page({"P000": paper}, {})


def test_a_rehearsal_says_that_it_is_one(paper):
    assert "rehearsal" in page({"P000": paper}, {"P000": dataclasses.replace(result_of([2.0, 2.1]), scale=0.1)})


def test_results_are_kept_as_they_were_judged(paper, tmp_path):
    result = execute(paper, seeds=3)
    assert result.measured[1] == {"x": 1.33333}
    path = save(result, tmp_path)
    assert load(tmp_path, ["P000", "P001"]) == {"P000": result}
    assert "measured" in json.loads(path.read_text())
    assert judge(paper, result)[1] == "not shown"


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"^got a measurement of nan"):
        rounded({"x": [1.0, float("nan")]})


def test_small_tick_labels_are_not_rounded(paper):
    drawn = svg(paper, [{"x": 0.001}, {"x": 0.002}])
    labels = set(re.findall(r"<text [^>]*>([^<]*)</text>", drawn))
    assert {"0.0010", "0.0012", "0.0018", "0.0020"} <= labels
    assert not re.search(r"<[^!>][^>]*\d\.\d{3}", drawn)


def test_a_figure_is_the_same_every_time(paper):
    measured = [{"x": 1.0}, {"x": 2.0}]
    assert svg(paper, measured) == svg(paper, measured)
    assert "<text" in svg(paper, measured)
