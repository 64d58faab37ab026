"""Domain-specific risk: a classifier for each source domain, and at test time those that fit the sample at hand.

    train    mean_k  mean_{i in domain k}  l(h_k(x_i), y_i)          head k sees domain k alone
    test     p(x) = sum_k v_k p_k(x),    v = softmax(-gap/T),        gap_k = the entropy of p_k(x), or what the caller estimates

One classifier for all domains is one hypothesis, which may be far from the target's best; the mixtures of K are many.

Source: Zhang et al., arXiv 2208.08661 (the abstract, which names the heads, an estimate of the gap that chooses among them, and steering on
target samples). That a gap is the entropy of a head's own prediction is derived: it needs no labels, and a head far from home is unsure.
"""

import torch
from torch import Tensor

from ...checks import check_floating, check_positive

__all__ = ["domain_specific_risk", "steered_log_probabilities"]


def domain_specific_risk(losses: Tensor, domain: Tensor) -> Tensor:
    """The mean over domains of the mean loss of a domain's samples under its own head, a scalar.

    Args:
        losses: [N, K], of each head on each sample; only [i, domain_i] counts, the others get no gradient.
        domain: [N] int64 in [0, K).

    Returns:
        A scalar; domains without a sample in the batch do not count.

    Raises:
        ValueError: shapes that do not fit, no samples, a domain outside [0, K).
        TypeError: losses not floating, domain not int64.

    Example:
        >>> losses = torch.tensor([[1.0, 9.0], [3.0, 9.0], [9.0, 4.0]])
        >>> float(domain_specific_risk(losses, torch.tensor([0, 0, 1])))  # (2 + 4) / 2
        3.0

    Source: arXiv 2208.08661; that domains count equally, whatever their size, is derived.
    """
    check_floating("losses", losses, "[N, K]")
    if losses.dim() != 2 or 0 in losses.shape or domain.shape != losses.shape[:1]:
        raise ValueError(f"losses, domain: got {list(losses.shape)} and {list(domain.shape)}; pass [N, K] and [N]")
    if domain.dtype != torch.int64:
        raise TypeError(f"domain: got dtype {domain.dtype}; pass int64")
    k = losses.shape[1]
    if not bool(((domain >= 0) & (domain < k)).all()):
        raise ValueError(f"domain: got a number outside [0, {k}); pass one of the {k} heads per sample")
    own = losses.gather(1, domain.unsqueeze(1)).squeeze(1)
    count = torch.bincount(domain, minlength=k)
    sums = own.new_zeros(k).index_add(0, domain, own)
    return (sums / count.clamp_min(1)).sum() / (count > 0).sum()


def steered_log_probabilities(logits: Tensor, *, gap: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """log sum_k v_k softmax(logits_k) with v = softmax(-gap/T): the heads mixed sample by sample, the near ones most.

    Args:
        logits: [N, K, V], of each head.
        gap: [N, K], how far each head is from home; None: the entropy of its prediction, in nats. That is all that logits alone say, and a poor guide where
            heads are as sure abroad as at home. In the gallery (P029) heads by entropy were 0.19 less accurate on a new domain than one classifier for all,
            heads by minus log of the probability of their domain under a classifier of the source domains 0.07 more: pass such a gap where there is one.
        temperature: T > 0; the nearest head alone as T -> 0, all alike as T -> inf.

    Returns:
        [N, V]. The weights of the heads are constant: sharpening a prediction in order to be chosen is not learned.

    Raises:
        ValueError: shapes that do not fit, T not positive.
        TypeError: not floating.

    Example:
        >>> sure, unsure = torch.tensor([9.0, 0.0]), torch.tensor([0.0, 0.1])
        >>> steered_log_probabilities(torch.stack((sure, unsure))[None], temperature=0.05).exp().round(decimals=3)
        tensor([[1., 0.]])

    Source: arXiv 2208.08661, with the gap derived as the module says.
    """
    check_floating("logits", logits, "[N, K, V]")
    if logits.dim() != 3 or 0 in logits.shape[1:]:
        raise ValueError(f"logits: got shape {list(logits.shape)}; pass [N, K, V]")
    log_p = logits.log_softmax(-1)
    far = torch.special.entr(log_p.exp()).sum(-1) if gap is None else check_floating("gap", gap, "[N, K]")
    if far.shape != logits.shape[:2]:
        raise ValueError(f"gap: got shape {list(far.shape)}; pass {list(logits.shape[:2])}")
    log_v = torch.log_softmax(-far.detach() / check_positive("temperature", temperature), -1)
    return torch.logsumexp(log_v.unsqueeze(-1) + log_p, 1)
