"""`gathered.py`, compiled: sparse rows of logits and their gathered products on a CPU, float32 and float64; float32 rows times bfloat16 as well.

The kernels take plain pointers, leave the GIL alone, and run on as many threads as torch would use. Results do not
depend on the number of threads. Arguments are CPU tensors with contiguous rows; anything else raises.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fenchel.head import native_build
from fenchel.head.gathered import Moments, Rows
from fenchel.solve import Threshold

TASK_ROWS = 16  # as in native.c
SCRATCH = 0.25  # entries that one pass can keep, as a share of the logits; beyond it the logits are read once more

_SUFFIX = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}
_REAL = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
# what rows of a dtype are multiplied by
_FACTORS = {torch.float32: (torch.float32, torch.bfloat16), torch.float64: (torch.float64,)}
# p: pointer, n: int64, r: one number of the element type, d: a double, t: threads
_ARGUMENTS = {
    "scan": "pnnnrpppppnpt",
    "pack": "pnnnppppnpppt",
    "moments": "pnnnppppt",
    "support": "pnnnnddppppppppnpt",
    "rows_times": "pppnppnnnt",
    "transpose_times": "pppnppnnnt",
}


def available() -> bool:
    """Whether the kernels are there. The first call compiles them if need be, and says so if it cannot."""
    return native_build.library() is not None


def handles(*tensors: Tensor) -> bool:
    """Whether the kernels are there and take these tensors: on the CPU, float32 or float64, all of one type."""
    first = tensors[0]
    return (
        first.dtype in _REAL and all(t.device.type == "cpu" and t.dtype == first.dtype for t in tensors) and available()
    )


def multiplies(rows: Rows, x: Tensor) -> bool:
    """Whether the kernels are there and multiply these rows by this matrix: contiguous, on the CPU, of their type or bfloat16 for float32."""
    return (
        x.dtype in _FACTORS.get(rows.vals.dtype, ())
        and x.is_contiguous()
        and x.device.type == rows.vals.device.type == "cpu"
        and available()
    )


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    library = native_build.library()
    if library is None:
        raise RuntimeError("the native kernels are not available here; use fenchel.head.gathered")
    kinds: dict[str, Any] = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "t": ctypes.c_int, "d": ctypes.c_double}
    kinds["r"] = _REAL.get(dtype)  # no product takes one
    function = getattr(library, f"fenchel_{name}_{_SUFFIX[dtype]}")
    function.argtypes = [kinds[kind] for kind in _ARGUMENTS[name]]
    function.restype = None if name in ("pack", "moments") else ctypes.c_int
    return function


def _raise_for(status: int) -> None:
    if status == 1:
        raise ValueError(
            "got rows that are not CSR; pass row_ptr rising from 0 to nnz and cols ascending within [0, columns)"
        )
    if status == 2:
        raise MemoryError("the native kernels got no memory for their scratch")


def _matrix(name: str, x: Tensor, dtypes: Iterable[torch.dtype], shape: tuple[int | None, int | None]) -> None:
    if x.device.type != "cpu" or x.dtype not in dtypes:
        raise TypeError(f"got {name} of {x.dtype} on {x.device}; pass {_either(dtypes)} on the CPU")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"got {name} that requires a gradient; call the kernels under torch.no_grad or in an autograd function"
        )
    if x.ndim != 2 or any(want is not None and want != got for want, got in zip(shape, x.shape, strict=True)):
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(f"got {name} of shape {tuple(x.shape)}; pass [{wanted}]")
    if x.shape[1] > torch.iinfo(torch.int32).max:
        raise ValueError(f"got {name} with {x.shape[1]} columns; pass fewer than 2**31")


def _either(dtypes: Iterable[torch.dtype]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _contiguous(name: str, x: Tensor) -> None:
    if not x.is_contiguous():
        raise ValueError(f"got {name} with strides {x.stride()}; pass it contiguous")


def _logits(logits: Tensor, per_row: Tensor | None = None) -> tuple[int, int, int]:
    _matrix("logits", logits, _REAL, (None, None))
    n, v = logits.shape
    if v == 0:
        raise ValueError(f"got logits of shape {tuple(logits.shape)}; pass at least one column")
    if v > 1 and logits.stride(1) != 1:
        raise ValueError(f"got logits with strides {logits.stride()}; pass contiguous rows")
    if per_row is not None:
        if per_row.shape != (n,) or per_row.dtype != logits.dtype or per_row.device != logits.device:
            raise ValueError(
                f"got {tuple(per_row.shape)} {per_row.dtype} on {per_row.device} per row; "
                f"pass [{n}] {logits.dtype} on cpu"
            )
        _contiguous("the numbers per row", per_row)
    return n, v, logits.stride(0)


def _threads(threads: int | None) -> int:
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"got threads={threads}; pass 1 or more")
    return threads


def window(logits: Tensor, width: float, *, threads: int | None = None) -> tuple[Tensor, Rows]:
    """Row maxima `[n]` of logits `[n, V]`, and the entries no further than `width` below them, in one pass."""
    n, _, _ = _logits(logits)
    row_max = torch.empty(n, dtype=logits.dtype)
    return row_max, _scan(logits, width, row_max, torch.empty_like(row_max), _threads(threads))


def above(logits: Tensor, limit: Tensor, *, threads: int | None = None) -> Rows:
    """The entries of logits `[n, V]` that are not `<= limit` `[n]`, in one pass."""
    _logits(logits, limit)
    return _scan(logits, 0.0, None, limit, _threads(threads))


def _scan(logits: Tensor, width: float, row_max: Tensor | None, limits: Tensor, threads: int) -> Rows:
    place = _place(logits)
    found = _Found.of(logits)
    top = None if row_max is None else row_max.data_ptr()
    _raise_for(_function("scan", logits.dtype)(*place, width, top, limits.data_ptr(), *found.pointers, threads))
    return found.packed(logits, limits, threads)


def _place(logits: Tensor) -> tuple[int, int, int, int]:
    return (logits.data_ptr(), *_logits(logits))


@dataclass(frozen=True)
class _Found:
    """Where the entries that a pass over logits finds are put, task by task, before it is known how many they are."""

    row_ptr: Tensor
    cols: Tensor
    vals: Tensor
    slot: int
    stored: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> _Found:
        n, v = logits.shape
        tasks, slot = -(-n // TASK_ROWS), int(TASK_ROWS * v * SCRATCH) + 1
        cols, vals = torch.empty(tasks * slot, dtype=torch.int32), torch.empty(tasks * slot, dtype=logits.dtype)
        return cls(torch.empty(n + 1, dtype=torch.int64), cols, vals, slot, torch.empty(tasks, dtype=torch.uint8))

    @property
    def pointers(self) -> tuple[int, ...]:
        return (*(x.data_ptr() for x in (self.row_ptr, self.cols, self.vals)), self.slot, self.stored.data_ptr())

    def packed(self, logits: Tensor, limits: Tensor, threads: int) -> Rows:
        """The rows in one piece; those of tasks that were only counted are read from the logits again."""
        nnz = int(self.row_ptr[-1])
        cols, vals = torch.empty(nnz, dtype=torch.int32), torch.empty(nnz, dtype=logits.dtype)
        out = (limits.data_ptr(), *self.pointers, cols.data_ptr(), vals.data_ptr(), threads)
        _function("pack", logits.dtype)(*_place(logits), *out)
        return Rows(self.row_ptr, cols, vals, logits.shape[1])


def moments(logits: Tensor, tau: Tensor, *, threads: int | None = None) -> Moments:
    """Count, sum and sum of squares of the positive part of `logits - tau`, per row of `[n, V]`, in one pass."""
    n, v, stride = _logits(logits, tau)
    count, total, squares = torch.empty(n, dtype=torch.int64), torch.empty_like(tau), torch.empty_like(tau)
    pointers = (t.data_ptr() for t in (tau, count, total, squares))
    _function("moments", logits.dtype)(logits.data_ptr(), n, v, stride, *pointers, _threads(threads))
    return Moments(count, total, squares)


def support(
    logits: Tensor, k: int, q: float, tolerance: float, *, threads: int | None = None
) -> tuple[Tensor, Threshold, Rows | None]:
    """Each row's best logit [n, 1], its threshold (q sum_j max((top + z_j - best) / k, 0)^k = 1, k = 1 or 2), and the entries that are not below it.

    The last is None if they are more than a quarter of some TASK_ROWS rows, or those follow on such a row. NaN rows have a mass of NaN.
    """
    n, v, stride = _logits(logits)
    if k not in (1, 2):
        raise ValueError(f"got k={k}; pass 1 or 2")
    best, top, mass, spread = (torch.empty(n, 1, dtype=logits.dtype) for _ in range(4))
    count, found, threads = torch.empty(n, 1, dtype=torch.int64), _Found.of(logits), _threads(threads)
    out = (t.data_ptr() for t in (best, top, mass, spread, count))
    numbers = (logits.data_ptr(), n, v, stride, k, q, tolerance)
    _raise_for(_function("support", logits.dtype)(*numbers, *out, *found.pointers, threads))
    rows = found.packed(logits, best, threads) if bool(found.stored.all()) else None
    return best, Threshold(top, mass, spread, count, 0, 0), rows


def rows_times(rows: Rows, weight: Tensor, *, out: Tensor | None = None, threads: int | None = None) -> Tensor:
    """`rows @ weight`, `[n, V] @ [V, D]`; added to `out` `[n, D]` in place if it is given. Float32 rows take a weight of bfloat16."""
    _matrix("weight", weight, _factors(rows), (rows.columns, None))
    if out is None:
        out = torch.zeros(rows.shape[0], weight.shape[1], dtype=rows.vals.dtype)
    _matrix("out", out, (rows.vals.dtype,), (rows.shape[0], weight.shape[1]))
    return _product("rows_times", rows, weight, out, threads)


def transpose_times(rows: Rows, hidden: Tensor, *, out: Tensor, threads: int | None = None) -> Tensor:
    """`out += rows.T @ hidden`, `[V, n] @ [n, D]`, in place into `out` `[V, D]`. Float32 rows take hidden states of bfloat16."""
    _matrix("hidden", hidden, _factors(rows), (rows.shape[0], None))
    _matrix("out", out, (rows.vals.dtype,), (rows.columns, hidden.shape[1]))
    return _product("transpose_times", rows, hidden, out, threads)


def _factors(rows: Rows) -> tuple[torch.dtype, ...]:
    if rows.vals.dtype not in _FACTORS:
        raise TypeError(f"got rows of {rows.vals.dtype}; pass {_either(_FACTORS)}")
    return _FACTORS[rows.vals.dtype]


def _product(name: str, rows: Rows, x: Tensor, out: Tensor, threads: int | None) -> Tensor:
    if rows.row_ptr.dtype != torch.int64 or rows.cols.dtype != torch.int32 or rows.vals.shape != rows.cols.shape:
        raise TypeError(
            f"got row_ptr {rows.row_ptr.dtype}, cols {rows.cols.dtype}; pass int64 and int32, one val per col"
        )
    for label, tensor in (("row_ptr", rows.row_ptr), ("cols", rows.cols), ("vals", rows.vals), ("x", x), ("out", out)):
        _contiguous(label, tensor)
    if any(t.device.type != "cpu" for t in (rows.row_ptr, rows.cols, rows.vals)):
        raise TypeError(f"got rows on {rows.vals.device}; pass them on the CPU")
    n, v = rows.shape
    pointers = (rows.row_ptr.data_ptr(), rows.cols.data_ptr(), rows.vals.data_ptr(), rows.cols.numel())
    sizes = (n, v, x.shape[1])
    _raise_for(_function(name, x.dtype)(*pointers, x.data_ptr(), out.data_ptr(), *sizes, _threads(threads)))
    torch.autograd.graph.increment_version(out)  # written behind autograd's back: its check must see it
    return out
