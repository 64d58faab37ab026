"""Every path of the library under everything that training puts around it: a literal table, also in docs/transforms.md.

A path is seen as rows = f(hidden, weight, labels), with the product written out where the path starts from logits. What belongs to rows (labels, a
teacher's states, probabilities) is made of the labels, so that half of a batch, on a rank of its own, has its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.func import grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import fenchel

N, D, V = 6, 3, 7
# hidden [N, D], weight [V, D], labels [N] -> rows [N, ...], or a scalar
Function = Callable[[Tensor, Tensor, Tensor], Tensor]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Path:
    """One row of the table.

    Attributes:
        name: as the page shows it.
        of: f, of a generator's name.
        sparse: whether the generator matters, so that one that gives exact zeros is a case of its own.
        kernel: whether `of` takes backend="triton".
        refused: the columns that raise, and the pattern of the error.
    """

    name: str
    of: Callable[..., Function]
    sparse: bool = True
    kernel: bool = False
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def function(self) -> str:
        """The public function that it is a path of."""
        return self.name.partition(",")[0].strip("`")

    @property
    def generators(self) -> tuple[str, ...]:
        """Names of the generators that it is tested with."""
        return ("js", "alpha:1.5") if self.sparse else ("js",)


@dataclass(frozen=True)
class Column:
    """One column of the table: `check(path, f)` asserts that f of the path is right under it."""

    name: str
    code: str
    check: Callable[[Path, Function], None]
    # with every generator of the path, or with the last
    every: bool = False


def teacher(y: Tensor, like: Tensor) -> Tensor:
    """Hidden states [N, 2] of another model."""
    made = torch.stack(((y + 1.0).cos(), (2.0 * y).sin()), -1).to(like.dtype)
    return distribute_tensor(made, like.device_mesh, like.placements) if isinstance(like, DTensor) else made


def teacher_weight(like: Tensor) -> Tensor:
    """Its output embedding [V, 2], on the ranks that the student's is on."""
    v = torch.arange(len(like))
    made = torch.stack((v.sin(), v.cos()), -1).to(like.dtype)
    return distribute_tensor(made, like.device_mesh, like.placements) if isinstance(like, DTensor) else made


def both(h: Tensor, w: Tensor, y: Tensor) -> tuple[Pair, Pair]:
    """The heads of the teacher and of the student."""
    return (teacher(y, h), teacher_weight(w)), (h, w)


def logits(head: Pair) -> Tensor:
    """The logits of a head."""
    return head[0] @ head[1].T


def of_logits(call: Callable[..., Tensor]) -> Callable[[str], Function]:
    """A function of logits and of a generator's name, after the product."""
    return lambda name: lambda h, w, y: call(h @ w.T, name)


SUPERVISED = "gce:0.7 + 0.5*z_loss"


def of_logits_and_labels(call: Callable[..., Tensor]) -> Callable[[str], Function]:
    """A supervised objective, after the product."""
    return lambda _: lambda h, w, y: call(h @ w.T, y, SUPERVISED)


def labelled(reduction: str) -> Callable[[str], Function]:
    return lambda _: lambda h, w, y: fenchel.linear_supervised(h, w, y, SUPERVISED, reduction=reduction)


def of_two(call: Callable[..., Tensor]) -> Callable[[str], Function]:
    """A function of two models' logits and of a generator's name, after the products."""
    return lambda name: lambda h, w, y: call(*map(logits, both(h, w, y)), name)


def young(name: str, **options: str) -> Function:
    return lambda h, w, y: fenchel.linear_fenchel_young(h, w, y, name, **options)


def distance(name: str, **options: str) -> Function:
    return lambda h, w, y: fenchel.linear_divergence(*both(h, w, y), name, **options)


