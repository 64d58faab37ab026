"""Robust to perturbed inputs and to the worst distribution over samples: the inner maximum of each sample, then a risk over them.

    min_theta  dro( [max_{|d_i| <= radius} l(x_i + d_i; theta)]_i, "kl", temperature = T )

The weights of the samples are softmax(l/T) of their adversarial losses, not a heuristic of margins.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...checks import check_floating, check_positive

__all__ = ["worst_inputs"]


def worst_inputs(
    losses: Callable[[Tensor], Tensor], x: Tensor, *, radius: float, steps: int = 10, step: float | None = None
) -> Tensor:
    """Inputs within `radius` of x in the largest coordinate, by signed gradient ascent on each sample's own loss.

    Args:
        losses: from inputs [N, ...] to losses [N], each of its own input.
        x: [N, ...].
        radius: > 0.
        steps: >= 1.
        step: > 0, the length of a step; None: 2.5 radius / steps, which can reach any point of the box.

    Returns:
        [N, ...], constant: the losses there are differentiated with respect to the parameters alone. No sample's loss is below that at x: the best of the
        points visited is kept.

    Raises:
        ValueError: a number outside its domain; losses of another shape.
        TypeError: x not floating.

    Example:
        >>> from fenchel.objectives.risks import dro
        >>> w = torch.tensor([2.0, -1.0], requires_grad=True)
        >>> losses = lambda x: (x @ w).square()
        >>> x = worst_inputs(losses, torch.tensor([[1.0, 0.0], [0.0, 0.1]]), radius=0.5)
        >>> losses(x).tolist()  # (2 + 0.5 * 3)^2 and (-0.1 - 0.5 * 3)^2
        [12.25, 2.56]
        >>> dro(losses(x), temperature=1.0).backward()

    Source: Madry et al., arXiv 1706.06083 (the ascent); Sow et al., arXiv 2308.00311 (KL-regularised weights over it). The abstract names a bilevel
    algorithm, which is not built: here the weights are the exact ones of each batch, or those of `running_weights`.
    """
    check_floating("x", x, "[N, ...]")
    check_positive("radius", radius)
    length = 2.5 * radius / max(steps, 1) if step is None else check_positive("step", step)
    if steps < 1:
        raise ValueError(f"steps: got {steps}; pass at least 1")
    start = x.detach()
    best, at = start, start
    with torch.enable_grad():
        highest, gradient = _ascent(losses, start)
        for _ in range(steps):
            at = torch.maximum(torch.minimum(at + length * gradient.sign(), start + radius), start - radius)
            now, gradient = _ascent(losses, at)
            higher = now > highest
            best = torch.where(higher.view(-1, *[1] * (x.dim() - 1)), at, best)
            highest = torch.where(higher, now, highest)
    return best


def _ascent(losses: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    values = losses(leaf)
    if values.shape != x.shape[:1]:
        raise ValueError(f"losses: got shape {list(values.shape)} for {len(x)} inputs; return one loss per input")
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]
