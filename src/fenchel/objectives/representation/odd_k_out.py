"""Odd-k-out learning: cross-entropy of sets, in which two samples share a class and k are of other classes, all different.

    l(S) = -log softmax( sum_{i in S} z_i )_c        S = {two samples of class c, k others of other classes}

A set's logits are the sum of its samples': a sure and wrong sample is held against its whole set. A trained model is applied to single samples as ever.

Laws (tested): sets are as described whatever the data; k = 0 is cross-entropy of pairs; the loss does not depend on the order within a set.

Source: Muttenthaler et al., arXiv 2307.02245. The abstract says cross-entropy of sets; a pair with k odd ones and the sum of logits are recalled. Classes of
the pair, and of the odd ones, are drawn uniformly over the classes, not over samples: that is derived, and balances an imbalanced data set.
"""

import torch
from torch import Tensor

from ...checks import check_floating
from ...generators import Generator
from ...losses.fenchel_young import fenchel_young
from .batch import check_labels

__all__ = ["odd_k_out_rows", "odd_k_out_sets"]


def odd_k_out_sets(
    target: Tensor, k: int, count: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Sets of samples, the pair first: indices [count, k + 2], and the class of each pair [count].

    Args:
        target: [N] int64, of the data set.
        k: >= 0, odd samples in a set.
        count: >= 1, sets to draw.
        generator: of random numbers.

    Raises:
        ValueError: no class with two samples, or fewer than k + 1 classes; a number outside its domain.
        TypeError: target not int64.

    Example:
        >>> index, y = odd_k_out_sets(torch.tensor([0, 0, 0, 1, 2, 2]), k=1, count=4)
        >>> index.shape, bool((torch.tensor([0, 0, 0, 1, 2, 2])[index[:, :2]] == y[:, None]).all())
        (torch.Size([4, 3]), True)

    Source: arXiv 2307.02245.
    """
    check_labels("target", target, target.shape[0] if target.dim() else 1)
    if k < 0 or count < 1:
        raise ValueError(f"got k = {k}, count = {count}; pass k >= 0 and count >= 1")
    names, which, sizes = target.unique(return_inverse=True, return_counts=True)
    able = (sizes >= 2).nonzero().squeeze(1)
    if len(able) == 0 or len(names) < k + 1:
        raise ValueError(
            f"target: got {len(names)} classes, {len(able)} with two samples; pass k + 1 = {k + 1} or more, and one with two"
        )

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    chosen = able[(uniform(count) * len(able)).long()]
    # the k other classes: the smallest of random keys, the pair's own class last
    keys = uniform(count, len(names)).scatter(1, chosen.unsqueeze(1), 2.0)
    classes = torch.cat((chosen.unsqueeze(1), keys.argsort(1)[:, :k]), 1)
    # samples of a class stand together in `order`, from `first` on
    order, first = which.argsort(stable=True), sizes.cumsum(0) - sizes
    place = (uniform(count, k + 1) * sizes[classes]).long()
    # the second of a pair is any other: a step of 1 to size - 1 around the class
    pair = sizes[chosen]
    second = (place[:, 0] + 1 + (uniform(count) * (pair - 1)).long()) % pair
    places = torch.cat((place[:, :1], second.unsqueeze(1), place[:, 1:]), 1)
    starts = first[torch.cat((classes[:, :1], classes), 1)]
    return order[starts + places], names[chosen]


def odd_k_out_rows(logits: Tensor, target: Tensor, generator: str | Generator = "kl") -> Tensor:
    """The loss of each set: that of the sum of its samples' logits.

    Args:
        logits: [S, k + 2, V], model(x[index]) for the indices of `odd_k_out_sets`.
        target: [S] int64, the classes of the pairs.
        generator: of the Fenchel-Young loss; kl is cross-entropy.

    Returns:
        [S].

    Raises:
        ValueError: shapes that do not fit, a class outside [0, V).
        TypeError: logits not floating, target not int64.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [2.0, 0.0], [0.0, 4.0]]])  # the odd one is as sure as both others
        >>> odd_k_out_rows(logits, torch.tensor([0]))
        tensor([0.6931])

    Source: arXiv 2307.02245.
    """
    check_floating("logits", logits, "[S, k + 2, V]")
    if logits.dim() != 3 or logits.shape[1] < 2:
        raise ValueError(f"logits: got shape {list(logits.shape)}; pass [S, k + 2, V]")
    check_labels("target", target, len(logits))
    return fenchel_young(logits.sum(1), target, generator, reduction="none")
