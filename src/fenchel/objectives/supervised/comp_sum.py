"""Comp-sum losses: sum-exponential, cross-entropy, generalised cross-entropy and mean absolute error as one family."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_number, check_positive, check_weight
from .objective import DISTRIBUTION, LabelObjective, expected, expm1, own

__all__ = ["CompSum", "Probability", "adversarial_comp_sum", "cross_entropy", "gce", "mae"]


@dataclass(frozen=True)
class CompSum:
    """(1 - p_y^a) / a with a = tau - 1, and -log p_y at tau = 1.

    It is Phi_tau(u) = ((1 + u)^(1 - tau) - 1) / (1 - tau) of u = sum_(k != y) exp(z_k - z_y) = 1/p_y - 1. tau = 0 is the sum-exponential loss u, 1 is
    cross-entropy, tau in (1, 2) is generalised cross-entropy with q = tau - 1, 2 is 1 - p_y. Bounded by 1/(tau - 1) where tau > 1, and the larger tau the
    less a label that the model holds to be unlikely counts: the gradient is p_y^(tau - 1) times that of cross-entropy.

    Attributes:
        tau: >= 0.

    Example:
        >>> z, y = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[1.0, 0.0, 0.0]])
        >>> [round(CompSum(tau).rows(z, y).item(), 4) for tau in (0.0, 1.0, 2.0)]     # 1/p - 1, -log p, 1 - p
        [1.0, 0.6931, 0.5]

    Source: Mao, Mohri & Zhong, arXiv 2304.07288.
    """

    tau: float = 1.0
    takes = DISTRIBUTION

    def __post_init__(self) -> None:
        check_weight("tau", self.tau)

    def cost(self, log_p: Tensor) -> Tensor:
        """(1 - p^a) / a."""
        return box_cox(log_p, self.tau - 1)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return expected(self.cost, logits, target)


def box_cox(log_p: Tensor, a: float) -> Tensor:
    """(1 - p^a) / a, and its limit -log p at a = 0."""
    return -log_p if a == 0 else -expm1(a * log_p) / a


def cross_entropy() -> CompSum:
    """-log p_y, in expectation over the target.

    For probabilities this is -sum_j y_j log p_j, as in torch; the generator `kl` is KL(y||p), less by the entropy of the target.

    Example:
        >>> cross_entropy()
        CompSum(tau=1.0)
    """
    return CompSum(1.0)


def gce(q: float = 0.7) -> CompSum:
    """Generalised cross-entropy (1 - p_y^q) / q: cross-entropy as q -> 0, 1 - p_y at q = 1.

    Raises:
        ValueError: q outside (0, 1].

    Example:
        >>> z, y = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]])
        >>> gce(1.0).rows(z, y)
        tensor([0.5000])

    Source: Zhang & Sabuncu, arXiv 1805.07836.
    """
    check_positive("q", q)
    if q > 1:
        raise ValueError(f"q: got {q}; pass a number in (0, 1]")
    return CompSum(1.0 + q)


def mae() -> CompSum:
    """1 - p_y: half of sum_j |1[j = y] - p_j|, the mean absolute error of Ghosh et al.; bounded and symmetric, sum_y (1 - p_y) = V - 1.

    Example:
        >>> mae().rows(torch.zeros(1, 4), torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
        tensor([0.7500])

    Source: Ghosh, Kumar & Sastry, arXiv 1712.09482. The sum without absolute values, sum_j (1[j = y] - p_j), which code for it has computed, is 0.
    """
    return CompSum(2.0)


def adversarial_comp_sum(
    logits: Tensor, perturbed: Tensor, target: Tensor, *, tau: float = 1.0, rho: float = 1.0, nu: float = 1.0
) -> Tensor:
    """The smooth adversarial comp-sum loss [N]: Phi_tau of the logits over rho, and how far margins move under an attack.

        Phi_tau(sum_(k != y) exp((z_k - z_y) / rho)) + nu || D(x') - D(x) ||_2,    D(x)_k = z_y - z_k

    The supremum over x' is what the attack that made `perturbed` approximates. The norm at D(x') = D(x) has the gradient 0.

    Args:
        logits, perturbed: [N, V], of the inputs and of the attacked inputs; differentiable in both.
        target: class indices [N].
        tau: >= 0, that of `CompSum`.
        rho: > 0, the margin's scale.
        nu: >= 0, the weight of the second part.

    Raises:
        ValueError: a parameter outside its domain, shapes that do not fit.

    Example:
        >>> z, y = torch.randn(3, 5), torch.tensor([0, 4, 2])
        >>> torch.allclose(adversarial_comp_sum(z, z, y), CompSum(1.0).rows(z, torch.nn.functional.one_hot(y, 5).float()))
        True

    Source: Mao, Mohri & Zhong, arXiv 2304.07288, section 5, whose constants were not seen: rho and nu are free here.
    """
    check_positive("rho", rho)
    check_weight("nu", nu)
    if logits.shape != perturbed.shape or logits.dim() != 2 or target.shape != logits.shape[:1]:
        raise ValueError(
            f"perturbed: got {list(perturbed.shape)} for logits {list(logits.shape)} and target {list(target.shape)}; pass [N, V], [N, V] and [N]"
        )
    y = torch.nn.functional.one_hot(target, logits.shape[-1]).to(logits.dtype)
    moved = torch.where(logits > -torch.inf, perturbed - logits, 0.0)
    square = (own(moved, y).unsqueeze(-1) - moved).square().sum(-1)
    still = square == 0
    distance = torch.where(still, 0.0, torch.where(still, 1.0, square).sqrt())
    return CompSum(tau).rows(logits / rho, y) + nu * distance


@dataclass(frozen=True)
class Probability:
    """(1 - p_y^a) / a where low <= p_y <= high, 0 elsewhere; -log p_y at a = 0. p_y is a constant in the condition.

    The family of probability-based objectives for fine-tuning: a = 0 is the negative log-likelihood, a = 1 is 1 - p, a = 10 attends to what the model knows
    already. low = t keeps the tokens that the model holds to be likely, high = t the others; those left out stay in the mean. Without thresholds this is
    `CompSum` at tau = 1 + a.

    Attributes:
        a: >= 0.
        low, high: 0 <= low < high <= 1.

    Example:
        >>> z, y = torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log(), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> Probability(1.0, low=0.2).rows(z, y)
        tensor([0.5000, 0.0000])

    Source: arXiv 2510.00526, and the authors' code for the thresholds, which leaves the masked tokens out of the mean: divide by their number for that.
    """

    a: float = 1.0
    low: float = 0.0
    high: float = 1.0
    takes = DISTRIBUTION

    def __post_init__(self) -> None:
        check_weight("a", self.a)
        for name in ("low", "high"):
            check_number(name, getattr(self, name), 0, 1)
        if self.low >= self.high:
            raise ValueError(f"low: got {self.low} with high = {self.high}; pass low < high")

    def cost(self, log_p: Tensor) -> Tensor:
        """(1 - p^a) / a where p is within the thresholds."""
        p = log_p.detach().exp()
        return torch.where((p >= self.low) & (p <= self.high), box_cox(log_p, self.a), 0.0)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return expected(self.cost, logits, target)


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {
    "comp_sum": CompSum,
    "cross_entropy": cross_entropy,
    "gce": gce,
    "mae": mae,
    "probability": Probability,
}
