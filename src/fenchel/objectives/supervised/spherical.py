"""Losses of the spherical family, which see a row through the sum of its logits, the sum of their squares and the label's logit: Z-loss, and two softmaxes.

The family's exact update costs nothing that grows with V [Vincent et al. 2015]; here it is a fused head like any other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_number, check_positive
from .objective import CLASS, DISTRIBUTION, LabelObjective, own, present, softplus
from .shares import share_loss

__all__ = ["Spherical", "Taylor", "ZLoss"]


@dataclass(frozen=True)
class ZLoss:
    """softplus(a (b - s_y)) / a of the standardised logits s = (z - mean z) / std z, over the classes in the vocabulary.

    Unchanged by z -> c z + d, c > 0. A row whose logits are all equal has s = 0.

    Attributes:
        a: > 0.
        b: a finite number.

    Example:
        >>> ZLoss().rows(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 0.0]]))     # s_y = 1: log(1 + 1/e)
        tensor([0.3133])

    Source: de Brebisson & Vincent, arXiv 1604.08859. The form at a = 1, b = 0 was seen; a and b in general are as recalled.
    """

    a: float = 1.0
    b: float = 0.0
    takes = CLASS

    def __post_init__(self) -> None:
        check_positive("a", self.a)
        check_number("b", self.b)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        there, z = present(logits)
        count = there.to(z.dtype).sum(-1, keepdim=True)
        away = torch.where(there, z - z.sum(-1, keepdim=True) / count, 0.0)
        variance = away.square().sum(-1) / count.squeeze(-1)
        standard = own(away, target) / torch.where(variance > 0, variance, 1.0).sqrt()
        return softplus(self.a * (self.b - standard)) / self.a


@dataclass(frozen=True)
class Spherical:
    """-log p_y, p_j = (z_j^2 + epsilon) / sum_k (z_k^2 + epsilon): the log-spherical softmax.

    Attributes:
        epsilon: > 0.

    Example:
        >>> Spherical(1.0).rows(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))     # log 3/2
        tensor([0.4055])

    Source: de Brebisson & Vincent, arXiv 1511.05042, as recalled.
    """

    epsilon: float = 1e-3
    takes = DISTRIBUTION

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)

    def score(self, logits: Tensor) -> Tensor:
        """z^2 + epsilon."""
        return logits.square() + self.epsilon

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return share_loss(self.score, logits, target)


@dataclass(frozen=True)
class Taylor:
    """-log p_y, p_j in proportion to 1 + z_j + z_j^2 / 2 > 0: the softmax with exp cut after its third term.

    Example:
        >>> Taylor().rows(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))     # log 3.5/2.5
        tensor([0.3365])

    Source: Vincent, de Brebisson & Bouthillier 2015, arXiv 1412.7091; de Brebisson & Vincent, arXiv 1511.05042, as recalled.
    """

    takes = DISTRIBUTION

    def score(self, logits: Tensor) -> Tensor:
        """1 + z + z^2 / 2, as a sum of positive terms."""
        return ((logits + 1).square() + 1) / 2

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return share_loss(self.score, logits, target)


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"z_loss": ZLoss, "spherical": Spherical, "taylor": Taylor}
