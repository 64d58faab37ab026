"""Meta label correction: which way to move soft labels so that a student that takes one step on them does better on clean data.

    theta' = theta + (rate/N) sum_i sum_c q_ic grad log p_ic(theta)         a step of cross-entropy with the labels q
    dL_clean(theta') / dq_ic = (rate/N) <grad L_clean(theta'), grad log p_ic(theta)>

The step is linear in the labels, so this is exact, and it is one derivative of all log p_ic along one direction: the student's second derivatives do not
enter.

Laws (tested): equal to autograd through the inner step; a clean gradient of zero moves no label; a label that the clean data supports has a negative
derivative.

Source: Taraday & Baskin, arXiv 2305.12961 (EMLC). The abstract says "faster and more accurate meta-gradient derivations"; the identity is derived above.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...checks import check_floating, check_positive

__all__ = ["meta_label_gradient"]


def meta_label_gradient(
    log_probabilities: Callable[[Sequence[Tensor]], Tensor],
    parameters: Sequence[Tensor],
    labels: Tensor,
    clean_loss: Callable[[Sequence[Tensor]], Tensor],
    *,
    rate: float,
) -> Tensor:
    """dL_clean(theta') / dq [N, C], constant: pass it to the teacher that makes the labels, labels.backward(gradient), or descend on the labels themselves.

    Args:
        log_probabilities: from the student's parameters to log p [N, C] of the noisy batch.
        parameters: theta; constant.
        labels: q [N, C], soft.
        clean_loss: from parameters to the loss of a clean batch, a scalar.
        rate: > 0, of the student's step.

    Raises:
        ValueError: labels of another shape than log p, rate not positive.
        TypeError: labels not floating.

    Example:
        >>> x, w = torch.tensor([[1.0], [1.0]]), torch.zeros(1, 2)
        >>> log_p = lambda theta: (x @ theta[0]).log_softmax(-1)
        >>> clean = lambda theta: torch.nn.functional.cross_entropy(torch.ones(1, 1) @ theta[0], torch.tensor([1]))
        >>> meta_label_gradient(log_p, [w], torch.tensor([[0.5, 0.5], [1.0, 0.0]]), clean, rate=1.0).sign()  # all for class 1
        tensor([[ 1., -1.],
                [ 1., -1.]])

    Source: arXiv 2305.12961.
    """
    check_floating("labels", labels, "[N, C]")
    q = labels.detach()
    check_positive("rate", rate)
    with torch.enable_grad():
        theta = [p.detach().requires_grad_() for p in parameters]
        log_p = log_probabilities(theta)
        if log_p.shape != q.shape or q.dim() != 2:
            raise ValueError(f"labels: got shape {list(q.shape)}, the student's is {list(log_p.shape)}; pass [N, C]")
        # linear in u: its value at the labels is the student's step, its transpose the derivative along a direction
        u = q.clone().requires_grad_()
        ascent = torch.autograd.grad(log_p, theta, u, create_graph=True)
        step = rate / len(q)
        moved = [(p + step * g).detach().requires_grad_() for p, g in zip(theta, ascent, strict=True)]
        direction = torch.autograd.grad(clean_loss(moved), moved)
        (along,) = torch.autograd.grad(ascent, u, direction)
    return step * along
