"""Sinkhorn distillation: the entropic transport cost between a batch of students' distributions and the batch of teachers'.

The plan is found in the log domain, and differentiated at its fixed point: no iteration is kept, and derivatives of any order are those of the plan
itself, not of a truncated iteration.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...checks import check_floating, check_positive

__all__ = ["SinKD", "sinkhorn_plan"]

# the largest relative error of a marginal that counts as converged
TOLERANCE = 1e-10
# sweeps at each epsilon, Newton steps at the last one, and their sizes
SWEEPS, STEPS, STEP_SIZES = 5, 200, (8.0, 2.0, 1.0, 0.5, 0.125)


@dataclass(frozen=True)
class SinKD:
    """factor <P, W>,  W_ij = sum_v |s_i(v) - t_j(v)|,  P = argmin <P, W> - epsilon H(P) over plans with uniform marginals 1/B.

    s_i, t_j = softmax(logits / T) of the rows i, j of one batch: a teacher's row counts for all students' rows that are near it. As epsilon -> 0 the value
    is the cost of the best matching of the two batches; as epsilon -> inf the mean of W. It is not 0 for a student that is its teacher, because a plan
    of epsilon > 0 is not a matching; there it is at most epsilon log B.

    The authors' code has marginals of ones (its loss is B times this), 20 alternating normalisations of exp(-W/epsilon), through which it differentiates,
    and T = 2 whatever its option says.

    Attributes:
        epsilon: > 0.
        temperature: T > 0, divides both models' logits.
        factor: > 0, multiplies.

    Example:
        >>> teacher, student = torch.randn(8, 50), torch.randn(8, 50, requires_grad=True)
        >>> SinKD(epsilon=0.1, temperature=2.0)(teacher, student).backward()

    Source: Cui et al., arXiv 2402.17110; epsilon = 0.1 and T = 2 are theirs.
    """

    epsilon: float = 0.1
    temperature: float = 1.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epsilon", "temperature", "factor"):
            check_positive(name, getattr(self, name))

    def __call__(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The loss of a batch, a scalar; of several, [...].

        Args:
            teacher, student: logits [..., B, V]; the two batches may differ in size. -inf for a class outside the vocabulary. Gradients flow to both:
                detach the teacher's.

        Raises:
            ValueError: shapes that do not fit, an empty batch.
            TypeError: logits not floating.
            RuntimeError: as `sinkhorn_plan`.
        """
        for name, logits in (("teacher", teacher), ("student", student)):
            check_floating(name, logits, "[..., B, V]")
            if logits.dim() < 2 or 0 in logits.shape[-2:]:
                raise ValueError(f"{name}: got shape {list(logits.shape)}; pass [..., B, V] with B, V >= 1")
        if teacher.shape[-1] != student.shape[-1] or teacher.shape[:-2] != student.shape[:-2]:
            raise ValueError(
                f"student: got shape {list(student.shape)}, the teacher's is {list(teacher.shape)}; pass batches over one vocabulary"
            )
        inside = torch.promote_types(torch.promote_types(teacher.dtype, student.dtype), torch.float32)
        t, s = (torch.softmax(z.to(inside) / self.temperature, -1) for z in (teacher, student))
        cost: Any = _Distance.apply(s, t)
        return self.factor * (sinkhorn_plan(cost, self.epsilon) * cost).sum((-2, -1))


