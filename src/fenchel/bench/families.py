"""What is measured for every generator, the heads and the functions of logits, and for every other objective of labels; each with its dense reference."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

import fenchel
from fenchel.bench.generators import has_loss, sparse
from fenchel.bench.regimes import Inputs
from fenchel.bench.work import Work

# A head's loss from its inputs; a path and its reference have the same form.
Loss = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Family:
    """One way to use a generator, or another objective by its name.

    Attributes:
        label: what the table says, around the name.
        kind: "fused" for heads, "function" for functions of logits.
        loss, reference: made of the name; the reference is run on float64.
        work: what it cannot do without, made of the name.
        takes: whether a generator has it.
        stores: [N, V] tensors that it keeps at once.
        teacher: whether it needs a second model.
    """

    label: str
    kind: str
    loss: Callable[[str], Loss]
    reference: Callable[[str], Loss]
    work: Callable[[str], Work]
    takes: Callable[[str], bool] = has_loss
    stores: float = 0.0
    teacher: bool = False


def upstream(x: Inputs) -> Tensor:
    """Per-token weights of both signs, as a policy gradient has them."""
    return torch.cos(torch.arange(len(x.labels), dtype=torch.float32)) / len(x.labels)


def young(name: str) -> Loss:
    """Fused Fenchel-Young loss."""
    return lambda x: fenchel.linear_fenchel_young(x.hidden, x.weight, x.labels, name)


@cache  # one object for the paths that share its result
def dense_young(name: str) -> Loss:
    """Fenchel-Young loss of dense logits."""
    return lambda x: fenchel.fenchel_young(product(x), x.labels, name)


def generic(name: str) -> Loss:
    """The same loss by the generic head."""

    def loss(x: Inputs) -> Tensor:
        rows = lambda z, y: fenchel.fenchel_young(z, y, name, reduction="none")
        return fenchel.linear_rows(rows, x.hidden, x.weight, x.labels).mean()

    return loss


def product(x: Inputs) -> Tensor:
    """Dense logits `[N, V]`, differentiable."""
    return x.hidden @ x.weight.T


def teacher_product(x: Inputs) -> Tensor:
    """Dense logits of the teacher `[N, V]`."""
    hidden, weight = x.taught
    return hidden @ weight.T


def pair(name: str) -> Loss:
    """Fused mean of D_f(teacher || student)."""
    return lambda x: fenchel.linear_divergence(x.taught, (x.hidden, x.weight), name, reduction="mean")


def pair_each(name: str) -> Loss:
    """Fused D_f(teacher || student) with an upstream gradient of its own for every token."""
    return lambda x: (fenchel.linear_divergence(x.taught, (x.hidden, x.weight), name) * upstream(x)).sum()


@cache
def dense_pair(name: str) -> Loss:
    """The mean from dense logits."""
    return lambda x: fenchel.divergence(teacher_product(x), product(x), name).mean()


def dense_pair_each(name: str) -> Loss:
    """The same with an upstream gradient of its own for every token."""
    return lambda x: (fenchel.divergence(teacher_product(x), product(x), name) * upstream(x)).sum()


def supervised(name: str) -> Loss:
    """Fused supervised objective."""
    return lambda x: fenchel.linear_supervised(x.hidden, x.weight, x.labels, name)


def dense_supervised(name: str) -> Loss:
    """The same from dense logits."""
    return lambda x: fenchel.supervised(product(x), x.labels, name)


def probabilities(name: str) -> Loss:
    """softargmax of logits, contracted with a number for each class."""
    return lambda x: (fenchel.softargmax(x.logits, name) @ _classes(x.logits)).mean()


def _classes(z: Tensor) -> Tensor:
    return torch.cos(torch.arange(z.shape[1])).to(z.dtype)


def value(name: str) -> Loss:
    """Mean value of logits."""
    return lambda x: fenchel.softmax_value(x.logits, name).mean()


def entropy(name: str) -> Loss:
    """Mean entropy of logits."""
    return lambda x: fenchel.entropy(x.logits, name).mean()


def loss(name: str) -> Loss:
    """Fenchel-Young loss of logits."""
    return lambda x: fenchel.fenchel_young(x.logits, x.labels, name)


def divergence(name: str) -> Loss:
    """Mean divergence of two models' logits."""
    return lambda x: fenchel.divergence(x.teacher_logits, x.logits, name).mean()


def _three(name: str) -> Work:
    """Logits, and the gradients of hidden states and weight: of the support alone where the rest is exactly 0."""
    return Work(products=1, sparse=2, tensors=4) if sparse(name) else Work(products=3, tensors=4)


def _six(name: str) -> Work:
    """Logits of both models, made twice, then two gradients."""
    return Work(products=6, tensors=6)


def _always(name: str) -> bool:
    return True


# fmt: off
FAMILIES = {
    "young": Family("fused {}", "fused", young, dense_young, _three),
    "pair": Family("fused {} of two heads, mean", "fused", pair, dense_pair, lambda _: Work(products=4, tensors=6), _always, teacher=True),
    "pair-each": Family("fused {} of two heads, upstream per token", "fused", pair_each, dense_pair_each, _six, _always, teacher=True),
    "rows": Family("linear_rows of {}", "fused", generic, dense_young, lambda _: Work(products=4, tensors=4)),
    # p and its gradient are written and read, the logits read and their gradient written
    "softargmax": Family("softargmax {}", "function", probabilities, probabilities, lambda _: Work(passes=7), stores=6),
    # read twice, the gradient written
    "value": Family("softmax_value {}", "function", value, value, lambda _: Work(passes=3), stores=5),
    "entropy": Family("entropy {}", "function", entropy, entropy, lambda _: Work(passes=3), stores=6),
    "loss": Family("fenchel_young {}", "function", loss, loss, lambda _: Work(passes=3), stores=5),
    "divergence": Family("divergence {}", "function", divergence, divergence, lambda _: Work(passes=5), _always, stores=12, teacher=True),
}
# Of objectives of labels that are no generator's.
LABELLED = {"supervised": Family("fused {}", "fused", supervised, dense_supervised, lambda _: Work(products=3, tensors=4))}
EVERY = FAMILIES | LABELLED
# fmt: on
