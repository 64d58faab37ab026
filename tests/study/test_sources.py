"""Every kind of --data, and what is said of one that cannot be used."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from fenchel.study import sources
from fenchel.study.corpus import Document
from fenchel.study.errors import StudyError
from fenchel.study.sources import read_documents

ROWS = [{"text": f"text number {i}", "id": i, "other": f"other {i}"} for i in range(50)]


def write_jsonl(root: Path) -> Path:
    path = root / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def write_parquet(root: Path) -> Path:
    path = root / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


def write_dataset(root: Path) -> Path:
    path = root / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(path)
    return path


def write_splits(root: Path) -> Path:
    path = root / "splits"
    other = datasets.Dataset.from_list(ROWS[:1])
    datasets.DatasetDict({"test": other, "train": datasets.Dataset.from_list(ROWS)}).save_to_disk(path)
    return path


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_dataset, write_splits])
def test_rows(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    name, documents, truncated = read_documents(str(path))
    assert (name, len(documents), truncated) == (path.name, 50, False)
    assert documents[7] == Document(f"{path.name}#7", "text number 7")
    assert read_documents(str(path), "other")[1][7].text == "other 7"
    with pytest.raises(StudyError, match="no field body: pass --text-field with one of text, id, other"):
        read_documents(str(path), "body")
    with pytest.raises(StudyError, match="field id must be a string, got int"):
        read_documents(str(path), "id")


def test_text_file_is_cut_at_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    text = "".join(f"line {i}, for good measure\n" for i in range(5000))
    path.write_text(text)
    _, documents, _ = read_documents(str(path))
    assert len(documents) > 10
    assert "".join(document.text for document in documents) == text
    assert all(document.text.endswith("\n") for document in documents)
    assert len({document.name for document in documents}) == len(documents)


def test_directory_passes_over_binary_hidden_and_empty_files(corpus: Path) -> None:
    (corpus / "blob").write_bytes(b"\0\1\2")
    (corpus / "empty.txt").write_text("")
    (corpus / ".git").mkdir()
    (corpus / ".git" / "config").write_text("hidden")
    write_jsonl(corpus)
    _, documents, _ = read_documents(str(corpus))
    names = [document.name for document in documents]
    assert len(documents) == 110
    assert names == sorted(names, key=lambda name: name.partition("#")[0])


def test_no_more_is_read_than_the_bound(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_BYTES", 20_000)
    _, documents, truncated = read_documents(str(corpus))
    assert truncated
    assert sum(len(document.text) for document in documents) == 20_000


def test_ids_go_to_the_hub_as_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, *, split: str, streaming: bool) -> object:
        assert (name, split, streaming) == ("owner/set", "train", True)
        return iter(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read_documents("owner/set")[1]) == 50


def bad_jsonl(root: Path) -> Path:
    (root / "x.jsonl").write_text('{"text": "a"}\nnot json\n')
    return root / "x.jsonl"


def array_jsonl(root: Path) -> Path:
    (root / "x.jsonl").write_text("[1]\n")
    return root / "x.jsonl"


def empty_file(root: Path) -> Path:
    (root / "x.txt").write_text("")
    return root / "x.txt"


def blank_file(root: Path) -> Path:
    (root / "x.txt").write_text("\n \n")
    return root / "x.txt"


def binary_file(root: Path) -> Path:
    (root / "x.bin").write_bytes(bytes(range(256)))
    return root / "x.bin"


def latin_file(root: Path) -> Path:
    (root / "x.txt").write_bytes(b"caf\xe9 " * 50)
    return root / "x.txt"


def torn_parquet(root: Path) -> Path:
    whole = write_parquet(root).read_bytes()
    (root / "rows.parquet").write_bytes(whole[: len(whole) // 2])
    return root / "rows.parquet"


def empty_directory(root: Path) -> Path:
    (root / "x").mkdir()
    return root / "x"


def broken_dataset(root: Path) -> Path:
    path = write_dataset(root)
    (path / "state.json").write_text("{")
    return path


def missing(root: Path) -> Path:
    return root / "none.txt"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (bad_jsonl, "line 2 is not JSON"),
        (array_jsonl, "line 1 is list"),
        (empty_file, "is empty"),
        (blank_file, "holds no text"),
        (binary_file, "is binary or not UTF-8"),
        (latin_file, "is binary or not UTF-8"),
        (torn_parquet, "is not a Parquet file"),
        (empty_directory, "holds no text files"),
        (broken_dataset, "is not a readable data set directory"),
        (missing, "no such file or directory"),
    ],
)
def test_bad_data(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        read_documents(str(write(tmp_path)))


def test_text_field_is_refused_for_text(corpus: Path) -> None:
    with pytest.raises(StudyError, match="--text-field body is for JSONL"):
        read_documents(str(corpus / "file00.txt"), "body")
