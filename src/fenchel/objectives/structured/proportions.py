"""Learning from label proportions: bags of samples, of which only the share of each class is known, and a loss that is right sample by sample.

    y~_c = k (a_c - p_c) + p_c          k the bag's size, a_c the bag's share of class c, p_c the share in the population
    l~(x) = sum_c y~_c l(x, c)

For samples drawn independently, E[k a_c | x] = P(c|x) + (k - 1) p_c, so that the mean of y~_c given x is P(c|x): the mean of l~ is the expected loss under
full supervision, for any loss l. k (a - p) has a variance of order k, and so has the estimate of one bag; the mean over its samples removes that of x.

Laws (tested): y~ sums to one, and is one-hot for bags of one; unbiased for any loss and model; a bag with the population's shares has y~ = p; the variance of
a bag's estimate grows no faster than k.

Source: Busa-Fekete et al., arXiv 2302.03115 (EasyLLP). The soft label is recalled for two classes; that it is unbiased, and for more classes, is derived above.
"""

from torch import Tensor

from ...checks import check_floating

__all__ = ["debiased_labels", "proportion_losses"]

TOLERANCE = 1e-4


def debiased_labels(shares: Tensor, prior: Tensor, size: int) -> Tensor:
    """y~ [B, C] of bags of `size` samples; entries may be negative or above one.

    Args:
        shares: [B, C], of each class in each bag; >= 0, rows sum to one.
        prior: [C], of each class in the population; >= 0, sums to one. The mean of `shares` over many bags estimates it.
        size: k >= 1.

    Raises:
        ValueError: shapes that do not fit, shares or a prior that are no distributions, a size below 1.
        TypeError: not floating.

    Example:
        >>> import torch
        >>> debiased_labels(torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([0.5, 0.5]), 4)
        tensor([[ 1.5000, -0.5000],
                [ 0.5000,  0.5000]])

    Source: arXiv 2302.03115.
    """
    check_floating("shares", shares, "[B, C]")
    check_floating("prior", prior, "[C]")
    if shares.dim() != 2 or 0 in shares.shape or prior.shape != shares.shape[1:]:
        raise ValueError(f"shares, prior: got {list(shares.shape)} and {list(prior.shape)}; pass [B, C] and [C]")
    if size < 1:
        raise ValueError(f"size: got {size}; pass the number of samples in a bag")
    for name, p in (("shares", shares), ("prior", prior)):
        if not bool((p >= 0).all()) or not bool(((p.sum(-1) - 1).abs() <= TOLERANCE).all()):
            raise ValueError(
                f"{name}: got entries that are negative or do not sum to one; pass the share of each class"
            )
    return size * (shares - prior) + prior


def proportion_losses(losses: Tensor, shares: Tensor, prior: Tensor) -> Tensor:
    """l~ of each bag, the mean over its samples of sum_c y~_c l(x, c): [B].

    Args:
        losses: [B, k, C], of each sample as if it were of each class. Any loss.
        shares, prior: as `debiased_labels`.

    Returns:
        [B]; may be negative. A loss without an upper bound, such as cross-entropy, then has an empirical risk without a lower bound: prefer bounded ones,
        few steps, or a flexible model's regularisation.

    Raises:
        ValueError, TypeError: as `debiased_labels`; losses of another shape.

    Example:
        >>> import torch
        >>> losses = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])  # one bag: the model calls the first sample class 0, the second class 1
        >>> proportion_losses(losses, torch.tensor([[0.5, 0.5]]), torch.tensor([0.5, 0.5]))
        tensor([0.5000])

    Source: arXiv 2302.03115.
    """
    check_floating("losses", losses, "[B, k, C]")
    if losses.dim() != 3 or 0 in losses.shape or losses.shape[::2] != shares.shape:
        raise ValueError(f"losses: got shape {list(losses.shape)} for shares {list(shares.shape)}; pass [B, k, C]")
    y = debiased_labels(shares, prior, losses.shape[1]).to(losses.dtype)
    return (losses.mean(1) * y).sum(-1)
