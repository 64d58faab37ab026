"""The worst distribution of a risk: what to weigh or sample the losses with."""

from collections.abc import Callable

import torch
from torch import Tensor

from .sample import check_losses

__all__ = ["worst_weights"]


def worst_weights(risk: Callable[[Tensor], Tensor], losses: Tensor) -> Tensor:
    """The distribution over the sample under which the mean loss is the risk, up to its penalty: the gradient of the risk.

    Args:
        risk: from losses [N] to a scalar.
        losses: [N].

    Returns:
        [N], constant; in the dtype of losses.

    Raises:
        ValueError, TypeError: losses that are not [N] and floating, or what the risk refuses.

    Example:
        >>> from fenchel.objectives.risks import cvar
        >>> worst_weights(lambda l: cvar(l, 0.5), torch.tensor([4.0, 1.0, 2.0, 3.0]))
        tensor([0.5000, 0.0000, 0.0000, 0.5000])

    Source: Danskin's theorem.
    """
    check_losses(losses)
    with torch.enable_grad():
        leaf = losses.detach().requires_grad_()
        (weights,) = torch.autograd.grad(risk(leaf), leaf)
    return weights
