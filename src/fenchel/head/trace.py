"""Functions of tiles as graphs of elementary operations: what compilers are given, ours and torch's."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

__all__ = ["COLUMNS", "EXPM1", "POWER", "ROWS", "expm1", "power", "sample_of", "traced"]

# sizes that a trace runs at
ROWS, COLUMNS = 5, 7
EXPM1 = torch.ops.aten.expm1.default
POWER = torch.ops.aten.pow.Tensor_Scalar  # ten times slower than square roots


def sample_of(args: tuple[Tensor, ...]) -> list[Tensor]:
    """Tensors laid out like these, n = ROWS and V = COLUMNS: matrices are [n, V] or [n, k], vectors [V]."""
    n, v = args[0].shape

    def shape(x: Tensor) -> list[int]:
        if x.dim() == 2:
            rows, columns = x.shape
            return [ROWS if rows == n else rows, COLUMNS if columns == v else columns]
        return [COLUMNS if s == v else s for s in x.shape]

    # zeros, and not one tensor twice: it would be traced as one
    return [torch.zeros(shape(x), dtype=x.dtype, device=x.device) for x in args]


def traced(
    fn: Callable[..., Any],
    sample: list[Tensor],
    replaced: dict[Any, Callable[..., Any]],
    mode: Literal["fake", "symbolic"],
) -> GraphModule:
    """fn as a graph of elementary operations. replaced: operations that are stated by others."""
    from torch.fx.experimental.proxy_tensor import make_fx  # imports a compiler

    with torch.no_grad():
        return make_fx(fn, replaced, tracing_mode=mode)(*sample)


# terms of the series of exp(t) - 1 on |t| < 1/2: to 2^-30 and 2^-60 of it
_SERIES = {torch.float32: 9, torch.float64: 16}


def expm1(t: Tensor) -> Tensor:
    """exp(t) - 1 by its series where that would cancel; elsewhere by the exponential that other terms use too."""
    near = torch.full_like(t, 1 / math.factorial(_SERIES[t.dtype]))
    for k in range(_SERIES[t.dtype] - 1, 0, -1):
        near = near * t + 1 / math.factorial(k)
    return torch.where(t.abs() < 0.5, t * near, t.exp() - 1)


def power(x: Tensor, k: float) -> Tensor:
    """x^k = (square roots of x) exp(r log x), 0 <= r < 1/4: the logarithm's rounding is multiplied by r and not by k."""
    if k < 0:
        return 1 / power(x, -k)
    quarters = math.floor(4 * k)
    if quarters > 32:
        return NotImplemented
    factors = [x] * (quarters // 4)
    if quarters % 4:
        half = torch.sqrt(x)
        factors += [half] * (quarters // 2 % 2) + [torch.sqrt(half)] * (quarters % 2)
    if quarters != 4 * k:
        factors.append(torch.exp((k - quarters / 4) * torch.log(x)))
    return math.prod(factors[1:], start=factors[0]) if factors else torch.ones_like(x)
