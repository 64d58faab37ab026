"""Measuring one part of a section: parity, first calls and memory, and times in turns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

from fenchel.bench import generators
from fenchel.bench.bars import SPARSE
from fenchel.bench.machine import memory
from fenchel.bench.measure import Alone, alone, check, in_turns, parity
from fenchel.bench.paths import Path
from fenchel.bench.plan import Section
from fenchel.bench.regimes import facts, inputs
from fenchel.bench.results import Row, row
from fenchel.study.errors import StudyError


@dataclass(frozen=True)
class Setting:
    """What all parts share. `compiled` keeps compiled kernels; `step` is called as the work goes on, with what is next."""

    objective: str
    cache: File
    threads: int
    repeats: int
    compiled: File
    step: Callable[[str], None]


def steps(paths: tuple[Path, ...], separate: int, repeats: int) -> int:
    """How often `Setting.step` is called for a part."""
    return separate + 1 + len(paths) * (repeats + 1)


def separately(section: Section, before: set[str], with_memory: bool) -> list[Path]:
    """The paths whose first call and memory are measured here: where they are met first."""
    return [p for p in section.paths if with_memory and p.kind != "bare" and p.key not in before]


def measured(
    section: Section, paths: tuple[Path, ...], apart: list[Path], setting: Setting
) -> tuple[dict[str, Any], list[Row]]:
    """What a regime is, and a row for every path of a part.

    Raises:
        StudyError: a path of ours that is wrong, or fails.
    """
    size, name = section.size, section.regime
    total = memory()
    notes = {path.key: missing for path in paths if (missing := path.missing(size, total)) is not None}
    sparse = {path.generator for path in paths if path.generator and generators.has_loss(path.generator)}
    wanted = (*SPARSE, *sorted(g for g in sparse if generators.sparse(g) and g not in SPARSE))
    about = facts(name, size, setting.objective, setting.cache, wanted)
    found: dict[str, Alone] = {}
    for path in apart:
        setting.step(f"{section.name}: first call and memory of {path.label}")
        if path.key in notes:
            continue
        found[path.key] = alone(path, name, size, setting.objective, setting.cache, setting.threads, setting.compiled)
        failure = found[path.key].failure
        if failure is not None and path.kind == "fused":
            raise StudyError(f"{path.label} failed ({section.name}): {failure}")
        if failure is not None:
            notes[path.key] = failure
    given = inputs(name, size, setting.objective, setting.cache)
    setting.step(f"{section.name}: parity")
    errors = parity([path for path in paths if path.key not in notes], given.rows(size.parity_rows), size)
    check(errors, {path.key: path for path in paths}, section.name)
    notes |= {key: "not equal to its reference" for key, p in errors.items() if not p.met}
    todo = {path.key: path.step(given, size) for path in paths if path.key not in notes}
    labels: Mapping[str, str] = {path.key: path.label for path in paths}
    times = in_turns(todo, setting.repeats, lambda key, turn: setting.step(f"{section.name}: {labels[key]}"))
    rows = [
        row(p, size, about, times, found.get(p.key), errors[p.key].error if p.key in errors else None, notes.get(p.key))
        for p in paths
    ]
    return about, rows
