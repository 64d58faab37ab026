"""Objectives of structured data: bags, linear programs, sets of boxes, labels that are learned, and pairs of classes."""

from .detection import RegularizedMixture, box_log_density
from .meta_labels import meta_label_gradient
from .optimality import basis_of, optimality_margin, reduced_costs
from .proportions import debiased_labels, proportion_losses
from .selective_mixup import pair_distribution, pair_gains, soft_confusion

__all__ = [
    "RegularizedMixture",
    "basis_of",
    "box_log_density",
    "debiased_labels",
    "meta_label_gradient",
    "optimality_margin",
    "pair_distribution",
    "pair_gains",
    "proportion_losses",
    "reduced_costs",
    "soft_confusion",
]
