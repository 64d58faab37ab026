"""The rows of a head that count: the others are dropped before the first product."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Kept", "kept"]


@dataclass(frozen=True)
class Kept:
    """Which of n rows were kept.

    Attributes:
        index: their places; None if all were, and then nothing is copied: hidden states are large where a model is wide.
    """

    n: int
    index: Tensor | None

    def of(self, x: Tensor) -> Tensor:
        """The kept rows of x [n, ...]: x itself if all were."""
        return x if self.index is None else x[self.index]

    def back(self, x: Tensor) -> Tensor:
        """Rows [k, ...] at their places among all, [n, ...]; 0 for those that were not kept."""
        return x if self.index is None else x.new_zeros(self.n, *x.shape[1:]).index_copy_(0, self.index, x)


def kept(counted: Tensor) -> Kept:
    """The rows where counted [n] is True.

    Example:
        >>> import torch
        >>> some = kept(torch.tensor([True, False, True]))
        >>> some.of(torch.tensor([1, 2, 3])), some.back(torch.tensor([7, 8]))
        (tensor([1, 3]), tensor([7, 0, 8]))
    """
    index = counted.nonzero().squeeze(1)
    return Kept(len(counted), None if len(index) == len(counted) else index)
