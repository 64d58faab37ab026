"""Which distillation pipeline to try on a new data set, from what was measured on others.

The abstract of Distiller (He et al., arXiv 2109.11105) promises "a simple AutoDistiller algorithm that can recommend a
good KD pipeline for a new dataset" and says no more. What is here is derived: scores are standardised within each data
set (so that an easy one and a hard one weigh the same), a main effect is estimated for each choice of each component
by ridge regression, and trials on data sets that resemble the new one count more.

    score = sum over components of effect(component, choice) + noise,    weight = exp(-|d - d_new|^2 / 2)

with d the descriptors of a data set, each divided by its spread. Without descriptors all trials count the same.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

__all__ = ["Recommendation", "Trial", "recommend"]


@dataclass(frozen=True)
class Trial:
    """One measured pipeline: the choice for each component, on a data set, with its score (higher is better)."""

    dataset: str
    pipeline: Mapping[str, str]
    score: float
    descriptors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Recommendation:
    """A pipeline and its predicted score, in standard deviations above the mean of a data set's trials."""

    pipeline: Mapping[str, str]
    predicted: float


def recommend(
    trials: Sequence[Trial],
    candidates: Iterable[Mapping[str, str]],
    *,
    descriptors: Mapping[str, float] | None = None,
    ridge: float = 1.0,
) -> list[Recommendation]:
    """The candidates, best predicted first (ties in the order given).

    Args:
        trials: measured results, at least two on every data set.
        candidates: pipelines to choose from, with the components of the trials; a choice that was never tried has the effect 0.
        descriptors: of the new data set, for example its log size; the same keys as those of every trial.
        ridge: > 0, how many trials' worth of doubt there is in each effect.

    Raises:
        ValueError: no trials, no candidates, components or descriptors that differ, a data set with one trial, a score that is not finite.

    Example:
        >>> tried = [Trial("a", {"loss": l, "data": d}, s) for l, d, s in
        ...          [("kl", "plain", 0.7), ("kl", "mixed", 0.8), ("mse", "plain", 0.6), ("mse", "mixed", 0.7)]]
        >>> best = recommend(tried, [{"loss": "mse", "data": "mixed"}, {"loss": "kl", "data": "mixed"}])[0]
        >>> dict(best.pipeline)
        {'loss': 'kl', 'data': 'mixed'}

    Source: derived from the abstract of arXiv 2109.11105, see the module.
    """
    options = list(candidates)
    if not trials or not options:
        raise ValueError(f"got {len(trials)} trials and {len(options)} candidates: pass at least one of each")
    if not ridge > 0:
        raise ValueError(f"ridge: got {ridge}; pass a positive number")
    components = list(trials[0].pipeline)
    for pipeline in [*(t.pipeline for t in trials), *options]:
        if set(pipeline) != set(components):
            raise ValueError(
                f"got a pipeline of {sorted(pipeline)}; pass the components {sorted(components)} everywhere"
            )
    choices = sorted({(c, t.pipeline[c]) for t in trials for c in components})
    design = torch.tensor([[float(t.pipeline[c] == v) for c, v in choices] for t in trials], dtype=torch.float64)
    weight = _resemblance(trials, descriptors or {}).unsqueeze(1)
    gram = design.T @ (weight * design) + ridge * torch.eye(len(choices), dtype=torch.float64)
    effect = torch.linalg.solve(gram, design.T @ (weight * _standardised(trials).unsqueeze(1))).squeeze(1)
    found = dict(zip(choices, effect.tolist(), strict=True))
    scored = [Recommendation(p, sum(found.get((c, p[c]), 0.0) for c in components)) for p in options]
    return sorted(scored, key=lambda r: -r.predicted)


def _standardised(trials: Sequence[Trial]) -> torch.Tensor:
    """[trials]: scores less their data set's mean, in units of its standard deviation (0 where all are equal)."""
    by_dataset: dict[str, list[float]] = {}
    for trial in trials:
        if not math.isfinite(trial.score):
            raise ValueError(f"got the score {trial.score} on {trial.dataset!r}: pass finite numbers")
        by_dataset.setdefault(trial.dataset, []).append(trial.score)
    alone = [name for name, scores in by_dataset.items() if len(scores) < 2]
    if alone:
        raise ValueError(f"got one trial on {alone[0]!r}: nothing to compare it with, pass at least two")
    moments = {name: torch.tensor(scores, dtype=torch.float64) for name, scores in by_dataset.items()}
    spread = {name: float(x.std()) or 1.0 for name, x in moments.items()}
    return torch.tensor([(t.score - float(moments[t.dataset].mean())) / spread[t.dataset] for t in trials]).double()


def _resemblance(trials: Sequence[Trial], new: Mapping[str, float]) -> torch.Tensor:
    """[trials]: exp(-|d - d_new|^2 / 2), each descriptor in units of its spread over the trials."""
    if any(set(t.descriptors) != set(new) for t in trials):
        got = sorted({name for t in trials for name in t.descriptors})
        raise ValueError(f"got descriptors {got} in trials and {sorted(new)} for the new data set: pass the same ones")
    if not new:
        return torch.ones(len(trials), dtype=torch.float64)
    table = torch.tensor([[t.descriptors[k] for k in new] for t in trials], dtype=torch.float64)
    spread = table.std(0, unbiased=False)
    gap = (table - torch.tensor(list(new.values()), dtype=torch.float64)) / torch.where(spread > 0, spread, 1.0)
    return torch.exp(-gap.square().sum(1) / 2)
