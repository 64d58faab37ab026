"""Whole sequences: teacher-written text, student-written text, and the reverse KL between the two models of sequences.

* `sequence_kd`: likelihood of what the teacher wrote.
* `on_policy`: which prompts of a batch the student answers itself (GKD); a row objective then compares the models there.
* `mixed_logp`, `to_go`, `minillm`: the reverse KL of sequences, KL(q||p) with q the student, by MiniLLM's decomposition

    grad KL = E_{y~q} sum_t [ grad KL(q_t||p_t) - R_{t+1} grad log q(y_t) ],    R_t = sum_{t' >= t} log p(y_t')/q(y_t')

  whose first part, over the whole vocabulary at one position, has no sampling noise from y_t.

Everything is [B, T], one number per token, with a bool mask of the tokens that count; padding may hold anything, NaN
included. Laws (tested): the decomposition has the gradient of the enumerated KL; sampling from the mixture with exact
weights has the same one; masked tokens change nothing.

Source: Kim & Rush, arXiv 1606.07947; Agarwal et al., arXiv 2306.13649 (GKD); Gu et al., arXiv 2306.08543 (MiniLLM).
"""

import torch
from torch import Tensor

from ...checks import check_floating
from .trrd import check_tokens

__all__ = ["minillm", "mixed_logp", "on_policy", "sequence_kd", "to_go"]


def sequence_kd(logp: Tensor, mask: Tensor) -> Tensor:
    """Sequence-level distillation: -log q(y) = -sum_t log q(y_t) of sequences y that the teacher wrote.

    Its mean over y ~ p is KL(p||q) of whole sequences, plus the teacher's entropy.

    Args:
        logp: [B, T], the student's log-probabilities of the teacher's tokens.
        mask: [B, T] bool, the tokens that count.

    Returns:
        [B], not divided by the length.

    Raises:
        ValueError: shapes that differ.
        TypeError: mask not bool.

    Example:
        >>> sequence_kd(torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[True, True, False]]))
        tensor([3.])

    Source: Kim & Rush, arXiv 1606.07947.
    """
    _check(mask, logp=logp)
    return -torch.where(mask, logp, 0.0).sum(-1)


