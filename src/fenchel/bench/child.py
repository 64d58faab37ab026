"""One path in a process of its own: `python -m fenchel.bench.child SPEC` prints its first call's seconds and its peak memory."""

import gc
import json
import sys
from pathlib import Path as File

import torch

from fenchel.bench.measure import seconds
from fenchel.bench.paths import path_of
from fenchel.bench.peers import quiet
from fenchel.bench.regimes import inputs
from fenchel.bench.sizes import Size

STATUS = File("/proc/self/status")
# Writing 5 here makes the kernel count the peak anew.
RESET = File("/proc/self/clear_refs")


def main() -> None:
    """Runs the specification given as JSON."""
    quiet()
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    size = Size(**spec["size"])
    given = inputs(spec["regime"], size, spec["objective"], File(spec["cache"]))
    path = path_of(spec["path"])
    first = seconds(path.step(given.rows(size.parity_rows), size))
    leaves = path.leaves(given)
    gc.collect()
    counted = reset_peak()
    step = path.step(given, size)
    hold = lambda: [torch.ones_like(x) for x in leaves]
    kept = step() if spec["mode"] == "run" else hold()
    print(json.dumps({"first": first, "peak": peak() if counted else None}))  # noqa: T201
    del kept


def reset_peak() -> bool:
    """Whether the peak counts from here; only Linux can do that."""
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return True


def peak() -> int:
    """Most bytes that were resident at once. Not ru_maxrss, in which a child starts with its parent's."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
