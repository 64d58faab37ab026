"""Reading a study's record from disk: what is there, what is missing, and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from fenchel.study.errors import StudyError


class NothingFinished(StudyError):
    """No run of the study has finished yet, so there is nothing to report."""


@dataclass(frozen=True)
class Run:
    """One objective with one seed: training steps, evaluations, and the final record once it has finished."""

    objective: str
    seed: int
    steps: list[dict]
    evals: list[dict]
    final: dict | None

    @property
    def finished(self) -> bool:
        """Whether the run has its final record."""
        return self.final is not None


@dataclass(frozen=True)
class Study:
    """Everything `fenchel compare` wrote under its output directory."""

    info: dict
    runs: dict[str, dict[int, Run]] = field(repr=False)

    @property
    def objectives(self) -> list[str]:
        """In the order they were asked for; the first is the baseline."""
        return list(self.runs)

    @property
    def baseline(self) -> str:
        """The objective that the others are compared with."""
        return self.objectives[0]

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Runs that were asked for and have not finished."""
        return [(name, k) for name, by_seed in self.runs.items() for k, run in by_seed.items() if not run.finished]

    def finals(self) -> dict[str, dict[int, dict]]:
        """Final records per objective and seed; objectives without a finished run are left out."""
        done = {
            name: {k: run.final for k, run in by_seed.items() if run.final is not None}
            for name, by_seed in self.runs.items()
        }
        return {name: finals for name, finals in done.items() if finals}


def run_directory(out_dir: Path, objective: str, seed: int) -> Path:
    """Where a run is recorded: OUT/runs/alpha_1.5/seed0 for "alpha:1.5" and seed 0."""
    return Path(out_dir) / "runs" / re.sub(r"[^\w.,=+-]", "_", objective) / f"seed{seed}"


def load(out_dir: Path) -> Study:
    """Reads the study under `out_dir`, finished or not.

    Raises:
        StudyError: `out_dir` holds no study, or a file of it is damaged.
    """
    out_dir = Path(out_dir)
    path = out_dir / "study.json"
    if not path.is_file():
        raise StudyError(f"got {out_dir}, which holds no study.json: pass the --out directory of `fenchel compare`")
    info = _json(path)
    if not isinstance(info, dict) or not info.get("objectives") or not info.get("seeds"):
        raise StudyError(f"got {path} without objectives and seeds: run `fenchel compare` again with another --out")
    if info.get("version") != 1:
        raise StudyError(f"got {path} of version {info.get('version')!r}: this Fenchel reads version 1")
    runs = {
        name: {k: _run(run_directory(out_dir, name, k), name, k) for k in info["seeds"]} for name in info["objectives"]
    }
    return Study(info, runs)


def _run(where: Path, objective: str, seed: int) -> Run:
    final = _json(where / "final.json") if (where / "done.json").is_file() else None
    return Run(objective, seed, _lines(where / "train.jsonl"), _lines(where / "eval.jsonl"), final)


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"cannot read {path}: {error}") from error


def _lines(path: Path) -> list[dict]:
    """Records of a JSONL file; a last line without its end is a run that was killed while writing it."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1].splitlines()
    try:
        return [json.loads(line) for line in complete if line.strip()]
    except ValueError as error:
        raise StudyError(f"cannot read {path}: {error}") from error
