"""`fenchel bench`: its flags, and the order of the work."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path as File
from typing import Any

import torch
from rich.console import Console

import fenchel
from fenchel.bench import machine, table
from fenchel.bench.bars import SPARSE
from fenchel.bench.measure import TOLERANCE, Alone, alone, check, in_turns, parity
from fenchel.bench.paths import PATHS, Path
from fenchel.bench.peers import quiet
from fenchel.bench.regimes import REGIMES, TRAINED, facts, inputs
from fenchel.bench.results import Row, row
from fenchel.bench.sizes import FULL, QUICK, Size
from fenchel.bench.trained import cache_directory, snapshots
from fenchel.study.errors import StudyError

START, END = "<!-- run: begin -->", "<!-- run: end -->"
BAD_INPUT = 2


def parser() -> argparse.ArgumentParser:
    """The flags."""
    known = ", ".join(path.key for path in PATHS)
    flags = argparse.ArgumentParser(
        prog="fenchel bench",
        description="Time and memory of the fused heads against dense ones on this machine. Every path is first checked "
        "against a dense float64 reference; where one is wrong, nothing is timed. Other libraries are measured where "
        "they are installed: entmax, liger-kernel, trl, cut-cross-entropy.",
    )
    flags.add_argument("--quick", action="store_true", help="a size for trying the command: its numbers say nothing")
    flags.add_argument("--repeats", type=int, default=5, help="turns (default 5)")
    flags.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    flags.add_argument("--regimes", default=",".join(REGIMES), help=f"of {', '.join(REGIMES)}")
    flags.add_argument("--paths", help=f"of {known}; product and dense are always measured")
    flags.add_argument("--no-peers", action="store_true", help="without other libraries")
    flags.add_argument(
        "--no-memory",
        action="store_true",
        help="without first calls and memory, which are measured in the first regime of a path",
    )
    flags.add_argument("--objective", default="alpha:1.5", help="what the real run is trained with (default alpha:1.5)")
    flags.add_argument("--steps", type=int, help=f"steps of the real run (default {FULL.steps})")
    flags.add_argument(
        "--prepare", action="store_true", help="train the real run, which later benchmarks reuse, and stop"
    )
    flags.add_argument("--cache", type=File, help="directory of real runs (default: in the user's cache)")
    flags.add_argument("--out", type=File, default=File("fenchel-bench"), help="directory of the results")
    flags.add_argument("--page", type=File, help=f"also replace what stands between {START} and {END} in this file")
    return flags


def run(arguments: Sequence[str]) -> None:
    """The command. Exits with status 2 and one line for what the user can put right."""
    args = parser().parse_args(arguments)
    console = Console()
    try:
        report = _run(args, console)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(BAD_INPUT) from None
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None
    if report is not None:
        for made in table.rich_tables(report):
            console.print(made)
        console.print(table.LEGEND, highlight=False)


def _run(args: argparse.Namespace, console: Console) -> table.Report | None:
    say = lambda text: console.print(text, style="dim", highlight=False)
    size = QUICK if args.quick else FULL
    if args.steps is not None:
        size = replace(size, steps=args.steps, early=min(size.early, args.steps))
    names, paths = _checked(args, size)
    quiet()
    torch.set_num_threads(args.threads)
    cache = cache_directory() if args.cache is None else args.cache
    if args.prepare or not TRAINED.keys().isdisjoint(names):
        snapshots(size, args.objective, cache, say)
    if args.prepare:
        return None
    _writable(args.out)
    about = machine.describe(args.threads)
    with tempfile.TemporaryDirectory(prefix="fenchel-bench-") as compiled:
        regimes = [_regime(name, names, paths, size, args, cache, File(compiled), say) for name in names]
    about["load after"] = machine.load()
    settings = {"turns": args.repeats, "parity": f"within {TOLERANCE:.0e} of dense float64, checked before timing"}
    report = table.Report(about, asdict(size), settings, regimes)
    _write(report, args, say)
    return report


def _checked(args: argparse.Namespace, size: Size) -> tuple[list[str], list[Path]]:
    if args.repeats < 1 or args.threads < 1:
        raise StudyError(f"got --repeats {args.repeats} --threads {args.threads}: pass 1 or more")
    if size.steps < 1:
        raise StudyError(f"got --steps {size.steps}: pass 1 or more")
    try:
        fenchel.generator(args.objective)
    except ValueError as error:
        raise StudyError(f"--objective: {error}") from error
    names = [name.strip() for name in args.regimes.split(",")]
    known = {path.key for path in PATHS}
    wanted = known if args.paths is None else {key.strip() for key in args.paths.split(",")} | {"product", "dense"}
    for given, all_of, flag in ((set(names), set(REGIMES), "--regimes"), (wanted, known, "--paths")):
        if given - all_of:
            raise StudyError(
                f"{flag}: got {', '.join(sorted(given - all_of))}; pass some of {', '.join(sorted(all_of))}"
            )
    if args.page is not None and not args.page.is_file():
        raise StudyError(f"--page {args.page}: no such file")
    return names, [path for path in PATHS if path.key in wanted and not (args.no_peers and path.kind == "peer")]


def _regime(
    name: str,
    names: list[str],
    paths: list[Path],
    size: Size,
    args: argparse.Namespace,
    cache: File,
    compiled: File,
    say: Any,
) -> tuple[dict[str, Any], list[Row]]:
    """One of the regimes `names`; first calls and memory of the paths whose first regime it is."""
    chosen = {path.key: path for path in paths if name in path.regimes}
    notes = {key: f"needs {path.missing()}" for key, path in chosen.items() if path.missing() is not None}
    about = facts(name, size, args.objective, cache, SPARSE)
    separate: dict[str, Alone] = {}
    if not args.no_memory:
        for key, path in chosen.items():
            first = next(n for n in names if n in path.regimes)
            if key not in notes and path.kind != "bare" and name == first:
                say(f"{name}: first call and memory of {path.label}")
                separate[key] = alone(path, name, size, args.objective, cache, args.threads, compiled)
                failure = separate[key].failure
                if failure is not None and path.kind == "peer":
                    notes[key] = failure
                elif failure is not None:
                    raise StudyError(f"{path.label} failed ({name}): {failure}")
    given = inputs(name, size, args.objective, cache)
    say(f"{name}: parity")
    errors = parity([path for key, path in chosen.items() if key not in notes], given.rows(size.parity_rows))
    check(errors, chosen, name)
    for key, found in errors.items():
        if not found <= TOLERANCE:
            notes[key] = "not equal to its reference"
    steps = {key: path.step(given) for key, path in chosen.items() if key not in notes}
    times = in_turns(steps, args.repeats, lambda key, turn: None)
    say(f"{name}: timed")
    judged = size.name == FULL.name
    rows = [row(path, about, times, separate.get(key), errors, notes.get(key), judged) for key, path in chosen.items()]
    return about, rows


def _writable(out: File) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"--out {out}: {error.strerror}; pass a directory that can be written") from error


def _write(report: table.Report, args: argparse.Namespace, say: Any) -> None:
    stem = args.out / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{report.size['name']}"
    text = table.markdown(report)
    written = {".md": text, ".json": table.to_json(report)}
    try:
        for suffix, content in written.items():
            stem.with_suffix(suffix).write_text(content, encoding="utf-8")
        table.plot(report, stem.with_suffix(".png"))
        if args.page is not None:
            page = args.page.read_text(encoding="utf-8")
            before, begin, rest = page.partition(START)
            _, end, after = rest.partition(END)
            if not begin or not end:
                raise StudyError(f"--page {args.page} has no {START} and {END}")
            args.page.write_text(f"{before}{START}\n{text}{END}{after}", encoding="utf-8")
    except OSError as error:
        raise StudyError(f"--out {args.out}: {error.strerror}") from error
    say(f"wrote {stem}.md, .json and .png")
