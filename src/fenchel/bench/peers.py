"""The same losses by other libraries, each where it is installed. Imports are inside: none of these is needed."""

import warnings

from torch import Tensor
from torch.nn import functional as F

from fenchel.bench.regimes import Inputs

# pyright: reportMissingImports=false


def torch_linear_ce(x: Inputs) -> Tensor:
    """torch's own chunked head."""
    return F.linear_cross_entropy(x.hidden, x.weight, x.labels)


def cut_cross_entropy(x: Inputs) -> Tensor:
    """Wijmans et al., the path that runs on a CPU."""
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(x.hidden, x.weight, x.labels, impl="torch_compile")


def trl_logp(x: Inputs, upstream: Tensor) -> Tensor:
    """TRL's chunked log-probabilities with a per-token upstream gradient, with TRL's vocabulary chunk."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    logp = ChunkedLogProbFunction.apply(x.hidden, x.weight, None, x.labels, 1.0, 32768, None, 1.0, ())[0]
    return (logp * upstream).sum()


def trl_jsd(x: Inputs) -> Tensor:
    """TRL's generalised JSD with beta = 1/2; the teacher is the second head there."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    assert x.teacher is not None
    return ChunkedDivergenceFunction.apply(x.hidden, x.weight, None, *x.teacher, None, 0.5)[0].mean()


def liger_jsd(x: Inputs) -> Tensor:
    """Liger's chunked JSD with the share of cross-entropy that it mixes in by default set to zero."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    assert x.teacher is not None
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=False)
    return loss(x.hidden, x.weight, *x.teacher, x.labels)


def entmax15(logits: Tensor, labels: Tensor) -> Tensor:
    """Peters et al., by a full sort."""
    from entmax import entmax15_loss

    return entmax15_loss(logits, labels).mean()


def entmax_bisect(logits: Tensor, labels: Tensor) -> Tensor:
    """Peters et al., by fifty bisections."""
    from entmax import entmax_bisect_loss

    return entmax_bisect_loss(logits, labels, alpha=1.5).mean()


def sparsemax(logits: Tensor, labels: Tensor) -> Tensor:
    """Martins and Astudillo, by a full sort."""
    from entmax import sparsemax_loss

    return sparsemax_loss(logits, labels).mean()


def quiet() -> None:
    """Other libraries' advice to their own users is not this command's output."""
    warnings.filterwarnings("ignore", module="trl|liger_kernel|cut_cross_entropy|entmax|transformers|torch")
