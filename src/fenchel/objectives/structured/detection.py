"""Detection as density estimation: the boxes of an image under a mixture, and one component for each of them.

    NLL = -log sum_k w_k p_k(g)          p_k(g) = Cauchy(box; m_k, s_k) * categorical(class)
    MCM = -log max_k w_k p_k(g)          maximum component maximisation

for each true box g. No matching, no suppression: NLL alone lets several components share a box; MCM - NLL = -log of the largest responsibility, which is
0 where one component has the box to itself.

Laws (tested): a mixture of one component has MCM = NLL; 0 <= MCM - NLL <= log K, the bound where all K share alike; densities integrate to one.

Source: Yoo et al., arXiv 2205.08714 (D-RMM). The abstract names both terms; Cauchy and categorical components are recalled, and the form of MCM is
derived from its name.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_floating

__all__ = ["RegularizedMixture", "box_log_density"]


def box_log_density(boxes: Tensor, labels: Tensor, location: Tensor, log_scale: Tensor, logits: Tensor) -> Tensor:
    """log p_k(g) of each box under each component, [G, K].

    Args:
        boxes: [G, D], coordinates.
        labels: [G] int64 in [0, C).
        location: [K, D], m.
        log_scale: [K, D], log s; coordinates are independent, Cauchy((x - m)/s)/s: an outlying box pulls with a force that falls with its distance.
        logits: [K, C], of the components' classes.

    Raises:
        ValueError: shapes that do not fit, a class outside [0, C).
        TypeError: not floating, labels not int64.

    Example:
        >>> one = torch.zeros(1, 1)
        >>> box_log_density(one, torch.tensor([0]), one, one, torch.zeros(1, 2)).exp()  # 1/pi * 1/2
        tensor([[0.1592]])
    """
    for name, x in (("boxes", boxes), ("location", location), ("log_scale", log_scale), ("logits", logits)):
        check_floating(name, x, "[., .]")
        if x.dim() != 2:
            raise ValueError(f"{name}: got shape {list(x.shape)}; pass two dimensions")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: got dtype {labels.dtype}; pass int64")
    if location.shape != log_scale.shape or boxes.shape[1] != location.shape[1] or len(logits) != len(location):
        raise ValueError(
            f"got boxes {list(boxes.shape)}, location {list(location.shape)}, log_scale {list(log_scale.shape)}, logits {list(logits.shape)}; "
            "pass [G, D], [K, D], [K, D], [K, C]"
        )
    if labels.shape != boxes.shape[:1] or not bool(((labels >= 0) & (labels < logits.shape[1])).all()):
        raise ValueError(f"labels: got {list(labels.shape)} for {len(boxes)} boxes; pass [G] in [0, {logits.shape[1]})")
    t = (boxes.unsqueeze(1) - location) * (-log_scale).exp()
    log_box = -(torch.log1p(t.square()) + log_scale + math.log(math.pi)).sum(-1)
    return log_box + logits.log_softmax(-1).T[labels]


@dataclass(frozen=True)
class RegularizedMixture:
    """NLL + weight MCM of each box.

    Attributes:
        weight: >= 0, of the maximum component maximisation.

    Example:
        >>> log_density = torch.tensor([[0.5, 0.5]]).log()  # two components that share a box
        >>> RegularizedMixture(1.0).rows(torch.zeros(2), log_density)  # log 2 + log 4
        tensor([2.0794])

    Source: arXiv 2205.08714.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight: got {self.weight}; pass a finite number >= 0")

    def rows(self, weight_logits: Tensor, log_density: Tensor) -> Tensor:
        """The loss of each box, [G]; of an image without boxes, empty.

        Args:
            weight_logits: [K]; w = softmax of them.
            log_density: [G, K], log p_k(g), as `box_log_density` gives or any other.

        Raises:
            ValueError: shapes that do not fit.
            TypeError: not floating.
        """
        check_floating("weight_logits", weight_logits, "[K]")
        check_floating("log_density", log_density, "[G, K]")
        if weight_logits.dim() != 1 or log_density.dim() != 2 or log_density.shape[1:] != weight_logits.shape:
            raise ValueError(
                f"weight_logits, log_density: got {list(weight_logits.shape)} and {list(log_density.shape)}; pass [K] and [G, K]"
            )
        joint = log_density + weight_logits.log_softmax(0)
        return -joint.logsumexp(1) - self.weight * joint.amax(1)
