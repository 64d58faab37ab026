"""Label-distributionally robust losses: the margin against every label, worst-cased within a KL ball; and the same with a temperature per sample."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_positive, check_weight
from .objective import CLASS, LabelObjective, own, present

__all__ = ["LDR", "Margin", "aldr_rows", "aldr_temperature"]


@dataclass(frozen=True)
class LDR:
    """lam log( (1/K) sum_k exp((c 1[k != y] + z_k - z_y) / lam) ), K the classes in the vocabulary.

    It is max_p sum_k p_k (c 1[k != y] + z_k - z_y) - lam KL(p||uniform) over distributions p. lam = 1, c = 0 is cross-entropy - log K; as lam -> 0 it tends to
    `Margin`, the multiclass hinge loss. The authors' code passes softplus(z) / mean(softplus(z)) for z, which is a part of the model here.

    Attributes:
        lam: > 0.
        c: >= 0, the margin.

    Example:
        >>> LDR(lam=1.0, c=0.0).rows(torch.zeros(1, 4), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
        tensor([0.])

    Source: Zhu, Ying & Yang, arXiv 2112.14869.
    """

    lam: float = 1.0
    c: float = 2.0
    takes = CLASS

    def __post_init__(self) -> None:
        check_positive("lam", self.lam)
        check_weight("c", self.c)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return ldr(logits, target, self.lam, self.c)


@dataclass(frozen=True)
class Margin:
    """max_k (c 1[k != y] + z_k - z_y) >= 0: the multiclass hinge loss.

    Attributes:
        c: >= 0, the margin.

    Example:
        >>> Margin(1.0).rows(torch.tensor([[0.2, 0.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([0.8000])

    Source: Crammer & Singer 2001; the limit of `LDR`.
    """

    c: float = 1.0
    takes = CLASS

    def __post_init__(self) -> None:
        check_weight("c", self.c)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return margins(logits, target, self.c).amax(-1)


def margins(logits: Tensor, target: Tensor, c: float) -> Tensor:
    """c 1[k != y] + z_k - z_y [N, V]."""
    return c * (1 - target) + (logits - own(logits, target).unsqueeze(-1))


def ldr(logits: Tensor, target: Tensor, lam: float | Tensor, c: float) -> Tensor:
    """The formula of `LDR`; lam a number or [N, 1]."""
    scaled = torch.logsumexp(margins(logits, target, c) / lam, -1, keepdim=True) - classes_of(logits).log()
    return (lam * scaled).squeeze(-1)


def classes_of(logits: Tensor) -> Tensor:
    """How many classes are in the vocabulary [N, 1]."""
    return present(logits)[0].to(logits.dtype).sum(-1, keepdim=True)


def aldr_rows(
    logits: Tensor, target: Tensor, lam: Tensor, *, lam0: float = 1.0, a: float = 2.0, c: float = 1.0
) -> Tensor:
    """The adaptive LDR loss [N] at the samples' temperatures: LDR at lam_i, less (a log K / (2 lam0)) (lam_i - lam0)^2.

    lam is a constant of the step, kept by the caller per sample: start it at lam0 and put `aldr_temperature` of the logits in its place.

    Args:
        logits: [N, V].
        target: one-hot rows [N, V].
        lam: [N], > 0; not differentiated.
        lam0: > 0.
        a: > 1, how fast temperatures move: the larger, the less.
        c: >= 0, the margin.

    Raises:
        ValueError: a parameter outside its domain, shapes that do not fit.

    Example:
        >>> z, y = torch.zeros(2, 4), torch.eye(4)[:2]
        >>> torch.allclose(aldr_rows(z, y, torch.ones(2), c=0.0), torch.zeros(2))
        True

    Source: Zhu, Ying & Yang, arXiv 2112.14869, and the authors' code.
    """
    _check_adaptive(logits, lam, lam0, a)
    check_weight("c", c)
    lam = lam.detach().to(logits.dtype)
    penalty = a * classes_of(logits).squeeze(-1).log() / (2 * lam0) * (lam - lam0).square()
    return ldr(logits, target, lam.unsqueeze(-1), c) - penalty


@torch.no_grad()
def aldr_temperature(logits: Tensor, lam: Tensor, *, lam0: float = 1.0, a: float = 2.0) -> Tensor:
    """The samples' next temperatures [N], lam0 - lam0 KL(p||uniform) / (a log K) with p = softmax(z / lam).

    Within [lam0 (1 - 1/a), lam0]: the surer the model, the lower, and so the nearer to the hinge loss.

    Args:
        logits: [N, V].
        lam: [N], > 0, the present ones.
        lam0, a: as `aldr_rows`.

    Raises:
        ValueError: a parameter outside its domain, shapes that do not fit.

    Example:
        >>> aldr_temperature(torch.tensor([[0.0, 0.0], [99.0, 0.0]]), torch.ones(2), a=2.0)
        tensor([1.0000, 0.5000])

    Source: Zhu, Ying & Yang, arXiv 2112.14869, and the authors' code.
    """
    _check_adaptive(logits, lam, lam0, a)
    log_p = torch.log_softmax(logits / lam.to(logits.dtype).unsqueeze(-1), -1)
    there, finite = present(log_p)
    log_k = classes_of(logits).squeeze(-1).log()
    kl = log_k + torch.where(there, log_p.exp() * finite, 0.0).sum(-1)
    return lam0 - lam0 * kl / (a * log_k.clamp_min(math.log(2)))


def _check_adaptive(logits: Tensor, lam: Tensor, lam0: float, a: float) -> None:
    check_positive("lam0", lam0)
    check_positive("a", a)
    if a <= 1:
        raise ValueError(f"a: got {a}; pass a number > 1, so that temperatures stay positive")
    if lam.shape != logits.shape[:-1] or logits.dim() != 2:
        raise ValueError(
            f"lam: got shape {list(lam.shape)} for logits {list(logits.shape)}; pass [N] for logits [N, V]"
        )
    if bool((lam <= 0).any()):
        raise ValueError(f"lam: got {float(lam.min())}; pass positive temperatures")


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"ldr": LDR, "margin": Margin}
