"""Dynamic fine-tuning: the log-likelihood weighted by the probability itself, a constant."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .objective import DISTRIBUTION, LabelObjective, expected

__all__ = ["DFT"]


@dataclass(frozen=True)
class DFT:
    """-p_y' log p_y with p_y' = p_y, a constant: the gradient is that of 1 - p_y (`mae`), the value is not.

    Example:
        >>> import torch
        >>> DFT().rows(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]))     # log 2 / 2
        tensor([0.3466])

    Source: Wu et al., arXiv 2508.05629. With an anchor to the model that fine-tuning began from: `asft` of `fenchel.distillation`.
    """

    takes = DISTRIBUTION

    def cost(self, log_p: Tensor) -> Tensor:
        """-sg(p) log p."""
        # p = 0 has log p = -inf, and 0 times that
        held = log_p.detach()
        return -held.exp() * log_p.clamp_min(-1e30)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        return expected(self.cost, logits, target)


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"dft": DFT}
