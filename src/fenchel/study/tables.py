"""What `--data` can be for classification: a data set of scikit-learn, or a CSV file with a column of labels."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fenchel.study.errors import StudyError

NAMED = ("digits", "wine", "breast_cancer", "iris")
# the columns that hold labels where none is named
LABELS = ("label", "target", "class", "y")


@dataclass(frozen=True)
class Table:
    """Rows to classify: features [N, D], class indices [N], the classes' names."""

    name: str
    features: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


def read_table(source: str, label: str | None) -> Table:
    """The table that `source` names; `label` is the column of a CSV file that holds the classes.

    Raises:
        StudyError: no such data, no such column, a cell that is no number, one class alone.
    """
    if source in NAMED:
        if label is not None:
            raise StudyError(f"--label {label} is for CSV files: {source} has its labels")
        from sklearn import datasets

        loaded = getattr(datasets, f"load_{source}")()
        return Table(source, loaded.data, loaded.target, tuple(str(name) for name in loaded.target_names))
    path = Path(source).expanduser()
    if not path.is_file():
        raise StudyError(f"--data {source}: no such file, and no data set of that name ({', '.join(NAMED)})")
    return _csv(path, label)


def _csv(path: Path, label: str | None) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"--data {path} is not a CSV file in UTF-8: {error}") from error
    if not columns:
        raise StudyError(f"--data {path} is empty: pass a CSV file whose first line names the columns")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise StudyError(f"--data {path} names column {twice[0]} twice: pass columns of different names")
    column = label or next((name for name in LABELS if name in columns), None)
    if column is None or column not in columns:
        wanted = "no label column" if column is None else f"no column {column}"
        raise StudyError(f"--data {path} has {wanted}: pass --label with one of {', '.join(columns)}")
    for line, row in enumerate(rows, 2):
        if None in row:
            raise StudyError(f"{path} line {line} has more cells than the {len(columns)} columns of the first line")
    features = [name for name in columns if name != column]
    if not features or not rows:
        raise StudyError(f"--data {path} has no {'rows' if features else 'columns beside the labels'}")
    x = np.array([[_number(row[name], path, i, name) for name in features] for i, row in enumerate(rows, 2)])
    names, y = np.unique([_cell(row[column], path, i, column) for i, row in enumerate(rows, 2)], return_inverse=True)
    if len(names) < 2:
        raise StudyError(f"--data {path}: all labels are {names[0]}; pass a table of two classes or more")
    return Table(path.name, x, y, tuple(names.tolist()))


def _cell(value: str | None, path: Path, line: int, column: str) -> str:
    if value is None or not value.strip():
        raise StudyError(f"{path} line {line}: column {column} is empty: fill it, or leave the row out")
    return value.strip()


def _number(value: str | None, path: Path, line: int, column: str) -> float:
    text = _cell(value, path, line, column)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise StudyError(f"{path} line {line}: column {column} must be a number, got {text}")
    return number
