"""A row program in C from the torch function that states it.

A function of tiles [n, V] is traced to elementary operations (`trace`) and written as a C function of one row. Each reduction over the row ends a
loop; later loops compute again what is cheap and read back what took an elementary function, which the first loop to compute it keeps in a scratch row.
All passes over a row run while it lies in the core's own cache, and nothing of size [n, V] is made beside what the function writes.

Numbers that a row has one of are computed in double; entries in REAL, by `vector.h`. What cannot be written raises `Unwritable`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .trace import COLUMNS, ROWS

__all__ = ["Program", "Unwritable", "emit", "emit_scalar"]

aten = torch.ops.aten


class Unwritable(Exception):
    """Why a function has no row program."""


@dataclass(frozen=True)
class Program:
    """A row program.

    Attributes:
        code: the C function `static void NAME(int64_t v, REAL *const *in, REAL *const *store, double *out, REAL *scratch)`, of one row.
        kinds: of each argument: "entry" ([n, V]), "column" ([V]), "row" ([n, k]) or "one" ([]).
        outputs: of each result, "entry", "row" or "count" (int64); rows and counts are written to `out` in this order.
        stores: the arguments that are written, by place; results of kind "entry" follow them in `store`.
        shapes: the shapes of the results, -1 for V and -2 for n.
        scratch: rows of scratch that it needs.
    """

    code: str
    kinds: tuple[str, ...]
    outputs: tuple[str, ...]
    stores: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    scratch: int


@dataclass(frozen=True)
class Value:
    """A node's value: a C expression. entry: of a vector of entries, else a double; truth: a mask or an int. level: the loop it is known from."""

    text: str
    entry: bool
    truth: bool = False
    count: bool = False
    level: int = 0
    parts: "tuple[Value, ...]" = ()


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
    aten.logical_or.default: "{0} | {1}",
    aten.bitwise_or.Tensor: "{0} | {1}",
}
# the same value under another shape
_VIEWS = {
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


def emit(graph: Graph, inputs: list[Tensor], constants: Callable[[str], Tensor], name: str) -> Program:
    """The row program of a graph that was traced at n = ROWS and V = COLUMNS.

    Args:
        inputs: what it was traced with; matrices [n, V] or [n, k], a vector [V], numbers.
        constants: a tensor constant of the graph.

    Raises:
        Unwritable: an operation, shape or dtype that no row program has.
    """
    return _Writer(graph, inputs, constants, name).program()


def emit_scalar(graph: Graph, constants: Callable[[str], Tensor], name: str) -> str:
    """The C function `static double NAME(double)` of a graph that was traced with one number."""
    writer = _Writer(graph, [torch.zeros((), dtype=torch.float64)], constants, name)
    return writer.scalar()


@dataclass
class _Loop:
    """A pass over the row: what it sums, keeps and stores."""

    sums: list[tuple[str, Value]] = field(default_factory=list)
    tops: list[tuple[str, Value]] = field(default_factory=list)
    writes: list[tuple[str, Value]] = field(default_factory=list)


class _Writer:
    def __init__(self, graph: Graph, inputs: list[Tensor], constants: Callable[[str], Tensor], name: str) -> None:
        self.graph, self.inputs, self.constants, self.name = graph, inputs, constants, name
        self.values: dict[Node, Any] = {}
        self.loops: list[_Loop] = []
        # statements that compute numbers of a row, by the loop they come before
        self.between: list[tuple[int, str]] = []
        self.stores: list[tuple[int, Value]] = []
        self.stored: set[Node] = set()
        self.result: list[tuple[str, Value, tuple[int, ...]]] = []
        self.heavy: set[str] = set()
        self.definitions: dict[str, tuple[str, Value]] = {}
        self.same: dict[str, Value] = {}  # an expression that was written before
        dtypes = {x.dtype for x in inputs}
        if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
            raise Unwritable(f"arguments of {sorted(map(str, dtypes))}")
        [self.dtype] = dtypes

    # reading the graph

    def read(self) -> None:
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
            return [Value(f"(double)in[{place}][{k}]", False) for k in range(x.shape[1])]
        return Value(f"(double)in[{place}][0]", False)

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
        if target in _VIEWS:
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
            return self._make("choose({0}, {1}, {2})", "({0} ? {1} : {2})", args)
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
        self.same[text] = value
        return value

    def _make(self, vector: str, scalar: str, args: list[Value], *, truth: bool = False, heavy: bool = False) -> Value:
        level = max((a.level for a in args), default=0)
        if any(a.entry for a in args):
            texts = [a.text if a.entry else self._broadcast(a) for a in args]
            return self._entry(vector.format(*texts), tuple(args), truth=truth, heavy=heavy)
        text = scalar.format(*[f"({a.text})" for a in args])
        if text not in self.same:
            name = f"r{len(self.between)}"
            self.between.append((level, f"const {'int' if truth else 'double'} {name} = {text};"))
            self.same[text] = Value(name, False, truth, False, level)
        return self.same[text]

    def _broadcast(self, a: Value) -> str:
        return f"((Mask){{0}} - ({a.text} != 0))" if a.truth else f"splat({a.text})"

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
            self.loops.append(_Loop())
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

    # writing

    def program(self) -> Program:
        self.read()
        written = [f"store[{i}]" for i in range(len(self.stores) + sum(k == "entry" for k, _, _ in self.result))]
        stores = [v for _, v in self.stores] + [v for k, v, _ in self.result if k == "entry"]
        last = max([v.level for v in stores] + [len(self.loops) - 1]) if stores else len(self.loops) - 1
        while len(self.loops) <= last:
            self.loops.append(_Loop())
        for where, value in zip(written, stores, strict=True):
            self.loops[last].writes.append((where, value))
        body, scratch = self._body()
        outs = [f"    out[{i}] = {v.text};" for i, v in enumerate(v for k, v, _ in self.result if k != "entry")]
        code = "\n".join(
            [
                f"static void {self.name}(int64_t v, REAL *const *in, REAL *const *store, double *out, REAL *scratch) {{",
                "    (void)in, (void)store, (void)out, (void)scratch;",
                *body,
                *outs,
                "}",
            ]
        )
        return Program(
            code,
            tuple(kind_of(x) for x in self.inputs),
            tuple(k for k, _, _ in self.result),
            tuple(i for i, _ in self.stores),
            tuple(s for _, _, s in self.result),
            scratch,
        )

    def scalar(self) -> str:
        self.read()
        [(_, value, _)] = self.result
        if self.loops or value.entry:
            raise Unwritable("a scalar function with a reduction")
        lines = [f"    {text}".replace("(double)in[0][0]", "x") for _, text in self.between]
        result = value.text.replace("(double)in[0][0]", "x")
        return "\n".join(
            [f"static double {self.name}(double x) {{", "    (void)x;", *lines, f"    return {result};", "}"]
        )

    def _body(self) -> tuple[list[str], int]:
        """The statements, and how many scratch rows they use."""
        first: dict[str, int] = {}  # the loop that computes an entry first
        kept: dict[str, int] = {}  # scratch rows
        needs: list[dict[str, bool]] = []  # what a loop uses: computed there (True) or read back
        for number, loop in enumerate(self.loops):
            used: dict[str, bool] = {}
            for _, value in (*loop.sums, *loop.tops, *loop.writes):
                self._need(value, number, used, first, kept)
            needs.append(used)
        lines: list[str] = []
        done: set[int] = set()
        for number, loop in enumerate(self.loops):
            lines += self._numbers(number, done)
            lines += self._loop(number, loop, needs[number], first, kept)
        lines += self._numbers(len(self.loops), done)
        return lines, len(kept)

    def _need(self, x: Value, number: int, used: dict[str, bool], first: dict[str, int], kept: dict[str, int]) -> None:
        if not x.entry or x.text in used:
            return
        if x.text in self.heavy and first.get(x.text, number) < number and not x.truth:
            kept.setdefault(x.text, len(kept))
            used[x.text] = False
            return
        _, value = self.definitions[x.text]
        for part in value.parts:
            self._need(part, number, used, first, kept)
        used[x.text] = True
        first.setdefault(x.text, number)

    def _numbers(self, number: int, done: set[int]) -> list[str]:
        lines = []
        for i, (level, text) in enumerate(self.between):
            if i not in done and level <= number:
                done.add(i)
                lines.append("    " + text)
        return lines

    def _loop(
        self, number: int, loop: _Loop, used: dict[str, bool], first: dict[str, int], kept: dict[str, int]
    ) -> list[str]:
        names = [(n, v) for n, v in loop.sums]
        lines = [f"    {'int64_t' if v.truth else 'double'} {n} = 0;" for n, v in names]
        lines += [f"    Vec {n}_v = splat(-INFINITY); Mask {n}_nan = {{0}};" for n, _ in loop.tops]
        # short sums in REAL, added up in double
        lines.append("    for (int64_t b = 0; b < v; b += 1024) {")
        lines.append("        const int64_t end = b + 1024 < v ? b + 1024 : v;")
        lines += [f"        {'Mask' if v.truth else 'Vec'} {n}_v = {{0}};" for n, v in names]
        lines.append("        int64_t j = b;")
        for tail in (False, True):
            lines.append("        if (j < end) {" if tail else "        for (; j + LANES <= end; j += LANES) {")
            if tail:
                lines.append("            const int64_t rest = end - j; const Mask live = lanes(rest); (void)live;")
            for text, computed in used.items():
                definition, value = self.definitions[text]
                kind = "Mask" if value.truth else "Vec"
                if not computed:
                    definition = f"READ(scratch + {kept[text]} * (v + 80))"
                lines.append(f"            const {kind} {text} = {_access(definition, tail)};")
                if computed and text in kept and first[text] == number:
                    lines.append("            " + _write(f"scratch + {kept[text]} * (v + 80) + j", text, tail))
            for n, v in names:
                if v.truth:
                    lines.append(f"            {n}_v -= {v.text}{' & live' if tail else ''};")
                else:
                    lines.append(f"            {n}_v += {f'choose(live, {v.text}, splat(0))' if tail else v.text};")
            for n, v in loop.tops:
                inside = f"choose(live, {v.text}, splat(-INFINITY))" if tail else v.text
                lines.append(f"            {n}_v = vlargest({inside}, {n}_v); {n}_nan |= (Mask)({inside} != {inside});")
            for where, v in loop.writes:
                lines.append("            " + _write(f"{where} + j", v.text if v.entry else self._broadcast(v), tail))
            lines.append("        }")
        lines += [f"        {n} += {'counted' if v.truth else 'total'}({n}_v);" for n, v in names]
        lines.append("    }")
        lines += [f"    const double {n} = largest({n}_v, {n}_nan);" for n, _ in loop.tops]
        return lines


def _access(definition: str, tail: bool) -> str:
    """IN(k) and READ(p) as loads."""
    if definition.startswith("IN("):
        at = f"in[{definition[3:-1]}] + j"
    elif definition.startswith("READ("):
        at = f"{definition[5:-1]} + j"
    else:
        return definition
    return f"take({at}, rest)" if tail else f"*(const Vec *)({at})"


def _write(at: str, text: str, tail: bool) -> str:
    return f"put({at}, {text}, rest);" if tail else f"*(Vec *)({at}) = {text};"


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
