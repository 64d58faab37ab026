"""`fenchel bench`: the heads against dense ones and other libraries, in the regimes that training goes through."""

from fenchel.bench.command import run

__all__ = ["run"]
