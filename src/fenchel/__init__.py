"""Fenchel: probabilistic training objectives. Any f-divergence as an operator, a loss, a divergence and a fused head, from one definition."""

from .divergences import bhattacharyya, cauchy_schwarz, divergence, renyi, skew_divergence
from .generators import Generator, generator, generator_names
from .head.divergence import linear_divergence
from .head.logp import LogProbabilities, linear_logp
from .head.pairs import linear_pair_rows
from .head.rows import linear_rows
from .head.young import linear_fenchel_young
from .losses.fenchel_young import FenchelYoungLoss, fenchel_young
from .objectives.distillation import distillation, distillation_names, linear_distillation
from .objectives.supervised import linear_supervised, supervised, supervised_names, supervised_objective
from .operators import entropy, sigmoid, softargmax, softmax_value, softplus

__version__ = "0.1.0"

__all__ = [
    "FenchelYoungLoss",
    "Generator",
    "LogProbabilities",
    "bhattacharyya",
    "cauchy_schwarz",
    "distillation",
    "distillation_names",
    "divergence",
    "entropy",
    "fenchel_young",
    "generator",
    "generator_names",
    "linear_distillation",
    "linear_divergence",
    "linear_fenchel_young",
    "linear_logp",
    "linear_pair_rows",
    "linear_rows",
    "linear_supervised",
    "renyi",
    "sigmoid",
    "skew_divergence",
    "softargmax",
    "softmax_value",
    "softplus",
    "supervised",
    "supervised_names",
    "supervised_objective",
]
