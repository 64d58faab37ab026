"""Prospect: stochastic gradients of a spectral risk whose bias and variance vanish as the iterates settle.

The gradient of R is sum_i q_i grad l_i with q the worst distribution at all n losses: the weights of a mini-batch are biased estimates of it. Prospect
keeps, for each sample, its loss, and its gradient and weight when it was last drawn, and steps with

    v = n q_i grad l_i - n r_i g_i + sum_j r_j g_j        i uniform; g, r: gradients and weights in the table; q: the worst weights of the losses in the table

whose mean over i is sum_i q_i grad l_i, and which is constant in i, sum_j q_j grad l_j, once the table is that of the present iterate.

Source: Mehta et al., arXiv 2310.13863. The abstract names the algorithm and its linear convergence; the step above is recalled, that its mean is
unbiased for the table's weights and its variance zero at rest is derived and tested.
"""

from collections.abc import Callable

from torch import Tensor

from .sample import check_losses
from .worst import worst_weights

__all__ = ["Prospect"]


class Prospect:
    """The table of losses, gradients and weights. Its rows are updated in place: it is the memory of an algorithm, as an optimiser's state is.

    Attributes:
        losses: [n], each as last evaluated.
        gradients: [n, d], each as last drawn, flat.
        weights: [n], r, of the gradients when they were drawn.
        mean: [d], sum_j r_j g_j.

    Example:
        >>> import torch
        >>> from fenchel.objectives.risks import cvar
        >>> x, w = torch.tensor([0.0, 2.0, 6.0]), torch.zeros(1)
        >>> risk = lambda losses: cvar(losses, 0.7, smoothing=1.0)
        >>> table = Prospect(risk, (x - w).square() / 2, (w - x)[:, None])
        >>> for step in range(300):
        ...     i, j = step % 3, (step + 1) % 3
        ...     w = w - 0.05 * table.direction(i, w - x[i])
        ...     table.look(j, (x[j] - w).square() / 2)
        >>> w  # the losses at both ends are equal
        tensor([3.])
    """

    def __init__(self, risk: Callable[[Tensor], Tensor], losses: Tensor, gradients: Tensor) -> None:
        """Begins with one pass over the data.

        Args:
            risk: from losses [n] to a scalar; with a penalty or smoothing, so that its worst weights move steadily.
            losses: [n], of all samples at the first iterate.
            gradients: [n, d], of each of them.

        Raises:
            ValueError: shapes that do not fit.
            TypeError: not floating.
        """
        check_losses(losses)
        if gradients.dim() != 2 or len(gradients) != len(losses):
            raise ValueError(f"gradients: got shape {list(gradients.shape)} for {len(losses)} losses; pass [n, d]")
        self.risk = risk
        self.losses, self.gradients = losses.detach().clone(), gradients.detach().clone()
        self.weights = self.worst().clone()
        self.mean = self.weights @ self.gradients

    def worst(self) -> Tensor:
        """q [n], the worst distribution at the losses in the table."""
        return worst_weights(self.risk, self.losses).to(self.gradients.dtype)

    def direction(self, i: int, gradient: Tensor) -> Tensor:
        """v [d], the estimate of the gradient from the drawn sample i; its row of the table is written anew.

        Args:
            i: in [0, n), drawn uniformly.
            gradient: [d], of sample i's loss at the present iterate.
        """
        q, n = self.worst()[i], len(self.losses)
        fresh, stored = q * gradient.detach(), self.weights[i] * self.gradients[i]
        step = n * (fresh - stored) + self.mean
        self.mean = self.mean + fresh - stored
        self.gradients[i], self.weights[i] = gradient.detach(), q
        return step

    def look(self, j: int, loss: Tensor) -> None:
        """Writes the present loss of sample j, drawn apart from i, into the table."""
        self.losses[j] = loss.detach()
