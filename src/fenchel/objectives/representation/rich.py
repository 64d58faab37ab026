"""Rich features: successive networks that cannot use what the ones before them used, then one representation of them all.

Discovery. Each network so far splits the samples into those it gets right and those it gets wrong. The next one minimises the largest mean loss over all of
these groups: a feature that serves a group alone leaves its counterpart at chance, so that another has to be found.

Synthesis. One representation carries a head per discovered network, each distilled from its own:  mean_r D_f(network_r || head_r).

Source: Zhang, Lopez-Paz & Bottou, arXiv 2203.15516 (Bonsai). The abstract names a multi-objective criterion over data sets that prevent the earlier
features, and distillation; that the objectives are the means over right and wrong samples of each round, and that their largest is taken, is derived.
"""

import torch
from torch import Tensor

from ...checks import check_floating
from ...divergences import divergence
from ...generators import Generator

__all__ = ["discovery_risk", "synthesis_risk"]


def discovery_risk(losses: Tensor, right: Tensor) -> Tensor:
    """The largest mean loss over the groups that earlier networks make of the samples, a scalar.

    Args:
        losses: [N], of the network that is trained.
        right: [R, N] bool, whether each of the R earlier networks has each sample right; R = 0 in the first round, which is the mean loss.

    Raises:
        ValueError: shapes that do not fit, no samples.
        TypeError: losses not floating, right not bool.

    Example:
        >>> losses = torch.tensor([0.1, 0.1, 3.0, 1.0])
        >>> right = torch.tensor([[True, True, True, False]])  # group means 3.2 / 3 and 1
        >>> discovery_risk(losses, right)
        tensor(1.0667)

    Source: arXiv 2203.15516.
    """
    check_floating("losses", losses, "[N]")
    if right.dtype != torch.bool:
        raise TypeError(f"right: got dtype {right.dtype}; pass bool")
    if losses.dim() != 1 or len(losses) == 0 or right.dim() != 2 or right.shape[1] != len(losses):
        raise ValueError(
            f"losses, right: got {list(losses.shape)} and {list(right.shape)}; pass [N] and [R, N], N >= 1"
        )
    if len(right) == 0:
        return losses.mean()
    groups = torch.cat((right, ~right)).to(losses.dtype)
    size = groups.sum(1)
    means = (groups * losses).sum(1) / size.clamp_min(1)
    return means[size > 0].amax()


def synthesis_risk(networks: Tensor, heads: Tensor, generator: str | Generator = "kl") -> Tensor:
    """The mean divergence of each head from the network that it has to keep the feature of, a scalar.

    Args:
        networks: [R, N, V] logits of the discovered networks; constant.
        heads: [R, N, V] logits of R heads on one representation.
        generator: D_f(network || head); kl by default.

    Raises:
        ValueError: shapes that differ.
        TypeError: not floating.

    Example:
        >>> networks = torch.randn(2, 5, 3)
        >>> bool(synthesis_risk(networks, networks) == 0)
        True

    Source: arXiv 2203.15516.
    """
    check_floating("networks", networks, "[R, N, V]")
    check_floating("heads", heads, "[R, N, V]")
    if networks.shape != heads.shape or heads.dim() != 3 or 0 in heads.shape:
        raise ValueError(
            f"heads: got shape {list(heads.shape)}, the networks' is {list(networks.shape)}; pass [R, N, V] twice"
        )
    return divergence(networks.detach(), heads, generator).mean()
