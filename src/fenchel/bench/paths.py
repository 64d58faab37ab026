"""What is timed: one forward and backward of a head or of a function of logits, and the dense reference that each must equal."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

import fenchel
from fenchel.bench import generators, peers
from fenchel.bench.families import EVERY, FAMILIES, LABELLED, Loss, dense_pair, dense_young, product, upstream
from fenchel.bench.regimes import REGIMES, Inputs
from fenchel.bench.sizes import Size
from fenchel.bench.work import Work, copied

# The value and the gradients of the leaves.
Result = tuple[Tensor, ...]


@dataclass(frozen=True)
class Path:
    """One row of the benchmark.

    Attributes:
        key, label: its name in flags and in the table.
        kind: "bare", "dense", "fused", "function" or "peer".
        regimes: where it is measured unless more is asked for.
        loss: what is differentiated, by hidden and weight, or by the logits if the kind is "function".
        reference: the same loss, run on float64.
        bare: instead of a loss, what is done.
        work: what it cannot do without.
        stores: [N, V] tensors that it keeps at once.
        needs: modules without which there is no such path.
        teacher: whether it needs a second model.
        family, generator: what it is made of, where it is.
    """

    key: str
    label: str
    kind: str
    regimes: tuple[str, ...]
    loss: Loss | None = None
    reference: Loss | None = None
    bare: Callable[[Inputs, Size], Callable[[], None]] | None = None
    work: Work = Work()
    stores: float = 0.0
    needs: tuple[str, ...] = ()
    teacher: bool = False
    family: str = ""
    generator: str | None = None

    def missing(self, size: Size, memory: int) -> str | None:
        """Why it cannot run here: the first module that it needs and that is not installed, or too little memory."""
        module = next((name for name in self.needs if not _there(name)), None)
        if module is not None:
            return f"needs {module}"
        stored = self.stores * 4 * size.n * size.v
        return f"stores {stored / 2**30:.0f} GiB" if stored > memory / 2 else None

    def leaves(self, given: Inputs) -> tuple[Tensor, ...]:
        """What it is differentiated by."""
        return (given.logits,) if self.kind == "function" else (given.hidden, given.weight)

    def step(self, given: Inputs, size: Size) -> Callable[[], Result | None]:
        """One forward and backward on these inputs."""
        if self.bare is not None:
            return self.bare(given, size)
        assert self.loss is not None
        return partial(differentiated, self.loss, given, self.leaves(given))


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def differentiated(loss: Loss, given: Inputs, leaves: tuple[Tensor, ...]) -> Result:
    """The value and the gradients."""
    value = loss(given)
    return value.detach(), *torch.autograd.grad(value, leaves)


def products(count: int, given: Inputs, size: Size) -> Callable[[], None]:
    """One product is the logits, three are these and the gradients of weight and hidden, the fourth a teacher's logits.

    Nothing else is done. Outputs are written to buffers that exist, so not even their pages are paid for.
    """
    hidden, weight = given.hidden.detach(), given.weight.detach()
    logits = torch.zeros(len(hidden), len(weight), dtype=hidden.dtype)
    d_hidden, d_weight = torch.zeros_like(hidden), torch.zeros_like(weight)

    def run() -> None:
        torch.mm(hidden, weight.T, out=logits)
        if count == 4:
            torch.mm(given.taught[0], given.taught[1].T, out=logits)
        if count >= 3:
            torch.mm(logits.T, hidden, out=d_weight)
            torch.mm(logits, weight, out=d_hidden)

    return run


def copy(given: Inputs, size: Size) -> Callable[[], None]:
    """Copies numbers from one place to another."""
    source = torch.zeros(copied(size), dtype=size.torch_dtype)
    target = torch.zeros_like(source)

    def run() -> None:
        target.copy_(source)

    return run


def dense_ce(x: Inputs) -> Tensor:
    """torch's cross-entropy of dense logits."""
    return F.cross_entropy(product(x), x.labels)


def logp(x: Inputs) -> Tensor:
    """Fused log-probabilities of the labels, with an upstream gradient of its own for every token."""
    return (fenchel.linear_logp(x.hidden, x.weight, x.labels).logp * upstream(x)).sum()


def dense_logp(x: Inputs) -> Tensor:
    """The same from dense logits."""
    return (product(x).log_softmax(-1).gather(1, x.labels.unsqueeze(1)).squeeze(1) * upstream(x)).sum()


def trl_logp(x: Inputs) -> Tensor:
    """The same by TRL."""
    return peers.trl_logp(x, upstream(x))


ALL = tuple(REGIMES)
FIRST = ("initial",)
TWO_HEADS = ("initial", "early")
# Where a path is measured unless more is asked for; other Fenchel-Young heads in the first regime, anything else in the grid alone.
MEASURED: dict[str, tuple[str, ...]] = dict.fromkeys(("kl", "alpha:1.5", "alpha:2", "js"), ALL)
MEASURED |= {"pair:js": TWO_HEADS, "pair:kl": FIRST, "pair:reverse_kl": FIRST, "pair-each:js": FIRST}


