"""Losses of a batch of next tokens, made of hidden states and a head: what every engine here minimises.

A `TokenLoss` gives the sum over a batch's tokens, and the engine divides by how many there are: in the micro-batch, in
the accumulated batch, or over all devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..generators import Generator
from ..objectives.supervised import LabelObjective, linear_supervised, supervised, supervised_objective
from ..objectives.supervised.front import check_kernel
from .hooks import IGNORED, Head, NextStates, head_of, next_states

__all__ = ["LabelLoss", "TokenLoss", "batch_loss"]


class TokenLoss(Protocol):
    """The loss of a batch, summed over its tokens."""

    def __call__(self, states: NextStates, head: Head, inputs: Mapping[str, Any]) -> Tensor:
        """A scalar; 0, differentiable, if no token counts.

        Args:
            states: hidden states [N, D] and their next tokens [N].
            head: the model's.
            inputs: the batch as the collator made it.
        """
        ...


def batch_loss(
    loss: TokenLoss, model: Any, wrapped: nn.Module, inputs: Mapping[str, Any], items: Tensor | int | None = None
) -> Tensor:
    """A loss of one batch over `items` tokens; over the batch's own where that is None, 0 if it has none.

    Args:
        loss: the loss of the batch's tokens.
        model: a causal language model.
        wrapped: what the engine made of it (DDP, ...), or the model again: the forward goes through it.
        inputs: as `hooks.next_states`.
        items: what to divide by: where one batch is a part of a larger one, the tokens of that.
    """
    states = next_states(wrapped, inputs)
    total = loss(states, head_of(model), inputs)
    count = states.counted.sum() if items is None else items
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


@dataclass(frozen=True)
class LabelLoss:
    """A supervised objective of the next tokens, by name: the Fenchel-Young loss of a generator, "gce:0.7", "cross_entropy + 1e-4*log_partition", ...

    Attributes:
        objective: a name (`fenchel.supervised_names`), a Generator, or an object such as `CompSum(1.7)`.
        label_smoothing: eps in [0, 1], for objectives that take probabilities.
        backend: as `fenchel.linear_supervised`.

    Raises:
        ValueError: an unknown name, a generator without a loss, a smoothing that does not fit, or a kernel that there is not, when it is made.

    Example:
        >>> states = NextStates(torch.randn(4, 8), torch.tensor([1, 2, -100, 0]))
        >>> loss = LabelLoss("alpha:1.5")(states, Head(torch.randn(30, 8)), {})
        >>> loss.shape
        torch.Size([])

    Source: `fenchel.supervised`.
    """

    objective: str | Generator | LabelObjective = "kl"
    label_smoothing: float = 0.0
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_kernel(supervised_objective(self.objective), self.backend)
        one = torch.zeros(1, dtype=torch.long)
        supervised(torch.zeros(1, 2), one, self.objective, label_smoothing=self.label_smoothing)

    def __call__(self, states: NextStates, head: Head, inputs: Mapping[str, Any]) -> Tensor:
        """The sum of the losses of the tokens that count."""
        return linear_supervised(
            states.hidden.to(head.weight.dtype),
            head.weight,
            states.target,
            self.objective,
            bias=head.bias,
            softcap=head.softcap,
            scale=head.scale,
            label_smoothing=self.label_smoothing,
            ignore_index=IGNORED,
            reduction="sum",
            backend=self.backend,
        )
