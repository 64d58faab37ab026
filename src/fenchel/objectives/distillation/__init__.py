"""Objectives of distillation, one file per objective or paper; `distillation` and `linear_distillation` evaluate any of them by name."""

from .adaptive_kl import AdaptiveKL
from .asft import ASFT
from .bd_kd import BDKD
from .divergence import Mixture, Renyi, Term, gjsd, skew_kl, skew_reverse_kl
from .dkd import DKD
from .dual_head import BinaryKL, BinaryKLNorm, dual_head
from .fenchel_young import FenchelYoung
from .ferkd import FerKD
from .front import distillation, linear_distillation
from .names import distillation_names, distillation_objective
from .nkd import NKD
from .objective import RowObjective
from .pld import PLD
from .self_distillation import limit_penalty, optimal_weight, self_distilled, shrinkage
from .sinkd import SinKD, sinkhorn_plan
from .teacher_operator import TeacherOperator
from .uskd import USKD

__all__ = [
    "ASFT",
    "AdaptiveKL",
    "BDKD",
    "BinaryKL",
    "BinaryKLNorm",
    "DKD",
    "FenchelYoung",
    "FerKD",
    "Mixture",
    "NKD",
    "PLD",
    "Renyi",
    "RowObjective",
    "SinKD",
    "TeacherOperator",
    "Term",
    "USKD",
    "distillation",
    "distillation_names",
    "distillation_objective",
    "dual_head",
    "gjsd",
    "limit_penalty",
    "linear_distillation",
    "optimal_weight",
    "self_distilled",
    "shrinkage",
    "sinkhorn_plan",
    "skew_kl",
    "skew_reverse_kl",
]
