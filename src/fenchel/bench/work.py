"""What a path cannot do without, and how long the machine would need for that alone.

The ceilings are measured in the turns of the same run: multiplications per second of a bare product of the same shape, bytes per second of a copy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fenchel.bench.sizes import Size

# Entries that are copied to measure the memory: more than caches hold.
COPIED = 2**26


@dataclass(frozen=True)
class Work:
    """Of one forward and backward pass, in units that grow with the shape.

    Attributes:
        products: products of [N, D] and [D, V], and of their gradients.
        sparse: products more, of which only the share in the support has to be made.
        passes: [N, V] tensors that are read or written, each where it cannot be in a cache.
        tensors: hidden states and weights that are read, and gradients of them that are written.
    """

    products: float = 0.0
    sparse: float = 0.0
    passes: float = 0.0
    tensors: int = 0


@dataclass(frozen=True)
class Share:
    """The least work of a path, and the share of its time that the machine's ceiling leaves for it: 1 is the ceiling."""

    flops: float
    bytes: float
    bound: str
    share: float


def flops(work: Work, size: Size, support: float) -> float:
    """Multiplications and additions."""
    return 2.0 * size.n * size.d * size.v * (work.products + work.sparse * support)


def moved(work: Work, size: Size) -> float:
    """Bytes."""
    return size.itemsize * (work.passes * size.n * size.v + work.tensors * (size.n + size.v) * size.d)


def share(work: Work, size: Size, support: float, times: Mapping[str, Sequence[float]], key: str) -> Share | None:
    """The share of the ceiling that the path of this key reaches; None where it, its work or a ceiling is not known."""
    if key not in times or "product" not in times or "copy" not in times or work == Work():
        return None
    per_flop = median(times["product"]) / flops(Work(products=1), size, 0.0)
    per_byte = median(times["copy"]) / (2.0 * size.itemsize * copied(size))
    f, b = flops(work, size, support), moved(work, size)
    bound = "product" if f * per_flop >= b * per_byte else "memory"
    return Share(f, b, bound, max(f * per_flop, b * per_byte) / median(times[key]))


def copied(size: Size) -> int:
    """Entries of the copy."""
    return min(COPIED, size.n * size.v)
