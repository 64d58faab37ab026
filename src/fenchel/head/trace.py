"""Functions of tiles as graphs of elementary operations: what compilers are given, ours and torch's."""

import math
import operator
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["COLUMNS", "EXPM1", "POWER", "ROWS", "expm1", "numbers_of", "power", "sample_of", "traced"]

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
    with torch.no_grad():
        if mode == "fake":
            return recorded(fn, sample, replaced)
        from torch.fx.experimental.proxy_tensor import make_fx  # imports a compiler

        return make_fx(fn, replaced, tracing_mode=mode)(*sample)


def recorded(fn: Callable[..., Any], sample: list[Tensor], replaced: dict[Any, Callable[..., Any]]) -> GraphModule:
    """The operations that fn calls on tensors like these: what make_fx finds, without the seconds that its import takes."""
    record = _Record(replaced)
    inputs = [record.known(torch.zeros_like(x), record.graph.placeholder(f"x{i}")) for i, x in enumerate(sample)]
    with record:
        out = fn(*inputs)
    record.graph.output(tree_map_only(Tensor, record.node_of, out))
    record.graph.eliminate_dead_code()
    return GraphModule(record.constants, record.graph)


def numbers_of(graph: GraphModule) -> list[tuple[str, Any]]:
    """The numbers that stand in a graph beside its operations; not those of shapes, which are lists."""
    found: list[tuple[str, Any]] = []
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            found.append(("constant", getattr(graph, str(node.target)).flatten().tolist()))
        numbers = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, (int, float))]
        found.append((str(node.target) if node.op == "call_function" else node.op, numbers))
    return found


class _Record(TorchDispatchMode):
    """Does operations on examples, and writes down those that depend on the inputs; the other tensors are constants."""

    def __init__(self, replaced: dict[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.replaced, self.graph, self.constants = replaced, Graph(), torch.nn.Module()
        # by identity, and kept: another tensor must not take the place of one that is gone
        self.nodes: dict[int, tuple[Tensor, Node]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import a compiler, to tell it to keep out

    def known(self, x: Tensor, node: Node) -> Tensor:
        """x, from here on the value of a node."""
        node.meta["val"] = x
        self.nodes[id(x)] = x, node
        return x

    def node_of(self, x: Tensor) -> Node:
        """The node of a tensor."""
        if id(x) not in self.nodes:
            name = f"constant{len(self.nodes)}"
            self.constants.register_buffer(name, x)
            self.known(x, self.graph.get_attr(name))
        return self.nodes[id(x)][1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.replaced:
            with self:
                out = self.replaced[func](*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if not any(isinstance(x, Tensor) and id(x) in self.nodes for x in tree_leaves((args, kwargs))):
            return out
        results = tree_leaves(out)
        if not all(isinstance(x, Tensor) for x in results):
            raise ValueError(f"{func} asks what is in a tensor: a function of tiles must not depend on it")
        node = self.graph.call_function(func, *tree_map_only(Tensor, self.node_of, (args, kwargs)))
        if isinstance(out, Tensor):
            return self.known(out, node)
        node.meta["val"] = out
        for i, x in enumerate(results):
            self.known(x, self.graph.call_function(operator.getitem, (node, i)))
        return out


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
