"""Elementwise torch functions as Triton functions: traced to elementary operations, and printed.

A kernel takes what it evaluates as compile-time arguments. So a generator's functions, stated once and for tensors, are what runs, a user's own included;
constants are literals, and a function is compiled once for each generator and dtype.
"""

import hashlib
import linecache
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.fx import GraphModule, Node

from ..trace import EXPM1, POWER, expm1, power, traced
from .maths import exp, log, sqrt

__all__ = ["NotElementary", "printed", "triton_function"]

aten = torch.ops.aten
TYPES = {torch.float32: "tl.float32", torch.float64: "tl.float64", torch.bool: "tl.int1"}
# keywords that say what the result's dtype, known from the trace, says too
IMPLIED = {"dtype", "layout", "device", "pin_memory", "memory_format"}


class NotElementary(Exception):
    """A function contains an operation that has no Triton expression; the message names it."""


def triton_function(role: str, fn: Callable[..., Any], arguments: int, dtype: torch.dtype) -> Any:
    """fn, an elementwise function of tensors of one dtype, as a Triton function of blocks, which are broadcast against each other.

    Raises:
        NotElementary: fn does something else than elementwise arithmetic.
    """
    body = printed(fn, arguments, dtype)
    name = f"{role}_{hashlib.sha256(body.encode()).hexdigest()[:16]}"
    source = f"def {name}({', '.join(map(_argument, range(arguments)))}):\n{body}"
    # Triton reads a function's source as inspect does: from a file, or from the lines that Python keeps for code that has none
    file = f"<fenchel {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"__name__": __name__, "tl": tl, "exp": exp, "log": log, "sqrt": sqrt}
    exec(compile(source, file, "exec"), scope)
    return triton.jit(scope[name])


def printed(fn: Callable[..., Any], arguments: int, dtype: torch.dtype) -> str:
    """The body of `triton_function`."""
    module = _traced(fn, arguments, dtype)
    names: dict[Node, str] = {}
    lines: list[str] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            names[node] = _argument(len(names))
        elif node.op == "get_attr":
            names[node] = _constant(getattr(module, str(node.target)))
        elif node.op == "call_function":
            names[node] = f"t{len(lines)}"
            lines.append(f"    {names[node]} = {_expression(node, names)}\n")
        elif node.op == "output":
            results = node.args[0] if isinstance(node.args[0], (tuple, list)) else (node.args[0],)
            lines.append(f"    return {', '.join(_result(x, names, dtype) for x in results)}\n")
    return "".join(lines)


def _argument(i: int) -> str:
    return f"a{i}"


def _result(node: Node, names: dict[Node, str], dtype: torch.dtype) -> str:
    # in the dtype that a kernel's loop expects: what a user wrote may be float64 throughout
    return names[node] if _dtype(node) == torch.bool else f"({names[node]}).to({TYPES[dtype]})"


def _traced(fn: Callable[..., Any], arguments: int, dtype: torch.dtype) -> GraphModule:
    # tensors that differ: one that is given twice would be traced as one
    sample = [torch.full((2, 3), 0.5 + i / 8, dtype=dtype, device="cpu") for i in range(arguments)]
    with torch.autocast("cpu", enabled=False):
        module = traced(fn, sample, {EXPM1: expm1, POWER: power, **_EXPANDED}, "fake")
    module.graph.eliminate_dead_code()
    return module


def _dtype(node: Node) -> torch.dtype:
    value: Tensor = node.meta["val"]
    return value.dtype


def _expression(node: Node, names: dict[Node, str]) -> str:
    if node.target in _CREATED:
        return _full(_CREATED[node.target](node.args), _dtype(node))
    template = _EXPRESSIONS.get(node.target)
    if template is None or set(node.kwargs) - IMPLIED:
        raise NotElementary(f"{node.target} has no Triton expression")
    given = [names[x] if isinstance(x, Node) else x for x in node.args]
    if callable(template):
        return template(_dtype(node), given)
    return template.format(*(x if isinstance(x, str) else _literal(x) for x in given))


def _literal(x: Any) -> str:
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise NotElementary(f"an argument {x!r} has no Triton expression")
    return repr(float(x)) if math.isfinite(x) else f'float("{x}")'


def _full(x: Any, dtype: torch.dtype) -> str:
    """A number as a block, where a bare literal would be rounded to float32."""
    if dtype not in TYPES:
        raise NotElementary(f"a constant of {dtype} has no Triton expression")
    return f"tl.full([1, 1], {_literal(x)}, {TYPES[dtype]})"


def _constant(value: Tensor) -> str:
    if value.numel() != 1:
        raise NotElementary(f"a constant tensor of shape {tuple(value.shape)} has no Triton expression")
    return _full(value.item(), value.dtype)


def _cast(dtype: torch.dtype, given: Sequence[Any]) -> str:
    if dtype not in TYPES:
        raise NotElementary(f"a conversion to {dtype} has no Triton expression")
    return f"{given[0]}.to({TYPES[dtype]})"


def _where(dtype: torch.dtype, given: Sequence[Any]) -> str:
    first, second = (x if isinstance(x, str) else _full(x, dtype) for x in given[1:])
    return f"tl.where({given[0]}, {first}, {second})"


