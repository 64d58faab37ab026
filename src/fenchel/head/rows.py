"""Any row-wise function of logits, tile by tile: the generic head.

Two nested autograd Functions recompute each tile, so [N, V] logits are never stored, in the forward pass, the backward pass or the backward pass of the
backward pass; derivatives per tile come from torch.func.grad, so the row function is all there is to write. Tiles are concatenated rather than written in
place: this keeps vmap, torch.func and compile(fullgraph) right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from .projection import MEMORY, autocast, check_head, logits_of, rows_per_tile

__all__ = ["linear_rows"]

RowFunction = Callable[..., Tensor]


def linear_rows(
    fn: RowFunction,
    hidden: Tensor,
    weight: Tensor,
    *row_args: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    memory: int = MEMORY,
) -> Tensor:
    """fn(logits, *row_args) for logits = hidden @ weight.T that are never stored.

    logits = cap(scale (hidden @ weight.T + bias)), cap(x) = softcap tanh(x / softcap).

    Args:
        fn: takes logits [n, V] (float32 at least) and the same n rows of each of row_args, gives one row per row: [n] or [n, ...]. It must treat rows
            independently and be made of differentiable torch operations.
        hidden: [..., D].
        weight: [V, D], the output embedding; may be tied.
        row_args: tensors [..., *], one entry or row per row of hidden. Floating ones receive gradients too.
        bias: [V].
        softcap: Gemma's logit soft-cap, > 0.
        scale: a factor on the logits (Cohere's logit_scale, 1 / Granite's logits_scaling).
        memory: bytes that a tile of logits may take.

    Returns:
        [...] or [..., *], float32 at least. Any upstream gradient; double backward, vmap, torch.func and compile(fullgraph) are right.
        Forward-mode derivatives raise.

    Raises:
        ValueError: shapes, devices or dtypes that do not fit together.
        TypeError: not floating tensors.

    Example:
        >>> hidden, weight = torch.randn(5, 8), torch.randn(100, 8)
        >>> spread = linear_rows(lambda z: z.std(-1), hidden, weight)
        >>> torch.allclose(spread, (hidden @ weight.T).std(-1), atol=1e-5)
        True
    """
    hidden, weight, bias = autocast(hidden, weight, bias)
    lead = check_head(hidden, weight, bias, softcap, scale)
    n = lead.numel()
    for i, a in enumerate(row_args):
        if not isinstance(a, Tensor) or a.shape[: len(lead)] != lead:
            got = f"shape {tuple(a.shape)}" if isinstance(a, Tensor) else type(a).__name__
            raise ValueError(
                f"row_args[{i}]: got {got}; pass a tensor whose leading shape is that of hidden, {list(lead)}"
            )
    flat = [a.reshape(n, *a.shape[len(lead) :]) for a in row_args]
    tile = Tile(fn, softcap, float(scale), rows_per_tile(weight.shape[0], 4, memory))
    # off, so that the backward pass, which autocast does not reach, recomputes what the forward pass computed
    with torch.autocast(hidden.device.type, enabled=False):
        out: Tensor = applied(Rows, tile, hidden.reshape(n, hidden.shape[-1]), weight, bias, *flat)
    return out.view(*lead, *out.shape[1:])


class Call(Protocol):
    """What is done to a tile of rows, given all the tensors: those that rows share, and the tile's part of the others."""

    @property
    def shared(self) -> tuple[int, ...]:
        """The places of the tensors that all rows share (weights and biases)."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """One result per row."""
        ...

    def slices(self, n: int) -> list[slice]:
        """The tiles of n rows."""
        ...


@dataclass(frozen=True, eq=False)
class Tile:
    """What is done to a tile of rows of one head.

    Hidden states of rows whose label, the first of the row arguments, is ignore_index take no part, whatever they hold.
    """

    fn: RowFunction
    softcap: float | None
    scale: float
    rows: int
    ignore_index: int | None = None
    shared = (1, 2)

    def __call__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, *args: Tensor) -> Tensor:
        if self.ignore_index is not None:
            hidden = torch.where((args[0] != self.ignore_index).unsqueeze(1), hidden, 0.0)
        return self.fn(logits_of(hidden, weight, bias, self.softcap, self.scale), *args)

    def slices(self, n: int) -> list[slice]:
        return slices_of(n, self.rows)


def slices_of(n: int, rows: int) -> list[slice]:
    """The tiles of n rows; one empty tile if there are none."""
    return [slice(i, min(i + rows, n)) for i in range(0, max(n, 1), rows)]


class _Split:
    """Which arguments a derivative is taken of, and how to put a tile's arguments together."""

    def __init__(self, call: Call, tensors: tuple[Tensor | None, ...]) -> None:
        self.like, self.shared = tensors, call.shared
        # CPUs without half-precision units multiply widened matrices several times faster; and gradients of tiles stay whole
        heads = len(call.shared) // 2 * 3
        self.all = tuple(_wide(x) if i < heads else x for i, x in enumerate(tensors))
        self.free = [i for i, x in enumerate(self.all) if x is not None and x.is_floating_point()]

    def tile(self, s: slice) -> list[Any]:
        return [x if i in self.shared or x is None else x[s] for i, x in enumerate(self.all)]

    def join(self, tile: list[Any], free: tuple[Tensor, ...]) -> list[Any]:
        tile = list(tile)
        for i, x in zip(self.free, free, strict=True):
            tile[i] = x
        return tile


