"""What is timed: a literal table of paths, each one forward and backward, and the dense reference that each must equal."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

import fenchel
from fenchel.bench import peers
from fenchel.bench.regimes import REGIMES, Inputs

# (value, gradient of hidden, gradient of weight)
Result = tuple[Tensor, Tensor, Tensor]
# A head's loss from its inputs; the table's paths and their references have the same form.
Loss = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Path:
    """One row of the benchmark.

    `loss` is differentiated by hidden and weight; a path without one only multiplies, `products` times. `reference` is the
    same loss from dense float64 logits. `needs` are modules without which there is no such path.
    """

    key: str
    label: str
    kind: str
    regimes: tuple[str, ...]
    loss: Loss | None = None
    reference: Loss | None = None
    products: int = 0
    needs: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """The first module that this path needs and that is not installed."""
        return next((name for name in self.needs if not _there(name)), None)

    def step(self, given: Inputs) -> Callable[[], Result | None]:
        """One forward and backward on these inputs."""
        if self.loss is None:
            return products(given, self.products)
        return partial(differentiated, self.loss, given)


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def differentiated(loss: Loss, given: Inputs) -> Result:
    """(value, gradient of hidden, gradient of weight)."""
    value = loss(given)
    d_hidden, d_weight = torch.autograd.grad(value, (given.hidden, given.weight))
    return value.detach(), d_hidden, d_weight


def products(given: Inputs, count: int) -> Callable[[], None]:
    """One product is the logits, three are these and the gradients of weight and hidden, the fourth a teacher's logits.

    Nothing else is done. Outputs are written to buffers that exist, so not even their pages are paid for.
    """
    hidden, weight = given.hidden.detach(), given.weight.detach()
    n, d, v = len(hidden), hidden.shape[1], len(weight)
    logits, d_hidden, d_weight = torch.zeros(n, v), torch.zeros(n, d), torch.zeros(v, d)

    def run() -> None:
        torch.mm(hidden, weight.T, out=logits)
        if count == 4:
            assert given.teacher is not None
            torch.mm(given.teacher[0], given.teacher[1].T, out=logits)
        if count >= 3:
            torch.mm(logits.T, hidden, out=d_weight)
            torch.mm(logits, weight, out=d_hidden)

    return run


def logits_of(given: Inputs) -> Tensor:
    """Dense logits `[N, V]`."""
    return given.hidden @ given.weight.T


def teacher_logits(given: Inputs) -> Tensor:
    """Dense logits of the teacher `[N, V]`."""
    assert given.teacher is not None
    return given.teacher[0] @ given.teacher[1].T


def upstream(given: Inputs) -> Tensor:
    """Per-token weights of both signs, as a policy gradient has them."""
    return torch.cos(torch.arange(len(given.labels), dtype=given.hidden.dtype)) / len(given.labels)


def young(name: str) -> Loss:
    """Fused Fenchel-Young loss."""
    return lambda x: fenchel.linear_fenchel_young(x.hidden, x.weight, x.labels, name)


def dense_young(name: str) -> Loss:
    """Fenchel-Young loss of dense logits."""
    return lambda x: fenchel.fenchel_young(logits_of(x), x.labels, name)


def dense_ce(x: Inputs) -> Tensor:
    """torch's cross-entropy of dense logits."""
    return F.cross_entropy(logits_of(x), x.labels)


def logp(x: Inputs) -> Tensor:
    """Fused log-probabilities of the labels, with an upstream gradient of its own for every token."""
    from fenchel.head.logp import linear_logp

    return (linear_logp(x.hidden, x.weight, x.labels).logp * upstream(x)).sum()


def dense_logp(x: Inputs) -> Tensor:
    """The same from dense logits."""
    return (logits_of(x).log_softmax(-1).gather(1, x.labels.unsqueeze(1)).squeeze(1) * upstream(x)).sum()


def distil(name: str) -> Loss:
    """Fused mean of D_f(teacher || student)."""

    def loss(x: Inputs) -> Tensor:
        from fenchel.head.divergence import linear_divergence

        assert x.teacher is not None
        return linear_divergence(x.teacher, (x.hidden, x.weight), name, reduction="mean")

    return loss


