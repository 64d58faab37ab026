"""Universal self-knowledge distillation: soft labels made of the model's own outputs, without a teacher."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ...checks import check_weight
from ...terms import FAR
from .objective import log_softmax, log_softmax_others, others

__all__ = ["USKD"]


@dataclass(frozen=True)
class USKD:
    """alpha w (-log s_y) + beta (-sum_{j != y} z_j log N(s)_j) + mu CE(smoothed y, weak), and how the soft labels w and z are made.

    s = softmax of the model's logits, weak = softmax of an auxiliary head on a middle layer, N(p)_j = p_j / (1 - p_y). The target's label is
    w = s_y^2 + 1 - mean(s_y^2), the mean over the batch; the other classes have Zipf's law, z_j = (1 / r_j) / sum_k (1 / r_k), r_j the rank of j by
    N(s)_j + N(weak)_j. Both are constants: no gradient flows through them.

    w needs a whole batch, so this is not a row objective: `weight` makes w from the batch, `rows` takes it as an argument, and `linear_pair_rows` runs
    it on two heads whose logits are never stored.

    The authors' code ranks by log s where the paper has s, and lets the target take a rank; here it is the paper's.

    Attributes:
        alpha, beta, mu: the weights of the three terms, >= 0.
        smoothing: of the label of the auxiliary head, in [0, 1].

    Example:
        >>> weak, student, target = torch.randn(6, 10), torch.randn(6, 10), torch.randint(10, (6,))
        >>> loss = USKD()
        >>> w = loss.weight(student.log_softmax(-1).gather(-1, target[:, None])[:, 0])
        >>> loss.rows(weak, student, target, w).shape
        torch.Size([6])

    Source: Yang et al., arXiv 2303.13005; the defaults are the authors' on ImageNet.
    """

    alpha: float = 1.0
    beta: float = 0.1
    mu: float = 0.005
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            check_weight(field.name, getattr(self, field.name))
        if self.smoothing > 1:
            raise ValueError(f"smoothing: got {self.smoothing}; pass a number in [0, 1]")

    def weight(self, logp: Tensor) -> Tensor:
        """w [N] of a batch, from log s_y [N] (`linear_logp(...).logp` has it without logits)."""
        square = (2 * logp.detach()).exp()
        return square + 1 - square.mean()

    def rows(self, weak: Tensor, student: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """The loss of each row [N]; logits [N, V] of the auxiliary head and of the model, classes [N], w [N]."""
        y = target.unsqueeze(-1)
        log_s, log_w = log_softmax(student), log_softmax(weak)
        log_n, log_weak, some = log_softmax_others(student, weak, target, 1.0)
        # the other classes that the model has; the target and what is masked come last, with no share
        score = torch.where(others(student, target) > -math.inf, log_n.exp() + log_weak.exp(), -1.0).detach()
        rank = (score.argsort(-1, descending=True).argsort(-1) + 1).to(score.dtype)
        share = torch.where(score >= 0, 1 / rank, 0.0)
        share = share / share.sum(-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
        zipf = torch.where(some, -(share * log_n.clamp_min(-FAR)).sum(-1), 0.0)
        there = weak > -math.inf
        uniform = torch.where(there, log_w, 0.0).sum(-1) / there.sum(-1)
        smoothed = -(1 - self.smoothing) * log_w.gather(-1, y).squeeze(-1) - self.smoothing * uniform
        likelihood = -log_s.gather(-1, y).squeeze(-1)
        return self.alpha * weight.detach() * likelihood + self.beta * zipf + self.mu * smoothed
