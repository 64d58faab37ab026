"""The probabilities of a model that was trained with a supervised objective."""

import torch
from torch import Tensor

from ..checks import reference
from ..generators import Generator, generator
from ..objectives.supervised import (
    FenchelYoung,
    LabelObjective,
    Spherical,
    StableMax,
    Sum,
    Taylor,
    supervised_objective,
)
from ..objectives.supervised.objective import EVERY
from ..operators import softargmax

__all__ = ["predictions"]

# -log p_y of probabilities of their own
LIKELIHOODS = (Spherical, StableMax, Taylor)


def predictions(
    logits: Tensor, objective: str | Generator | LabelObjective = "kl", *, q: float | Tensor | None = None
) -> Tensor:
    """The probabilities [N, V] that a model predicts with if it was trained with an objective on logits [N, V].

    A Fenchel-Young loss predicts with its own operator, softargmax_f(z/T; q), which is sparse for sparse f; `stablemax`, `taylor` and `spherical` with the
    shares p that their losses are -log p_y of; every other objective with softmax(z + log q). A penalty says nothing: a sum predicts as its other terms do.

    Args:
        logits: [N, V], floating.
        objective: as `fenchel.supervised`.
        q: the reference measure, a number or [V]: that of the training, or that of the place where the predictions are made.

    Raises:
        ValueError: an unknown name, a sum whose terms predict differently ("alpha:1.5 + mae"), a q that is not positive.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 1.0, -1.0]])
        >>> predictions(z, "alpha:2")
        tensor([[1., 0., 0.]])
        >>> predictions(z, "gce:0.7 + 0.1*entropy_penalty")
        tensor([[0.7054, 0.2595, 0.0351]])
        >>> predictions(z, "stablemax")     # 3 : 2 : 1/2
        tensor([[0.5455, 0.3636, 0.0909]])
    """
    chosen = predictor(supervised_objective(objective))
    if isinstance(chosen, FenchelYoung):
        return softargmax(logits, chosen.generator, q=q, temperature=chosen.temperature)
    measure = reference(q, logits, logits.dtype)
    if not bool((measure > 0).all()):
        raise ValueError("q: got a class that is not positive; pass positive numbers")
    z = logits + measure.log()
    n, v = z.shape
    every = torch.eye(v, dtype=z.dtype, device=z.device).repeat(n, 1)
    return chosen.rows(z.repeat_interleave(v, 0), every).neg().exp().view(n, v)


def predictor(objective: LabelObjective) -> LabelObjective:
    """The objective whose probabilities a model trained with `objective` predicts with: a Fenchel-Young loss, or one of LIKELIHOODS.

    Raises:
        ValueError: a sum of terms that predict differently.
    """
    if isinstance(objective, FenchelYoung):
        return FenchelYoung(generator(objective.generator), objective.temperature)
    if isinstance(objective, LIKELIHOODS):
        return objective
    if not isinstance(objective, Sum):
        return FenchelYoung(generator("kl"))
    said = dict.fromkeys(predictor(term) for _, term in objective.terms if term.takes != EVERY)
    if len(said) > 1:
        raise ValueError(
            f"objective: got a sum of terms that predict with {' and '.join(_named(p) for p in said)}; pass terms of one operator, and penalties"
        )
    return next(iter(said), FenchelYoung(generator("kl")))


def _named(objective: LabelObjective) -> str:
    if isinstance(objective, FenchelYoung):
        at = "" if objective.temperature == 1 else f" at temperature {objective.temperature:g}"
        return f"softargmax of {generator(objective.generator).name}{at}"
    return type(objective).__name__
