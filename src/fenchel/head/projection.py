"""hidden @ weight.T with all that models put between the product and the logits, forward and backward."""

import ctypes
import math
import mmap
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..agreement import is_sharded
from ..checks import check_floating, check_positive
from . import half, products

# bytes of a head's logits that exist at once: large enough that matrix products run at full speed, small beside any model
MEMORY = 48 * 2**20
# bytes above which memory is worth large pages, and where they may start
HUGE, PAGE = 4 * 2**20, 4096
# columns of logits that a CPU multiplies at a time: for a few hundred rows a tenth faster than all at once
COLUMNS = 1024
# columns of a half-precision weight that are widened at once on a CPU
BLOCK = 4096


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Tensors in autocast's dtype where it is on, as torch's own linear would."""
    first = tensors[0]
    if not isinstance(first, Tensor) or not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t for t in tensors)


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float) -> torch.Size:
    """The leading shape of hidden.

    Raises:
        TypeError: not floating tensors, or numbers that are not numbers.
        ValueError: shapes, dtypes or devices that do not fit together.
    """
    check_floating("hidden", hidden, "[..., D]")
    check_floating("weight", weight, "[V, D]")
    if is_sharded(weight) or is_sharded(hidden):
        raise TypeError(
            "weight: got a DTensor, this head needs the whole vocabulary; pass weight.full_tensor(), or call the loss in the forward of its module"
        )
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}; pass [V, D] with V, D >= 1 (a Linear layer's weight)"
        )
    if hidden.dim() == 0 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden: got shape {tuple(hidden.shape)}; pass [..., D] with D = {weight.shape[1]}, as weight {tuple(weight.shape)}"
        )
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden: got dtype {hidden.dtype}, weight is {weight.dtype}; pass hidden.to({weight.dtype})")
    if hidden.device != weight.device:
        raise ValueError(f"hidden: got device {hidden.device}, weight is on {weight.device}; move one of them")
    if bias is not None:
        check_floating("bias", bias, "[V]")
        if tuple(bias.shape) != (weight.shape[0],) or bias.device != weight.device:
            raise ValueError(
                f"bias: got shape {tuple(bias.shape)} on {bias.device}; pass [V] = [{weight.shape[0]}] on {weight.device}"
            )
    if softcap is not None:
        check_positive("softcap", softcap)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale) or scale == 0:
        raise ValueError(f"scale: got {scale!r}; pass a finite number other than 0")
    return hidden.shape[:-1]


def ranks_share(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> dict[str, Any]:
    """What ranks that share a head's vocabulary must agree on beside their labels and options."""
    tensors = {"hidden": hidden, "weight": weight, "bias": bias}
    return {
        "hidden": (tuple(hidden.shape), hidden.dtype),
        "weight": (weight.shape[1], weight.dtype),
        "bias": None if bias is None else bias.dtype,
        "requires_grad": torch.is_grad_enabled()
        and [n for n, x in tensors.items() if x is not None and x.requires_grad],
    }


