"""Products of half precision on a GPU, added up and stored in float32: torch.mm with out_dtype, which its own `@` would round.

torch has it for CUDA, from 2.8 on, where both factors are float16 or bfloat16; ROCm and TunableOp have it not. Its addmm took, at first, only half precision
to add to, so sums are added here. (torch's documentation of `mm`, and its source: `_mm_dtype_out_cuda`, `_addmm_dtype_out_cuda`, `addmm_out_cuda_impl`.)
"""

import torch
from torch import Tensor

__all__ = ["add_product", "handles"]

# rows of a sum that are made at once before they are added
ROWS = 4096


def handles(x: Tensor) -> bool:
    """Whether products of x with a matrix of its dtype are made here."""
    return (
        x.is_cuda
        and x.dtype in (torch.float16, torch.bfloat16)
        and torch.version.hip is None
        and not torch.cuda.tunable.is_enabled()
    )


def add_product(out: Tensor, a: Tensor, b: Tensor, new: bool) -> None:
    """a [n, k] @ b [k, m], both of one half precision, added to a float32 out, or written there."""
    if new:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
        return
    for i in range(0, len(out), ROWS):
        out[i : i + ROWS] += torch.mm(a[i : i + ROWS], b, out_dtype=torch.float32)
