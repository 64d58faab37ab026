"""Objectives of whole sequences: pure functions of their log-probabilities, which `fenchel.linear_logp` makes without logits."""

from .brio import length_normalised, ranking_loss
from .coverage import coverage
from .preference import preference_sft

__all__ = ["coverage", "length_normalised", "preference_sft", "ranking_loss"]
