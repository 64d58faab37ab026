"""The graph of a torch function of tiles as loops over one row: what each sums, keeps and stores.

Each reduction over the row ends a loop. Values are C expressions, entries of vectors or numbers of the row; how they become a program is `emit`'s.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .trace import COLUMNS, ROWS

__all__ = ["CHOICE", "EITHER", "VIEWS", "Loop", "Lowered", "Unwritable", "Value", "broadcast", "kind_of", "lowered"]

aten = torch.ops.aten


class Unwritable(Exception):
    """Why a function has no row program."""


@dataclass(frozen=True)
class Value:
    """A node's value: a C expression. entry: of a vector of entries, else a double; truth: a mask or an int. level: the loop it is known from."""

    text: str
    entry: bool
    truth: bool = False
    count: bool = False
    level: int = 0
    parts: "tuple[Value, ...]" = ()


# efforts, in additions
DIVISION, ELEMENTARY = 4, 40
# of numbers: what may leave a part of its arguments unused
CHOICE, EITHER = "({0} ? {1} : {2})", "{0} | {1}"
# elementary functions: of vectors, of doubles; what follows is computed again rather than kept where it is needed twice
_FUNCTIONS: dict[Any, tuple[str, str]] = {
    aten.exp.default: ("vexp({0})", "exp({0})"),
    aten.log.default: ("vlog({0})", "log({0})"),
    aten.expm1.default: ("vexpm1({0})", "expm1({0})"),
    aten.log1p.default: ("vlog1p({0})", "log1p({0})"),
    aten.sqrt.default: ("vsqrt({0})", "sqrt({0})"),
    aten.tanh.default: ("vtanh({0})", "tanh({0})"),
    aten.sinh.default: ("vsinh({0})", "sinh({0})"),
    aten.sigmoid.default: ("vsigmoid({0})", "(1 / (1 + exp(-({0}))))"),
}
_ARITHMETIC: dict[Any, tuple[str, str]] = {
    aten.neg.default: ("-{0}", "-{0}"),
    aten.abs.default: ("vmagnitude({0})", "fabs({0})"),
    aten.reciprocal.default: ("splat(1) / {0}", "1 / {0}"),
    aten.sign.default: ("vsign({0})", "(double)(({0} > 0) - ({0} < 0))"),
    aten.sgn.default: ("vsign({0})", "(double)(({0} > 0) - ({0} < 0))"),
    aten.relu.default: ("vlargest({0}, splat(0))", "(({0}) < 0 ? 0 : ({0}))"),
    aten.mul.Tensor: ("{0} * {1}", "{0} * {1}"),
    aten.mul.Scalar: ("{0} * {1}", "{0} * {1}"),
    aten.div.Tensor: ("{0} / {1}", "{0} / {1}"),
    aten.div.Scalar: ("{0} / {1}", "{0} / {1}"),
    aten.maximum.default: ("vmaximum({0}, {1})", "(isnan({0}) || {0} > {1} ? {0} : {1})"),
    aten.minimum.default: ("vminimum({0}, {1})", "(isnan({0}) || {0} < {1} ? {0} : {1})"),
    aten.clamp_min.default: ("vlargest({0}, {1})", "({0} < {1} ? {1} : {0})"),
    aten.clamp_max.default: ("vsmallest({0}, {1})", "({0} > {1} ? {1} : {0})"),
}
_COMPARISONS = {
    aten.gt: ">",
    aten.ge: ">=",
    aten.lt: "<",
    aten.le: "<=",
    aten.eq: "==",
    aten.ne: "!=",
}
_LOGIC = {
    aten.logical_and.default: "{0} & {1}",
    aten.bitwise_and.Tensor: "{0} & {1}",
    aten.logical_or.default: EITHER,
    aten.bitwise_or.Tensor: EITHER,
}
# the same value under another shape
VIEWS = {
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.view.default,
    aten.expand.default,
    aten.alias.default,
    aten.detach.default,
    aten.clone.default,
    aten.lift_fresh_copy.default,
    aten._unsafe_view.default,
}
_SUMS = {aten.sum.dim_IntList, aten.sum.default}


def lowered(graph: Graph, inputs: list[Tensor], constants: Callable[[str], Tensor]) -> "Lowered":
    """The loops of a graph that was traced at n = ROWS and V = COLUMNS.

    Raises:
        Unwritable: an operation, shape or dtype that no row program has.
    """
    made = Lowered(graph, inputs, constants)
    made.read()
    return made


