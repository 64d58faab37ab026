"""Fenchel: probabilistic training objectives. Any f-divergence as an operator, a loss, a divergence and a fused head, from one definition."""

from .generators import Generator, generator, generator_names
from .losses.fenchel_young import FenchelYoungLoss, fenchel_young
from .operators import entropy, sigmoid, softargmax, softmax_value, softplus

__version__ = "0.1.0"