def log_probabilities(name: str, **options: str) -> Function:
    def f(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
        out = fenchel.linear_logp(h, w, y, **options)
        return torch.stack((out.logp, out.entropy, out.logsumexp), -1)

    return f


def distilled(objective: str) -> Callable[..., Function]:
    """An objective that needs the labels where its name says so."""

    def made(name: str, **options: str) -> Function:
        target = objective.startswith("dkd")
        return lambda h, w, y: fenchel.linear_distillation(objective, *both(h, w, y), y if target else None, **options)

    return made


def generic(z: Tensor, y: Tensor) -> Tensor:
    return fenchel.fenchel_young(z, y, "js", reduction="none") * z.logsumexp(-1)


def generic_pair(t: Tensor, s: Tensor) -> Tensor:
    return fenchel.divergence(t, s, "js") * s.logsumexp(-1)


# A Function of ours has no forward-mode rule: a compiler would take a rule of one for that of all orders, and be wrong in silence.
HEAD = (("jvp", "must implement the jvp function"),)
WHOLE = (("TP", "needs the whole vocabulary"),)

PATHS: tuple[Path, ...] = (
    Path("`softargmax`", of_logits(fenchel.softargmax)),
    Path("`softmax_value`", of_logits(fenchel.softmax_value)),
    Path("`entropy`", of_logits(fenchel.entropy)),
    Path("`sigmoid`", of_logits(fenchel.sigmoid)),
    Path("`softplus`", of_logits(fenchel.softplus)),
    Path("`fenchel_young`", lambda name: lambda h, w, y: fenchel.fenchel_young(h @ w.T, y, name)),
    Path("`FenchelYoungLoss`", lambda name: lambda h, w, y: fenchel.FenchelYoungLoss(name)(h @ w.T, y)),
    Path("`supervised`", of_logits_and_labels(fenchel.supervised), sparse=False),
    Path("`divergence`", of_two(fenchel.divergence)),
    Path("`skew_divergence`", of_two(fenchel.skew_divergence)),
    Path("`renyi`", of_two(lambda p, q, _: fenchel.renyi(p, q, 1.5)), sparse=False),
    Path("`bhattacharyya`", of_two(lambda p, q, _: fenchel.bhattacharyya(p, q)), sparse=False),
    Path("`cauchy_schwarz`", of_two(lambda p, q, _: fenchel.cauchy_schwarz(p, q)), sparse=False),
    Path("`distillation`", of_two(lambda p, q, name: fenchel.distillation(name, p, q))),
    Path("`linear_fenchel_young`, mean", partial(young, reduction="mean"), kernel=True, refused=HEAD),
    Path("`linear_fenchel_young`, per row", partial(young, reduction="none"), kernel=True, refused=HEAD),
    Path("`linear_supervised`, mean", labelled("mean"), sparse=False, refused=HEAD),
    Path("`linear_supervised`, per row", labelled("none"), sparse=False, refused=HEAD),
    Path("`linear_logp`", log_probabilities, sparse=False, kernel=True, refused=HEAD),
    Path("`linear_divergence`, mean", partial(distance, reduction="mean"), kernel=True, refused=HEAD),
    Path("`linear_divergence`, per row", partial(distance, reduction="none"), kernel=True, refused=HEAD),
    Path("`linear_distillation`, a mixture", distilled("kl + 0.5*js"), sparse=False, kernel=True, refused=HEAD),
    Path(
        "`linear_distillation`, DKD",
        distilled("dkd:alpha=1,beta=8"),
        sparse=False,
        refused=(*HEAD, ("TP", "needs whole rows")),
    ),
    Path(
        "`linear_rows`",
        lambda _: lambda h, w, y: fenchel.linear_rows(generic, h, w, y),
        sparse=False,
        refused=HEAD + WHOLE,
    ),
    Path(
        "`linear_pair_rows`",
        lambda _: lambda h, w, y: fenchel.linear_pair_rows(generic_pair, *both(h, w, y)),
        sparse=False,
        refused=HEAD + WHOLE,
    ),
)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and labels, the same in every process."""
    made = torch.Generator().manual_seed(7)
    h, w = (torch.randn(n, D, generator=made, dtype=torch.float64) / 1.5 for n in (N, V))
    return h.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), torch.arange(N) * 3 % V


def bound(f: Function) -> tuple[Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]:
    """f of hidden states and weight alone, and these."""
    h, w, y = inputs()
    return lambda a, b: f(a, b, y), (h, w)


def number(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One number of f in which each of its entries has its own upstream gradient."""

    def total(*x: Tensor) -> Tensor:
        out = f(*x)
        c = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)
        return (c * out).sum() + (out**2).sum()

    return total


