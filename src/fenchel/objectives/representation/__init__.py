"""Objectives of representations: where features lie, by classes, by pairs and by sets."""

from .discovery import dual_view_divergence, likely_known, local_entropy
from .equiangular import angles, equiangular_basis, welch_bound
from .hyperspherical import class_prototypes, cosine_logits, lower_target, unit
from .negatives import UNPG, within_fences
from .odd_k_out import odd_k_out_rows, odd_k_out_sets
from .open_world import balanced_contrast, needs_update, reliable
from .rich import discovery_risk, synthesis_risk
from .threshold import TCM, opis, utilities

__all__ = [
    "TCM",
    "UNPG",
    "angles",
    "balanced_contrast",
    "class_prototypes",
    "cosine_logits",
    "discovery_risk",
    "dual_view_divergence",
    "equiangular_basis",
    "likely_known",
    "local_entropy",
    "lower_target",
    "needs_update",
    "odd_k_out_rows",
    "odd_k_out_sets",
    "opis",
    "reliable",
    "synthesis_risk",
    "unit",
    "utilities",
    "welch_bound",
    "within_fences",
]
