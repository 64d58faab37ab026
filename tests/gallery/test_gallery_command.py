"""fenchel papers, as a user types it."""

import json

import pytest
from typer.testing import CliRunner

from fenchel.cli import app
from fenchel.gallery import papers
from fenchel.gallery.paper import Paper


@pytest.fixture
def fenchel(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: CliRunner().invoke(app, ["papers", *arguments])


@pytest.fixture
def small(monkeypatch):
    """P065 with an experiment of no length."""

    def draw(figure, measured):
        figure.subplots().plot([m["x"] for m in measured])

    from fenchel.gallery.checks import mean

    one = Paper(
        id="P065",
        title="A [title]",
        source="arXiv 0000.00000",
        claim="It grows.",
        setup="A line.",
        objectives=("pld",),
        run=lambda seed, scale: {"x": 1.0 + seed},
        judge=lambda measured: [mean("x", [m["x"] for m in measured], more_than=0.0)],
        draw=draw,
        seeds=20,
    )
    monkeypatch.setitem(papers(), "P065", one)
    return one


def test_the_list_has_every_paper_and_its_verdict(fenchel):
    shown = fenchel()
    assert shown.exit_code == 0
    for name in papers():
        assert name in shown.output
    assert any(word in shown.output for word in ("shown", "partly"))


def test_show_says_claim_and_result(fenchel):
    shown = fenchel("show", "p065")
    assert shown.exit_code == 0
    assert "Claim:" in shown.output
    assert "verdict:" in shown.output


def test_run_writes_numbers_figure_and_page(fenchel, small, tmp_path):
    ran = fenchel("run", "P065", "--out", str(tmp_path / "new"))
    assert ran.exit_code == 0, ran.output
    assert "verdict: shown (20 seeds)" in ran.output
    assert "A [title]" in ran.output
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["gallery.md", "p065.json", "p065.svg"]
    assert len(json.loads((tmp_path / "new" / "p065.json").read_text())["measured"]) == 20
    assert "(./p065.svg)" in (tmp_path / "new" / "gallery.md").read_text()


def test_run_takes_fewer_seeds_and_writes_nothing_unasked(fenchel, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "verdict: not shown (2 seeds)" in fenchel("run", "P065", "--seeds", "2").output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "P999"], "error: got 'P999', which is no paper of the gallery: pass one of P0"),
        (["show", "P999"], "error: got 'P999', which is no paper of the gallery: pass one of P0"),
        (["P065"], "error: got P065 in the place of a command: pass fenchel papers show P065"),
        (["run"], "error: got no paper: pass ids such as P065, or --all"),
        (["run", "P065", "--all"], "error: got papers and --all: pass ids such as P065, or --all"),
    ],
)
def test_bad_input_is_one_line(fenchel, arguments, message):
    ran = fenchel(*arguments)
    assert ran.exit_code == 2
    assert ran.stderr.startswith(message)
    assert ran.stderr.count("\n") == 1
