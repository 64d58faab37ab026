"""Robust losses with a temperature of their own: the dual of KL-constrained distributional robustness, and the network that predicts its temperature."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...checks import check_number, check_positive
from .ldr import ldr
from .objective import CLASS, LabelObjective

__all__ = ["KLDRO", "kl_dro"]


@dataclass(frozen=True)
class KLDRO:
    """tau log( (1/K) sum_k exp((z_k - z_y) / tau) ) + rho tau, K the classes in the vocabulary.

    Minimised over tau it is max_p sum_k p_k (z_k - z_y) over the distributions p with KL(p||uniform) <= rho. At tau = 1 it is cross-entropy + rho - log K, and
    it is tau times cross-entropy of z / tau, plus (rho - log K) tau. For a tau of each sample, and its gradient, call `kl_dro`.

    Attributes:
        tau: > 0.
        rho: >= 0, the radius.

    Example:
        >>> import torch
        >>> KLDRO(tau=0.5, rho=1.0).rows(torch.zeros(1, 4), torch.eye(4)[:1])
        tensor([0.5000])

    Source: Qiu et al., arXiv 2404.04575 (TempNet).
    """

    tau: float = 1.0
    rho: float = 0.0
    takes = CLASS

    def __post_init__(self) -> None:
        check_positive("tau", self.tau)
        check_number("rho", self.rho, 0)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return ldr(logits, target, self.tau, 0.0) + self.rho * self.tau


def kl_dro(logits: Tensor, target: Tensor, tau: Tensor, rho: float) -> Tensor:
    """The formula of `KLDRO` [N] with a temperature per row, differentiable in it.

    Args:
        logits: [N, V].
        target: one-hot rows [N, V].
        tau: [] or [N], > 0: what a network predicts.
        rho: >= 0.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> tau = torch.tensor([1.0], requires_grad=True)
        >>> kl_dro(z, y, tau, rho=0.3).shape
        torch.Size([1])

    Source: Qiu et al., arXiv 2404.04575 (TempNet).
    """
    tau = tau.unsqueeze(-1) if tau.dim() else tau
    return ldr(logits, target, tau, 0.0) + (rho * tau).reshape(-1)


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"kl_dro": KLDRO}
