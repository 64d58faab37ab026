"""Category discovery without forgetting: known classes are kept in use, and both views of a sample agree.

    LER = -H( mean of p over the unlabelled samples that are likely known )        over the known classes, renormalised
    DKL = (D_f(p||p') + D_f(p'||p)) / 2                                              p, p' the predictions of two views

Learning novel classes from unlabelled data draws known ones into them. LER keeps the known classes spread over the samples that look known: its minimum,
-log(number of known classes), is where they are used alike.

Source: LegoGCD, Cao et al. 2024 (CVPR). The abstract names both terms and what they act on; that a likely known sample is one whose largest probability
is that of a known class and above a threshold, that the entropy is that of their mean, and the symmetric divergence, are derived.
"""

import torch
from torch import Tensor

from ...checks import check_floating, check_vocabulary
from ...divergences import divergence
from ...generators import Generator

__all__ = ["dual_view_divergence", "likely_known", "local_entropy"]


def likely_known(logits: Tensor, known: int, threshold: float) -> Tensor:
    """Which rows [N] have their largest probability, above the threshold, at one of the first `known` classes; bool, constant.

    Raises:
        ValueError: known not in [1, V], a threshold outside [0, 1).
        TypeError: logits not floating.

    Example:
        >>> likely_known(torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 5.0], [0.1, 0.0, 0.0]]), known=2, threshold=0.7)
        tensor([ True, False, False])
    """
    check_floating("logits", logits, "[N, V]")
    check_vocabulary("logits", logits)
    if logits.dim() != 2 or not 1 <= known <= logits.shape[1]:
        raise ValueError(f"known: got {known} for logits {list(logits.shape)}; pass [N, V] and a number in [1, V]")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold: got {threshold}; pass a probability in [0, 1)")
    p, guess = logits.detach().softmax(-1).max(-1)
    return (guess < known) & (p > threshold)


def local_entropy(logits: Tensor, known: int, *, threshold: float = 0.7) -> Tensor:
    """LER of unlabelled rows, a scalar in [-log known, 0]; 0 with a gradient of zero where no row is likely known.

    Args:
        logits: [N, V], the known classes first.
        known: how many classes are known.
        threshold: of the largest probability.

    Raises:
        ValueError, TypeError: as `likely_known`.

    Example:
        >>> sure = torch.tensor([[9.0, 0.0, -9.0], [0.0, 9.0, -9.0]])
        >>> round(float(local_entropy(sure, 2)), 4)  # both known classes in use: -log 2
        -0.6931
    """
    chosen = likely_known(logits, known, threshold)
    log_p = logits[:, :known].log_softmax(-1)[chosen]
    if len(log_p) == 0:
        return (logits * 0.0).nan_to_num().sum()
    return -torch.special.entr(log_p.exp().mean(0)).sum()


def dual_view_divergence(first: Tensor, second: Tensor, generator: str | Generator = "kl") -> Tensor:
    """DKL of two views, one number per row; 0 if and only if the predictions agree.

    Args:
        first, second: [N, V] logits of two views of the same samples.
        generator: a name or a Generator.

    Raises:
        ValueError: shapes that differ, an unknown generator.
        TypeError: not floating.

    Example:
        >>> dual_view_divergence(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 4.0]]))  # a shift of logits changes no prediction
        tensor([0.])
    """
    return (divergence(first, second, generator) + divergence(second, first, generator)) / 2