def slopes(f: Callable[..., Tensor], x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The gradients of `number`, by backward(): one kind of checkpoint takes nothing else."""
    leaves = tuple(t.detach().requires_grad_() for t in x)
    number(f)(*leaves).backward()
    return tuple(t.grad if t.grad is not None else torch.zeros_like(t) for t in leaves)


def close(got: Any, want: Any, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def same(f: Callable[..., Tensor], g: Callable[..., Tensor], x: tuple[Tensor, ...], **tolerance: float) -> None:
    """f and g have the same values and gradients."""
    close(f(*x), g(*x), **tolerance)
    close(slopes(f, x), slopes(g, x), **tolerance)


def on_a_cpu(path: Path, f: Function) -> None:
    g, x = bound(f)
    assert gradcheck(g, x, fast_mode=True)


def twice(path: Path, f: Function) -> None:
    g, x = bound(f)
    assert gradgradcheck(g, x, fast_mode=True)


def functional(path: Path, f: Function) -> None:
    g, x = bound(f)
    plain = tuple(t.detach() for t in x)
    close(grad(number(g), (0, 1))(*plain), slopes(g, x))


def batched(path: Path, f: Function) -> None:
    g, (h, w) = bound(f)
    many, w = torch.stack((h, h.flip(0), -h)).detach(), w.detach()
    close(vmap(g, (0, None))(many, w), torch.stack([g(x, w) for x in many]))
    got = vmap(grad(number(g), (0, 1)), (0, None))(many, w)
    leaves = [(x.clone().requires_grad_(), w.clone().requires_grad_()) for x in many]
    close(got, tuple(torch.stack(t) for t in zip(*(slopes(g, x) for x in leaves), strict=True)))


def forward_mode(path: Path, f: Function) -> None:
    g, x = bound(f)
    along = tuple(torch.sin(torch.arange(t.numel(), dtype=t.dtype)).view(t.shape) for t in x)
    _, got = jvp(number(g), tuple(t.detach() for t in x), along)
    want = sum((s * v).sum() for s, v in zip(slopes(g, x), along, strict=True))
    close(got, want)


def compiled(path: Path, f: Function) -> None:
    torch.compiler.reset()
    g, x = bound(f)
    same(torch.compile(g, fullgraph=True, backend="aot_eager"), g, x)


def under_autocast(path: Path, f: Function) -> None:
    """Autocast is a cast of what enters the product; gradients that meet at a leaf are added in the dtype of the leaf."""
    h, w, y = inputs(torch.float32)

    def cast(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return f(a, b, y)

    narrow = lambda a, b: f(a.bfloat16(), b.bfloat16(), y)
    close(cast(h, w), narrow(h, w), rtol=0, atol=0)
    close(slopes(cast, (h, w)), slopes(narrow, (h, w)), rtol=2**-6, atol=2**-6)


def recomputed(path: Path, f: Function) -> None:
    g, x = bound(f)
    same(lambda a, b: checkpoint(g, a, b, use_reentrant=False), g, x)
    same(lambda a, b: checkpoint(g, 1 * a, b, use_reentrant=True), g, x)


def by_triton(path: Path, f: Function) -> None:
    if path.kernel:
        g, x = bound(f)
        h, _ = bound(path.of(path.generators[-1], backend="triton"))
        same(h, g, x)


COLUMNS: tuple[Column, ...] = (
    Column("CPU", "`gradcheck`: first derivatives against differences", on_a_cpu, True),
    Column("double backward", "`gradgradcheck`: second derivatives against differences", twice),
    Column("`func.grad`", "`torch.func.grad` against backward", functional),
    Column("`vmap`", "`torch.func.vmap` of values and of gradients against a loop", batched),
    Column("jvp", "`torch.func.jvp` against the gradient times the direction", forward_mode),
    Column("compile", '`torch.compile(fullgraph=True, backend="aot_eager")`, forward and backward', compiled),
    Column(
        "autocast",
        "bfloat16 autocast against tensors that were cast before: the same values, bit by bit, and gradients",
        under_autocast,
    ),
    Column(
        "Triton",
        '`backend="triton"`, run by its interpreter, against the CPU\'s; the others have no kernels of their own',
        by_triton,
    ),
    Column("checkpoint", "`torch.utils.checkpoint`, both kinds, against backward", recomputed),
)

# Checked by two processes, in tests/ranks.py.
RANKED: tuple[tuple[str, str], ...] = (
    ("DDP", "`DistributedDataParallel` on two processes against one process with the whole batch"),
    ("FSDP2", "`fully_shard` of body and head on two processes, resharded after forward, against one process"),
    ("TP", "weights as DTensors whose vocabulary two processes share, 4 classes and 3, against one process"),
)


def verdict(path: Path, column: str) -> str:
    """What stands in a cell."""
    if column == "Triton" and not path.kernel:
        return "—"
    return "raises" if column in dict(path.refused) else "works"


# what to do instead of what raises
INSTEAD = {
    "jvp": "reverse mode, of any order, is there for every path",
    "TP": "with `weight.full_tensor()` on every rank they work",
}


def section() -> str:
    """The part of docs/transforms.md."""
    columns = [(c.name, c.code) for c in COLUMNS] + list(RANKED)
    head = "| path | " + " | ".join(name for name, _ in columns) + " |"
    lines = [
        "## What each path can be put under",
        "",
        "Made from `tests/composability.py`, whose rows and columns the tests run over, every cell of them. A path is",
        "`f(hidden, weight)`: for functions of logits the product comes first. Where it takes a generator, that is",
        "`alpha:1.5`, whose exact zeros are the harder case; the first column is tested with `js` too.",
        "",
        head,
        "|---" * (len(columns) + 1) + "|",
    ]
    lines += [f"| {path.name} | " + " | ".join(verdict(path, name) for name, _ in columns) + " |" for path in PATHS]
    lines += ["", *(f"- {name}: {code}." for name, code in columns), ""]
    errors = sorted({(column, text) for path in PATHS for column, text in path.refused})
    lines += [f"What raises in the column {column} says “{text}”: {INSTEAD[column]}." for column, text in errors]
    return "\n".join(lines) + "\n"
