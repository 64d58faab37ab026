"""A teacher cache on disk, open for reading: any rows, in any order, without loading the rest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .buckets import TopK
from .format import MANIFEST, CacheError, Manifest, Spec, arrays_of, check_same, check_shard, read_manifest, shard_path
from .rows_on_disk import Array, decode_sparse, decode_top_k
from .sparse import SparseRows

__all__ = ["Cache", "open_cache"]

Index = slice | Sequence[int] | Tensor


def open_cache(
    directory: str | Path,
    *,
    teacher: str | None,
    data: str | None,
    tokenizer: str | None,
    vocabulary: int | None = None,
    temperature: float | None = None,
    generator: str | None = None,
    tokens: int | None = None,
    verify: bool = True,
) -> "Cache":
    """Opens a finished cache, or says in one line why it cannot serve; before any training.

    Args:
        directory: of `build_cache`.
        teacher, data, tokenizer: the fingerprints that the cache must carry; None leaves one unchecked.
        vocabulary, temperature, generator, tokens: what else it must be of; None leaves one unchecked.
        verify: read every shard once and compare its SHA-256. False: sizes alone now, and a shard's SHA-256 when it is first used.

    Raises:
        CacheError: no cache, one of another version, unfinished, of another teacher, other data, ..., with a missing, truncated or corrupt file.

    Example:
        >>> open_cache("nowhere", teacher=None, data=None, tokenizer=None)
        Traceback (most recent call last):
        ...
        fenchel.teachers.format.CacheError: nowhere: no such directory; build the cache first
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if not manifest.complete:
        raise CacheError(
            f"{directory}: unfinished, {manifest.rows} of {manifest.spec.tokens} rows; run the same build again, it goes on where it was"
        )
    asked = {"teacher": teacher, "data": data, "tokenizer": tokenizer}
    more = {"vocabulary": vocabulary, "temperature": temperature, "generator": generator, "tokens": tokens}
    check_same(directory, manifest.spec, asked | more)
    for number, shard in enumerate(manifest.shards):
        check_shard(directory, number, shard, contents=verify)
    return Cache(directory, manifest, verified=verify)


