"""What the kernels evaluate, as Triton functions: made once for each generator and dtype, from the functions that the torch paths run."""

import weakref
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ...generators import INF, Generator, operator_of
from ...operators import gains
from ...solve import advance, bracket, is_steep, shares
from ...terms import entry_derivatives
from .. import divergence_tiles, logp
from ..tiles import probability
from .source import NotElementary, triton_function

__all__ = ["Solver", "divergence_functions", "divergence_obstacle", "logp_gradient", "solver", "solver_obstacle"]


@dataclass(frozen=True)
class Solver:
    """The Triton functions of the Fenchel-Young kernels: `solve.bracket`, `solve.shares`, `solve.advance`, and what is done with the threshold."""

    bracket: Any
    shares: Any
    advance: Any
    finish: Any


_solvers: "weakref.WeakKeyDictionary[Generator, dict[torch.dtype, Solver]]" = weakref.WeakKeyDictionary()


def solver(g: Generator, dtype: torch.dtype) -> Solver:
    """The functions of a generator, evaluated in a dtype.

    Raises:
        NotElementary: a function of the generator has no Triton expression.
    """
    made = _solvers.setdefault(g, {})
    if dtype not in made:

        def finish(d: Tensor, top: Tensor, shift: Tensor, q: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
            u = operator_of(g).unlink(top - d)
            infinite = g.f0 == INF
            gain = gains(d, u, d < INF if infinite else None, top, q, flat if infinite else None, g)
            return gain, probability(u, shift, q, g)

        made[dtype] = Solver(
            triton_function("bracket", partial(bracket, g=g), 2, dtype),
            triton_function("shares", partial(shares, g=g), 3, dtype),
            triton_function("advance", partial(advance, g=g), 7, dtype),
            triton_function("finish", finish, 5, dtype),
        )
    return made[dtype]


@lru_cache(maxsize=128)
def solver_obstacle(g: Generator, dtype: torch.dtype) -> str | None:
    """Why the Fenchel-Young kernels cannot evaluate a generator; None if they can."""
    if is_steep(g):
        return f"generator {g.name!r} is flat at 0, and its threshold is found by sorting (alpha > 2)"
    try:
        solver(g, dtype)
    except NotElementary as error:
        return f"generator {g.name!r}: {error}"
    return None


@lru_cache(maxsize=8)
def logp_gradient(dtype: torch.dtype) -> Any:
    """`logp.pulled` of a logit's log-probability."""

    def pulled(log_p: Tensor, *rows: Tensor) -> Tensor:
        log_p = log_p.clamp_min(-logp.FAR)
        return logp.pulled(log_p.exp(), log_p, *rows)

    return triton_function("logp", pulled, 5, dtype)


@lru_cache(maxsize=128)
def divergence_functions(g: Generator, skew: float, needed: tuple[bool, bool], dtype: torch.dtype) -> tuple[Any, Any]:
    """The term of a class and its derivatives in both log-probabilities (0 where not needed); `divergence_tiles.pulled`.

    Raises:
        NotElementary: a function of the generator has no Triton expression.
    """
    f = divergence_tiles.scalars_of(g, skew)

    def terms(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        term, *slopes = entry_derivatives(log_p, log_q, f, *needed, fused=True)
        d_p, d_q = (torch.zeros_like(term) if x is None else x for x in slopes)
        return term, d_p, d_q

    return (
        triton_function("terms", terms, 2, dtype),
        triton_function("pulled", divergence_tiles.pulled, 4, dtype),
    )


@lru_cache(maxsize=128)
def divergence_obstacle(g: Generator, skew: float, dtype: torch.dtype) -> str | None:
    """Why the divergence kernel cannot evaluate a generator; None if it can."""
    try:
        divergence_functions(g, skew, (True, True), dtype)
    except NotElementary as error:
        return f"generator {g.name!r}: {error}"
    return None