class _Distance(torch.autograd.Function):
    """sum_v |a_i(v) - b_j(v)| [..., n, m] of a [..., n, V] and b [..., m, V]: torch's cdist, whose derivative has none of its own."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b, p=1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, Any]:
        a, b = ctx.saved_tensors
        return _Signs.apply(grad, a, b), _Signs.apply(grad.transpose(-1, -2), b, a)


class _Signs(torch.autograd.Function):
    """sum_j g_ij sign(a_i - b_j) [..., n, V]: linear in g [..., n, m], almost everywhere constant in a and b."""

    @staticmethod
    def forward(grad: Tensor, a: Tensor, b: Tensor) -> Tensor:
        rows = [(grad[..., i, None, :] @ signs).squeeze(-2) for i, signs in _signs(a, b)]
        return torch.stack(rows, -2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        rows = [(signs @ grad[..., i, :, None]).squeeze(-1) for i, signs in _signs(*ctx.saved_tensors)]
        return torch.stack(rows, -2), None, None


def _signs(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    # a row of a at a time: [..., m, V], never [..., n, m, V]
    for i in range(a.shape[-2]):
        yield i, torch.sign(a[..., i, None, :] - b)


def sinkhorn_plan(cost: Tensor, epsilon: float) -> Tensor:
    """The entropic transport plan P = argmin <P, C> - epsilon H(P) over P >= 0 with row sums 1/n and column sums 1/m.

    P_ij = exp((f_i + g_j - C_ij) / epsilon), with potentials f, g by alternating log-sum-exp in float64, epsilon falling to its value from the spread of
    the costs. The derivative is that of the fixed point: with dP = P (df_i + dg_j - dC_ij) / epsilon, the marginals of dP are zero, which determines
    df, dg: a linear system of size m.

    Args:
        cost: [..., n, m], finite.
        epsilon: > 0, in the units of the cost.

    Returns:
        [..., n, m], in the dtype of cost. Derivatives of any order.

    Raises:
        ValueError: a cost that is not finite, an empty one, epsilon not positive.
        TypeError: cost not floating.
        RuntimeError: no convergence: epsilon is too small for these costs.

    Example:
        >>> plan = sinkhorn_plan(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 0.05)
        >>> plan.round(decimals=4)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])

    Source: Cuturi, arXiv 1306.0895; Schmitzer, arXiv 1610.06519 (log domain, epsilon scaling); the derivative by the implicit function theorem.
    """
    check_floating("cost", cost, "[..., n, m]")
    if cost.dim() < 2 or 0 in cost.shape:
        raise ValueError(f"cost: got shape {list(cost.shape)}; pass [..., n, m] with n, m >= 1")
    epsilon = check_positive("epsilon", epsilon)
    if not bool(cost.isfinite().all()):
        raise ValueError("cost: got an entry that is not finite; pass finite costs")
    plan: Any = _Plan.apply(cost.double(), epsilon)
    return plan.to(cost.dtype)


class _Plan(torch.autograd.Function):
    @staticmethod
    def forward(cost: Tensor, epsilon: float) -> Tensor:
        return _solve(cost, epsilon)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.epsilon = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (plan,) = ctx.saved_tensors
        return _pull(plan, grad) / ctx.epsilon, None


def _solve(cost: Tensor, epsilon: float) -> Tensor:
    """Sweeps at falling epsilon, then Newton steps on the concave semi-dual in g, each kept only where it helps, with a sweep between them."""
    m = cost.shape[-1]
    spread = float(cost.max() - cost.min())
    g = cost.new_zeros(*cost.shape[:-2], 1, m)
    coarse = [epsilon * 2.0**k for k in range(1, 64) if epsilon * 2.0**k < spread]
    for eps in [*reversed(coarse), epsilon]:
        for _ in range(SWEEPS):
            g = _swept(cost, g, eps)
    now = _State.at(cost, g, epsilon)
    for _ in range(STEPS):
        if bool((now.error <= TOLERANCE).all()):
            return now.plan
        direction = torch.linalg.solve(_schur(now.plan), (1 / m - now.plan.sum(-2)).unsqueeze(-1))
        # a matching leaves the potentials of its parts open, and Newton's step is then any length: the plan is exponential in it
        direction = direction * (epsilon / direction.abs().amax(-2, keepdim=True).clamp_min(1.0))
        best = _State.at(cost, _swept(cost, now.g, epsilon), epsilon)
        for size in STEP_SIZES:
            best = best.or_better(_State.at(cost, now.g + size * direction.transpose(-1, -2), epsilon), epsilon)
        now = best
    raise RuntimeError(
        f"sinkhorn_plan: the marginals are met to {float(now.error.max()):.1e} only; epsilon = {epsilon} is too small for costs with a spread of {spread:.3g}"
    )


def _swept(cost: Tensor, g: Tensor, epsilon: float) -> Tensor:
    f = _row_potential(cost, g, epsilon)
    return -epsilon * (torch.logsumexp((f - cost) / epsilon, -2, keepdim=True) + math.log(cost.shape[-1]))


def _row_potential(cost: Tensor, g: Tensor, epsilon: float) -> Tensor:
    return -epsilon * (torch.logsumexp((g - cost) / epsilon, -1, keepdim=True) + math.log(cost.shape[-2]))


@dataclass(frozen=True)
class _State:
    """A column potential g, the plan whose row sums are exact, the largest relative error [...] of its column sums, and the semi-dual value [...] at g."""

    g: Tensor
    plan: Tensor
    error: Tensor
    value: Tensor

    @staticmethod
    def at(cost: Tensor, g: Tensor, epsilon: float) -> "_State":
        f = _row_potential(cost, g, epsilon)
        plan = torch.exp((f + g - cost) / epsilon)
        error = (plan.sum(-2) * cost.shape[-1] - 1).abs().amax(-1)
        return _State(g, plan, error, f.mean((-2, -1)) + g.mean((-2, -1)))

    def or_better(self, other: "_State", epsilon: float) -> "_State":
        """The higher of the two; where rounding hides which that is, the one with the smaller error."""
        gain = (other.value - self.value) / epsilon
        better = (gain > 1e-10) | ((gain > -1e-10) & (other.error < self.error))
        wide = better[..., None, None]
        return _State(
            torch.where(wide, other.g, self.g),
            torch.where(wide, other.plan, self.plan),
            torch.where(better, other.error, self.error),
            torch.where(better, other.value, self.value),
        )


def _schur(plan: Tensor) -> Tensor:
    """diag(P'1) - P' diag(1/P1) P [..., m, m]: the Laplacian of a graph, so >= 0.

    Its kernel is the constants, which a rank-one term fixes; of a near-matching the kernel is nearly larger, and a small multiple of the unit matrix
    keeps what is solved for at zero there.
    """
    m = plan.shape[-1]
    across = plan.transpose(-1, -2) @ (plan / plan.sum(-1, keepdim=True))
    eye = torch.eye(m, dtype=plan.dtype, device=plan.device)
    return torch.diag_embed(across.sum(-1)) - across + 1e-14 / m * eye + 1 / m**2


def _pull(plan: Tensor, grad: Tensor) -> Tensor:
    """P (x_i + y_j - grad), where x, y solve n^-1 x + P y = (P grad) 1 and P' x + m^-1 y = (P grad)' 1, up to x + const, y - const."""
    n = plan.shape[-2]
    weighted = plan * grad
    u, v = weighted.sum(-1, keepdim=True), weighted.sum(-2).unsqueeze(-1)
    y = torch.linalg.solve(_schur(plan), v - n * plan.transpose(-1, -2) @ u)
    x = n * (u - plan @ y)
    return plan * (x + y.transpose(-1, -2) - grad)
