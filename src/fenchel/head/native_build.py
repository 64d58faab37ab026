"""Compile C on the user's machine, once, and load it: native.c, and the row programs that are written for a generator.

A library lies in a directory of the user's own under a name made of what it depends on (source, flags, what the
compiler says about itself and this CPU) and of its own content. So a changed compiler or CPU gives a new file, a file
cut short is found out before it is loaded, and two processes that build at once end with one file.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
TARGETS = (("-march=native",), ("-mcpu=native",), ())
COMPILE_SECONDS = 120

log = logging.getLogger("fenchel.head")
_lock = Lock()


class NoNative(Exception):
    """Why there are no native kernels, in one line."""


def library() -> ctypes.CDLL | None:
    """The loaded library, or None when there is none; the reason is logged once."""
    with _lock:
        return _library()


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return load(SOURCE.read_bytes(), "native")
    except (NoNative, OSError) as why:  # OSError: a full disk, or nowhere to write
        log.warning("fenchel: no native CPU kernels (%s); the exact sparse head runs on plain torch, slower", why)
        return None


def load(source: bytes, name: str) -> ctypes.CDLL:
    """The library of a source, compiled unless it was before. Its quoted includes are this directory's.

    Raises:
        NoNative: there is no compiler that works, or kernels are turned off.
        OSError: a full disk, or nowhere to write.
    """
    switch = os.environ.get("FENCHEL_NATIVE", "1")
    if switch not in ("0", "1"):
        raise ValueError(f"got FENCHEL_NATIVE={switch!r}; set it to 0 or 1")
    if switch == "0":
        raise NoNative("FENCHEL_NATIVE=0")
    if sys.platform == "win32":
        raise NoNative("not built on Windows")
    compiler = shlex.split(os.environ.get("CC") or "cc")
    flags, about = _target(tuple(compiler), FLAGS)
    key = _digest(source, _headers(), shlex.join([*compiler, *flags]).encode(), about)
    with _directory() as directory:
        for path in sorted(directory.glob(f"{name}-{key}-*.so")):
            loaded = _open(path)
            if loaded is not None:
                return loaded
            path.unlink(missing_ok=True)
        path = _build([*compiler, *flags], source, directory, f"{name}-{key}")
        loaded = _open(path)
        if loaded is None:
            raise NoNative(f"{path} was built and does not load")
        return loaded


@cache
def _headers() -> bytes:
    return _digest(*(path.read_bytes() for path in sorted(SOURCE.parent.glob("*.h")))).encode()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:20]


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=COMPILE_SECONDS)
    except OSError as error:
        raise NoNative(f"{command[0]} does not run: {error.strerror}; install a C compiler or set CC") from error
    except subprocess.TimeoutExpired as error:
        raise NoNative(f"{command[0]} took more than {COMPILE_SECONDS} s") from error


@cache
def _target(compiler: tuple[str, ...], flags: tuple[str, ...]) -> tuple[list[str], bytes]:
    """Flags that the compiler takes, and its predefined macros under them: its version and what this CPU can do."""
    for target in TARGETS:
        wanted = [*flags, *target]
        probe = _run([*compiler, *wanted, "-dM", "-E", "-x", "c", os.devnull])
        if probe.returncode == 0 and b"#define" in probe.stdout:
            return wanted, probe.stdout
    raise NoNative(f"{shlex.join(compiler)} is not a C compiler that works: {_first_line(probe.stderr)}")


def _first_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "it said nothing")


@contextmanager
def _directory() -> Iterator[Path]:
    """The user's cache, or a directory for this process alone where others can write that one, or nobody can."""
    wanted = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        if not wanted.is_absolute():  # so the XDG specification says
            wanted = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
        directory = wanted / "fenchel"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
        private = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        directory, private = wanted, False
    if private and os.access(directory, os.W_OK | os.X_OK):
        yield directory
        return
    log.info(
        "fenchel: %s is not a directory that only this user can write; compiling for this process alone", directory
    )
    with tempfile.TemporaryDirectory(prefix="fenchel-") as temporary:
        yield Path(temporary)


def _build(compiler: list[str], source: bytes, directory: Path, stem: str) -> Path:
    with tempfile.TemporaryDirectory(prefix="build-", dir=directory) as temporary:
        code, built = Path(temporary, SOURCE.name), Path(temporary, "native.so")
        code.write_bytes(source)
        done = _run([*compiler, f"-I{SOURCE.parent}", str(code), "-o", str(built), "-lm"])
        if done.returncode != 0 or not built.is_file():
            raise NoNative(f"{shlex.join(compiler)} exited with {done.returncode}: {_first_line(done.stderr)}")
        path = directory / f"{stem}-{_digest(built.read_bytes())}.so"
        os.replace(built, path)
        return path


def _open(path: Path) -> ctypes.CDLL | None:
    try:
        # A library that was cut short kills the process with SIGBUS when it is touched: read it before loading it.
        if not path.stem.endswith(_digest(path.read_bytes())):
            return None
        return ctypes.CDLL(str(path))
    except OSError:
        return None
