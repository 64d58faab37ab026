"""Results on disk while a benchmark runs: a file per part, so that the same command goes on where it was interrupted."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fenchel.study.errors import StudyError


@dataclass(frozen=True)
class Store:
    """A directory of parts. Its name is made of all that they depend on: with other flags or another commit it is another one."""

    directory: Path

    @staticmethod
    def open(out: Path, settings: Mapping[str, Any]) -> "Store":
        """The parts of a benchmark with these settings under `out`, made if there are none.

        Raises:
            StudyError: a directory that cannot be written.
        """
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        directory = out / f"unfinished-{key}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"--out {out}: {error.strerror}; pass a directory that can be written") from error
        return Store(directory)

    def get(self, name: str) -> Any | None:
        """A part, if it is finished.

        Raises:
            StudyError: a damaged file.
        """
        path = self.directory / f"{name}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StudyError(f"{path} is damaged: delete it, and it is measured again") from error

    def put(self, name: str, part: Any) -> None:
        """Keeps a part, whole or not at all."""
        path = self.directory / f"{name}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(part), encoding="utf-8")
        os.replace(partial, path)

    def close(self) -> None:
        """Removes the parts: the benchmark is finished."""
        shutil.rmtree(self.directory)
