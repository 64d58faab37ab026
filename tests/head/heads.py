"""The heads under test, each beside its dense twin, and the comparison of the two."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from fenchel import divergence, fenchel_young, linear_fenchel_young, linear_rows
from fenchel.head.divergence import linear_divergence
from fenchel.head.logp import linear_logp

N, D, V = 13, 6, 37
Function = Callable[..., Tensor]


def logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None = None, scale: float = 1.0
) -> Tensor:
    z = hidden @ weight.T
    z = z if bias is None else z + bias
    z = z * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


@dataclass(frozen=True)
class Head:
    """Rows of a head, [N] or [N, k]: fused(hidden, weight, bias, **arguments), and the same of logits.

    Other tensors are made from the shapes, in the dtype of hidden, and are the same for the same shapes.
    """

    name: str
    fused: Function
    dense: Function
    options: dict[str, Any] = field(default_factory=dict)


def targets(hidden: Tensor, v: int) -> Tensor:
    """Class indices for the rows of hidden, by what is in them: a permuted or split batch keeps its targets."""
    return (hidden.detach().double().nan_to_num().abs().sum(-1) * 1e3).long() % v


def other(hidden: Tensor, v: int) -> tuple[Tensor, Tensor]:
    """The teacher: narrower than the student, its hidden states made of the student's."""
    made = torch.Generator().manual_seed(5)
    mix = torch.randn(hidden.shape[-1], 4, generator=made, dtype=torch.float64)
    weight = torch.randn(v, 4, generator=made, dtype=torch.float64)
    # the same numbers in every dtype
    return tuple((x / 3).bfloat16().to(hidden.dtype) for x in (hidden.detach().double().nan_to_num() @ mix, weight))


def young(name: str) -> Head:
    def fused(h: Tensor, w: Tensor, b: Tensor | None, **more: Any) -> Tensor:
        return linear_fenchel_young(h, w, targets(h, len(w)), name, bias=b, reduction="none", **more)

    def dense(h: Tensor, w: Tensor, b: Tensor | None, **more: Any) -> Tensor:
        return fenchel_young(logits(h, w, b, **more), targets(h, len(w)), name, reduction="none")

    return Head(f"young {name}", fused, dense)


def logp() -> Head:
    def fused(h: Tensor, w: Tensor, b: Tensor | None, **more: Any) -> Tensor:
        out = linear_logp(h, w, targets(h, len(w)), bias=b, **more)
        return torch.stack((out.logp, out.entropy, out.logsumexp), -1)

    def dense(h: Tensor, w: Tensor, b: Tensor | None, **more: Any) -> Tensor:
        return log_rows(logits(h, w, b, **more), targets(h, len(w)))

    return Head("logp", fused, dense)


def log_rows(z: Tensor, y: Tensor) -> Tensor:
    """log p of the target, entropy and logsumexp, by torch."""
    log_p = torch.log_softmax(z, -1)
    finite = torch.where(log_p == -torch.inf, 0.0, log_p)
    return torch.stack(
        (log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1), -(log_p.exp() * finite).sum(-1), torch.logsumexp(z, -1)), -1
    )


def distilled(name: str, teacher_first: bool = True) -> Head:
    def fused(
        h: Tensor, w: Tensor, b: Tensor | None, *, softcap: float | None = None, scale: float = 1.0, **more: Any
    ) -> Tensor:
        teacher, student = other(h, len(w)), (h, w, b)
        pair = (teacher, student) if teacher_first else (student, teacher)
        order = slice(None) if teacher_first else slice(None, None, -1)
        return linear_divergence(*pair, name, softcap=(None, softcap)[order], scale=(1.0, scale)[order], **more)

    def dense(h: Tensor, w: Tensor, b: Tensor | None, **more: Any) -> Tensor:
        teacher = other(h, len(w))
        pair = (teacher[0] @ teacher[1].T, logits(h, w, b, **more))
        return divergence(*(pair if teacher_first else pair[::-1]), name)

    return Head(f"divergence {name} {'of' if teacher_first else 'from'} a teacher", fused, dense)


def generic() -> Head:
    def spread(z: Tensor) -> Tensor:
        return torch.logsumexp(2 * z, -1) - z.mean(-1)

    def fused(h: Tensor, w: Tensor, b: Tensor | None, **more: Any) -> Tensor:
        return linear_rows(spread, h, w, bias=b, **more)

    return Head("rows", fused, lambda h, w, b, **more: spread(logits(h, w, b, **more)))


YOUNG = [young(name) for name in ("kl", "js", "alpha:1.5", "alpha:2", "reverse_kl")]
HEADS = [*YOUNG, logp(), distilled("js"), distilled("kl"), distilled("alpha:1.5", False), generic()]
FEW = [young("kl"), young("alpha:1.5"), logp(), distilled("js"), generic()]


def over(heads: list[Head]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("head", heads, ids=lambda head: head.name)


def parts(dtype: torch.dtype = torch.float64, n: int = N, d: int = D, v: int = V, seed: int = 0) -> list[Tensor]:
    """Hidden states, weight and bias that require gradients."""
    made = torch.Generator().manual_seed(seed)
    shapes = ((n, d), (v, d), (v,))
    return [(torch.randn(s, generator=made, dtype=torch.float64) / 2).to(dtype).requires_grad_() for s in shapes]


def derivatives(f: Function, tensors: list[Tensor], upstream: Tensor | None = None) -> list[Tensor]:
    """f's value and the gradients of <upstream, value> (of its sum without one)."""
    out = f(*tensors)
    total = (out * (1.0 if upstream is None else upstream.to(out.dtype))).sum()
    return [out.detach(), *torch.autograd.grad(total, tensors)]


def same(
    f: Function, g: Function, tensors: list[Tensor], upstream: Tensor | None = None, tolerance: float = 1e-10
) -> None:
    """Values and every gradient agree."""
    for got, want in zip(derivatives(f, tensors, upstream), derivatives(g, tensors, upstream), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


def no_worse(
    f: Function, dense: Function, tensors: list[Tensor], upstream: Tensor, usual: Function | None = None
) -> None:
    """|fused - exact| <= |usual - exact| + tolerance, for values and every gradient, elementwise.

    Exact: the dense computation in float64. Usual: torch's dense one in the same dtype, if nothing else is given.
    Tolerance: one rounding of the result in its own dtype, and of the largest result in float32 16 roundings, those of a
    sum over tens of entries.
    """
    wide = [t.detach().double().requires_grad_() for t in tensors]
    exact = derivatives(dense, wide, upstream)
    for got, other, want in zip(
        derivatives(f, tensors, upstream), derivatives(usual or dense, tensors, upstream), exact, strict=True
    ):
        own = torch.finfo(got.dtype).eps * want.abs()
        allowed = (other.double() - want).abs() + own + 16 * 2**-24 * (1 + want.abs().max())
        over = (got.double() - want).abs() / allowed
        assert bool((over <= 1).all()), f"{float(over.max()):.2f} of what is allowed"