def _clamp(dtype: torch.dtype, given: Sequence[Any]) -> str:
    # comparisons, false for NaN, keep it; Triton's minimum and maximum drop it
    x, low, high = str(given[0]), *(*given[1:], None)[:2]
    if low is not None:
        x = f"tl.where({x} < {_literal(low)}, {_full(low, dtype)}, {x})"
    if high is not None:
        x = f"tl.where({x} > {_literal(high)}, {_full(high, dtype)}, {x})"
    return x


def _clamp_max(dtype: torch.dtype, given: Sequence[Any]) -> str:
    return _clamp(dtype, (given[0], None, given[1]))


# Operations made of others, accurate where a formula cancels.


def _log1p(x: Tensor) -> Tensor:
    # the rounding of 1 + x is made up for by the quotient (Kahan)
    w = 1 + x
    near = torch.log(w) * (x / torch.where(w == 1, 1.0, w - 1))
    return torch.where(w == 1, x, torch.where(w == torch.inf, w, near))


def _tanh(x: Tensor) -> Tensor:
    e = torch.expm1(-2 * x.abs())
    return torch.sign(x) * (-e / (2 + e))


def _sinh(x: Tensor) -> Tensor:
    e = torch.expm1(x.abs())
    return torch.sign(x) * ((e + torch.where(e == torch.inf, 1.0, e / (e + 1))) / 2)


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    return torch.where(x * beta > threshold, x, torch.log1p(torch.exp(x * beta)) / beta)


_EXPANDED: dict[Any, Callable[..., Tensor]] = {
    aten.log1p.default: _log1p,
    aten.tanh.default: _tanh,
    aten.sinh.default: _sinh,
    aten.sigmoid.default: _sigmoid,
    aten.softplus.default: _softplus,
}

# what makes a tensor, and the number that it is filled with
_CREATED: dict[Any, Callable[[Sequence[Any]], Any]] = {
    aten.full.default: lambda args: args[1],
    aten.full_like.default: lambda args: args[1],
    aten.scalar_tensor.default: lambda args: args[0],
    aten.zeros.default: lambda args: 0.0,
    aten.zeros_like.default: lambda args: 0.0,
    aten.ones.default: lambda args: 1.0,
    aten.ones_like.default: lambda args: 1.0,
}

_SAME = "{0}"
_EXPRESSIONS: dict[Any, str | Callable[[torch.dtype, Sequence[Any]], str]] = {
    aten.add.Tensor: "{0} + {1}",
    aten.add.Scalar: "{0} + {1}",
    aten.sub.Tensor: "{0} - {1}",
    aten.sub.Scalar: "{0} - {1}",
    aten.rsub.Scalar: "{1} - {0}",
    aten.mul.Tensor: "{0} * {1}",
    aten.mul.Scalar: "{0} * {1}",
    aten.div.Tensor: "{0} / {1}",
    aten.div.Scalar: "{0} / {1}",
    aten.neg.default: "-{0}",
    aten.reciprocal.default: "1.0 / {0}",
    aten.square.default: "{0} * {0}",
    aten.exp.default: "exp({0})",
    aten.log.default: "log({0})",
    aten.sqrt.default: "sqrt({0})",
    aten.rsqrt.default: "1.0 / sqrt({0})",
    aten.pow.Tensor_Scalar: "exp({1} * log({0}))",
    aten.abs.default: "tl.abs({0})",
    aten.sign.default: "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, 0.0))",
    aten.relu.default: "tl.where({0} < 0, 0.0, {0})",
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_max.default: _clamp_max,
    aten.maximum.default: "tl.where(({0} > {1}) | ({0} != {0}), {0}, {1})",
    aten.minimum.default: "tl.where(({0} < {1}) | ({0} != {0}), {0}, {1})",
    aten.where.self: _where,
    aten.where.ScalarSelf: _where,
    aten.where.ScalarOther: _where,
    aten.where.Scalar: _where,
    aten.gt.Scalar: "{0} > {1}",
    aten.gt.Tensor: "{0} > {1}",
    aten.ge.Scalar: "{0} >= {1}",
    aten.ge.Tensor: "{0} >= {1}",
    aten.lt.Scalar: "{0} < {1}",
    aten.lt.Tensor: "{0} < {1}",
    aten.le.Scalar: "{0} <= {1}",
    aten.le.Tensor: "{0} <= {1}",
    aten.eq.Scalar: "{0} == {1}",
    aten.eq.Tensor: "{0} == {1}",
    aten.ne.Scalar: "{0} != {1}",
    aten.ne.Tensor: "{0} != {1}",
    aten.isnan.default: "{0} != {0}",
    aten.bitwise_and.Tensor: "{0} & {1}",
    aten.logical_and.default: "{0} & {1}",
    aten.bitwise_or.Tensor: "{0} | {1}",
    aten.logical_or.default: "{0} | {1}",
    aten.bitwise_not.default: "~{0}",
    aten.logical_not.default: "~{0}",
    aten._to_copy.default: _cast,
    aten.detach.default: _SAME,
    aten.alias.default: _SAME,
    aten.clone.default: _SAME,
    aten.lift_fresh_copy.default: _SAME,
}