def _wide(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.is_cuda else x.to(torch.promote_types(x.dtype, torch.float32))


def _vjp(call: Call, split: _Split, tile: list[Any], g: Tensor, free: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # grad of <g, rows> rather than vjp: a pullback called after its level has ended finds dead tensors under vmap
    return torch.func.grad(
        lambda *x: (call(*split.join(tile, cast(Any, x))) * g).sum(), argnums=tuple(range(len(free)))
    )(*free)


def _collect(split: _Split, parts: list[tuple[Tensor, ...]]) -> list[Tensor | None]:
    """Gradients of all tensors: rows are concatenated, what they share is summed in float32 at least."""
    grads: list[Tensor | None] = [None] * len(split.all)
    for k, i in enumerate(split.free):
        pieces, like = [p[k] for p in parts], split.like[i]
        assert like is not None
        if i in split.shared:
            grads[i] = _sum(pieces, torch.promote_types(like.dtype, torch.float32)).to(like.dtype)
        else:
            grads[i] = torch.cat(pieces).to(like.dtype)
    return grads


def _sum(pieces: list[Tensor], dtype: torch.dtype) -> Tensor:
    total = pieces[0].to(dtype)
    for p in pieces[1:]:
        total = total + p.to(dtype)
    return total


def applied(function: type[torch.autograd.Function], *args: Any) -> Any:
    """function.apply(*args).

    torch.compile loses count of the arguments of a function that takes any number of them where no gradient is needed (torch 2.13): there, and in
    backward passes, which it does not differentiate, the forward function is what is left of it.
    """
    if torch.compiler.is_compiling():
        args = tuple(fresh(x) if isinstance(x, Tensor) else x for x in args)
        if not torch.is_grad_enabled() or not any(isinstance(x, Tensor) and x.requires_grad for x in args):
            return function.forward(*args)
    return function.apply(*args)


def fresh(x: Tensor) -> Tensor:
    """An alias: inside a compiled torch.func.grad its arguments themselves do not know that they require a gradient (torch 2.13)."""
    return x.view_as(x)


class Rows(torch.autograd.Function):
    """call(*tensors) by tiles; for `Tile`, the tensors are hidden, weight, bias and the row arguments."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: Call, hidden: Tensor, *rest: Tensor | None) -> Tensor:
        split = _Split(call, (hidden, *rest))
        return torch.cat([call(*split.tile(s)) for s in call.slices(len(hidden))])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *applied(RowsGrad, ctx.call, g, *ctx.saved_tensors))


class RowsGrad(torch.autograd.Function):
    """The vector-Jacobian product of `Rows`, itself differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: Call, g: Tensor, hidden: Tensor, *rest: Tensor | None) -> tuple[Tensor | None, ...]:
        split = _Split(call, (hidden, *rest))
        parts = []
        for s in call.slices(len(hidden)):
            tile = split.tile(s)
            parts.append(_vjp(call, split, tile, g[s], tuple(tile[i] for i in split.free)))
        return tuple(_collect(split, parts))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        g, *tensors = ctx.saved_tensors
        split = _Split(ctx.call, tuple(tensors))
        parts, g_parts = [], []
        for s in ctx.call.slices(len(g)):
            tile = split.tile(s)
            free = tuple(tile[i] for i in split.free)
            u = tuple(upstream[i] if i in split.shared else upstream[i][s] for i in split.free)  # pyright: ignore[reportOptionalSubscript]

            def paired(g: Tensor, *x: Tensor, tile: list[Any] = tile, u: tuple[Any, ...] = u) -> Tensor:
                return torch.stack(
                    [(a * b).sum() for a, b in zip(_vjp(ctx.call, split, tile, g, x), u, strict=True)]
                ).sum()

            g_part, *rest = torch.func.grad(paired, argnums=tuple(range(1 + len(free))))(g[s], *free)
            g_parts.append(g_part)
            parts.append(tuple(rest))
        return (None, torch.cat(g_parts), *_collect(split, parts))
