"""Risks: one number from the losses [N] of a sample. The gradient of a risk is a distribution over the sample, its worst one."""

from .domains import domain_specific_risk, steered_log_probabilities
from .doubly_robust import worst_inputs
from .dro import dro, dro_ball
from .feasible import FeasibleLearning
from .invariance import classifier_gradient, conditioned_penalty, irm_penalty
from .prospect import Prospect
from .running import running_log_mean, running_weights
from .spectral import cvar, cvar_spectrum, exponential_spectrum, extremile_spectrum, spectral_risk
from .steering import excess_losses
from .worst import worst_weights

__all__ = [
    "FeasibleLearning",
    "Prospect",
    "classifier_gradient",
    "conditioned_penalty",
    "cvar",
    "cvar_spectrum",
    "domain_specific_risk",
    "dro",
    "dro_ball",
    "excess_losses",
    "exponential_spectrum",
    "extremile_spectrum",
    "irm_penalty",
    "running_log_mean",
    "running_weights",
    "spectral_risk",
    "steered_log_probabilities",
    "worst_inputs",
    "worst_weights",
]