def rows_per_tile(v: int, itemsize: int, memory: int) -> int:
    """How many rows of logits fit in the memory, at least one.

    Raises:
        ValueError: memory is not a positive number of bytes.
    """
    if isinstance(memory, bool) or not isinstance(memory, int) or memory <= 0:
        raise ValueError(f"memory: got {memory!r}; pass a positive number of bytes (default {MEMORY})")
    rows = max(1, memory // (v * itemsize))
    return rows if rows < 16 else rows // 16 * 16


def large_pages(x: Tensor) -> Tensor:
    """x, uninitialised; on Linux its memory, not touched yet, will be of large pages, whose small number makes every pass over it faster."""
    first = -(-x.data_ptr() // PAGE) * PAGE
    size = x.data_ptr() + x.nbytes - first
    if x.device.type == "cpu" and sys.platform == "linux" and size >= HUGE:
        _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)  # advice: it may fail
    return x


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float) -> Tensor:
    """The logits of a tile, differentiable, in float32 at least."""
    z = hidden @ weight.T
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    if bias is not None:
        z = z + bias
    if scale != 1:
        z = z * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def logits_into(
    out: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float
) -> None:
    """`logits_of` written into a float32 or float64 buffer [n, V]."""
    if products.handles(len(hidden), weight, hidden, out):
        products.logits(out, hidden, weight)
    elif half.handles(weight):
        half.add_product(out, hidden, weight.T, new=True)
    elif hidden.dtype == out.dtype and hidden.is_cuda:
        torch.mm(hidden, weight.T, out=out)
    elif hidden.dtype == out.dtype:
        for i in range(0, len(weight), COLUMNS):
            torch.mm(hidden, weight[i : i + COLUMNS].T, out=out[:, i : i + COLUMNS])
    elif hidden.is_cuda:
        out.copy_(hidden @ weight.T)
    else:
        # a CPU without units for it multiplies widened blocks several times faster, and more accurately
        wide = hidden.to(out.dtype)
        for i in range(0, len(weight), BLOCK):
            out[:, i : i + BLOCK] = wide @ weight[i : i + BLOCK].to(out.dtype).T
    if bias is not None:
        out += bias
    if scale != 1:
        out *= scale
    if softcap is not None:
        out.div_(softcap).tanh_().mul_(softcap)


def pull_logits_(grad: Tensor, capped: Tensor | None, softcap: float | None, scale: float) -> None:
    """The gradient of the logits turned in place into that of hidden @ weight.T + bias. capped: the logits, for a soft-cap; overwritten."""
    if softcap is not None:
        assert capped is not None
        grad.mul_(capped.div_(softcap).square_().neg_().add_(1))
    if scale != 1:
        grad *= scale


def add_gradients(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
    *,
    new: tuple[bool, bool],
) -> None:
    """grad [n, V] multiplied back: grad @ weight, grad.T @ hidden and grad's column sums are added to d_hidden, d_weight and d_bias.

    new: whether d_hidden and d_weight were not written yet, and become the products.
    """
    wanted = [x for x in (d_hidden, d_weight) if x is not None]
    if wanted and products.handles(len(grad), weight, hidden, grad, *wanted):
        part = d_hidden if d_hidden is None or new[0] else torch.empty_like(d_hidden)
        products.gradients(grad, hidden, weight, part, d_weight, new[1])
        if d_hidden is not None and part is not None and part is not d_hidden:
            d_hidden += part
        d_hidden = d_weight = None
    elif wanted and weight.dtype == torch.bfloat16 and half.handles(weight):
        # float16 would lose the gradients below 6e-8, of which a mean over tokens has many
        grad_ = grad.to(weight.dtype)
        if d_hidden is not None:
            half.add_product(d_hidden, grad_, weight, new[0])
        if d_weight is not None:
            half.add_product(d_weight, grad_.T, hidden, new[1])
        d_hidden = d_weight = None
    if d_hidden is not None and weight.is_cuda and weight.dtype != grad.dtype:
        product = grad.to(weight.dtype) @ weight
        _ = d_hidden.copy_(product) if new[0] else d_hidden.add_(product)
    elif d_hidden is not None:
        _add_product(d_hidden, grad, weight, new[0])
    if d_weight is not None:
        _add_product(d_weight, grad.T, hidden, new[1])
    if d_bias is not None:
        d_bias += grad.sum(0)


def _add_product(out: Tensor, a: Tensor, b: Tensor, new: bool) -> None:
    """a @ b added to out, or written there; b in another dtype is widened some rows at a time."""
    step = max(1, len(b) if b.dtype == a.dtype else BLOCK)
    for i in range(0, max(1, len(b)), step):
        part, wide = a[:, i : i + step], b[i : i + step].to(a.dtype)
        if new and i == 0:
            torch.mm(part, wide, out=out)
        else:
            out.addmm_(part, wide)
