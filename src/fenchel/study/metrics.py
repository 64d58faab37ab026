"""What a trained language model is measured by, on held-out text.

The probabilities are the model's own, as `predictions` states them for the objective it was trained with: softargmax_f(logits) for a
generator f, exactly zero outside the support where f is sparse. `docs/metrics.md` and `definitions.py` say what every metric is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fenchel.objectives.supervised import supervised_objective
from fenchel.objectives.supervised.predictions import predictions, predictor, ranking
from fenchel.study.definitions import BINS, SENSITIVITY, SMOOTHING, gap_columns

TILE_BYTES = 32 * 2**20  # of logits alive at a time


@dataclass(frozen=True)
class Evaluation:
    """Metrics over all tokens, per document, and the reliability table (per bin: confidence, accuracy, count)."""

    summary: dict[str, float]
    per_document: dict[str, list[float]]
    reliability: list[dict]


def evaluate(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    document: torch.Tensor,
    objective: str,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Evaluation:
    """Measures next-token predictions without ever holding the `[N, V]` logits.

    logits = scale * hidden @ weight.T, then softcap * tanh(logits / softcap) if `softcap` is given, and
    p = predictions(logits, objective).

    Args:
        hidden: `[N, D]` final hidden states.
        weight: `[V, D]` output embedding.
        target: `[N]` integer ids of the tokens that follow, each in [0, V).
        document: `[N]` integer id of the held-out document that each token belongs to; ids count from 0.
        objective: name of the supervised objective that the model was trained with.

    Returns:
        an `Evaluation`; a row with NaN logits makes every mean that holds it NaN.

    Raises:
        ValueError, TypeError: shapes that disagree, no tokens, ids that are not integers or out of range.

    Example:
        >>> hidden, weight = torch.eye(2) * 9.0, torch.eye(2)
        >>> both = evaluate(hidden, weight, torch.tensor([0, 0]), torch.tensor([0, 1]), "alpha:2")
        >>> both.summary["accuracy_1"], both.summary["zero_target_share"], both.per_document["brier"]
        (0.5, 0.5, [0.0, 2.0])
    """
    _check(hidden, weight, target, document, softcap, scale)
    vocab, chosen = weight.shape[0], predictor(supervised_objective(objective))
    work = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    weight = weight.detach().to(work)
    rows = max(1, TILE_BYTES // (vocab * weight.element_size()))
    tiles: list[dict[str, torch.Tensor]] = []
    with torch.no_grad():
        for start in range(0, hidden.shape[0], rows):
            logits = scale * (hidden[start : start + rows].detach().to(work) @ weight.T)
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            tiles.append(
                _rows(logits, ranking(logits, chosen), predictions(logits, chosen), target[start : start + rows])
            )
    columns = {name: torch.cat([tile[name] for tile in tiles]) for name in tiles[0]}
    return _reduce(columns, document.cpu(), vocab)


def _rows(logits: torch.Tensor, order: torch.Tensor, p: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything that needs the vocabulary, per row, in float64 on the host; ranks are those of `order`."""
    y = target.long().unsqueeze(-1)
    mine, logit = order.gather(-1, y), logits.gather(-1, y).squeeze(-1)
    before = torch.arange(logits.shape[-1], device=logits.device) < y
    rank = ((order > mine) | ((order == mine) & before)).sum(-1)
    outside = logit == -math.inf
    p_y = p.gather(-1, y).squeeze(-1).double()
    # a row of NaN compares false with everything and would be a perfect hit
    bad = torch.isnan(p_y)
    columns = {
        "rank": torch.where(outside, math.inf, rank.double()),
        "p_y": p_y,
        "squares": p.square().sum(-1).double(),
        "confidence": p.max(-1).values.double(),
        "support": (p > 0).sum(-1).double(),
        "nll_softmax": (torch.logsumexp(logits, -1) - logit).double(),
    }
    return {name: torch.where(bad, math.nan, column).cpu() for name, column in columns.items()}


