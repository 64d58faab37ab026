"""The probabilities of a model that was trained with a supervised objective."""

import torch
from torch import Tensor

from ...checks import reference
from ...generators import Generator, generator
from ...operators import softargmax
from .fenchel_young import FenchelYoung
from .names import supervised_objective
from .objective import EVERY, LabelObjective, ShareObjective
from .shares import scores, shares
from .sums import Sum

__all__ = ["predictions"]


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
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    measure = reference(q, z, z.dtype)
    if not bool((measure > 0).all()):
        raise ValueError("q: got a class that is not positive; pass positive numbers")
    return shares(chosen.score, z + measure.log()).to(logits.dtype)


def predictor(objective: LabelObjective) -> FenchelYoung | ShareObjective:
    """The objective whose probabilities a model trained with `objective` predicts with: a Fenchel-Young loss, or one with shares of its own.

    Raises:
        ValueError: a sum of terms that predict differently.
    """
    if isinstance(objective, FenchelYoung):
        return FenchelYoung(generator(objective.generator), objective.temperature)
    if isinstance(objective, ShareObjective):
        return objective
    if not isinstance(objective, Sum):
        return FenchelYoung(generator("kl"))
    said = dict.fromkeys(predictor(term) for _, term in objective.terms if term.takes != EVERY)
    if len(said) > 1:
        raise ValueError(
            f"objective: got a sum of terms that predict with {' and '.join(said_of(p) for p in said)}; pass terms of one operator, and penalties"
        )
    return next(iter(said), FenchelYoung(generator("kl")))


def said_of(chosen: FenchelYoung | ShareObjective) -> str:
    """What a `predictor` predicts with, in words.

    Example:
        >>> [said_of(predictor(supervised_objective(name))) for name in ("gce:0.7", "alpha:1.5", "kl:temperature=2", "stablemax")]
        ['softmax', 'softargmax of alpha:1.5', 'softmax at temperature 2', 'the shares of StableMax()']
    """
    if not isinstance(chosen, FenchelYoung):
        return f"the shares of {chosen!r}"
    name = generator(chosen.generator).name
    at = "" if chosen.temperature == 1 else f" at temperature {chosen.temperature:g}"
    return ("softmax" if name == "kl" else f"softargmax of {name}") + at


def ranking(logits: Tensor, chosen: FenchelYoung | ShareObjective) -> Tensor:
    """Numbers [N, V] in the order of a predictor's probabilities, without the ties of those that are zero: its scores, or the logits themselves.

    Example:
        >>> ranking(torch.tensor([[-3.0, 2.0]]), predictor(supervised_objective("spherical:1")))
        tensor([[10.,  5.]])
    """
    return logits if isinstance(chosen, FenchelYoung) else scores(chosen.score, logits)
