"""Supervised objectives, one file per objective or paper; `supervised` and `linear_supervised` evaluate any of them by name."""

from .asymmetric import AGCE, AUL
from .comp_sum import CompSum, Probability, adversarial_comp_sum, cross_entropy, gce, mae
from .decision import decision, decision_loss, false_head_rate
from .decoupled import Decoupled
from .dft import DFT
from .f_divergence import FDivergence
from .fenchel_young import FenchelYoung
from .focal import Focal, Poly
from .front import linear_supervised, supervised
from .histogram import binned, binned_mean, fidelity, hl_gauss, score_distribution, thurstone
from .kl_dro import KLDRO, kl_dro
from .ldr import LDR, Margin, aldr_rows, aldr_temperature
from .multi_label import Binary, multi_focal, recalled
from .names import supervised_names, supervised_objective
from .normalised import Normalised, nce, normalised
from .objective import CostObjective, LabelObjective, ShareObjective
from .partial_labels import Candidates, purified
from .penalties import ConfidencePenalty, EntropyPenalty, LogitPenalty, LogPartition
from .predictions import predictions
from .rejection import rejection_loss
from .reverse_ce import ReverseCE, sce
from .soft_top_k import SoftTopK, soft_top_k_shift
from .spherical import Spherical, Taylor, ZLoss
from .stablemax import StableMax
from .sums import Sum

__all__ = [
    "AGCE",
    "AUL",
    "Binary",
    "Candidates",
    "CompSum",
    "ConfidencePenalty",
    "CostObjective",
    "DFT",
    "Decoupled",
    "EntropyPenalty",
    "FDivergence",
    "FenchelYoung",
    "Focal",
    "KLDRO",
    "LDR",
    "LabelObjective",
    "LogPartition",
    "LogitPenalty",
    "Margin",
    "Normalised",
    "Poly",
    "Probability",
    "ReverseCE",
    "ShareObjective",
    "SoftTopK",
    "Spherical",
    "StableMax",
    "Sum",
    "Taylor",
    "ZLoss",
    "adversarial_comp_sum",
    "aldr_rows",
    "aldr_temperature",
    "binned",
    "binned_mean",
    "cross_entropy",
    "decision",
    "decision_loss",
    "false_head_rate",
    "fidelity",
    "gce",
    "hl_gauss",
    "kl_dro",
    "linear_supervised",
    "mae",
    "multi_focal",
    "nce",
    "normalised",
    "predictions",
    "purified",
    "recalled",
    "rejection_loss",
    "sce",
    "score_distribution",
    "soft_top_k_shift",
    "supervised",
    "supervised_names",
    "supervised_objective",
    "thurstone",
]
