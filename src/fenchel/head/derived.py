"""Heads as functions with derivatives: values and gradients from a fast opaque operator, second derivatives from the generic head.

Tensors come in one order everywhere: for each head its hidden states, weight and bias, then what belongs to rows (labels, a mask).
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from .rows import Call, RowsGrad, applied, fresh

__all__ = ["rows_of", "total"]


class Fast(Protocol):
    """One call of a head."""

    @property
    def tile(self) -> Call:
        """The same rows, for the generic head."""
        ...

    @property
    def free(self) -> int:
        """How many of the tensors have gradients: the first ones."""
        ...

    @property
    def constants(self) -> int:
        """How many of the tensors, the last ones, are constants that the tile holds itself."""
        ...

    def op(self, tensors: tuple[Tensor | None, ...], c: Tensor | None, want: list[bool]) -> tuple[Tensor, ...]:
        """The rows; given c, of their shape, also the wanted gradients of sum(c rows), anything for the others."""
        ...


def _opaque(call: Fast, tensors: tuple[Tensor | None, ...], c: Tensor, want: list[bool]) -> list[Tensor | None]:
    _, *grads = call.op(tensors, c, want)
    return [g if wanted else None for g, wanted in zip(grads, want, strict=True)]


def _differentiable(call: Fast, tensors: tuple[Tensor | None, ...], c: Tensor) -> tuple[Tensor | None, ...]:
    return applied(RowsGrad, call.tile, c, *tensors[: len(tensors) - call.constants])[: call.free]


def _second() -> bool:
    """Whether this backward pass may be differentiated itself."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def rows_of(call: Fast, *tensors: Tensor | None) -> Tensor:
    """The rows; the backward pass recomputes each tile with the upstream gradient."""
    return applied(_PerRow, call, *tensors)


class _PerRow(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(call: Fast, *tensors: Tensor | None) -> Tensor:
        return call.op(tensors, None, [False] * call.free)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:
        call, tensors = ctx.call, ctx.saved_tensors
        want = [bool(x) for x in ctx.needs_input_grad[1 : 1 + call.free]]
        grads = _differentiable(call, tensors, c) if _second() else _opaque(call, tensors, c, want)
        return (None, *grads, *[None] * (len(tensors) - call.free))


def total(call: Fast, c: Tensor, *tensors: Tensor | None) -> Tensor:
    """sum(c rows), its gradients made in the forward pass; a differentiated backward pass recomputes.

    The gradients wait in a list rather than among the saved tensors: the backward pass takes them out, so that autograd can keep them as they are
    instead of copying them. A compiler cannot follow a list, and saves them.
    """
    made = None if torch.compiler.is_compiling() else []
    tensors = tuple(x if x is None or made is not None else fresh(x) for x in tensors)
    want = [x is not None and x.requires_grad and torch.is_grad_enabled() for x in tensors[: call.free]]
    return applied(_Total, call, want, made, c, *tensors)[0]


class _Total(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        call: Fast, want: list[bool], made: list[Tensor] | None, c: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        rows, *grads = call.op(tensors, c if any(want) else None, want)
        value = (rows * c).sum()
        if made is None:
            return value, *grads
        made.extend(grads)
        return (value,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, ctx.want, ctx.made, c, *tensors = inputs
        ctx.save_for_backward(c, *tensors, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        call, saved = ctx.call, ctx.saved_tensors
        c, *tensors = saved if ctx.made is not None else saved[: -call.free]
        if _second() or not any(ctx.want):
            grads = _differentiable(call, tuple(tensors), g * c)
        elif ctx.made is None:
            made = saved[-call.free :]
            grads = [x * g.to(x.dtype) if used else None for x, used in zip(made, ctx.want, strict=True)]
        elif ctx.made:
            if g.is_cuda or float(g) != 1:
                for x in ctx.made:
                    x.mul_(g.to(x.dtype))
            grads = [x if used else None for x, used in zip(ctx.made, ctx.want, strict=True)]
            ctx.made.clear()
        else:
            grads = _opaque(call, tuple(tensors), g * c, ctx.want)  # a retained graph: the made ones were given away
        return (None, None, None, None, *grads, *[None] * (len(tensors) - call.free))
