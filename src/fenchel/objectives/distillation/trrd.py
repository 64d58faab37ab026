"""Trust Region Ratio Distillation: PPO's clipped ratio, anchored to a mixture of the old policy and the teacher.

    r = (pi/pi_old)^a (pi/pi_T)^(1-a) = pi / (pi_old^a pi_T^(1-a)),    loss = -min(r A, clip(r, 1-e, 1+e) A)

Where the advantage A is positive, the pull ends once pi is 1+e times the anchor: the student follows the teacher there,
and no further. Where A is negative, it ends at 1-e times the anchor. There is no KL term to balance: what the teacher
likes is imitated only as far as the advantage agrees.

Everything is [...]-shaped: one number per token, log-probabilities of the sampled tokens. Laws (tested): a = 1 is PPO's
loss (GRPO's, with `group_advantage`) to the last bit; outside the trust region the gradient is zero; shifting the
anchor's log-probability by c is shifting log r by -c.

Source: RLAD/TRRD, arXiv 2602.22495. Its defaults are not in its abstract: a and e here are ours.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_floating, check_positive

__all__ = ["TRRD", "clipped_surrogate", "group_advantage"]


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, *, clip: float = 0.2, cap: float | None = None) -> Tensor:
    """PPO's loss of one token, -min(r A, clip(r, 1-e, 1+e) A) with r = exp(log_ratio).

    Args:
        log_ratio: [...], log of the new probability over the old one.
        advantage: [...], a constant: detach it if it is not.
        clip: e > 0.
        cap: for A < 0, the largest r that counts (dual clip; beyond it the loss is flat). None: no bound, and a loss of +inf where r is.

    Returns:
        [...], in the dtype of log_ratio.

    Raises:
        ValueError: shapes that differ, clip or cap not positive.

    Example:
        >>> clipped_surrogate(torch.tensor([0.5, 0.5]), torch.tensor([1.0, -1.0]))       # r = 1.65
        tensor([-1.2000,  1.6487])

    Source: Schulman et al., arXiv 1707.06347, equation 7; Ye et al., arXiv 1912.09729 (dual clip).
    """
    check_positive("clip", clip)
    check_tokens(log_ratio=log_ratio, advantage=advantage)
    # beyond the clip a ratio does not count, and beyond the cap neither: bounded before exp, so that no infinite ratio
    # (a teacher that excludes the token) turns a gradient of zero into NaN
    most = math.inf if cap is None else math.log(check_positive("cap", cap))
    ratio = torch.where(advantage < 0, log_ratio.clamp_max(most), log_ratio.clamp_max(math.log1p(clip) + 1)).exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantage, bounded * advantage)


def group_advantage(reward: Tensor, *, scale: bool = True, eps: float = 1e-6) -> Tensor:
    """GRPO's advantage: each reward less the mean of its group, over the group's standard deviation.

    Args:
        reward: [..., n], the last dimension being the n answers to one question.
        scale: False leaves the division out (Dr. GRPO).
        eps: added to the standard deviation. A group of equal rewards has the advantage 0.

    Raises:
        TypeError: reward not floating.
        ValueError: no answers.

    Example:
        >>> group_advantage(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
        tensor([[ 0.8660, -0.8660, -0.8660,  0.8660]])

    Source: Shao et al., arXiv 2402.03300; Liu et al., arXiv 2503.20783.
    """
    check_floating("reward", reward, "[..., n]")
    if reward.dim() == 0 or reward.shape[-1] == 0:
        raise ValueError(f"reward: got shape {tuple(reward.shape)}; pass [..., n] with at least one answer")
    centred = reward - reward.mean(-1, keepdim=True)
    if not scale:
        return centred
    # the standard deviation with n - 1; of one answer it is not defined, and the advantage is 0
    spread = (centred.square().sum(-1, keepdim=True) / max(reward.shape[-1] - 1, 1)).sqrt()
    return centred / (spread + eps)


@dataclass(frozen=True)
class TRRD:
    """Trust Region Ratio Distillation, one loss per token.

    Fields:
        alpha: the weight of the old policy in the anchor, in [0, 1]; 1 is PPO, 0 has the teacher alone as anchor.
        clip: e > 0, the width of the trust region.
        cap: as in `clipped_surrogate`; worth setting, since a teacher may give a sampled token any small probability.

    Raises:
        ValueError: alpha outside [0, 1], clip or cap not positive.

    Example:
        >>> logp = torch.tensor([-1.0], requires_grad=True)
        >>> old, teacher, advantage = torch.tensor([-1.0]), torch.tensor([-0.2]), torch.tensor([1.0])
        >>> TRRD(alpha=0.5).rows(logp, old, teacher, advantage)       # r = exp(-0.4): there is room towards the teacher
        tensor([-0.6703], grad_fn=<NegBackward0>)

    Source: arXiv 2602.22495.
    """

    alpha: float = 0.5
    clip: float = 0.2
    cap: float | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: got {self.alpha}; pass a number in [0, 1]")
        check_positive("clip", self.clip)
        if self.cap is not None:
            check_positive("cap", self.cap)

    def rows(self, logp: Tensor, old_logp: Tensor, teacher_logp: Tensor, advantage: Tensor) -> Tensor:
        """The loss of each token, [...]; gradients to logp, the other three are constants (detach them)."""
        check_tokens(logp=logp, old_logp=old_logp, teacher_logp=teacher_logp, advantage=advantage)
        # at the ends one of the two takes no part, -inf included
        if self.alpha == 1:
            anchor = old_logp
        elif self.alpha == 0:
            anchor = teacher_logp
        else:
            anchor = self.alpha * old_logp + (1 - self.alpha) * teacher_logp
        return clipped_surrogate(logp - anchor, advantage, clip=self.clip, cap=self.cap)


def check_tokens(**tensors: Tensor) -> None:
    """Raise unless all are floating (TypeError) and of one shape (ValueError)."""
    shapes = {name: tuple(check_floating(name, x, "[...]").shape) for name, x in tensors.items()}
    if len(set(shapes.values())) > 1:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"got {got}: pass one shape, a number per token")
