"""Measuring: parity, times in turns, and memory and first calls in processes of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

from fenchel.bench.generators import kinked
from fenchel.bench.paths import Path, Result, differentiated, reference
from fenchel.bench.regimes import Inputs
from fenchel.bench.sizes import Size
from fenchel.study.errors import StudyError

# Largest relative error of a value, or of a gradient by its norm, that float32 paths may have.
TOLERANCE = 2e-5
# The same where the gradient jumps between equal probabilities: of 10^7 entries some are equal to all digits of float32, and have either sign.
KINKED = 5e-3
# In half precision: how many times the error of dense torch.
HALF = 2.0
# A path that takes longer than this in a process of its own, import and compilation included, is not timed.
MOST_SECONDS = 300.0


def distance(got: Result, wanted: Result, labels: Tensor | None) -> float:
    """The largest of: the value's error relative to 1 + |value|, and the gradients' relative to their norms.

    Rows of a weight that are no label are judged by themselves too, because -y dominates the norm of the whole; relative
    to a hundredth of that norm where theirs is smaller.
    """
    found = [
        abs(float(got[0]) - float(wanted[0])) / (1 + abs(float(wanted[0]))),
        *(float((g - w).norm() / w.norm()) for g, w in zip(got[1:], wanted[1:], strict=True)),
    ]
    if labels is not None:
        other = torch.ones(len(wanted[2]), dtype=torch.bool)
        other[labels] = False
        floor = 0.01 * float(wanted[2].norm())
        found.append(float((got[2] - wanted[2])[other].norm()) / max(float(wanted[2][other].norm()), floor))
    # max() drops a NaN that is not first
    return max(found) if all(x == x for x in found) else float("nan")


@dataclass(frozen=True)
class Parity:
    """The error of a path against dense float64, and what it may be."""

    error: float
    allowed: float

    @property
    def met(self) -> bool:
        """Whether the path is right; NaN is not."""
        return self.error <= self.allowed


def parity(paths: Sequence[Path], given: Inputs, size: Size) -> dict[str, Parity]:
    """Every path that has a reference, against float64; a reference is computed once for the paths that share it.

    Half precision is judged by what dense logits in that dtype make of the same loss, which is not judged itself.
    """
    found: dict[str, Parity] = {}
    shared: dict[Any, tuple[Result, float]] = {}
    for path in paths:
        if path.reference is None:
            continue
        key, leaves = path.reference, path.leaves(given)
        labels = given.labels if len(leaves) == 2 else None
        if key not in shared:
            exact = reference(path, given)
            half = size.torch_dtype != torch.float32
            own = distance(differentiated(path.reference, given, leaves), exact, labels) if half else 0.0
            least = KINKED if path.generator is not None and kinked(path.generator) else TOLERANCE
            shared[key] = (exact, max(least, HALF * own))
        exact, allowed = shared[key]
        got = path.step(given, size)()
        assert got is not None
        judge = path.kind == "dense" and size.torch_dtype != torch.float32
        found[path.key] = Parity(distance(got, exact, labels), float("inf") if judge else allowed)
    return found


def seconds(step: Callable[[], object]) -> float:
    """Wall time of one call, its results dropped within it."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def in_turns(
    steps: Mapping[str, Callable[[], object]], repeats: int, each: Callable[[str, int], None]
) -> dict[str, list[float]]:
    """Times of all steps, A B C A B C: what else the machine does meets every one of them alike. One call each before."""
    for key, step in steps.items():
        each(key, 0)
        step()
    times: dict[str, list[float]] = {key: [] for key in steps}
    for turn in range(repeats):
        for key, step in steps.items():
            each(key, turn + 1)
            times[key].append(seconds(step))
    return times


@dataclass(frozen=True)
class Alone:
    """What a path does in a process of its own: seconds of the first call, peak bytes beyond inputs and gradients."""

    first: float | None
    peak: int | None
    failure: str | None = None


def alone(path: Path, regime: str, size: Size, objective: str, cache: File, threads: int, compiled: File) -> Alone:
    """First call and peak memory of a path.

    Two processes do the same (import, a call on few rows, inputs) up to the end: one then holds inputs and gradients alone,
    the other runs the path on all rows. The difference of their peaks is the path's. `compiled` is where both keep compiled
    kernels; the first finds it without those of this path.
    """
    found = {}
    for mode in ("run", "hold"):
        spec = {
            "mode": mode,
            "path": path.key,
            "regime": regime,
            "size": asdict(size),
            "objective": objective,
            "cache": str(cache),
            "threads": threads,
        }
        try:
            done = _child(spec, threads, compiled)
        except subprocess.TimeoutExpired:
            return Alone(None, None, f"more than {MOST_SECONDS:.0f} s")
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            return Alone(None, None, lines[-1] if lines else f"exit status {done.returncode}")
        found[mode] = json.loads(done.stdout.strip().splitlines()[-1])
    run, hold = found["run"]["peak"], found["hold"]["peak"]
    return Alone(found["run"]["first"], None if run is None or hold is None else max(0, run - hold))


def _child(spec: Mapping[str, Any], threads: int, compiled: File) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(compiled),
        # Blocks of this size go back to the system when they are freed, so that resident memory is what is in use.
        "MALLOC_MMAP_THRESHOLD_": str(2**20),
    }
    command = [sys.executable, "-m", "fenchel.bench.child", json.dumps(spec)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=MOST_SECONDS
    )


def check(found: Mapping[str, Parity], paths: Mapping[str, Path], where: str) -> None:
    """Refuses to time anything where one of ours is wrong."""
    for key, parity in found.items():
        if paths[key].kind != "peer" and not parity.met:
            raise StudyError(
                f"{paths[key].label} differs from the dense float64 reference by {parity.error:.1e} ({where}, tolerance "
                f"{parity.allowed:.0e}): nothing was timed"
            )
