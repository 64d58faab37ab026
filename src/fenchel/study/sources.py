"""What `--data` can be: every kind of source becomes a list of documents, or a one-line error."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from fenchel.study.corpus import Document, standard_library
from fenchel.study.errors import StudyError, one_line

# A study reads at most this much text, whatever the source: far more than the largest preset trains on.
MOST_BYTES = 64 << 20
# Fewer documents than this cannot be split fairly, so each is cut into pieces at line ends.
FEW = 40
PIECE = 8192
ROWS = {".jsonl", ".ndjson", ".parquet"}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def read_documents(source: str | None, field: str | None = None) -> tuple[str, list[Document], bool]:
    """(name, documents, truncated) of a source.

    None is the embedded corpus; otherwise a text file, JSONL, Parquet, a directory of such files, a directory written
    by `datasets.save_to_disk`, or the id of a Hugging Face data set. `field` names the column that holds the text of
    rows. Raises StudyError for a source that is missing, empty, binary or without that column.
    """
    if source is None:
        documents, truncated = _bounded(standard_library())
        return "Python standard library", documents, truncated
    path = Path(source).expanduser()
    if path.is_dir():
        stream = _saved_dataset(path, field) if _is_saved_dataset(path) else _directory(path, field)
    elif path.is_file():
        stream = _file(path, path.name, field)
    elif path.exists():
        raise StudyError(f"--data {source} is neither a file nor a directory")
    elif HUB_NAME.fullmatch(source) and path.suffix.lower() not in ROWS | {".txt", ".json", ".md", ".csv"}:
        stream = _hub(source, field)
    else:
        raise StudyError(f"--data {source}: no such file or directory")
    documents, truncated = _bounded(stream)
    if not documents:
        raise StudyError(f"--data {source} holds no text: pass a text file, a directory of them, JSONL or Parquet")
    if len(documents) < FEW:
        documents = [piece for document in documents for piece in _cut(document)]
    return path.name or source, documents, truncated


def _bounded(stream: Iterable[Document]) -> tuple[list[Document], bool]:
    documents, size = [], 0
    for document in stream:
        if not document.text.strip():
            continue
        if size >= MOST_BYTES:
            return documents, True
        text = document.text[: MOST_BYTES - size]
        documents.append(Document(document.name, text))
        size += len(text.encode("utf-8", "replace"))
        if len(text) < len(document.text):
            return documents, True
    return documents, False


def _cut(document: Document) -> Iterator[Document]:
    """Pieces of about PIECE characters that end at a line end; a longer line is one piece."""
    piece: list[str] = []
    size = count = 0
    for line in document.text.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= PIECE:
            yield Document(f"{document.name}#{count}", "".join(piece))
            piece, size, count = [], 0, count + 1
    if piece:
        yield Document(f"{document.name}#{count}", "".join(piece))


def _text(path: Path) -> str | None:
    """Text of a file, or None for one that is binary."""
    raw = path.read_bytes()[: MOST_BYTES + 4]
    if b"\0" in raw:
        return None
    try:
        return raw[:MOST_BYTES].decode("utf-8", "strict" if len(raw) <= MOST_BYTES else "ignore").removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None


def _file(path: Path, name: str, field: str | None) -> Iterator[Document]:
    suffix = path.suffix.lower()
    try:
        if path.stat().st_size == 0:
            raise StudyError(f"{path} is empty: pass a file that holds text")
        if suffix == ".parquet":
            yield from _rows(_parquet(path), str(path), name, field)
        elif suffix in ROWS:
            yield from _rows(_jsonl(path), str(path), name, field)
        elif field is not None:
            raise StudyError(f"--text-field {field} is for JSONL, Parquet and data sets, got the text file {path}")
        else:
            text = _text(path)
            if text is None:
                raise StudyError(f"{path} is binary or not UTF-8: pass text, JSONL or Parquet")
            yield Document(name, text)
    except PermissionError as error:
        raise StudyError(f"{path} cannot be read: permission denied") from error


def _directory(root: Path, field: str | None) -> Iterator[Document]:
    """Every readable file below `root`; binary, empty and hidden ones are passed over."""
    found = False
    for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if not path.is_file() or any(part.startswith(".") for part in relative.parts) or path.stat().st_size == 0:
            continue
        if path.suffix.lower() in ROWS:
            found = True
            yield from _file(path, relative.as_posix(), field)
        else:
            text = _text(path)
            if text is not None:
                found = True
                yield Document(relative.as_posix(), text)
    if not found:
        raise StudyError(f"--data {root} holds no text files: pass a directory of text, JSONL or Parquet files")


def _jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise StudyError(f"{path} line {number} is not JSON: pass one JSON object per line") from error
            if not isinstance(row, dict):
                raise StudyError(f"{path} line {number} is {type(row).__name__}: pass one JSON object per line")
            yield row


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise StudyError(f"{path} is not a Parquet file: {one_line(error)}") from error


def _rows(rows: Iterator[Mapping[str, Any]], source: str, name: str, field: str | None) -> Iterator[Document]:
    first = next(rows, None)
    if first is None:
        raise StudyError(f"{source} holds no rows")
    field = _field(first, source, field)
    for number, row in enumerate(chain([first], rows)):
        text = row.get(field)
        if not isinstance(text, str):
            got = "no such field" if field not in row else type(text).__name__
            raise StudyError(f"{source} row {number + 1}: field {field} must be a string, got {got}")
        yield Document(f"{name}#{number}", text)


def _field(row: Mapping[str, Any], source: str, field: str | None) -> str:
    texts = [key for key, value in row.items() if isinstance(value, str)]
    if field is None:
        field = "text" if "text" in texts else texts[0] if len(texts) == 1 else None
        if field is None:
            raise StudyError(f"{source} has the fields {', '.join(row) or 'none'}: pass --text-field with one of text")
    if field not in row:
        raise StudyError(f"{source} has no field {field}: pass --text-field with one of {', '.join(row) or 'none'}")
    return field


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (
        (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    )


def _saved_dataset(path: Path, field: str | None) -> Iterator[Document]:
    import pyarrow
    from datasets import DatasetDict, load_from_disk

    try:
        loaded: Any = load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise StudyError(f"--data {path} is not a readable data set directory: {one_line(error)}") from error
    if isinstance(loaded, DatasetDict):
        name = "train" if "train" in loaded else next(iter(loaded)) if len(loaded) == 1 else None
        if name is None:
            splits = ", ".join(str(split) for split in loaded)
            raise StudyError(f"--data {path} has the splits {splits}: pass the directory of one of them")
        loaded = loaded[name]
    yield from _rows(iter(loaded), str(path), path.name, field)


def _hub(name: str, field: str | None) -> Iterator[Document]:
    """Rows of the train split of a data set on the hub, streamed, so that no more than MOST_BYTES is fetched."""
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, split="train", streaming=True)
        yield from _rows(iter(loaded), name, name, field)
    except (OSError, ValueError, RuntimeError) as error:
        raise StudyError(
            f"--data {name} is neither a path here nor a data set that could be loaded: {one_line(error)}"
        ) from error
