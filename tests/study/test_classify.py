"""`fenchel compare --task classification`: what befalls the training rows, what is measured, and what it says of bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from typer.testing import CliRunner, Result

from fenchel.cli import app
from fenchel.study.classify import ClassifyRequest, measured, splits
from fenchel.study.tables import read_table


def invoke(out: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["compare", "--task", "classification", *words, "--out", str(out)])


@pytest.fixture
def iris_csv(tmp_path: Path) -> Path:
    x, y = load_iris(return_X_y=True)
    path = tmp_path / "iris.csv"
    rows = [f"{','.join(map(str, row))},kind {label}" for row, label in zip(x, y, strict=True)]
    path.write_text("\n".join(["a,b,c,d,label", *rows]) + "\n", encoding="utf-8")
    return path


def test_a_study_of_a_csv_file(tmp_path: Path, iris_csv: Path) -> None:
    out = tmp_path / "out"
    words = ("--data", str(iris_csv), "--objectives", "kl,alpha:1.5,focal:gamma=2", "--seeds", "2")
    result = invoke(out, *words, "--noise", "0.2", "--long-tail", "0.5")
    assert result.exit_code == 0, result.output
    page = (out / "report.html").read_text(encoding="utf-8")
    for said in ("macro-F1", "20.0 % of the training labels", "kind", "keeps 50.0 %", "focal:gamma=2", "2 seeds"):
        assert said.lower() in page.lower(), said
    final = json.loads((out / "runs" / "kl" / "seed0" / "final.json").read_text())
    assert 0.7 < final["accuracy"] <= 1
    before = {path: path.stat().st_mtime_ns for path in out.rglob("final.json")}
    assert invoke(out, *words, "--noise", "0.2", "--long-tail", "0.5").exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("final.json")}
    assert "--noise 0.2 instead of 0.3" in invoke(out, *words, "--noise", "0.3", "--long-tail", "0.5").output


def test_numbers_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    p, y = random.dirichlet(np.ones(4), 300), random.integers(0, 4, 300)
    numbers = measured(p, y)
    assert numbers["accuracy"] == pytest.approx(accuracy_score(y, p.argmax(1)))
    assert numbers["log_loss"] == pytest.approx(log_loss(y, 0.99 * p + 0.01 / 4))
    assert numbers["brier"] == pytest.approx(brier_score_loss(y, p, scale_by_half=False))
    assert sum(row["count"] for row in numbers["reliability"]) == 300
    sure = measured(np.eye(4)[y], y)
    assert (sure["ece"], sure["brier"], sure["zero_target"], sure["support"]) == (0, 0, 0, 1)


def test_noise_and_tail_befall_the_training_rows_alone() -> None:
    table = read_table("digits", None)
    request = ClassifyRequest(noise=0.4, long_tail=0.05)
    parts = list(splits(request, table, 0))
    assert sorted(np.concatenate([test for _, test, _ in parts])) == list(range(1797))
    for train, test, labels in parts:
        assert not set(train) & set(test)
        assert (labels != table.labels[train]).mean() == pytest.approx(0.4, abs=0.06)
        counts = np.bincount(table.labels[train])
        assert counts[9] / counts[0] == pytest.approx(0.05, abs=0.01)
        assert set(labels) == set(range(10))
    again = list(splits(request, table, 0))
    assert all((a[2] == b[2]).all() and (a[0] == b[0]).all() for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--objectives", "foo"), "--objectives foo: objective: got 'foo'; known"),
        (("--objectives", "alpha:1.5 + mae"), "predict with"),
        (("--objectives", "kl,kl"), "names kl twice"),
        (("--noise", "1"), "--noise must be a share of labels"),
        (("--long-tail", "0"), "--long-tail must be a ratio"),
        (("--folds", "1"), "--folds must be at least 2"),
        (("--data", "nowhere.csv"), "no such file, and no data set of that name"),
        (("--data", "iris", "--label", "a"), "iris has its labels"),
        (("--data", "iris", "--folds", "51"), "class setosa has 50 rows; pass at most 50"),
        (("--steps", "3"), "--steps 3 does not go with --task classification"),
    ],
)
def test_bad_arguments_end_in_one_line(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    result = invoke(tmp_path / "out", *words)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_options_of_classification_are_refused_for_text(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compare", "--noise", "0.4", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "--noise 0.4 does not go with --task text" in result.output
    assert "pass one of text, classification" in CliRunner().invoke(app, ["compare", "--task", "images"]).output


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("a,b\n1,2\n", None, "no label column: pass --label with one of a, b"),
        ("a,b\n1,2\n", "c", "no column c"),
        ("a,label\n1,x\nfoo,y\n", None, "line 3: column a must be a number, got foo"),
        ("a,label\n1,x\n,y\n", None, "line 3: column a is empty"),
        ("a,label\n1,x\nnan,y\n", None, "must be a number, got nan"),
        ("a,label\n1,x\n2,x\n", None, "all labels are x"),
        ("a,label\n", None, "no rows"),
        ("a,label\n1,x\n2,x\n3,y\n", None, "class y has 1 row; leave it out"),
        ("a,label\n1,x,2\n2,y\n", None, "line 2 has more cells than the 2 columns"),
        ("a,a,label\n1,2,x\n3,4,y\n", None, "names column a twice"),
        ("", None, "is empty: pass a CSV file"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, label: str | None, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    more = () if label is None else ("--label", label)
    result = invoke(tmp_path / "out", "--data", str(path), *more)
    assert result.exit_code == 2
    assert message in result.output