def key_of(family: str, generator: str) -> str:
    """The name of a path: that of its generator or objective, after its family's if it is not a Fenchel-Young head."""
    return generator if family == "young" else f"{family}:{generator}"


def made(family: str, name: str) -> Path:
    """The path of a family and a generator, or another objective."""
    f, key = EVERY[family], key_of(family, name)
    label = "fused cross-entropy (kl)" if key == "kl" else f.label.format(name)
    regimes = MEASURED.get(key, FIRST if family == "young" else ())
    return Path(
        key,
        label,
        f.kind,
        regimes,
        f.loss(name),
        f.reference(name),
        work=f.work(name),
        stores=f.stores,
        teacher=f.teacher,
        family=family,
        generator=None if family in LABELLED else name,
    )


def peer(
    key: str, label: str, loss: Loss, like: str, *needs: str, stores: float = 0.0, more: tuple[str, ...] = ()
) -> Path:
    """A path of another library that does what the path `like` does."""
    of = made("pair" if like.startswith("pair:") else "young", like.removeprefix("pair:"))
    return replace(
        of, key=key, label=label, kind="peer", regimes=FIRST + more, loss=loss, needs=needs, stores=stores, family=""
    )


KL, JS2 = dense_young("kl"), dense_pair("js")
THREE, LOGP = Work(products=3, tensors=4), Work(products=4, tensors=4)

# fmt: off
ANCHORS = (
    Path("product", "bare product", "bare", ALL, bare=partial(products, 1), work=Work(products=1), stores=1),
    Path("copy", "bare copy", "bare", ALL, bare=copy),
    Path("dense", "torch dense cross-entropy", "dense", ALL, dense_ce, KL, work=THREE, stores=4),
)
OTHERS = (
    Path("products3", "three bare products", "bare", ALL, bare=partial(products, 3), work=Work(products=3), stores=1),
    Path("products4", "four bare products", "bare", TWO_HEADS, bare=partial(products, 4), work=Work(products=4), stores=1, teacher=True),
    Path("logp", "fused logp, upstream per token", "fused", FIRST, logp, dense_logp, work=LOGP, family="logp"),
    Path("dense-js2", "dense js of two heads, mean", "dense", TWO_HEADS, JS2, JS2, work=Work(products=4, tensors=6), stores=12, teacher=True),
    peer("torch-lce", "torch linear_cross_entropy", peers.torch_linear_ce, "kl"),
    peer("cce", "cut-cross-entropy, compiled", peers.cut_cross_entropy, "kl", "triton", "cut_cross_entropy"),
    Path("trl-logp", "TRL ChunkedLogProb", "peer", FIRST, trl_logp, dense_logp, work=LOGP, needs=("trl.kernels.chunked_logprob",)),
    peer("liger-js2", "Liger chunked JSD", peers.liger_jsd, "pair:js", "liger_kernel.chunked_loss"),
    peer("trl-js2", "TRL ChunkedDivergence JSD", peers.trl_jsd, "pair:js", "trl.kernels.chunked_divergence"),
    peer("entmax15", "entmax 1.5 dense, sorted", lambda x: peers.entmax15(product(x), x.labels), "alpha:1.5", "entmax", stores=12, more=("late",)),
    peer("entmax-bisect", "entmax 1.5 dense, bisected", lambda x: peers.entmax_bisect(product(x), x.labels), "alpha:1.5", "entmax", stores=6),
    peer("sparsemax", "entmax sparsemax dense", lambda x: peers.sparsemax(product(x), x.labels), "alpha:2", "entmax", stores=8),
)
# fmt: on
# Measured with whatever else is: ratios are taken to them.
ALWAYS = tuple(path.key for path in ANCHORS)


def of_generators(names: Iterable[str]) -> tuple[Path, ...]:
    """Every family with every generator that has it."""
    names = tuple(names)
    return tuple(made(family, name) for family, f in FAMILIES.items() for name in names if f.takes(name))


def of_labels() -> tuple[Path, ...]:
    """Every other objective of labels."""
    return tuple(made(family, name) for family in LABELLED for name in generators.losses())


def all_paths(names: Iterable[str] | None = None) -> tuple[Path, ...]:
    """All paths, with these generators or with every one of the library."""
    return (*ANCHORS, *of_generators(generators.every() if names is None else names), *of_labels(), *OTHERS)


def path_of(key: str) -> Path:
    """The path with this name."""
    for path in (*ANCHORS, *OTHERS):
        if path.key == key:
            return path
    family, _, name = key.partition(":")
    return made(family, name) if family in EVERY else made("young", key)


def reference(path: Path, given: Inputs) -> Result:
    """Value and gradients in float64."""
    assert path.reference is not None
    wide = given.to(torch.float64)
    return differentiated(path.reference, wide, path.leaves(wide))
