"""Learning with a reference model: the losses beyond those of a model that is trained already.

A sample that the reference cannot do either is not worth effort; one that it can do and the model cannot, is. A robust risk pays for the variance of
what it is given, and that of the excess losses is small where the reference is good. The DRRho risk is

    dro(excess_losses(losses, reference), ...)    or dro_ball, or any other risk of this package.
"""

from torch import Tensor

from .sample import check_losses

__all__ = ["excess_losses"]


def excess_losses(losses: Tensor, reference: Tensor) -> Tensor:
    """losses - reference, sample by sample; the reference is constant.

    Args:
        losses: [N], of the model that is trained.
        reference: [N], of the reference model on the same samples.

    Returns:
        [N]. A constant reference leaves the worst distribution of every risk as it is, and takes itself from its value.

    Raises:
        ValueError: shapes that differ or are not [N].
        TypeError: not floating.

    Example:
        >>> import torch
        >>> from fenchel.objectives.risks import dro
        >>> losses, reference = torch.tensor([3.0, 1.0]), torch.tensor([3.0, 0.1])  # the first is hard for both
        >>> round(float(dro(excess_losses(losses, reference), temperature=1.0)), 4)
        0.5481

    Source: Wei et al., arXiv 2505.06699 (DRRho). The abstract names the risk; the difference of losses is derived from its name, rho for the reference.
    """
    check_losses(losses)
    check_losses(reference, "reference")
    if losses.shape != reference.shape:
        raise ValueError(
            f"reference: got shape {list(reference.shape)}, the losses' is {list(losses.shape)}; pass one each"
        )
    return losses - reference.detach()
