"""Objectives of distillation, one file per objective or paper; `distillation` and `linear_distillation` evaluate any of them by name."""

from .divergence import Mixture, Renyi, Term, gjsd, skew_kl, skew_reverse_kl
from .front import distillation, linear_distillation
from .names import distillation_names, distillation_objective
from .objective import RowObjective

__all__ = [
    "Mixture",
    "Renyi",
    "RowObjective",
    "Term",
    "distillation",
    "distillation_names",
    "distillation_objective",
    "gjsd",
    "linear_distillation",
    "skew_kl",
    "skew_reverse_kl",
]
