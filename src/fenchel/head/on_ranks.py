"""A function of whole rows on a shard of the vocabulary: its program, in which every sum and maximum over classes is one over all ranks' classes.

The function is recorded as for a row program (`programs`), its gradient with it, and knows nothing of ranks. A program is made of elementwise operations and
of reductions over the classes. The former need a shard alone, and the latter are followed by an all-reduce: one for all sums, and one for all maxima, that can
be made at once, whatever V is. What is no such program is refused when it is recorded, before any rank waits for another.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from ..vocab import Vocabulary
from .decompositions import DECOMPOSED
from .lowered import VIEWS, Unwritable, kind_of
from .trace import COLUMNS, ROWS, numbers_of, traced

__all__ = ["Sharded", "recorded_rows", "sharded"]

aten = torch.ops.aten
_SHAPES = {"entry": (ROWS, COLUMNS), "column": (COLUMNS,), "row": (ROWS, 1)}
_REDUCTIONS = {aten.sum.dim_IntList, aten.amax.default}
# what is done to each entry or number alone, and is not called so
_PLAIN = {
    *VIEWS,
    aten.copy_.default,
    aten._to_copy.default,
    aten.scalar_tensor.default,
    aten.full.default,
    aten.full_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
}


@dataclass(frozen=True)
class Sharded:
    """What a tile's function is of, on a shard.

    Attributes:
        fn: the function of whole rows, called with tensors and `of`.
        of: what it is of.
        kinds: what its tensors are: "entry" [n, V], "column" [V], "row" [n, 1].
        vocab: of which the entries and columns are a shard.
    """

    fn: Callable[..., Any]
    of: Any
    kinds: tuple[str, ...]
    vocab: Vocabulary


def sharded(*arguments: Any) -> Any:
    """fn of tensors, the last argument but of which each rank has its shard; numbers of rows are the same on every rank."""
    *tensors, on = arguments
    first = tensors[0]
    program = recorded_rows(on.fn, on.of, on.kinds, first.dtype)
    sizes: dict[int, int] = dict(zip((ROWS, COLUMNS), first.shape, strict=True))
    values: dict[Node, Any] = {}
    given = iter(tensors)
    for nodes in program.order:
        node = nodes[0]
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            number, like = program.numbers[node]
            values[node] = torch.full(like.shape, number, dtype=like.dtype, device=first.device)
        elif node.op == "output":
            return map_arg(node.args[0], values.__getitem__)
        elif _reduces(node):
            values.update(zip(nodes, _reduced(nodes, values, first.dtype, on.vocab), strict=True))
        else:
            target: Any = node.target
            args, kwargs = (_resized(map_arg(a, values.__getitem__), sizes) for a in (node.args, node.kwargs))
            values[node] = target(*args, **kwargs)
        for unused in program.last.get(nodes, ()):
            del values[unused]
    raise AssertionError("a graph without an output")


def _reduced(
    nodes: tuple[Node, ...], values: dict[Node, Any], dtype: torch.dtype, vocab: Vocabulary
) -> Iterator[Tensor]:
    # counts too are added in the dtype of logits: a stage's numbers are of one
    shards = (values[node.all_input_nodes[0]].to(dtype) for node in nodes)
    found = (vocab.sums if nodes[0].target is aten.sum.dim_IntList else vocab.maxima)(*shards)
    for node, out in zip(nodes, found, strict=True):
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        out = out.to(node.meta["val"].dtype)
        yield out if keep else out.squeeze(-1)


def _resized(a: Any, sizes: dict[int, int]) -> Any:
    """Sizes, which stand in lists, as they are here."""
    if isinstance(a, dict):
        return {k: _resized(v, sizes) for k, v in a.items()}
    if isinstance(a, tuple):
        return tuple(_resized(v, sizes) for v in a)
    if isinstance(a, list):
        return [sizes.get(v, v) if isinstance(v, int) else v for v in a]
    return a


@dataclass(frozen=True, eq=False)
class Recorded:
    """A program.

    Attributes:
        graph: whose nodes they are.
        order: what is evaluated after what: nodes one by one, and all sums or all maxima that need the same number of reductions before them together.
        numbers: those that stand in it.
        last: the values that are used for the last time at each step of the order.
    """

    graph: Graph
    order: tuple[tuple[Node, ...], ...]
    numbers: dict[Node, tuple[float, Tensor]]
    last: dict[tuple[Node, ...], list[Node]]


@cache
def recorded_rows(fn: Callable[..., Any], of: Any, kinds: tuple[str, ...], dtype: torch.dtype) -> Recorded:
    """The program of fn.

    Raises:
        Unwritable: an operation that is neither elementwise nor a sum or a maximum over classes, or a number that depends on how many there are.
    """
    graph, wider = (
        traced(
            lambda *x: fn(*x, of),
            [torch.zeros([s + by if s == COLUMNS else s for s in _SHAPES[kind]], dtype=dtype) for kind in kinds],
            DECOMPOSED,
            "fake",
        )
        for by in (0, 4)
    )
    if numbers_of(graph) != numbers_of(wider):
        raise Unwritable("a number in it depends on V")
    numbers: dict[Node, tuple[float, Tensor]] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            constant = getattr(graph, str(node.target))
            if constant.numel() != 1:
                raise Unwritable("a constant that is no number")
            numbers[node] = constant.item(), constant
        elif node.op == "call_function":
            _check(node)
    order = _order(graph.graph)
    place = {node: i for i, nodes in enumerate(order) for node in nodes}
    last: dict[tuple[Node, ...], list[Node]] = {}
    for node in place:
        if node.users:
            last.setdefault(order[max(place[user] for user in node.users)], []).append(node)
    return Recorded(graph.graph, order, numbers, last)


def _order(graph: Graph) -> tuple[tuple[Node, ...], ...]:
    """By how many reductions stand before a node; of those with the same number, sums and maxima last and together. What is written, is written at the end."""
    level: dict[Node, int] = {}
    for node in graph.nodes:
        level[node] = max((level[x] + _reduces(x) for x in node.all_input_nodes), default=0)
    first = [node for node in level if node.op == "placeholder"]
    last = [node for node in level if node.target is aten.copy_.default or node.op == "output"]
    order = [(node,) for node in first]
    for number in range(max(level.values()) + 1):
        here = [node for node in level if level[node] == number and node not in first and node not in last]
        order += [(node,) for node in here if not _reduces(node)]
        for target in (aten.amax.default, aten.sum.dim_IntList):
            some = tuple(node for node in here if _reduces(node) and node.target is target)
            order += [some] if some else []
    return (*order, *((node,) for node in last))


def _check(node: Node) -> None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        raise Unwritable(f"the operation {node.target}")
    kind_of(value)
    if node.target in _REDUCTIONS:
        of, dims = node.args[:2]
        assert isinstance(of, Node)
        assert isinstance(dims, list)
        if [d % of.meta["val"].dim() for d in dims] != [of.meta["val"].dim() - 1]:
            raise Unwritable(f"{node.target} over rows")
        return
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    if not pointwise and node.target not in _PLAIN and getattr(node.target, "overloadpacket", None) is not aten.where:
        raise Unwritable(f"the operation {node.target}")


def _reduces(node: Node) -> bool:
    """Whether it is over classes: a number of rows [n, 1] has one column on every rank."""
    of = node.args[0] if node.target in _REDUCTIONS else None
    return isinstance(of, Node) and kind_of(of.meta["val"]) in ("entry", "column")
