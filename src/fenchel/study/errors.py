"""The one exception that a user of the study is meant to read."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Below this much free space a failed write is taken for a full disk: torch and safetensors report one as a plain
# RuntimeError without an errno.
FULL = 1 << 20


class StudyError(Exception):
    """Something the user can put right, said in one line: what was got and what to pass."""


def one_line(error: BaseException) -> str:
    """First line of an error's message, for messages made by other libraries."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def full_disk(out: Path) -> Iterator[None]:
    """Turns a write that failed because the disk of `out` is full into a StudyError."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StudyError(f"no space left on the disk of {out}: free some and run the same command again") from error
        raise
    except (RuntimeError, SafetensorError) as error:
        if shutil.disk_usage(out).free < FULL:
            raise StudyError(f"no space left on the disk of {out}: free some and run the same command again") from error
        raise
