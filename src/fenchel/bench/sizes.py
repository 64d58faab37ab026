"""How large the benchmark is: one frozen record, from the flags of the command."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """N rows of D features against V classes, and the run that the trained regimes are taken from.

    `steps` is the length of that run, `early` the step of its first snapshot, `sequences` x `context` the tokens of a
    step, `fit` the steps that it then spends on a text of four batches, over and over. `characters` bounds the text that
    is read.
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

    @property
    def parity_rows(self) -> int:
        """Rows of the parity check and of the first call: enough for two tiles of a head, and for it to be compiled."""
        return max(1, self.n // 5)


FULL = Size("full", 2048, 512, 32768, 400, 100, 100, 4, 128, 2, 8, 1e-3, 10**9)
QUICK = Size("quick", 64, 32, 512, 12, 6, 12, 4, 16, 1, 2, 5e-3, 300_000)
