"""The products of a head on a CPU where torch's own are slow: `product.h`, compiled where it runs.

torch multiplies by Intel's MKL on x86, which leaves a quarter of an AMD CPU's multiply-adds unused, and a third in the tiles of a head; docs/kernels.md has the
measurement. Elsewhere torch's own are used.
"""

import ctypes
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import native_build
from .programs import REALS

__all__ = ["gradients", "handles", "logits"]

_SOURCE = """
#define REAL {0}
#define INTEGER {1}
{2}
#include "product.h"

int fenchel_wanted(void) {{
#if defined(PAIRS)
    return 1;
#elif defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd");
#else
    return 0;
#endif
}}
"""
# hidden states and weight: what logits and gradients are then, and what the source is told of it
_KINDS = {**{dtype: (dtype, "") for dtype in REALS}, torch.bfloat16: (torch.float32, "#define HALF")}
# multiplications of a product below which starting threads costs more than is won
LARGE = 2**24


def handles(n: int, weight: Tensor, hidden: Tensor, *others: Tensor) -> bool:
    """Whether products of n rows with tensors like these are made here: in float32 or float64, or with heads in bfloat16 and all else in float32.

    FENCHEL_PRODUCTS=torch leaves them to torch, =native makes them here on any CPU, of any size.

    Raises:
        ValueError: another value of FENCHEL_PRODUCTS.
    """
    wanted = os.environ.get("FENCHEL_PRODUCTS", "")
    if wanted not in ("", "native", "torch"):
        raise ValueError(f"got FENCHEL_PRODUCTS={wanted!r}; set it to native or torch")
    if wanted == "torch" or weight.device.type != "cpu" or weight.dtype not in _KINDS or hidden.dtype != weight.dtype:
        return False
    real, _ = _KINDS[weight.dtype]
    if not all(x.device == weight.device and _rows(x) for x in (weight, hidden, *others)):
        return False
    if (
        0 in weight.shape
        or n == 0
        or any(x.dtype != real for x in others)
        or not (wanted or n * weight.numel() >= LARGE)
    ):
        return False
    library = _library(weight.dtype)
    return library is not None and (wanted == "native" or bool(library.fenchel_wanted()))


def _rows(x: Tensor) -> bool:
    """Whether its rows are contiguous and do not overlap."""
    return x.shape[-1] == 1 or (x.stride(-1) == 1 and (len(x) < 2 or x.stride(0) >= x.shape[-1]))


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    if native_build.library() is None:  # it says why
        return None
    real, told = _KINDS[dtype]
    library = native_build.load(_SOURCE.format(*REALS[real], told).encode(), "product")
    matrix, size = [ctypes.c_void_p, ctypes.c_int64], [ctypes.c_int64] * 3 + [ctypes.c_int]
    library.fenchel_logits.argtypes = [*matrix * 3, *size]
    library.fenchel_gradients.argtypes = [*matrix * 5, ctypes.c_int, *size]
    return library


def logits(out: Tensor, hidden: Tensor, weight: Tensor) -> None:
    """out [n, V] becomes hidden [n, D] @ weight.T [D, V]; all of what `handles` takes."""
    _run("logits", (hidden, weight, out), (), (len(hidden), *weight.shape[::-1]))


def gradients(
    grad: Tensor, hidden: Tensor, weight: Tensor, d_hidden: Tensor | None, d_weight: Tensor | None, first: bool
) -> None:
    """d_hidden [n, D] becomes grad [n, V] @ weight; grad.T @ hidden is added to d_weight [V, D], or written there first."""
    _run("gradients", (grad, hidden, weight, d_hidden, d_weight), (not first,), (len(grad), *weight.shape[::-1]))


def _run(name: str, matrices: tuple[Tensor | None, ...], flags: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    places: list[Any] = []
    for x in matrices:
        places += [None, 0] if x is None else [x.data_ptr(), x.stride(0)]
    assert matrices[1] is not None  # hidden or weight
    function = getattr(_library(matrices[1].dtype), f"fenchel_{name}")
    if function(*places, *flags, *sizes, torch.get_num_threads()):
        raise MemoryError(f"the {name} of a head got no memory for its scratch")
