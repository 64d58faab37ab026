"""Plackett-Luce distillation: the likelihood of the teacher's whole ranking of the classes, each choice weighted by the teacher's confidence."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...checks import check_positive
from ...head.rows import applied
from .objective import RowObjective, given, log_softmax

__all__ = ["PLD"]


@dataclass(frozen=True)
class PLD:
    """-factor sum_k t_{pi(k)} log( exp s_{pi(k)} / sum_{l >= k} exp s_{pi(l)} ),  t = softmax(teacher / T), s the student's logits.

    pi is the teacher's ranking with the true label first: y, then the other classes by falling teacher logit. Each factor is the probability, in the
    Plackett-Luce model, of choosing pi(k) among what is left. Convex in s, and unchanged by a constant added to s. It is a likelihood, not a divergence:
    not 0 at s = t. If t_y = 1 it is cross-entropy.

    Equal teacher logits keep the order of their classes. A class that the teacher excludes (-inf) comes last, with no weight: it stays in the sums, as a
    class that the true ranking leaves behind. A class that the student excludes too does not count.

    Time is O(V log V) for a row, memory O(V): no [V, V] array.

    Attributes:
        temperature: T > 0, for the teacher's weights alone; the ranking and the student's logits are as they are.
        factor: > 0, multiplies.

    Example:
        >>> t, s = torch.tensor([[2.0, 1.0, 0.0]]), torch.zeros(1, 3)
        >>> PLD(temperature=1e9).rows(t, s, torch.tensor([0]))  # equal weights and worths: (log 3 + log 2 + 0) / 3
        tensor([0.5973])

    Source: arXiv 2506.12542 (PLD); the authors use T = 4 on CIFAR-100 and add no cross-entropy.
    """

    temperature: float = 1.0
    factor: float = 1.0
    needs_target: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        check_positive("factor", self.factor)

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None) -> Tensor:
        """The loss of each row [N]; logits [N, V], classes [N]."""
        y = given(target).unsqueeze(-1)
        ranking = teacher.detach().scatter(-1, y, torch.inf).argsort(dim=-1, descending=True, stable=True)
        log_t = log_softmax(teacher, self.temperature).gather(-1, ranking)
        return self.factor * plackett_luce(log_t, student.gather(-1, ranking))


def plackett_luce(log_weight: Tensor, worth: Tensor) -> Tensor:
    """sum_k w_k (log sum_{l >= k} exp s_l - s_k) [N], from log w and s [N, V] in the order of the ranking."""
    # an excluded choice with no weight adds nothing, where 0 * inf would be NaN
    left = _suffix_logsumexp(worth)
    out = log_weight == -torch.inf
    gap = torch.where(out, 0.0, left) - torch.where(out, 0.0, worth)
    return (log_weight.exp() * gap).sum(-1)


def _suffix_logsumexp(x: Tensor) -> Tensor:
    """log sum_{l >= k} exp x_l, [N, V]."""
    return applied(_PrefixLogSumExp, x.flip(-1)).flip(-1)


# torch.logcumsumexp differentiates the logarithm of its upstream gradient, so its second derivatives are NaN where that is 0. Here the derivative and
# its transpose are linear functions with derivatives of their own: W_jk = exp(x_j - c_k) for j <= k, else 0, is between 0 and 1, and applying it is a
# scan of logarithms, once for each sign.


class _PrefixLogSumExp(torch.autograd.Function):
    """c_k = log sum_{j <= k} exp x_j."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.logcumsumexp(x, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return applied(_Pull, ctx.saved_tensors[0], grad)


class _Pull(torch.autograd.Function):
    """(W g)_j = sum_{k >= j} g_k exp(x_j - c_k)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, g: Tensor) -> Tensor:
        c = torch.logcumsumexp(x, -1)
        c = torch.where(c == -torch.inf, 0.0, c)
        scan = lambda size: torch.exp(x + torch.logcumsumexp((size - c).flip(-1), -1).flip(-1))
        return scan(g.clamp_min(0.0).log()) - scan((-g).clamp_min(0.0).log())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        x, g = ctx.saved_tensors
        pushed = applied(_Push, x, u)
        return u * applied(_Pull, x, g) - applied(_Pull, x, g * pushed), pushed


class _Push(torch.autograd.Function):
    """(W' u)_k = sum_{j <= k} u_j exp(x_j - c_k): the mean of u under the softmax of the first k."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, u: Tensor) -> Tensor:
        c = torch.logcumsumexp(x, -1)
        c = torch.where(c == -torch.inf, 0.0, c)
        scan = lambda size: torch.exp(torch.logcumsumexp(size + x, -1) - c)
        return scan(u.clamp_min(0.0).log()) - scan((-u).clamp_min(0.0).log())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:
        x, u = ctx.saved_tensors
        pulled = applied(_Pull, x, v)
        return u * pulled - applied(_Pull, x, v * applied(_Push, x, u)), pulled


OBJECTIVES: dict[str, Callable[..., RowObjective]] = {"pld": PLD}
