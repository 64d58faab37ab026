"""Running a paper and keeping what it measured: one JSON file per paper, from which everything else is made."""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import fenchel
from fenchel.gallery.checks import Check, Verdict, verdict
from fenchel.gallery.paper import Measurements, Paper
from fenchel.study.machine import commit, processor

# The committed results; they ship with the package, so that `fenchel papers` knows the verdicts.
RESULTS = Path(__file__).parent / "results"
DIGITS = 6  # significant digits of a measurement that are kept


@dataclass(frozen=True)
class Result:
    """What a run of a paper measured, seed by seed, and where and when.

    `seconds` are of the processor: on one thread they are what a clock would show on a quiet machine.
    """

    paper: str
    scale: float
    measured: list[Measurements]
    seconds: float
    date: str
    commit: str
    processor: str
    cores: int
    versions: str

    @property
    def seeds(self) -> int:
        """How many seeds were run."""
        return len(self.measured)


def execute(
    paper: Paper, *, seeds: int | None = None, scale: float = 1.0, progress: Callable[[int], None] | None = None
) -> Result:
    """Runs the experiment of a paper, one seed after the other.

    One thread: sums are then taken in one order, and the same seed gives the same numbers on the same processor.

    Args:
        paper: what to run.
        seeds: how many, instead of the paper's own number.
        scale: of the experiment; less than 1 is a rehearsal that shows nothing.
        progress: called with the number of seeds done, after each.
    """
    began = time.process_time()
    measured = []
    with one_thread():
        for seed in range(paper.seeds if seeds is None else seeds):
            measured.append(rounded(paper.run(seed, scale)))
            if progress is not None:
                progress(seed + 1)
    versions = f"fenchel {fenchel.__version__}, python {platform.python_version()}, torch {torch.__version__}"
    now = datetime.datetime.now(datetime.UTC)
    return Result(
        paper=paper.id,
        scale=scale,
        measured=measured,
        seconds=round(time.process_time() - began, 1),
        date=now.strftime("%Y-%m-%d %H:%M UTC"),
        commit=commit(),
        processor=processor(),
        cores=os.cpu_count() or 1,
        versions=versions,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread, as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rounded(value: Any) -> Any:
    """The same measurements with floats of six significant digits: what is judged is what is written.

    Raises:
        ValueError: NaN or an infinity.

    Example:
        >>> rounded({"loss": [0.123456789, 2], "seed": 1})
        {'loss': [0.123457, 2], 'seed': 1}
    """
    if isinstance(value, dict):
        return {key: rounded(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(x) for x in value]
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"got a measurement of {value}: measure something finite, or leave it out")
        return float(f"{value:.{DIGITS}g}")
    return value


def judge(paper: Paper, result: Result) -> tuple[list[Check], Verdict]:
    """The checks of a result, and the verdict that follows."""
    checks = paper.judge(result.measured)
    return checks, verdict(checks)


def save(result: Result, directory: Path) -> Path:
    """Writes DIRECTORY/p065.json for P065."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{result.paper.lower()}.json"
    parts = {key: value for key, value in asdict(result).items() if key != "measured"}
    head = json.dumps(parts, indent=1, allow_nan=False, ensure_ascii=False)
    # a line per seed: short, and a diff shows which seed changed
    rows = ",\n  ".join(json.dumps(m, allow_nan=False, separators=(",", ":")) for m in result.measured)
    path.write_text(head.rstrip("}\n") + f',\n "measured": [\n  {rows}\n ]\n}}\n', encoding="utf-8")
    return path


def load(directory: Path, papers: Sequence[str]) -> dict[str, Result]:
    """The results in a directory of the papers named; papers that have not been run are left out."""
    found = {}
    for name in papers:
        path = directory / f"{name.lower()}.json"
        if path.is_file():
            found[name] = Result(**json.loads(path.read_text(encoding="utf-8")))
    return found
