"""The metrics of a study: what each is, which way is better, how it is compared and printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BINS = 15  # equal-width bins of top-1 confidence
SMOOTHING = 0.01  # lambda of the epsilon-perplexity: the share of probability spread evenly over the vocabulary
SENSITIVITY = (0.1, 0.001)  # other lambdas, reported so that nobody has to trust the one above

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Metric:
    """How one number of a run is named, compared and printed.

    `columns` are the per-document columns it is made of, and `link` maps their token-weighted means to the compared
    quantity: the mean itself, the sum of absolute values (`abs_sum`, for calibration), or the logarithm (`log`), whose
    differences are ratios. A metric without columns exists per run only and its interval covers seeds only.
    """

    key: str
    label: str
    better: Better
    columns: tuple[str, ...]
    formula: str
    meaning: str
    link: Literal["mean", "abs_sum", "log"] = "mean"
    scale: Literal["difference", "ratio"] = "difference"
    unit: Literal["percent", "number", "tokens", "per_second", "bytes"] = "number"
    source: str = ""


def gap_columns() -> tuple[str, ...]:
    """Names of the per-document calibration gaps, one per bin: ece_gap_00, ..., ece_gap_14."""
    return tuple(f"ece_gap_{b:02d}" for b in range(BINS))


_SPARSE_TEXT = "Martins, Marinho and Martins (2020), Sparse Text Generation, arXiv:2004.02644"
_BRIER = "Brier (1950), Verification of forecasts expressed in terms of probability"
_ECE = "Guo et al. (2017), On Calibration of Modern Neural Networks, arXiv:1706.04599"

METRICS: tuple[Metric, ...] = (
    Metric(
        "accuracy_1",
        "accuracy@1",
        "higher",
        ("accuracy_1",),
        "mean of 1[rank(y) < 1]",
        "Share of held-out tokens whose most probable prediction is the token that follows. The rank counts the tokens "
        "with a larger logit (a larger share, where a model predicts with shares of its own), and those with the same "
        "and a smaller index.",
        unit="percent",
    ),
    Metric(
        "accuracy_5",
        "accuracy@5",
        "higher",
        ("accuracy_5",),
        "mean of 1[rank(y) < 5]",
        "Share of held-out tokens that are among the five tokens of the first ranks.",
        unit="percent",
    ),
    Metric(
        "eps_perplexity",
        "ε-perplexity",
        "lower",
        ("log_eps_perplexity",),
        "exp(mean of −log((1 − λ) p_y + λ/V)), λ = 0.01",
        "Perplexity after one hundredth of the probability is spread evenly over the vocabulary, because a sparse "
        "model can give a token probability zero and has no plain perplexity then. With ε = λ/((1 − λ)V) it is the "
        "ε-perplexity exp(mean of −log((p_y + ε)/(1 + εV))); a token of probability zero costs log(V/λ) nats. "
        "Compared as a ratio.",
        scale="ratio",
        source=_SPARSE_TEXT,
    ),
    Metric(
        "brier",
        "Brier score",
        "lower",
        ("brier",),
        "mean of Σ_j (p_j − 1[j = y])²",
        "Squared distance between the prediction and the token that follows, from 0 to 2, defined for zero "
        "probabilities. One minus half of it is the sparsemax score of Martins et al.",
        source=_BRIER,
    ),
    Metric(
        "ece",
        "calibration error",
        "lower",
        gap_columns(),
        "Σ_b |Σ_{i in bin b} (c_i − 1[hit_i])| / N, 15 bins",
        "Expected calibration error: the gap between confidence c = max_j p_j and top-1 accuracy in 15 equal-width "
        "bins of confidence, (b/15, (b + 1)/15], weighted by the tokens in each.",
        link="abs_sum",
        unit="percent",
        source=_ECE,
    ),
    Metric(
        "js_target",
        "JS to target",
        "lower",
        ("js_target",),
        "mean of ½ KL(p‖m) + ½ KL(e_y‖m), m = ½(p + e_y)",
        "Jensen–Shannon divergence (nats, 0 to log 2) between the prediction and the one-hot token that follows: "
        "finite for zero probabilities.",
        source=_SPARSE_TEXT,
    ),
    Metric(
        "zero_target_share",
        "targets at zero",
        "lower",
        ("zero_target_share",),
        "mean of 1[p_y = 0]",
        "Share of held-out tokens that the model calls impossible. Zero, up to underflow, for all but sparse generators.",
        unit="percent",
    ),
    Metric(
        "support_mean",
        "support size",
        "neither",
        ("support",),
        "mean of #{j : p_j > 0}",
        "Tokens with positive probability per prediction. Neither direction is better by itself. Compared as a ratio.",
        link="log",
        scale="ratio",
        unit="tokens",
    ),
    Metric(
        "tokens_per_second",
        "tokens per second",
        "higher",
        (),
        "training tokens / training wall seconds",
        "Training speed without evaluations, on this machine. Compared as a ratio; varies with whatever else it runs.",
        link="log",
        scale="ratio",
        unit="per_second",
    ),
    Metric(
        "head_peak_bytes",
        "head memory",
        "lower",
        (),
        "peak bytes in one step of the head",
        "Most memory that the head held at once in one training step, beyond its inputs and gradients; dense logits "
        "would hold tokens × V numbers.",
        link="log",
        scale="ratio",
        unit="bytes",
    ),
)
