"""Building a teacher cache: shard by shard, so that a killed build goes on where it was."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from .buckets import TopK
from .format import (
    MANIFEST,
    TEMPORARY,
    CacheError,
    Manifest,
    Shard,
    Spec,
    check_same,
    check_shard,
    is_ours,
    read_manifest,
    shard_path,
    write_manifest,
    write_whole,
)
from .rows_on_disk import encode
from .sparse import SparseRows

__all__ = ["build_cache"]

ROWS = 2**16
Piece = TopK | SparseRows


def build_cache(
    directory: str | Path, spec: Spec, rows_from: Callable[[int], Iterable[Piece]], *, rows_per_shard: int = ROWS
) -> Manifest:
    """Writes a teacher's rows to a directory; run again after a kill or a full disk, it writes what is missing.

    Args:
        directory: new, empty, or of an unfinished build with the same spec; a finished one is left as it is.
        spec: what the rows are of.
        rows_from: given the number of a row, yields the rows from that one on in pieces of any size: `TopK` for a spec with k, `SparseRows` otherwise. It is
            called with a multiple of rows_per_shard, at most once, and not at all where nothing is missing.
        rows_per_shard: rows of a file; those of an unfinished file are what a kill loses.

    Returns:
        The manifest of the finished cache.

    Raises:
        CacheError: a directory that holds something else or a cache of other rows, a damaged shard, rows that do not fit the spec, fewer or more rows than
            spec.tokens, another build in the same directory, a full disk. What is finished stays.

    Example:
        >>> import tempfile; import torch; from fenchel.teachers.buckets import top_k; from fenchel.teachers.cache import open_cache
        >>> logits = torch.randn(10, 50)
        >>> spec = Spec(teacher="t", data="d", tokenizer="k", vocabulary=50, tokens=10, k=4)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     build_cache(directory, spec, lambda start: [top_k(logits[start:], 4)], rows_per_shard=4).rows
        ...     cache = open_cache(directory, teacher="t", data="d", tokenizer="k")
        ...     torch.equal(cache.buckets(slice(3, 9)).indices, top_k(logits[3:9], 4).indices)
        10
        True
    """
    if isinstance(rows_per_shard, bool) or not isinstance(rows_per_shard, int) or rows_per_shard < 1:
        raise ValueError(f"rows_per_shard: got {rows_per_shard!r}; pass a positive integer")
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CacheError(f"{directory}: is a file; pass a new or empty directory") from None
    with _alone(directory):
        return _build(directory, Manifest(spec, rows_per_shard), rows_from)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keeps other builds out; the system lets go of the directory however this one ends."""
    if sys.platform == "win32":  # has no such lock
        yield
        return
    import fcntl

    held = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise CacheError(f"{directory}: another build is writing there; wait for it to end") from None
    try:
        yield
    finally:
        os.close(held)


def _build(directory: Path, wanted: Manifest, rows_from: Callable[[int], Iterable[Piece]]) -> Manifest:
    manifest = _begin(directory, wanted)
    start, spec = manifest.rows, wanted.spec
    if manifest.complete:
        return manifest
    waiting: list[Piece] = []
    for piece in rows_from(start):
        waiting.append(_checked(piece, spec))
        seen = manifest.rows + sum(map(len, waiting))
        if seen > spec.tokens:
            raise CacheError(f"rows_from({start}): row {seen} of {spec.tokens}; pass the rows that the spec counts")
        manifest, waiting = _write_full(directory, manifest, waiting)
        if manifest.complete:
            return manifest
    seen = manifest.rows + sum(map(len, waiting))
    raise CacheError(
        f"rows_from({start}): ended at row {seen} of {spec.tokens}; run the same build with all of the rows"
    )


def _begin(directory: Path, wanted: Manifest) -> Manifest:
    """The manifest to go on from: that of the directory, or a new one in an empty directory."""
    names = sorted(path.name for path in directory.iterdir())
    foreign = [name for name in names if not is_ours(name)]
    if foreign:
        raise CacheError(f"{directory}: holds {foreign[0]!r}, which is not of a cache; pass a new or empty directory")
    for name in names:
        if name.endswith(TEMPORARY):  # what a killed build was writing
            (directory / name).unlink()
    whole = [name for name in names if not name.endswith(TEMPORARY)]
    if not whole:
        write_manifest(directory, wanted)
        return wanted
    if MANIFEST not in whole:
        raise CacheError(
            f"{directory}: holds shards of nobody knows what, no {MANIFEST}; pass a new or empty directory"
        )
    found = read_manifest(directory)
    check_same(directory, found.spec, asdict(wanted.spec))
    if found.rows_per_shard != wanted.rows_per_shard:
        raise CacheError(
            f"{directory}: built with rows_per_shard = {found.rows_per_shard}, asked for {wanted.rows_per_shard}; pass the same"
        )
    for number, shard in enumerate(found.shards):
        check_shard(directory, number, shard, contents=True)
    return found


def _checked(piece: Piece, spec: Spec) -> Piece:
    """A piece as rows [n].

    Raises:
        CacheError: not of the kind that the spec says.
    """
    kind = SparseRows if spec.k is None else TopK
    if not isinstance(piece, kind):
        raise CacheError(f"rows_from: got {type(piece).__name__}, the spec has k = {spec.k}; yield {kind.__name__}")
    return piece.reshape(-1) if isinstance(piece, TopK) else piece


def _write_full(directory: Path, manifest: Manifest, waiting: list[Piece]) -> tuple[Manifest, list[Piece]]:
    """Writes the shards that the waiting rows fill, and gives back the rows that fill none."""
    while not manifest.complete:
        size = min(manifest.rows_per_shard, manifest.spec.tokens - manifest.rows)
        if sum(map(len, waiting)) < size:
            break
        ready = _cat(waiting)
        manifest = _write(directory, manifest, ready[:size])
        waiting = [ready[size:]]
    return manifest, waiting


def _cat(pieces: list[Piece]) -> Piece:
    # all of one kind: `_checked`
    return TopK.cat(pieces) if isinstance(pieces[0], TopK) else SparseRows.cat(pieces)  # pyright: ignore[reportArgumentType]


def _write(directory: Path, manifest: Manifest, rows: Piece) -> Manifest:
    from safetensors.numpy import save

    data = save(encode(rows, manifest.spec))
    write_whole(shard_path(directory, len(manifest.shards)), data)
    shard = Shard(len(rows), len(data), hashlib.sha256(data).hexdigest())
    manifest = replace(manifest, shards=(*manifest.shards, shard))
    write_manifest(directory, manifest)
    return manifest