def dense_distil(name: str) -> Loss:
    """The same from dense logits."""
    return lambda x: fenchel.divergence(teacher_logits(x), logits_of(x), name).mean()


ALL = tuple(REGIMES)
FIRST = ("initial",)
TWO_HEADS = ("initial", "early")
# Sparse, dense and divergences of every kind: one each for a family that has a parameter.
OTHERS = ("reverse_kl", "jeffreys", "hellinger", "chi2", "neyman", "le_cam", "js:0.3", "alpha:1.25", "alpha:0.5")


def peer(key: str, label: str, loss: Loss, reference: Loss, *needs: str, regimes: tuple[str, ...] = FIRST) -> Path:
    """A path of another library."""
    return Path(key, label, "peer", regimes, loss, reference, needs=needs)


# One object each, so that paths with the same reference share its result.
KL, A15, A2, JS2 = dense_young("kl"), dense_young("alpha:1.5"), dense_young("alpha:2"), dense_distil("js")
DIVERGENCE = ("fenchel.head.divergence",)

# fmt: off
PATHS = (
    Path("product", "bare product", "bare", ALL, products=1),
    Path("products3", "three bare products", "bare", ALL, products=3),
    Path("products4", "four bare products", "bare", TWO_HEADS, products=4),
    Path("dense", "torch dense cross-entropy", "dense", ALL, dense_ce, KL),
    Path("kl", "fused cross-entropy (kl)", "fused", ALL, young("kl"), KL),
    Path("alpha:1.5", "fused alpha:1.5", "fused", ALL, young("alpha:1.5"), A15),
    Path("alpha:2", "fused alpha:2", "fused", ALL, young("alpha:2"), A2),
    Path("js", "fused js", "fused", ALL, young("js"), dense_young("js")),
    Path("logp", "fused logp, upstream per token", "fused", FIRST, logp, dense_logp, needs=("fenchel.head.logp",)),
    Path("js2", "fused js of two heads, mean", "fused", TWO_HEADS, distil("js"), JS2, needs=DIVERGENCE),
    Path("dense-js2", "dense js of two heads, mean", "dense", TWO_HEADS, dense_distil("js"), JS2),
    *(Path(name, f"fused {name}", "fused", FIRST, young(name), dense_young(name)) for name in OTHERS),
    peer("torch-lce", "torch linear_cross_entropy", peers.torch_linear_ce, KL),
    peer("cce", "cut-cross-entropy, compiled", peers.cut_cross_entropy, KL, "triton", "cut_cross_entropy"),
    peer("trl-logp", "TRL ChunkedLogProb", lambda x: peers.trl_logp(x, upstream(x)), dense_logp, "trl.kernels.chunked_logprob"),
    peer("liger-js2", "Liger chunked JSD", peers.liger_jsd, JS2, "liger_kernel.chunked_loss"),
    peer("trl-js2", "TRL ChunkedDivergence JSD", peers.trl_jsd, JS2, "trl.kernels.chunked_divergence"),
    peer("entmax15", "entmax 1.5 dense, sorted", lambda x: peers.entmax15(logits_of(x), x.labels), A15, "entmax", regimes=("initial", "late")),
    peer("entmax-bisect", "entmax 1.5 dense, bisected", lambda x: peers.entmax_bisect(logits_of(x), x.labels), A15, "entmax"),
    peer("sparsemax", "entmax sparsemax dense", lambda x: peers.sparsemax(logits_of(x), x.labels), A2, "entmax"),
)
# fmt: on


def reference(path: Path, given: Inputs) -> Result:
    """Value and gradients in float64, from dense logits."""
    assert path.reference is not None
    teacher = None if given.teacher is None else (given.teacher[0].double(), given.teacher[1].double())
    hidden, weight = (x.detach().double().requires_grad_() for x in (given.hidden, given.weight))
    return differentiated(path.reference, Inputs(hidden, weight, given.labels, teacher))
