"""Which machine and which commit a run was made on: no names of hosts, users or directories."""

import platform
import subprocess
from importlib.util import find_spec
from pathlib import Path


def commit() -> str:
    """The commit of the checkout that fenchel is imported from, and whether its source was changed since."""
    spec = find_spec("fenchel")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    try:
        head = _git(package, "rev-parse", "--short=12", "HEAD")
        changed = _git(package, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return "not a checkout"
    return head + (" and changes" if changed else "")


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()


def processor() -> str:
    """The processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
