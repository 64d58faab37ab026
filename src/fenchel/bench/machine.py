"""What a run says about where and when it was made: no names of hosts, users or directories."""

import datetime
import importlib.metadata
import os
import platform

import torch

import fenchel
from fenchel.study.machine import commit, processor

PEERS = ("entmax", "liger-kernel", "trl", "cut-cross-entropy", "triton", "transformers")


def describe(threads: int) -> dict[str, str]:
    """Date, commit, machine and versions."""
    from fenchel.head.native_build import library

    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "threads": str(threads),
        "memory": f"{memory() / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "native kernels": "no" if library() is None else "yes",
        "load before": load(),
        "versions": versions(),
    }


def versions() -> str:
    """Versions of what was measured."""
    found = [f"fenchel {fenchel.__version__}", f"python {platform.python_version()}", f"torch {torch.__version__}"]
    for name in PEERS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def load() -> str:
    """Mean number of runnable processes over the last minute: more than other people's share makes times untrustworthy."""
    return f"{os.getloadavg()[0]:.1f}"
