"""`fenchel bench`: its flags, and the order of the work."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path as File
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import fenchel
from fenchel.bench import curves, machine, table
from fenchel.bench.families import EVERY
from fenchel.bench.generators import every
from fenchel.bench.measure import HALF, TOLERANCE
from fenchel.bench.parts import Setting, measured, separately, steps
from fenchel.bench.paths import all_paths
from fenchel.bench.peers import quiet
from fenchel.bench.plan import Section, Wanted, sections
from fenchel.bench.regimes import REGIMES, TRAINED
from fenchel.bench.results import Row, from_dict, to_dict
from fenchel.bench.sizes import DTYPES, FULL, QUICK, Size
from fenchel.bench.store import Store
from fenchel.bench.trained import cache_directory, snapshots
from fenchel.study.errors import StudyError

START, END = "<!-- run: begin -->", "<!-- run: end -->"
BAD_INPUT = 2


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="fenchel bench",
        description="Time and memory of the fused heads against dense ones on this machine. Every path is first checked "
        "against a dense float64 reference; where one is wrong, nothing is timed. Other libraries are measured where "
        "they are installed: entmax, liger-kernel, trl, cut-cross-entropy. Interrupted, the same command goes on where it was.",
    )
    mode = flags.add_mutually_exclusive_group()
    mode.add_argument("--grid", action="store_true", help="every generator in every head and function of logits")
    mode.add_argument("--scaling", action="store_true", help="cost and memory against N and against V, with a plot")
    flags.add_argument("--quick", action="store_true", help="a size for trying the command: its numbers say nothing")
    flags.add_argument("--repeats", type=int, default=5, help="turns (default 5)")
    flags.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    flags.add_argument("--regimes", type=_names, help=f"of {', '.join(REGIMES)} (default all; initial for --grid)")
    flags.add_argument(
        "--paths",
        type=_names,
        help=f"a generator for its Fenchel-Young head, a family ({', '.join(EVERY)}), FAMILY:GENERATOR, or one of "
        f"{', '.join(path.key for path in all_paths(()))}; product, copy and dense are always measured",
    )
    flags.add_argument(
        "--generators",
        type=_names,
        help=f"these with every family; any that the library knows (--grid: {', '.join(every())})",
    )
    flags.add_argument("--shapes", type=_names, help=f"NxDxV, separated by commas (default {FULL.shape})")
    flags.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="of the heads (default float32)")
    flags.add_argument("--no-peers", action="store_true", help="without other libraries")
    flags.add_argument(
        "--no-memory",
        action="store_true",
        help="without first calls and memory, which are measured where a path is met first, and at every shape",
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


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


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
        print("interrupted: the same command goes on where it was", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None
    if report is not None:
        for made in table.rich_tables(report):
            console.print(made)
        console.print(table.LEGEND, highlight=False)


def _run(args: argparse.Namespace, console: Console) -> table.Report | None:
    say = lambda text: console.print(text, style="dim", highlight=False)
    mode = "scaling" if args.scaling else "grid" if args.grid else "regimes"
    size = replace(QUICK if args.quick else FULL, dtype=args.dtype)
    if args.steps is not None:
        size = replace(size, steps=args.steps, early=min(size.early, args.steps))
    plan = _checked(args, mode, size)
    quiet()
    torch.set_num_threads(args.threads)
    cache = cache_directory() if args.cache is None else args.cache
    if args.prepare or not TRAINED.keys().isdisjoint(section.regime for section in plan):
        snapshots(size, args.objective, cache, say)
    if args.prepare:
        return None
    about = machine.describe(args.threads)
    settings = {
        "turns": args.repeats,
        "parity": f"within {TOLERANCE:.0e} of dense float64, checked before timing"
        + ("" if args.dtype == "float32" else f", or {HALF:g} times the error of dense torch in {args.dtype}"),
    }
    depends = [mode, asdict(size), args.objective, settings, not args.no_memory, about["commit"], about["versions"]]
    names = [[section.name, [path.key for path in section.paths]] for section in plan]
    store = Store.open(args.out, {"depends": depends, "sections": names, "threads": args.threads})
    with tempfile.TemporaryDirectory(prefix="fenchel-bench-") as compiled, _progress(console) as bar:
        setting = Setting(args.objective, cache, args.threads, args.repeats, File(compiled), lambda text: None)
        found = _all(plan, setting, store, not args.no_memory, bar, say)
    about["load after"] = machine.load()
    report = table.Report(mode, about, asdict(size), settings, found)
    _write(report, args, say)
    store.close()
    return report


def _checked(args: argparse.Namespace, mode: str, size: Size) -> list[Section]:
    if args.repeats < 1 or args.threads < 1:
        raise StudyError(f"got --repeats {args.repeats} --threads {args.threads}: pass 1 or more")
    if size.steps < 1:
        raise StudyError(f"got --steps {size.steps}: pass 1 or more")
    try:
        fenchel.generator(args.objective)
    except ValueError as error:
        raise StudyError(f"--objective: {error}") from error
    if args.page is not None and not args.page.is_file():
        raise StudyError(f"--page {args.page}: no such file")
    return sections(mode, size, Wanted(args.regimes, args.paths, args.generators, args.shapes, not args.no_peers))


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(
        *columns,
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _all(
    plan: Sequence[Section],
    setting: Setting,
    store: Store,
    with_memory: bool,
    bar: Progress,
    say: Callable[[str], None],
) -> list[tuple[dict[str, Any], list[Row]]]:
    """Facts and rows of every section; parts that an interrupted run finished are taken from the store."""
    work = []
    met: dict[str, set[str]] = {}
    for i, section in enumerate(plan):
        before = met.setdefault(section.size.shape, set())
        for k, paths in enumerate(section.parts()):
            apart = [path for path in separately(section, before, with_memory) if path in paths]
            before |= {path.key for path in paths}
            work.append((f"{i}-{k}", i, section, paths, apart))
    task = bar.add_task("", total=sum(steps(paths, len(apart), setting.repeats) for _, _, _, paths, apart in work))
    step = lambda text: bar.update(task, advance=1, description=text)
    found: list[tuple[dict[str, Any], dict[str, Row]]] = [({}, {}) for _ in plan]
    for done, (name, i, section, paths, apart) in enumerate(work):
        part = store.get(name)
        if part is None:
            about, rows = measured(section, paths, apart, replace(setting, step=step))
            part = {"facts": about, "rows": [to_dict(row) for row in rows]}
            store.put(name, part)
            say(f"{done + 1} of {len(work)}: {section.name}: {len(paths)} paths timed")
        else:
            bar.update(task, advance=steps(paths, len(apart), setting.repeats))
            say(f"{done + 1} of {len(work)}: {section.name}: measured before the interruption")
        facts, by_key = found[i]
        facts["support"] = {**facts.get("support", {}), **part["facts"]["support"]}
        facts |= {key: value for key, value in part["facts"].items() if key != "support"}
        for row in map(from_dict, part["rows"]):
            by_key.setdefault(row.key, row)
    return [(facts, list(rows.values())) for facts, rows in found]


def _write(report: table.Report, args: argparse.Namespace, say: Callable[[str], None]) -> None:
    stem = args.out / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{report.mode}-{report.size['name']}"
    text = table.markdown(report)
    written = {".md": text, ".json": table.to_json(report)}
    try:
        for suffix, content in written.items():
            stem.with_suffix(suffix).write_text(content, encoding="utf-8")
        if report.mode == "scaling":
            curves.plot(report.regimes, stem.with_suffix(".png"))
        else:
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
