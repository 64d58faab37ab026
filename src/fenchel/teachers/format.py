"""What a teacher cache on disk is: a manifest, and shards of rows in safetensors files. Nothing in it is ever executed.

    manifest.json              what the rows are of, and each shard's size and SHA-256; it carries its own
    shard-00000.safetensors    top k: indices [n, k] and logp [n, k + 1], the tail last
                               sparse: counts [n], and cols and logp of all entries

Indices are uint16 where V <= 65,536 and int32 otherwise, log-probabilities float16 or float32. A file is written beside its place and moved there, a shard
before the manifest that names it: whatever is named is whole.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check_positive

__all__ = ["CacheError", "Manifest", "Shard", "Spec"]

FORMAT, VERSION = "fenchel teacher cache", 1
MANIFEST = "manifest.json"
TEMPORARY = ".partial"
DTYPES = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}


class CacheError(ValueError):
    """A cache that cannot be used or built, in one line: what was found and what to do."""


@dataclass(frozen=True)
class Spec:
    """What the rows of a cache are of.

    Attributes:
        teacher, data, tokenizer: fingerprints, as `fenchel.teachers.fingerprint` makes them.
        vocabulary: the number of classes V.
        tokens: the number of rows when it is complete.
        k: classes per row; None for the whole rows of a sparse teacher.
        generator: the name of the softargmax that made the probabilities; `kl` is softmax.
        temperature: what the teacher's logits were divided by.
        dtype: "float16" or "float32", of the stored log-probabilities.

    Raises:
        ValueError: a number out of range, an unknown dtype.

    Example:
        >>> Spec(teacher="abc", data="def", tokenizer="ghi", vocabulary=50257, tokens=1000, k=64).index.name
        'uint16'
    """

    teacher: str
    data: str
    tokenizer: str
    vocabulary: int
    tokens: int
    k: int | None
    generator: str = "kl"
    temperature: float = 1.0
    dtype: str = "float16"

    def __post_init__(self) -> None:
        for name in ("teacher", "data", "tokenizer", "generator"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}; pass a string that identifies it, see `fingerprint`"
                )
        for name, low, high in (
            ("vocabulary", 1, 2**31),
            ("tokens", 0, 2**62),
            *([] if self.k is None else [("k", 1, self.vocabulary)]),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name}: got {value!r}; pass an integer from {low} to {high}")
        check_positive("temperature", self.temperature)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: got {self.dtype!r}; pass one of {', '.join(map(repr, DTYPES))}")

    @property
    def index(self) -> np.dtype[Any]:
        """The stored dtype of classes."""
        return np.dtype("<u2" if self.vocabulary <= 2**16 else "<i4")

    @property
    def real(self) -> np.dtype[Any]:
        """The stored dtype of log-probabilities."""
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """One file of a cache."""

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A cache's contents.

    Attributes:
        spec: what the rows are of.
        rows_per_shard: of every shard but the last.
        shards: the finished ones.
    """

    spec: Spec
    rows_per_shard: int
    shards: tuple[Shard, ...] = ()

    @property
    def rows(self) -> int:
        """How many rows are finished."""
        return sum(s.rows for s in self.shards)

    @property
    def complete(self) -> bool:
        """Whether all of them are."""
        return self.rows == self.spec.tokens


def shard_path(directory: Path, number: int) -> Path:
    """Where a shard is; names are never read from the manifest, which could name anything."""
    return directory / f"shard-{number:05d}.safetensors"


def is_ours(name: str) -> bool:
    """Whether a file name is one that a build leaves, finished or not."""
    return (
        re.fullmatch(rf"(shard-\d{{5,}}\.safetensors|{re.escape(MANIFEST)})({re.escape(TEMPORARY)})?", name) is not None
    )


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a cache.

    Raises:
        CacheError: no directory, no manifest, a damaged one, or one of another format or version.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        raise CacheError(f"{directory}: no such directory; build the cache first")
    if not path.is_file():
        raise CacheError(f"{directory}: no {MANIFEST}, so this is no teacher cache")
    try:
        held = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CacheError(f"{path}: cannot be read ({one_line(error)}); build the cache again") from error
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise CacheError(f"{path}: not of a teacher cache")
    if held.get("version") != VERSION:
        raise CacheError(
            f"{path}: version {held.get('version')!r}, this Fenchel reads {VERSION}; build the cache again"
        )
    if held.get("sha256") != _digest(held.get("contents")):
        raise CacheError(f"{path}: corrupt (its checksum differs); build the cache again")
    contents = held["contents"]
    shards = tuple(Shard(**s) for s in contents["shards"])
    return Manifest(Spec(**contents["spec"]), contents["rows_per_shard"], shards)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Puts a manifest in place of the one there."""
    contents = asdict(manifest)
    held = {"format": FORMAT, "version": VERSION, "sha256": _digest(contents), "contents": contents}
    write_whole(directory / MANIFEST, json.dumps(held, indent=1).encode())


def _digest(contents: Any) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def check_same(directory: Path, found: Spec, wanted: Mapping[str, Any]) -> None:
    """Raises CacheError unless the rows are of what is asked for; None is whatever is there."""
    for name, value in wanted.items():
        held = getattr(found, name)
        if value is not None and held != value:
            what = {"teacher": "of another teacher", "data": "for other data", "tokenizer": "of another tokenizer"}
            raise CacheError(
                f"{directory}: made {what.get(name, 'differently')}: {name} {held!r}, asked for {value!r}; build one for these"
            )


def check_shard(directory: Path, number: int, shard: Shard, *, contents: bool) -> None:
    """Raises CacheError unless a shard is there, whole, and, with `contents`, has its checksum."""
    path = shard_path(directory, number)
    if not path.is_file():
        raise CacheError(f"{path}: missing; build the cache again")
    size = path.stat().st_size
    if size != shard.bytes:
        raise CacheError(
            f"{path}: {size} bytes, the manifest says {shard.bytes}: truncated or replaced; build the cache again"
        )
    if contents:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard.sha256:
            raise CacheError(f"{path}: corrupt (its checksum differs); build the cache again")


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that it is there whole or not at all.

    Raises:
        CacheError: no space left. Nothing half-written stays.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CacheError(f"{path}: no space left on the disk; free some and run the same build again") from error
        raise


def arrays_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a safetensors file, mapped into memory, read-only.

    The format is a length, a JSON header and the bytes; mapping each array by its offset makes rows cost what they hold.

    Raises:
        CacheError: not a safetensors file with the dtypes of a cache.
    """
    known = {"U16": "<u2", "I32": "<i4", "F16": "<f2", "F32": "<f4"}
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= 2**20 else None
        assert isinstance(header, dict)
        found = {}
        for name, held in header.items():
            if name != "__metadata__":
                kind, shape, (start, stop) = np.dtype(known[held["dtype"]]), tuple(held["shape"]), held["data_offsets"]
                assert stop - start == kind.itemsize * int(np.prod(shape))
                # numpy maps nothing of no bytes; as plain arrays, whose slices are cheap
                found[name] = (
                    np.asarray(np.memmap(path, kind, "r", 8 + length + start, shape))
                    if stop > start
                    else np.zeros(shape, kind)
                )
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise CacheError(f"{path}: not a shard of a teacher cache ({one_line(error)})") from error
    return found


def one_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
