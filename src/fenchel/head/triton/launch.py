"""The shape of every launch, in one place: chosen by reasoning, tuned to no machine.

A program works on a block of ROWS rows, BLOCK columns at a time: 2,048 entries are 16 a thread for 4 warps. That hides the latency of memory and leaves
registers to the scalar functions. Few columns are made up for by more rows.
"""

from dataclasses import dataclass
from typing import Any

import triton

__all__ = ["ENTRIES", "GATHERED", "Shape", "gather_shape", "jit", "launch", "row_shape"]

# untyped: what a kernel is called with is not what its parameters are annotated with
jit: Any = triton.jit

# entries that a program works on at once
ENTRIES = 2048
# columns below which a block is padded rather than made narrower
FEWEST = 64
# share of a tile below which its gradient is multiplied back entry by entry: a GPU's dense products are fast, so only where little is left of them
GATHERED = 0.01


@dataclass(frozen=True)
class Shape:
    """Rows and columns of a block, both powers of two, and warps of a program."""

    rows: int
    columns: int
    warps: int

    def over(self, n: int) -> tuple[int]:
        """The grid of n rows."""
        return (-(-n // self.rows),)


def launch(kernel: Any, grid: tuple[int, ...], shape: Shape, *args: Any, **constants: Any) -> None:
    """Runs a kernel of blocks of this shape over a grid."""
    kernel[grid](*args, ROWS=shape.rows, BLOCK=shape.columns, num_warps=shape.warps, **constants)


def row_shape(n: int, v: int) -> Shape:
    """For kernels that read rows [n, v] from one end to the other."""
    columns = min(max(_power(v), FEWEST), ENTRIES)
    return Shape(min(_power(n), max(1, ENTRIES // columns)), columns, 4)


def gather_shape(d: int) -> Shape:
    """For products that gather rows of a matrix [*, d]: eight rows at a time, up to 256 columns of them."""
    return Shape(8, min(_power(d), 256), 4)


def _power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()
