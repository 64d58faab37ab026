"""Writing a study's record: the manifest, the logs of a run, and the rules by which a study is continued."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fenchel.study.errors import StudyError
from fenchel.study.record import run_directory

MANIFEST = "study.json"
LOCK = ".fenchel.lock"
# Everything that is fixed before the first run: token ids, tokeniser, model configuration.
INPUTS = "inputs"
PARTIAL = ".inputs.partial"


def write_json(path: Path, value: object) -> None:
    """Replace `path` in one step: a reader sees the old file or the new one, whole."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def append_line(path: Path, value: Mapping[str, object]) -> None:
    """Append one record to a JSONL file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def keep_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the records after `step`, and a torn last line, from a JSONL file; return what is left."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            record = json.loads(line)
            if record["step"] <= step:
                kept.append(record)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    os.replace(partial, path)
    return kept


def fingerprint(*parts: object) -> str:
    """sha256 of the canonical JSON of `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def existing(out: Path, request: Mapping[str, object], *, ours: bool) -> dict[str, Any] | None:
    """Manifest of the study in `out`, None where one can be started.

    `ours` says that a set-up was killed here before: what it left behind is removed.

    Raises StudyError when `out` holds something else, or a study of another request, and names the first difference.
    """
    path = out / MANIFEST
    if not path.is_file():
        names = {entry.name for entry in out.iterdir()} - {LOCK}
        if names and not (ours and names <= {INPUTS, PARTIAL, f".{MANIFEST}.partial"}):
            raise StudyError(f"--out {out} holds other files: pass a new or an empty directory")
        for name in names:
            shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        written = manifest["request"]
        intact = manifest["hash"] == fingerprint(written, manifest["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path} is damaged: pass another --out") from error
    if not intact:
        raise StudyError(f"{path} was changed after the study began (its hash differs): pass another --out")
    for name in request:
        if written.get(name) != request[name]:
            option = "--" + name.replace("_", "-")
            raise StudyError(
                f"--out {out} holds another study, with {option} {_said(written.get(name))} instead of "
                f"{_said(request[name])}: pass another --out, or the same options to continue it"
            )
    return manifest


def _said(value: object) -> str:
    if value is None:
        return "not given"
    return ",".join(str(item) for item in value) if isinstance(value, list) else str(value)


@contextmanager
def locked(out: Path) -> Iterator[bool]:
    """Hold `out` (made if need be) for this process; the system lets go of it however the process ends.

    Yields whether a process that held it before was killed, so that what lies there is ours.
    """
    created = not out.exists()
    try:
        ours = (out / LOCK).is_file()
        out.mkdir(parents=True, exist_ok=True)
        file = (out / LOCK).open("a")
    except (FileExistsError, NotADirectoryError) as error:
        raise StudyError(f"--out {out} is a file: pass a directory") from error
    except PermissionError as error:
        raise StudyError(f"--out {out} cannot be written: permission denied") from error
    with file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StudyError(f"--out {out} is in use by another run of fenchel") from error
        try:
            yield ours
        finally:
            (out / LOCK).unlink(missing_ok=True)
            if created and not any(out.iterdir()):
                out.rmdir()


@contextmanager
def beginning(out: Path) -> Iterator[Path]:
    """An empty directory for the inputs, put in its place at the end; a failure before the manifest leaves nothing."""
    partial = out / PARTIAL
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, out / INPUTS)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def agree(out: Path, objectives: list[str], seed: int, facts: Mapping[str, str]) -> None:
    """Check that every run of `seed` that has started did so from the same weights and batches as `facts` says."""
    for objective in objectives:
        path = run_directory(out, objective, seed) / "start.json"
        if not path.is_file():
            continue
        started = json.loads(path.read_text(encoding="utf-8"))
        for name, value in facts.items():
            if started.get(name) != value:
                what = "initial weights" if name == "init_hash" else "training batches"
                raise StudyError(
                    f"the {what} of seed {seed} differ from those that {objective} was trained with "
                    "(another version of torch or transformers, or a changed --model): pass another --out"
                )
