"""How large the benchmark is: one frozen record, from the flags of the command."""

from dataclasses import dataclass, replace

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Entries of logits that parity is checked on: dense float64 needs some twenty tensors of them.
PARITY = 2**24


@dataclass(frozen=True)
class Size:
    """N rows of D features against V classes, and the run that the trained regimes are taken from.

    `steps` is the length of that run, `early` the step of its first snapshot, `sequences` x `context` the tokens of a
    step, `fit` the steps that it then spends on a text of four batches, over and over. `characters` bounds the text that
    is read. The run is made in float32; `dtype` is what heads are measured in.
    """

    name: str
    n: int
    d: int
    v: int
    steps: int
    early: int
    fit: int
    sequences: int
    context: int
    layers: int
    heads: int
    lr: float
    characters: int
    dtype: str = "float32"

    @property
    def parity_rows(self) -> int:
        """Rows of the parity check and of the first call, enough for a head to be compiled."""
        return max(1, min(self.n // 5, PARITY // self.v))

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype`, as torch's."""
        return DTYPES[self.dtype]

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return self.torch_dtype.itemsize

    @property
    def shape(self) -> str:
        """As `--shapes` takes it."""
        return f"{self.n}x{self.d}x{self.v}"

    def shaped(self, n: int, d: int, v: int) -> "Size":
        """Another shape, which has no real run."""
        other = replace(self, n=n, d=d, v=v)
        return self if other == self else replace(other, name=other.shape)


FULL = Size("full", 2048, 512, 32768, 400, 100, 100, 4, 128, 2, 8, 1e-3, 10**9)
QUICK = Size("quick", 64, 32, 512, 12, 6, 12, 4, 16, 1, 2, 5e-3, 300_000)
