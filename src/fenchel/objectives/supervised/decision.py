"""Classification as a decision: what a prediction is worth depends on the true class, and on how frequent classes are."""

import torch
from torch import Tensor

__all__ = ["decision", "decision_loss", "false_head_rate"]


def decision_loss(logits: Tensor, target: Tensor, utility: Tensor, *, class_weight: Tensor | None = None) -> Tensor:
    """-w_y log sum_j u_yj p_j [N]: the utility that is expected of predictions drawn from p = softmax(z), in the logarithm.

    With the identity for u it is cross-entropy with class weights; w_y = 1 / frequency rebalances a long tail. A u that still credits neighbours of y, or
    credits a tail class taken for another tail class more than one taken for a head class, trains for that.

    Args:
        logits: [N, V].
        target: class indices [N].
        utility: u [V, V], >= 0, with a positive diagonal: u_yj is what predicting j is worth where y is true.
        class_weight: w [V], >= 0.

    Raises:
        ValueError: shapes that do not fit, a negative utility or one of 0 for being right.

    Example:
        >>> z, y = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([0])
        >>> u = torch.eye(3)
        >>> u[0, 1] = 1.0
        >>> decision_loss(z, y, u)     # -log 3/4
        tensor([0.2877])

    Source: Li, Cheung & Hu 2023, Long-tailed classification from a Bayesian-decision-theory perspective, from its abstract: the bound by the logarithm of the
        expected utility is derived here.
    """
    v = logits.shape[-1]
    if utility.shape != (v, v) or target.shape != logits.shape[:-1]:
        raise ValueError(
            f"utility: got {list(utility.shape)} for logits {list(logits.shape)} and target {list(target.shape)}; pass [V, V]"
        )
    if not bool((utility >= 0).all()) or not bool((utility.diagonal() > 0).all()):
        raise ValueError(
            "utility: got a negative one, or one of 0 for being right; pass u >= 0 with a positive diagonal"
        )
    log_u = utility.to(logits.dtype).log()[target]
    loss = -torch.logsumexp(torch.log_softmax(logits, -1) + log_u, -1)
    return loss if class_weight is None else class_weight.to(loss.dtype)[target] * loss


def decision(probabilities: Tensor, utility: Tensor) -> Tensor:
    """The classes [N] to predict: argmax_j sum_y p_y u_yj, p the mean over an ensemble.

    Args:
        probabilities: [N, V], or [M, N, V] of M particles.
        utility: as `decision_loss`.

    Example:
        >>> decision(torch.tensor([[0.6, 0.4]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))     # being right on class 1 is worth twice as much
        tensor([1])

    Source: as `decision_loss`.
    """
    p = probabilities if probabilities.dim() == 2 else probabilities.mean(0)
    return (p @ utility.to(p.dtype)).argmax(-1)


def false_head_rate(prediction: Tensor, target: Tensor, head: Tensor) -> Tensor:
    """The share, a scalar, of tail samples that are predicted to be of a head class; NaN if there are none.

    Args:
        prediction, target: class indices [N].
        head: bool [V], the head classes.

    Example:
        >>> false_head_rate(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([True, False]))
        tensor(0.5000)

    Source: as `decision_loss`.
    """
    tail = ~head[target]
    return (head[prediction] & tail).sum() / tail.sum()