def on_policy(n: int, share: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Which of n prompts the student answers, [n] bool, each with probability `share`; the rest have given answers.

    GKD draws once for a whole batch: that is n = 1. share = 0 is supervised distillation, 1 is purely on-policy. No gradient flows
    through the sampling: the student's answers are data.

    Raises:
        ValueError: share outside [0, 1], a negative n.

    Example:
        >>> on_policy(4, 1.0), on_policy(2, 0.0)
        (tensor([True, True, True, True]), tensor([False, False]))

    Source: Agarwal et al., arXiv 2306.13649, algorithm 1 (lambda).
    """
    if n < 0 or not 0 <= share <= 1:
        raise ValueError(f"got n = {n}, share = {share}; pass n >= 0 and a share in [0, 1]")
    return torch.rand(n, generator=generator) < share


def mixed_logp(teacher_logp: Tensor, student_logp: Tensor, *, share: float = 0.2) -> Tensor:
    """The law that MiniLLM samples from, log(share p + (1 - share) q), of any shape.

    Mixing the teacher in keeps the student from exploiting sequences that both models misjudge.

    Raises:
        ValueError: shapes that differ, share outside [0, 1].

    Example:
        >>> mixed_logp(torch.tensor([1.0, 0.0]).log(), torch.tensor([0.5, 0.5]).log(), share=0.5).exp()
        tensor([0.7500, 0.2500])

    Source: Gu et al., arXiv 2306.08543, teacher-mixed sampling.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: got {share}; pass a number in [0, 1]")
    check_tokens(teacher_logp=teacher_logp, student_logp=student_logp)
    if share in (0, 1):
        return teacher_logp if share else student_logp
    weight = torch.tensor([share, 1 - share], dtype=torch.float64).log().tolist()
    return torch.logaddexp(teacher_logp + weight[0], student_logp + weight[1])


def to_go(reward: Tensor, mask: Tensor, *, mean: bool = False) -> Tensor:
    """What is still to come after each token: sum of the later rewards of the sequence, or their mean.

        R_{t+1} = sum_{t' > t} r_t',    mean: divided by the number of later tokens (MiniLLM's length normalisation)

    Args:
        reward: [B, T].
        mask: [B, T] bool; masked tokens have no reward and no place in the count.
        mean: divide, so that long answers are not favoured for their length alone.

    Returns:
        [B, T]; 0 after the last token.

    Raises:
        ValueError: shapes that differ.
        TypeError: mask not bool.

    Example:
        >>> to_go(torch.tensor([[5.0, 1.0, 2.0, 7.0]]), torch.tensor([[True, True, True, False]]))
        tensor([[3., 2., 0., 0.]])

    Source: Gu et al., arXiv 2306.08543.
    """
    _check(mask, reward=reward)
    later = _later(torch.where(mask, reward, 0.0))
    return later / _later(mask.to(reward.dtype)).clamp_min(1) if mean else later


def _later(x: Tensor) -> Tensor:
    """[B, T]: the sum over later positions, added up from the end so that nothing cancels."""
    from_here = x.flip(-1).cumsum(-1).flip(-1)
    return torch.nn.functional.pad(from_here[..., 1:], (0, 1))


def minillm(
    student_logp: Tensor,
    teacher_logp: Tensor,
    sampler_logp: Tensor,
    single: Tensor,
    mask: Tensor,
    *,
    mean: bool = True,
) -> Tensor:
    """A loss per token whose gradient is MiniLLM's: w_t [ single_t - R_{t+1} log q(y_t) ], with w and R constants.

    Its value means nothing; its gradient, averaged over sampled sequences, is that of KL(q||p) if mean is False, the sampler is the
    student and `single` is KL(q_t||p_t). w_t = q(y_t)/sampler(y_t) is the paper's approximation of the product of such ratios over
    the sequence.

    Args:
        student_logp: [B, T], log q of the sampled tokens, with a gradient.
        teacher_logp: [B, T], log p of them.
        sampler_logp: [B, T], of the law that sampled them: the student's own, or `mixed_logp`.
        single: [B, T], KL(q||p) of the next-token laws at each position, with a gradient: `divergence(student, teacher)` or
            `linear_divergence(student, teacher)`.
        mask: [B, T] bool, the tokens that count.
        mean: length normalisation of R, as in `to_go`.

    Returns:
        [B, T], 0 where masked.

    Raises:
        ValueError: shapes that differ.
        TypeError: mask not bool, the others not floating.

    Example:
        >>> logq = torch.tensor([[-1.0, -1.0]], requires_grad=True)
        >>> logp, single, both = torch.tensor([[-2.0, -3.0]]), torch.zeros(1, 2), torch.tensor([[True, True]])
        >>> minillm(logq, logp, logq.detach(), single, both).sum().backward()
        >>> logq.grad                                       # -R: the second token's log p/q is -2
        tensor([[2., 0.]])

    Source: Gu et al., arXiv 2306.08543, section 2.2.
    """
    _check(mask, student_logp=student_logp, teacher_logp=teacher_logp, sampler_logp=sampler_logp, single=single)
    log_q = torch.where(mask, student_logp, 0.0)
    constant = log_q.detach()
    after = to_go(teacher_logp.detach() - constant, mask, mean=mean)
    weight = (constant - torch.where(mask, sampler_logp.detach(), 0.0)).exp()
    return torch.where(mask, weight * (torch.where(mask, single, 0.0) - after * log_q), 0.0)


def _check(mask: Tensor, **tensors: Tensor) -> None:
    check_tokens(**tensors)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: got dtype {mask.dtype}; pass a bool mask of the tokens that count")
    name, first = next(iter(tensors.items()))
    check_floating(name, first, "[B, T]")
    if mask.shape != first.shape or mask.dim() != 2:
        raise ValueError(f"mask: got shape {tuple(mask.shape)} for {tuple(first.shape)}; pass [B, T] everywhere")