class Cache:
    """What `open_cache` returns. Rows are numbered from 0; files are mapped when they are first used.

    Attributes:
        spec: what the rows are of.
    """

    def __init__(self, directory: Path, manifest: Manifest, *, verified: bool) -> None:
        self.spec: Spec = manifest.spec
        self._directory, self._manifest = directory, manifest
        self._verified = set(range(len(manifest.shards))) if verified else set[int]()
        self._mapped: dict[int, dict[str, Array]] = {}
        self._starts = np.cumsum([0, *(s.rows for s in manifest.shards)])

    def __len__(self) -> int:
        """How many rows there are."""
        return self._manifest.rows

    def __repr__(self) -> str:
        """What it is, in one line."""
        kind = "sparse" if self.spec.k is None else f"top {self.spec.k}"
        return f"Cache({kind}, {len(self)} rows, V = {self.spec.vocabulary}, {self.bytes_per_token:.1f} bytes per row)"

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped files: a copy in another process maps its own."""
        return self.__dict__ | {"_mapped": {}}

    @property
    def bytes_per_token(self) -> float:
        """The size of all files on disk, the manifest's too, over the number of rows."""
        files = [
            self._directory / MANIFEST,
            *(shard_path(self._directory, i) for i in range(len(self._manifest.shards))),
        ]
        return sum(path.stat().st_size for path in files) / max(1, len(self))

    def buckets(self, rows: Index) -> TopK:
        """The rows' buckets, float32: of a sparse cache with a tail of exactly nothing.

        Args:
            rows: a slice, or row numbers as a sequence or an int64 tensor of any shape, which becomes the result's.

        Raises:
            IndexError: a row outside [0, len).
            CacheError: a damaged shard, where `open_cache` did not verify.
        """
        numbers, shape = self._numbers(rows)
        flat = (
            decode_top_k(self._read(numbers), self.spec) if self.spec.k is not None else self._sparse(numbers).buckets()
        )
        return flat.reshape(*shape)

    def mass(self) -> Tensor:
        """The probability [N] that the stored classes of each row have together, float32: less than 1 where a teacher is unsure beyond k classes.

        Example:
            >>> import tempfile; from fenchel.teachers.buckets import top_k; from fenchel.teachers.writer import build_cache
            >>> marks, row = {"teacher": "t", "data": "d", "tokenizer": "k"}, torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     manifest = build_cache(directory, Spec(**marks, vocabulary=4, tokens=1, k=2), lambda start: [top_k(row, 2)])
            ...     print(f"{float(open_cache(directory, **marks).mass()):.3f}")
            0.750

        Raises:
            CacheError: a damaged shard, where `open_cache` did not verify.
        """
        parts = zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)
        # a shard at a time: a cache may be larger than the memory
        return torch.cat([torch.ones(0), *(self._mass(start, stop) for start, stop in parts)])

    def _mass(self, start: int, stop: int) -> Tensor:
        if self.spec.k is None:
            return torch.ones(stop - start)
        return self.buckets(slice(start, stop)).logp.exp().sum(-1)

    def sparse(self, rows: Index) -> SparseRows:
        """The rows of a sparse cache, [N] whatever the shape of the row numbers.

        Raises:
            CacheError: a cache of the k largest probabilities.
        """
        if self.spec.k is not None:
            raise CacheError(f"{self._directory}: a cache of the {self.spec.k} largest probabilities; use `buckets`")
        return self._sparse(self._numbers(rows)[0])

    def _sparse(self, numbers: Array) -> SparseRows:
        return decode_sparse(self._read(numbers), self.spec)

    def _numbers(self, rows: Index) -> tuple[Array, tuple[int, ...]]:
        """Row numbers [n], and the shape that they came in."""
        if isinstance(rows, slice):
            found = np.arange(*rows.indices(len(self)))
        elif isinstance(rows, Tensor):
            if rows.dtype != torch.int64:
                raise TypeError(f"rows: got dtype {rows.dtype}; pass int64 row numbers")
            found = rows.cpu().numpy()
        else:
            found = np.asarray(rows, dtype=np.int64)
        if found.size and not (found.min() >= 0 and found.max() < len(self)):
            wrong = found.min() if found.min() < 0 else found.max()
            raise IndexError(f"rows: got row {wrong}; pass rows in [0, {len(self)})")
        return found.reshape(-1), found.shape

    def _read(self, numbers: Array) -> dict[str, Array]:
        """The stored arrays of some rows, in their order."""
        return self._read_sparse(numbers) if self.spec.k is None else self._read_top_k(numbers, self.spec.k)

    def _read_top_k(self, numbers: Array, k: int) -> dict[str, Array]:
        n, shards = len(numbers), self._shards_of(numbers)
        out = {"indices": np.zeros((n, k), self.spec.index), "logp": np.zeros((n, k + 1), self.spec.real)}
        for i in np.unique(shards).tolist():
            place = np.flatnonzero(shards == i)
            for name, array in out.items():
                array[place] = self._shard(i)[name][numbers[place] - self._starts[i]]
        return out

    def _read_sparse(self, numbers: Array) -> dict[str, Array]:
        # rows of different lengths, copied one by one
        found: dict[str, list[Array]] = {"cols": [np.zeros(0, self.spec.index)], "logp": [np.zeros(0, self.spec.real)]}
        shards = self._shards_of(numbers)
        for i, row in zip(shards.tolist(), (numbers - self._starts[shards]).tolist(), strict=True):
            shard = self._shard(i)
            start, stop = shard["row_ptr"][row : row + 2]
            for name, rows in found.items():
                rows.append(shard[name][start:stop])
        counts = np.array([len(row) for row in found["cols"][1:]], np.int64)
        return {"counts": counts, **{name: np.concatenate(rows) for name, rows in found.items()}}

    def _shards_of(self, numbers: Array) -> Array:
        return np.searchsorted(self._starts, numbers, side="right") - 1

    def _shard(self, number: int) -> dict[str, Array]:
        """The arrays of a shard, checked when they are first mapped."""
        if number not in self._mapped:
            shard, spec = self._manifest.shards[number], self.spec
            if number not in self._verified:
                check_shard(self._directory, number, shard, contents=True)
            path = shard_path(self._directory, number)
            found = arrays_of(path)
            if spec.k is None:
                found["row_ptr"] = np.concatenate(([0], np.cumsum(found["counts"], dtype=np.int64)))
                entries = int(found["row_ptr"][-1])
                want = {"counts": (shard.rows,), "cols": (entries,), "logp": (entries,), "row_ptr": (shard.rows + 1,)}
            else:
                want = {"indices": (shard.rows, spec.k), "logp": (shard.rows, spec.k + 1)}
            if {name: array.shape for name, array in found.items()} != want:
                raise CacheError(f"{path}: arrays of other shapes than the manifest says; build the cache again")
            self._verified.add(number)
            self._mapped[number] = found
        return self._mapped[number]