def _reduce(rows: dict[str, torch.Tensor], document: torch.Tensor, vocab: int) -> Evaluation:
    p_y, rank, confidence = rows["p_y"], rows["rank"], rows["confidence"]
    bad = torch.isnan(rank)

    def indicator(condition: torch.Tensor) -> torch.Tensor:
        return torch.where(bad, math.nan, condition.double())

    hit = indicator(rank < 1)
    per_token = {
        "accuracy_1": hit,
        "accuracy_5": indicator(rank < 5),
        "log_eps_perplexity": _log_eps(p_y, SMOOTHING, vocab),
        # rounding can leave the sum of squares just below its minimum
        "brier": (rows["squares"] - 2 * p_y + 1).clamp_min(0.0),
        "js_target": _js_to_one_hot(p_y),
        "zero_target_share": indicator(p_y == 0),
        "support": rows["support"],
    }
    bins = (confidence * BINS).ceil().sub(1).clamp(0, BINS - 1)
    for b, name in enumerate(gap_columns()):
        per_token[name] = torch.where(bad, math.nan, torch.where(bins == b, confidence - hit, 0.0))

    documents = int(document.max()) + 1
    count = torch.zeros(documents, dtype=torch.float64).index_add_(0, document, torch.ones_like(p_y))
    per_document = {"tokens": count.tolist()}
    for name, column in per_token.items():
        total = torch.zeros(documents, dtype=torch.float64).index_add_(0, document, column)
        per_document[name] = (total / count).tolist()

    means = {name: float(column.mean()) for name, column in per_token.items()}
    summary = {name: means[name] for name in ("accuracy_1", "accuracy_5", "brier", "js_target", "zero_target_share")}
    summary |= {
        "eps_perplexity": math.exp(means["log_eps_perplexity"]),
        "ece": sum(abs(means[name]) for name in gap_columns()),
        "support_mean": means["support"],
        "support_median": float(rows["support"].median()),
        "nll_softmax": float(rows["nll_softmax"].mean()),
        "tokens": float(p_y.numel()),
    }
    for smoothing in SENSITIVITY:
        summary[f"eps_perplexity_mass_{smoothing:g}"] = math.exp(float(_log_eps(p_y, smoothing, vocab).mean()))
    return Evaluation(summary, per_document, _reliability(bins, confidence, hit))


def _log_eps(p_y: torch.Tensor, smoothing: float, vocab: int) -> torch.Tensor:
    return -torch.log((1 - smoothing) * p_y + smoothing / vocab)


def _js_to_one_hot(p_y: torch.Tensor) -> torch.Tensor:
    # off the target m = p/2, so those terms sum to (1 - p_y) log 2 whatever p is there
    rest = (1 - p_y).clamp_min(0.0) * math.log(2)
    return (0.5 * (rest + torch.special.xlogy(p_y, 2 * p_y / (1 + p_y)) + torch.log(2 / (1 + p_y)))).clamp_min(0.0)


def _reliability(bins: torch.Tensor, confidence: torch.Tensor, hit: torch.Tensor) -> list[dict]:
    table = []
    for b in range(BINS):
        inside = bins == b
        count = int(inside.sum())
        table.append(
            {
                "bin": b,
                "low": b / BINS,
                "high": (b + 1) / BINS,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float(hit[inside].mean()) if count else None,
                "count": count,
            }
        )
    return table


def _check(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    document: torch.Tensor,
    softcap: float | None,
    scale: float,
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"got hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)}: pass [N, D] and [V, D]")
    for name, ids in (("target", target), ("document", document)):
        if ids.shape != hidden.shape[:1]:
            raise ValueError(f"got {name} {tuple(ids.shape)} for {hidden.shape[0]} rows of hidden: pass one per row")
        if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
            raise TypeError(f"got {name} of {ids.dtype}: pass integer ids")
    if hidden.shape[0] == 0:
        raise ValueError("got no tokens to evaluate: pass at least one row")
    if int(target.min()) < 0 or int(target.max()) >= weight.shape[0]:
        low, high = int(target.min()), int(target.max())
        raise ValueError(
            f"got targets from {low} to {high} for a vocabulary of {weight.shape[0]}: drop ignored rows first"
        )
    if int(document.min()) < 0:
        raise ValueError(f"got document id {int(document.min())}: pass ids that count from 0")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"got softcap={softcap}: pass a positive number, or None for no cap")
    if not math.isfinite(scale):
        raise ValueError(f"got scale={scale}: pass a finite number")