@dataclass
class Loop:
    """A pass over the row: what it sums, keeps and stores."""

    sums: list[tuple[str, Value]] = field(default_factory=list)
    tops: list[tuple[str, Value]] = field(default_factory=list)
    writes: list[tuple[str, Value]] = field(default_factory=list)


class Lowered:
    """A graph, read.

    Attributes:
        loops: the passes over the row.
        given: numbers of the row that are arguments, and where they are.
        between: numbers of the row, each a statement, and the loop that it comes before.
        stores: the arguments that are written, by place, and what is written there.
        result: of each result its kind ("entry", "row", "count"), value and shape.
        definitions: the expression of each entry, by name.
        numbers: of each number of the row that `between` defines its form, as in `CHOICE`, and its arguments.
        heavy: names of entries that took an elementary function.
        efforts: what each entry costs when its parts are there, in additions.
    """

    def __init__(self, graph: Graph, inputs: list[Tensor], constants: Callable[[str], Tensor]) -> None:
        self.graph, self.inputs, self.constants = graph, inputs, constants
        self.values: dict[Node, Any] = {}
        self.loops: list[Loop] = []
        self.between: list[tuple[int, str]] = []
        self.stores: list[tuple[int, Value]] = []
        self.stored: set[Node] = set()
        self.result: list[tuple[str, Value, tuple[int, ...]]] = []
        self.heavy: set[str] = set()
        self.efforts: dict[str, float] = {}
        self.given: dict[str, str] = {}
        self.definitions: dict[str, tuple[str, Value]] = {}
        self.numbers: dict[str, tuple[str, tuple[Value, ...]]] = {}
        self.same: dict[str, Value] = {}  # an expression that was written before
        dtypes = {x.dtype for x in inputs}
        if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
            raise Unwritable(f"arguments of {sorted(map(str, dtypes))}")
        [self.dtype] = dtypes

    def read(self) -> None:
        """Reads the graph, once."""
        places = iter(range(len(self.inputs)))
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._input(next(places))
            elif node.op == "get_attr":
                constant = self.constants(str(node.target))
                if constant.numel() != 1:
                    raise Unwritable(f"a constant of shape {list(constant.shape)}")
                self.values[node] = Value(_number(float(constant)), False)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                results = node.args[0] if isinstance(node.args[0], (list, tuple)) else [node.args[0]]
                for r in results:
                    if r is not None:
                        self._result(r)

    def _input(self, place: int) -> Any:
        x, kind = self.inputs[place], kind_of(self.inputs[place])
        if kind in ("entry", "column"):
            return self._entry(f"IN({place})", ())
        if kind == "row" and x.shape[1] > 1:
            return [self._given(place, k) for k in range(x.shape[1])]
        return self._given(place, 0)

    def _given(self, place: int, k: int) -> Value:
        name = f"a{place}_{k}"
        self.given[name] = f"in[{place}][{k}]"
        return Value(name, False)

    def _call(self, node: Node) -> Any:
        target = node.target
        if target is aten.copy_.default:
            return self._store(node)
        if any(a in self.stored for a in node.all_input_nodes):
            raise Unwritable("an argument that is read after it was written")
        if getattr(target, "__name__", "") == "getitem":
            return self.values[node.args[0]][node.args[1]]  # pyright: ignore[reportArgumentType]
        if target is aten.unbind.int:
            columns = self._columns(node)
            return [columns[k] for k in range(len(columns))]
        if target is aten.select.int:
            return self._columns(node)[int(node.args[2])]  # pyright: ignore[reportArgumentType]
        if target is aten.slice.Tensor:
            part = self._columns(node)[slice(*node.args[2:4])]  # pyright: ignore[reportArgumentType]
            return part[0] if len(part) == 1 else part
        if target in _SUMS:
            return self._sum(node)
        if target is aten.amax.default:
            x = self._value(node.args[0])
            return self._reduced(x, "tops") if x.entry else x
        args = [self._value(a) for a in node.args if isinstance(a, (Node, int, float, bool))]
        if target in VIEWS:
            return args[0]
        if target is aten._to_copy.default or target is aten.to.dtype:
            return self._cast(args[0], _value_of(node))
        return self._elementwise(node, args)

    def _columns(self, node: Node) -> list[Value]:
        columns = self.values[node.args[0]]  # pyright: ignore[reportArgumentType]
        if not isinstance(columns, list) or node.args[1] != 1:
            raise Unwritable(f"{node.target} of what is no [n, k] argument")
        return columns

    def _elementwise(self, node: Node, args: list[Value]) -> Value:
        target: Any = node.target
        packet = getattr(target, "overloadpacket", None)
        if target in _FUNCTIONS:
            return self._make(*_FUNCTIONS[target], args, heavy=True)
        if target in _ARITHMETIC:
            return self._make(*_ARITHMETIC[target], [self._counted(a) for a in args])
        if packet in (aten.add, aten.sub, aten.rsub):
            first, second = args[:2]
            factor = node.kwargs.get("alpha", args[2].text if len(args) > 2 else 1)
            if factor not in (1, "1.0"):
                raise Unwritable(f"{target} with alpha = {factor}")
            if packet is aten.rsub:
                first, second = second, first
            sign = "+" if packet is aten.add else "-"
            return self._make(f"{{0}} {sign} {{1}}", f"{{0}} {sign} {{1}}", [first, second])
        if target is aten.clamp.default or target is aten.clamp.Tensor:
            low, high = (None if a is None else self._value(a) for a in (*node.args[1:], None)[:2])
            x = args[0]
            for bound, op in ((low, aten.clamp_min.default), (high, aten.clamp_max.default)):
                x = x if bound is None else self._make(*_ARITHMETIC[op], [x, bound])
            return x
        if packet in (aten.clamp_min, aten.clamp_max):
            return self._make(
                *_ARITHMETIC[aten.clamp_min.default if packet is aten.clamp_min else aten.clamp_max.default], args
            )
        if packet in _COMPARISONS:
            sign = _COMPARISONS[packet]
            return self._make(f"(Mask)({{0}} {sign} {{1}})", f"{{0}} {sign} {{1}}", args, truth=True)
        if target in _LOGIC:
            return self._make(_LOGIC[target], _LOGIC[target], args, truth=True)
        if target in (aten.logical_not.default, aten.bitwise_not.default):
            return self._make("~{0}", "!{0}", args, truth=True)
        if target is aten.isnan.default:
            return self._make("(Mask)({0} != {0})", "({0} != {0})", args, truth=True)
        if packet is aten.where:
            return self._make("choose({0}, {1}, {2})", CHOICE, args)
        if packet is aten.masked_fill:
            return self._make("choose({1}, {2}, {0})", "({1} ? {2} : {0})", args)
        if target is aten.softplus.default:
            beta, threshold = [a.text for a in args[1:]] + ["1.0", "20.0"][len(args) - 1 :]
            x = f"{{0}} * {_plain(beta)}"
            return self._make(
                f"choose((Mask)({x} > {_plain(threshold)}), {{0}}, vlog1p(vexp({x})) / {_plain(beta)})",
                f"({x} > {threshold} ? {{0}} : log1p(exp({x})) / {beta})",
                args[:1],
                heavy=True,
            )
        if target is aten.scalar_tensor.default:
            return args[0]
        if packet in (aten.full, aten.full_like):
            return self._value(node.args[1])
        if packet in (aten.zeros_like, aten.new_zeros, aten.zeros, aten.empty_like):
            return Value("0.0", False, count=not _value_of(node).is_floating_point())
        if packet in (aten.ones_like, aten.new_ones, aten.ones):
            return Value("1.0", False)
        raise Unwritable(f"the operation {target}")

    def _value(self, a: Any) -> Value:
        if isinstance(a, Node):
            found = self.values[a]
            if not isinstance(found, Value):
                raise Unwritable("an [n, k] argument used whole")
            return found
        if isinstance(a, (int, float)):
            return Value(_number(float(a)), False, truth=isinstance(a, bool))
        raise Unwritable(f"an argument {a!r}")

    def _counted(self, x: Value) -> Value:
        """A truth as 1 or 0."""
        return self._make("choose({0}, splat(1), splat(0))", "(double)({0})", [x]) if x.truth and not x.count else x

    def _cast(self, x: Value, like: Tensor) -> Value:
        if like.dtype == torch.bool or (like.is_floating_point() and like.dtype != self.dtype and x.entry):
            raise Unwritable(f"a cast to {like.dtype}")
        if not like.is_floating_point():
            if x.entry:
                raise Unwritable(f"a cast to {like.dtype}")
            return Value(x.text, x.entry, x.truth, True, x.level, x.parts)
        return self._counted(x)

    # values

    def _entry(self, text: str, parts: tuple[Value, ...], *, truth: bool = False, heavy: bool = False) -> Value:
        if text in self.same:
            return self.same[text]
        name = f"x{len(self.definitions)}"
        if heavy or any(p.text in self.heavy for p in parts if p.entry):
            self.heavy.add(name)
        level = max((p.level for p in parts), default=0)
        value = Value(name, True, truth, False, level, parts)
        self.definitions[name] = (text, value)
        elementary = heavy and not text.startswith("vsqrt")
        self.efforts[name] = ELEMENTARY if elementary else DIVISION if heavy or "/" in text else 1
        self.same[text] = value
        return value

    def _make(self, vector: str, scalar: str, args: list[Value], *, truth: bool = False, heavy: bool = False) -> Value:
        level = max((a.level for a in args), default=0)
        if any(a.entry for a in args):
            texts = [a.text if a.entry else broadcast(a) for a in args]
            return self._entry(vector.format(*texts), tuple(args), truth=truth, heavy=heavy)
        text = scalar.format(*[f"({a.text})" for a in args])
        if text not in self.same:
            name = f"r{len(self.between)}"
            self.between.append((level, f"const {'int' if truth else 'double'} {name} = {text};"))
            self.same[text] = Value(name, False, truth, False, level)
            self.numbers[name] = scalar, tuple(args)
        return self.same[text]

    def _sum(self, node: Node) -> Value:
        x = self._value(node.args[0])
        of = _value_of(node.args[0])
        if x.entry:
            return self._reduced(x, "sums")
        if kind_of(of) in ("entry", "column"):
            return self._make("", "{0} * (double)v", [x])
        raise Unwritable("a sum over rows")

    def _reduced(self, x: Value, kind: str) -> Value:
        while len(self.loops) <= x.level:
            self.loops.append(Loop())
        name = f"s{sum(len(l.sums) + len(l.tops) for l in self.loops)}"
        getattr(self.loops[x.level], kind).append((name, x))
        return Value(name, False, False, x.truth, x.level + 1)

    def _store(self, node: Node) -> None:
        target, x = node.args[:2]
        assert isinstance(target, Node)
        places = [n for n in self.graph.nodes if n.op == "placeholder"]
        if target not in places or kind_of(self.inputs[places.index(target)]) != "entry":
            raise Unwritable("a write to what is no [n, V] argument")
        self.stores.append((places.index(target), self._value(x)))
        self.stored |= {target, node}

    def _result(self, node: Node) -> None:
        value, of = self._value(node), _value_of(node)
        kind = kind_of(of)
        if kind == "entry" and value.entry:
            self.result.append(("entry", value, (-2, -1)))
        elif kind != "entry" and kind != "column" and not value.entry:
            self.result.append(
                ("count" if value.count else "row", value, tuple(-2 if s == ROWS else s for s in of.shape))
            )
        else:
            raise Unwritable(f"a result of shape {list(of.shape)}")


def broadcast(a: Value) -> str:
    """A number of the row as a vector."""
    return f"((Mask){{0}} - ({a.text} != 0))" if a.truth else f"splat({a.text})"


def kind_of(x: Tensor) -> str:
    """What a tensor of a trace is: "entry", "column", "row" or "one"."""
    shape = tuple(x.shape)
    if shape == (ROWS, COLUMNS):
        return "entry"
    if shape in ((COLUMNS,), (1, COLUMNS)):
        return "column"
    if shape == (ROWS,) or (len(shape) == 2 and shape[0] == ROWS):
        return "row"
    if x.numel() == 1:
        return "one"
    raise Unwritable(f"a tensor of shape {list(shape)}")


def _value_of(node: Any) -> Tensor:
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, Tensor):
        raise Unwritable(f"{node} has no known shape")
    return value


def _number(x: float) -> str:
    if math.isnan(x):
        return "NAN"
    if math.isinf(x):
        return "INFINITY" if x > 0 else "(-INFINITY)"
    return repr(x) if x >= 0 else f"({x!r})"


def _plain(text: str) -> str:
    return f"(REAL){text}"
