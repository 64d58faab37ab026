"""Reward and teacher in one on-policy objective: J = J_GRPO - beta KL(pi||pi_T), and the estimators of that KL.

From tokens that the student sampled, with d = log pi - log pi_T:

    name   per token        its mean               its mean gradient, used as a loss on-policy
    k1     d                KL(pi||pi_T)           0: E[grad log pi] = 0, nothing is learned
    k2     d^2 / 2          another divergence     grad KL(pi||pi_T)
    k3     e^-d + d - 1     KL(pi||pi_T)           grad KL(pi_T||pi): the other direction
    score  sg(d) pi/pi_old  KL(pi||pi_T)           grad KL(pi||pi_T), off-policy too

(sg: no gradient. k3's means hold where pi covers pi_T: what pi_T says outside is never sampled.) So an estimator that
is right as a number may be wrong as a loss. `KDRL` takes k2, k3 and score, and refuses k1.

Laws (tested): the table, by summing over all tokens of a policy; the gradient of k2 is (A - beta d) grad log pi's
share of d; on-policy, the score form has the gradient of k2 to the last bit; beta = 0 is PPO.

Source: KDRL, arXiv 2506.02208; the names k1, k2, k3 are J. Schulman's (Approximating KL divergence, 2020).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .trrd import check_tokens, clipped_surrogate

__all__ = ["ESTIMATORS", "KDRL", "anneal", "kl_estimate", "unsolved"]

ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda d: d,
    "k2": lambda d: d.square() / 2,
    "k3": lambda d: (-d).expm1() + d,
}
_AS_LOSS = ("k2", "k3", "score")


def kl_estimate(logp: Tensor, teacher_logp: Tensor, estimator: str = "k3") -> Tensor:
    """An estimate of KL(pi||pi_T) per token that pi sampled. As a number; what it is as a loss, the module's table says.

    Args:
        logp, teacher_logp: [...], log-probabilities of the sampled tokens.
        estimator: "k1" (unbiased, may be negative), "k2" (biased, never negative), "k3" (unbiased, never negative).

    Returns:
        [...]. +inf or NaN where the teacher excludes a token that was sampled.

    Raises:
        ValueError: shapes that differ, an unknown estimator.

    Example:
        >>> logp, teacher = torch.tensor([-1.0]), torch.tensor([-1.5])
        >>> [round(float(kl_estimate(logp, teacher, k)), 4) for k in ESTIMATORS]
        [0.5, 0.125, 0.1065]

    Source: J. Schulman, Approximating KL divergence, 2020.
    """
    check_tokens(logp=logp, teacher_logp=teacher_logp)
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: got {estimator!r}; pass one of {', '.join(map(repr, ESTIMATORS))}")
    return ESTIMATORS[estimator](logp - teacher_logp)


@dataclass(frozen=True)
class KDRL:
    """The clipped policy-gradient loss of the reward, plus beta times the KL to the teacher, one number per token.

    Fields:
        beta: >= 0, the weight of the teacher; `anneal` gives the paper's schedule.
        estimator: "k2", "k3" or "score".
        clip, cap: of the reward's part, as in `clipped_surrogate`.

    Raises:
        ValueError: a negative beta, an unknown estimator, or "k1", whose gradient is zero in expectation.

    Example:
        >>> logp = torch.tensor([-1.0, -2.0], requires_grad=True)
        >>> old, teacher, advantage = logp.detach(), torch.tensor([-0.5, -3.0]), torch.tensor([1.0, -1.0])
        >>> KDRL(beta=0.1).rows(logp, old, teacher, advantage).sum().backward()
        >>> logp.grad                                       # -(A - beta d), d = (-0.5, 1)
        tensor([-1.0500,  1.1000])

    Source: arXiv 2506.02208. The estimators and the reward-guided masks are those that its abstract and its authors'
    accounts name; how the original masks in detail is not settled, see `unsolved`.
    """

    beta: float = 5e-3
    estimator: str = "k2"
    clip: float = 0.2
    cap: float | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta: got {self.beta}; pass a finite number >= 0")
        if self.estimator == "k1":
            raise ValueError(
                "estimator: got 'k1', whose gradient as a loss is E[grad log pi] = 0 on-policy; "
                "pass 'k2', or 'score', which has the gradient that k1 was meant to have"
            )
        if self.estimator not in _AS_LOSS:
            raise ValueError(f"estimator: got {self.estimator!r}; pass one of {', '.join(map(repr, _AS_LOSS))}")

    def rows(
        self,
        logp: Tensor,
        old_logp: Tensor,
        teacher_logp: Tensor,
        advantage: Tensor,
        *,
        distil: Tensor | None = None,
    ) -> Tensor:
        """The loss of each token, [...].

        Args:
            logp: log pi of the sampled tokens; the only one with a gradient.
            old_logp: of the policy that sampled them.
            teacher_logp: of the teacher.
            advantage: of the reward, per token.
            distil: [...] bool, the tokens that the teacher teaches; None: all. Elsewhere the teacher's log-probabilities are not used.

        Raises:
            ValueError: shapes that differ.
            TypeError: distil not bool.
        """
        check_tokens(logp=logp, old_logp=old_logp, teacher_logp=teacher_logp, advantage=advantage)
        reward = clipped_surrogate(logp - old_logp, advantage, clip=self.clip, cap=self.cap)
        if distil is None:
            return reward + self.beta * self._teacher(logp, old_logp, teacher_logp)
        if distil.dtype != torch.bool:
            raise TypeError(f"distil: got dtype {distil.dtype}; pass a bool mask")
        if distil.shape != logp.shape:
            raise ValueError(f"distil: got shape {tuple(distil.shape)}; pass {tuple(logp.shape)}")
        # the inner where keeps a teacher's -inf out of the gradient of the tokens that it does not teach
        taught = torch.where(distil, teacher_logp, logp.detach())
        return reward + self.beta * torch.where(distil, self._teacher(logp, old_logp, taught), 0.0)

    def _teacher(self, logp: Tensor, old_logp: Tensor, teacher_logp: Tensor) -> Tensor:
        if self.estimator == "score":
            return (logp - teacher_logp).detach() * (logp - old_logp).exp()
        return kl_estimate(logp, teacher_logp, self.estimator)


def anneal(step: int, steps: int, *, start: float = 5e-3, end: float = 1e-3) -> float:
    """The weight of the teacher at a step: linear from start to end over `steps`, then end.

    Raises:
        ValueError: a negative step, or steps < 1.

    Example:
        >>> [round(anneal(s, 100), 4) for s in (0, 50, 100, 1000)]
        [0.005, 0.003, 0.001, 0.001]

    Source: KDRL, arXiv 2506.02208: 5e-3 to 1e-3.
    """
    if step < 0 or steps < 1:
        raise ValueError(f"got step {step} of {steps}; pass step >= 0 and steps >= 1")
    return start + (end - start) * min(step / steps, 1.0)


def unsolved(reward: Tensor, *, level: float = 0.5) -> Tensor:
    """The mask of reward-guided distillation: True where the reward is below `level`, bool [...].

    The teacher teaches what the student got wrong; correct answers are left to the reward. Expand it from sequences to tokens.

    Example:
        >>> unsolved(torch.tensor([1.0, 0.0]))
        tensor([False,  True])

    Source: arXiv 2506.02208, reward-guided strategies.
    """
    return reward < level
