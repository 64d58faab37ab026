"""Divergences between two categorical distributions, from logits: any f, its skewed form, Renyi, Cauchy-Schwarz.

    D_f(p||q) = sum_j q_j f(p_j/q_j),    p first: f = u log u - u + 1 ("kl") gives KL(p||q).

Laws (tested): D >= 0, and 0 at p = q; D_f°(q||p) = D_f(p||q) with f°(u) = u f(1/u); merging classes does not increase
D; D is jointly convex in (p, q); a class that both rows mask (-inf) does not count.

Everything is float32 inside (float64 for float64 inputs), whatever `Generator.double` asks of the operator.
Derivatives are exact to the second order everywhere and to any order where p != q.
"""

from typing import Any

import torch
from torch import Tensor

from .agreement import Meeting, ProcessGroup
from .checks import check_floating, check_positive, check_vocabulary
from .generators import INF, Generator, alpha
from .generators import generator as named
from .terms import check_skew, terms
from .vocab import Vocabulary

__all__ = ["bhattacharyya", "cauchy_schwarz", "divergence", "renyi", "skew_divergence"]


def divergence(
    p_logits: Tensor,
    q_logits: Tensor,
    generator: str | Generator = "kl",
    *,
    temperature: float = 1.0,
    dim: int = -1,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The f-divergence of q from p, D_f(p||q) = sum_j q_j f(p_j/q_j), one number per row.

    Orientation: p first. Distilling a teacher t into a student s, "forward KL" is `divergence(t, s)` and "reverse KL"
    is `divergence(s, t)`, the same as `divergence(t, s, "reverse_kl")`. `js` is the standard Jensen-Shannon
    divergence; `js:B` is B KL(p||m) + (1-B) KL(q||m) with m = B p + (1-B) q, which tends to 0 at both ends: js:B/B to
    KL(p||q) as B -> 0, js:B/(1-B) to KL(q||p) as B -> 1.

    Args:
        p_logits, q_logits: [..., V], logits or log-probabilities (a log-softmax is applied to both; it leaves
            log-probabilities as they are). -inf for a class that a distribution excludes. float16 and bfloat16 are
            computed in float32.
        generator: a name or a Generator; all have a divergence, `tv` included.
        temperature: T > 0, divides both logits. No factor T^2 is applied: where you want it, as in Hinton et al.
            2015, multiply.
        dim: the vocabulary's dimension.
        group: the ranks that share the vocabulary; both logits are then this rank's shard (docs/parallel.md). Not
            needed for DTensors, which say it themselves.

    Returns:
        [...], the shape without `dim`, in the (promoted) dtype of the inputs. Gradients flow to both arguments.
        +inf where it is infinite (for KL: a class with p > 0 that q excludes); the gradient of such
        a row is not defined, and may be NaN. A row with NaN, +inf or only -inf logits is NaN.

    Raises:
        ValueError: shapes or devices differ, an empty vocabulary, T not positive, an unknown generator, dim out of
            range; ranks of a group that disagree, on each of them.
        TypeError: logits not floating.

    Example:
        >>> p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> divergence(p, q)                    # 0.5 log 2 + 0.5 log 2/3
        tensor([0.1438])
        >>> divergence(p, q, "tv")
        tensor([0.2500])

    Source: Csiszar 1967; Ali & Silvey 1966.
    """
    g = named(generator)
    log_p, log_q, dtype, vocab = _log_probabilities(p_logits, q_logits, temperature, dim, group, generator=g)
    return vocab.sum(terms(log_p, log_q, g)).squeeze(-1).to(dtype)


def skew_divergence(
    p_logits: Tensor,
    q_logits: Tensor,
    generator: str | Generator = "kl",
    *,
    skew: float = 0.1,
    temperature: float = 1.0,
    dim: int = -1,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The divergence of a mixture from p, D_f(p || skew p + (1 - skew) q), one number per row.

    KL and the like are finite whatever q excludes. DistiLLM's skew KL of a teacher t and a student s is
    `skew_divergence(t, s)`, its skew reverse KL `skew_divergence(s, t)`: the first argument is always the one that is
    mixed in. Limits: skew = 0 is `divergence(p, q)`; as skew -> 1 it vanishes like (1-skew)^2 f''(1)/2 sum (p-q)^2/p.

    Args, errors and result: as `divergence`, and
        skew: the weight of p in the mixture, in [0, 1).

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()
        >>> divergence(p, q), skew_divergence(p, q, skew=0.5)
        (tensor(inf), tensor(0.1438))

    Source: Lee 2001 (skew divergence); Ko et al., arXiv 2402.03898 (DistiLLM).
    """
    g, skew = named(generator), check_skew(skew)
    log_p, log_q, dtype, vocab = _log_probabilities(p_logits, q_logits, temperature, dim, group, generator=g, skew=skew)
    return vocab.sum(terms(log_p, log_q, g, skew)).squeeze(-1).to(dtype)


def renyi(
    p_logits: Tensor,
    q_logits: Tensor,
    order: float,
    *,
    temperature: float = 1.0,
    dim: int = -1,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The Renyi divergence of q from p, log(sum_j p_j^a q_j^(1-a)) / (a - 1) with a = order, per row, in nats.

    a = 1 is its limit KL(p||q), exactly; close to 1 and close to p = q nothing cancels (there it is log1p(a (a-1)
    D_alpha)/(a-1) with D_alpha the divergence of "alpha:a"). a = 1/2 is twice `bhattacharyya`. As a -> 0 it tends to
    -log q(p > 0), as a -> inf to log max p/q.

    Args, errors and result: as `divergence`, and
        order: a positive finite number.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> renyi(p, q, 2.0)                    # log(0.25/0.25 + 0.25/0.75)
        tensor(0.2877)

    Source: Renyi 1961; van Erven & Harremoes, arXiv 1206.2459.
    """
    a = check_positive("order", order)
    log_p, log_q, dtype, vocab = _log_probabilities(p_logits, q_logits, temperature, dim, group, order=a)
    if a == 1:
        return vocab.sum(terms(log_p, log_q, named("kl"))).squeeze(-1).to(dtype)
    # p^a q^(1-a), with 0 where p = 0
    exponent = torch.where(log_p == -INF, -INF, a * log_p + (1 - a) * log_q)
    log_mean = vocab.logsumexp(exponent)
    near = log_mean.abs() < 0.5
    # far rows take no part: their divergence may be infinite
    moved = vocab.sum(terms(torch.where(near.unsqueeze(-1), log_p, log_q), log_q, alpha(a))).squeeze(-1)
    return (torch.where(near, torch.log1p(a * (a - 1) * moved), log_mean) / (a - 1)).to(dtype)


def bhattacharyya(
    p_logits: Tensor,
    q_logits: Tensor,
    *,
    temperature: float = 1.0,
    dim: int = -1,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The Bhattacharyya distance -log sum_j sqrt(p_j q_j), one number per row, in nats.

    Symmetric; half the Renyi divergence of order 1/2.

    Args, errors and result: as `divergence`.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.1, 0.9]).log()
        >>> bhattacharyya(p, q)                 # -log(sqrt(0.05) + sqrt(0.45))
        tensor(0.1116)

    Source: Bhattacharyya 1943.
    """
    return renyi(p_logits, q_logits, 0.5, temperature=temperature, dim=dim, group=group) / 2


def cauchy_schwarz(
    p_logits: Tensor,
    q_logits: Tensor,
    *,
    temperature: float = 1.0,
    dim: int = -1,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The Cauchy-Schwarz divergence -log((sum p q)^2 / (sum p^2 sum q^2)), one number per row, in nats. Symmetric.

    Computed as the Renyi divergence of order 1/2 between p^2 / sum p^2 and q^2 / sum q^2, the softmaxes of twice the
    logits: the same number, and nothing cancels near p = q.

    Args, errors and result: as `divergence`.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> cauchy_schwarz(p, q)                # -log(0.25 / (0.5 * 0.625))
        tensor(0.2231)

    Source: Principe, Xu & Fisher 2000.
    """
    half = check_positive("temperature", temperature) / 2
    return renyi(p_logits, q_logits, 0.5, temperature=half, dim=dim, group=group)


def _log_probabilities(
    p_logits: Tensor, q_logits: Tensor, temperature: float, dim: int, group: ProcessGroup | None, **facts: Any
) -> tuple[Tensor, Tensor, torch.dtype, Vocabulary]:
    """log p and log q [..., V] in the dtype to compute in, the dtype to return, and the vocabulary; facts: what else ranks must agree on."""
    with Meeting(group) as meeting:
        check_floating("p_logits", p_logits, "[..., V]")
        check_floating("q_logits", q_logits, "[..., V]")
        if p_logits.dim() == 0:
            check_vocabulary("p_logits", p_logits)
        if p_logits.shape != q_logits.shape:
            raise ValueError(
                f"q_logits: got shape {tuple(q_logits.shape)}, p_logits have {tuple(p_logits.shape)}; "
                "pass rows over the same vocabulary"
            )
        if p_logits.device != q_logits.device:
            raise ValueError(
                f"q_logits: got device {q_logits.device}, p_logits are on {p_logits.device}; pass both on one device"
            )
        if not -p_logits.dim() <= dim < p_logits.dim():
            raise ValueError(
                f"dim: got {dim} for logits of shape {tuple(p_logits.shape)}; "
                f"pass {-p_logits.dim()} to {p_logits.dim() - 1}"
            )
        p_logits, q_logits = meeting.shard("p_logits", p_logits, dim), meeting.shard("q_logits", q_logits, dim)
        temperature = check_positive("temperature", temperature)
        both = p_logits.movedim(dim, -1), q_logits.movedim(dim, -1)
        check_vocabulary("p_logits", both[0])
        vocab = meeting.agree(
            both[0].shape[-1],
            call="divergence",
            rows=both[0].shape[:-1],
            dtypes=(p_logits.dtype, q_logits.dtype),
            temperature=temperature,
            derivatives=torch.is_grad_enabled() and (p_logits.requires_grad, q_logits.requires_grad),
            **facts,
        )
    dtype = torch.promote_types(p_logits.dtype, q_logits.dtype)
    inside = torch.float64 if dtype == torch.float64 else torch.float32
    log_p, log_q = (vocab.log_softmax(z if temperature == 1 else z / temperature) for z in (x.to(inside) for x in both))
    return log_p, log_q, dtype, vocab
