"""From scores to probabilities: softargmax, its value and its entropy, for any generator; the sigmoid and softplus of two classes.

    p = argmax_{p in simplex} <p, theta> - D_f(p||q),    p_j = q_j (f*)'(max(theta_j - tau, f'(0))),   tau such that p sums to one.

The threshold comes from an opaque solver (`solve`); derivatives are the implicit ones: dp = (diag(w) - w w^T / sum w) dtheta, w_j = q_j / f''(p_j/q_j) on
the support, and d value = <p, dtheta>. Reverse mode uses one autograd.Function, whose backward is a function of its own *output* p, so it can be
differentiated again. Compiled code and forward mode take two differentiable Newton steps from the solver's constant instead: one step would give right
first and silently wrong second derivatives, and so would a Function's jvp, which torch does not differentiate again.

Conventions. A logit of -inf means "not in the vocabulary". Values drop the constant f(0) (sum q - 1) that a token with p = 0 would add, so KL gives
logsumexp and a column of -inf equals a dropped one. Where f(0) is infinite the value is reported relative to its value at zero logits.
"""

from typing import Any

import torch
from torch import Tensor

from .agreement import Meeting, ProcessGroup, as_sharded, entries
from .checks import check_floating, check_positive, check_vocabulary, reference
from .generators import INF, Generator, generator, operator_of
from .solve import top_of
from .vocab import LOCAL, Vocabulary

__all__ = ["entropy", "sigmoid", "softargmax", "softmax_value", "softplus"]


def softargmax(
    logits: Tensor,
    generator: str | Generator = "kl",
    *,
    q: float | Tensor | None = None,
    temperature: float = 1.0,
    dim: int = -1,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The probabilities that maximise the expected score less the divergence from q.

    p = argmax_p <p, logits/T> - D_f(p||q). KL: softmax; alpha:1.5: entmax-1.5; alpha:2: sparsemax; sparse generators give exact zeros.

    Args:
        logits: [..., V] scores; -inf for a token outside the vocabulary. float16 and bfloat16 are computed in float32.
        generator: a name or a Generator.
        q: the reference measure: a number (default 1), [V], or the shape of logits; positive, constant, not necessarily normalised. For the alpha family
            (alpha != 1) its scale acts as a temperature.
        temperature: T > 0.
        dim: the vocabulary's dimension.
        group: the ranks that share the vocabulary; logits, and a q that is no number, are then this rank's shard (docs/parallel.md). Not needed for
            DTensors, which say it themselves.

    Returns:
        p, the shape and dtype of logits, sharded as they are. A row with NaN, +inf or only -inf logits is NaN.

    Raises:
        ValueError: an unknown generator, one without an operator (`tv`), an empty vocabulary, q or T not positive, a q that does not fit; ranks of a group
            that disagree, on each of them.
        TypeError: logits or q not floating.

    Example:
        >>> softargmax(torch.tensor([2.0, 1.0, -1.0]), "alpha:2")
        tensor([1., 0., 0.])
        >>> softargmax(torch.tensor([0.0, 0.0]), "kl", q=torch.tensor([3.0, 1.0]))
        tensor([0.7500, 0.2500])

    Source: Blondel, Martins & Niculae 2020 (Fenchel-Young losses); Roulet et al., arXiv 2501.18537, section 3.
    """
    rows, shape, dtype = _rows("softargmax", logits, generator, q, temperature, dim, group)
    p, _, _ = solve_rows(*rows)
    return as_sharded(p.to(dtype).view(shape).movedim(-1, dim), logits)


def softmax_value(
    logits: Tensor,
    generator: str | Generator = "kl",
    *,
    q: float | Tensor | None = None,
    temperature: float = 1.0,
    dim: int = -1,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The value of the maximum that softargmax attains: logsumexp for KL. Its gradient is softargmax(logits).

    T max_p <p, logits/T> - D_f(p||q), with the constant of the module's conventions dropped.

    Args and errors: as `softargmax`.

    Returns:
        [...], the shape of logits without `dim`.

    Example:
        >>> float(softmax_value(torch.zeros(4), "kl").exp())
        4.0
        >>> float(softmax_value(torch.tensor([3.0, 0.0]), "alpha:2"))
        3.0
    """
    rows, shape, dtype = _rows("softmax_value", logits, generator, q, temperature, dim, group)
    _, excess, best = solve_rows(*rows)
    return (temperature * (best + excess)).to(dtype).view(shape[:-1])


def entropy(
    logits: Tensor,
    generator: str | Generator = "kl",
    *,
    q: float | Tensor | None = None,
    temperature: float = 1.0,
    dim: int = -1,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The f-entropy of softargmax(logits): Shannon's for KL, Tsallis' for alpha:A (q = 1).

    H = f(0) (sum q - 1) - D_f(p||q) = value - <p, logits/T>; relative to the entropy at zero logits where f(0) is infinite.

    Args and errors: as `softargmax`. Returns [...].

    Example:
        >>> round(float(entropy(torch.zeros(8), "kl").exp()), 3)
        8.0
        >>> round(float(entropy(torch.zeros(2), "alpha:2")), 3)    # (1 - sum p^2) / 2
        0.25
    """
    rows, shape, dtype = _rows("entropy", logits, generator, q, temperature, dim, group)
    z, _, _, vocab = rows
    p, excess, best = solve_rows(*rows)
    below = torch.where(p > 0, best.unsqueeze(-1) - z, 0.0)
    return (excess + vocab.sum(p * below).squeeze(-1)).to(dtype).view(shape[:-1])


def sigmoid(
    logits: Tensor, generator: str | Generator = "kl", *, q: float | tuple[float, float] = 1.0, temperature: float = 1.0
) -> Tensor:
    """The probability of the second of two classes with scores (0, logits): the usual sigmoid for KL.

    Args:
        logits: any shape; a DTensor is worked on where its entries are.
        q: the reference measure of both classes, or (q0, q1).

    Example:
        >>> sigmoid(torch.tensor([-2.0, 0.0, 2.0]), "alpha:2")
        tensor([0.0000, 0.5000, 1.0000])

    Source: Roulet et al., arXiv 2501.18537 (f-sigmoid).
    """
    two, measure = _binary(logits, q)
    return as_sharded(softargmax(two, generator, q=measure, temperature=temperature)[..., 1], logits)


def softplus(
    logits: Tensor, generator: str | Generator = "kl", *, q: float | tuple[float, float] = 1.0, temperature: float = 1.0
) -> Tensor:
    """The value of two classes with scores (0, logits): the usual softplus for KL. Its gradient is `sigmoid`.

    Args: as `sigmoid`.

    Example:
        >>> softplus(torch.tensor([-2.0, 0.0, 2.0]), "alpha:2")
        tensor([0.0000, 0.2500, 2.0000])

    Source: Roulet et al., arXiv 2501.18537 (f-softplus).
    """
    two, measure = _binary(logits, q)
    return as_sharded(softmax_value(two, generator, q=measure, temperature=temperature), logits)


def _binary(logits: Tensor, q: float | tuple[float, float]) -> tuple[Tensor, Tensor]:
    check_floating("logits", logits, "of any shape")
    pair = q if isinstance(q, tuple) else (q, q)
    if len(pair) != 2:
        raise ValueError(f"q: got {q!r}; pass a positive number or a pair (q0, q1)")
    measure = torch.tensor([check_positive("q", x) for x in pair], dtype=logits.dtype, device=logits.device)
    own = entries("logits", logits)
    return torch.stack((torch.zeros_like(own), own), -1), measure


Rows = tuple[Tensor, Tensor, Generator, Vocabulary]


def _rows(
    call: str,
    logits: Tensor,
    name: str | Generator,
    q: float | Tensor | None,
    temperature: float,
    dim: int,
    group: ProcessGroup | None,
) -> tuple[Rows, tuple[int, ...], torch.dtype]:
    """The arguments of `solve_rows`, the shape with the vocabulary last, and the dtype to return."""
    with Meeting(group) as meeting:
        check_floating("logits", logits, "[..., V]")
        if logits.dim() == 0:
            check_vocabulary("logits", logits)
        if not -logits.dim() <= dim < logits.dim():
            raise ValueError(
                f"dim: got {dim} for logits of shape {tuple(logits.shape)}; pass {-logits.dim()} to {logits.dim() - 1}"
            )
        logits = meeting.shard("logits", logits, dim)
        q = meeting.shard("q", q, dim if isinstance(q, Tensor) and q.dim() > 1 else 0)
        g = generator(name)
        operator_of(g)
        last = logits.movedim(dim, -1)
        check_vocabulary("logits", last)
        if isinstance(q, Tensor) and q.shape == logits.shape and q.dim() > 1:
            q = q.movedim(dim, -1)
        inside = working_dtype(g, logits.dtype)
        temperature = check_positive("temperature", temperature)
        measure = reference(q, last, inside)
        vocab = meeting.agree(
            last.shape[-1],
            call=call,
            generator=g,
            rows=last.shape[:-1],
            dtype=logits.dtype,
            temperature=temperature,
            q=measure,
            derivative=torch.is_grad_enabled() and logits.requires_grad,
        )
    z = last.reshape(-1, last.shape[-1]).to(inside)
    return (z if temperature == 1 else z / temperature, measure, g, vocab), tuple(last.shape), logits.dtype


def working_dtype(g: Generator, dtype: torch.dtype) -> torch.dtype:
    """What rows of a dtype are computed in: float32 at least, float64 where the generator asks for it."""
    return torch.float64 if g.double or dtype == torch.float64 else torch.float32


def plain_derivatives() -> bool:
    """Where derivatives must come from plain torch operations: under a compiler and in forward mode."""
    return torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0


def solve_rows(z: Tensor, q: Tensor, g: Generator, vocab: Vocabulary = LOCAL) -> tuple[Tensor, Tensor, Tensor]:
    """p [N, V], value - best [N], and best = max(z) as a constant [N]; differentiable to any order in z.

    value - best rather than value: a loss subtracts the target's logit from the best one first, which is exact at any magnitude.
    """
    if plain_derivatives():
        return _by_newton(z, q, g, vocab)
    p, excess, best = _Solve.apply(z, q, g, vocab)  # pyright: ignore[reportGeneralTypeIssues]
    return p, excess, best


def evaluate(d: Tensor, top: Tensor, q: Tensor, g: Generator, vocab: Vocabulary = LOCAL) -> tuple[Tensor, Tensor]:
    """p and value - best at a threshold that is right but for rounding."""
    op = operator_of(g)
    u = op.unlink(top - d)
    p = polish(q * u, q * op.spread(u), vocab)
    return p, excess_of(d, u, d < INF if g.f0 == INF else None, top, q, g, vocab)


def polish(p: Tensor, w: Tensor, vocab: Vocabulary = LOCAL) -> Tensor:
    """p after one Newton step that is taken on p itself: it removes the quantisation of the threshold (for KL it is p / sum p)."""
    mass, spread = vocab.sums(p, w)
    return (p + w * vocab.spread((1 - mass) / spread)).clamp_min(0.0)


def excess_of(
    d: Tensor, u: Tensor, live: Tensor | None, top: Tensor, q: Tensor, g: Generator, vocab: Vocabulary = LOCAL
) -> Tensor:
    """value - best, [N]. Stationary in top: its rounding does not matter.

    dual is summed per entry, since f* would cancel against f(0). Where f(0) is infinite even that cancels (by V^(1 - alpha)), and the value relative to
    zero logits is summed as -<p, d> less the Bregman divergence of u from its value at zero logits.

    Args:
        live: the entries to count, with u > 0 there (None: all; needed where f(0) is infinite).
    """
    if g.f0 < INF:
        return excess_at(vocab.sum(gains(d, u, live, top, q, None, g)), None, top, None, g).squeeze(-1)
    assert live is not None
    flat = 1 / vocab.sum(torch.where(live, q, 0.0))
    p = torch.where(live, q * torch.where(live, u, 1.0), 0.0)
    mass, gain = vocab.sums(p, gains(d, u, live, top, q, flat, g))
    return excess_at(gain, mass, top, flat, g).squeeze(-1)


def gains(
    d: Tensor, u: Tensor, live: Tensor | None, top: Tensor, q: Tensor, flat: Tensor | None, g: Generator
) -> Tensor:
    """What each entry adds to value - best, u = unlink(top - d); flat: u at zero logits, where f(0) is infinite."""
    safe = u if live is None else torch.where(live, u, 1.0)
    if flat is None:
        gain = q * operator_of(g).dual(safe)
    else:
        near = d if live is None else torch.where(live, d, 0.0)
        gain = -q * (safe * near + _bregman(safe, top - near, flat, g))
    return gain if live is None else torch.where(live, gain, 0.0)


def excess_at(gain: Tensor, mass: Tensor | None, top: Tensor, flat: Tensor | None, g: Generator) -> Tensor:
    """value - best from the sums of `gains` and, where f(0) is infinite, of p; elementwise over rows."""
    if mass is None or flat is None:
        return gain + (g.link_one - g.f0 - top)
    return gain + (mass - 1) * (top - g.link(torch.log(flat)))


def _bregman(u: Tensor, w: Tensor, v: Tensor, g: Generator) -> Tensor:
    """f(u) - f(v) - f'(v) (u - v) >= 0, w = f'(u), by its Taylor series near u = v, where the terms would cancel."""
    op, gap = operator_of(g), u - v
    near = gap.square() / (2 * op.spread(v + gap / 3))
    far = u * (w - g.link(torch.log(v))) - (op.dual(u) - op.dual(v))
    return torch.where(gap.abs() < 1e-3 * v, near, far)


def weights(u: Tensor, q: Tensor, g: Generator) -> Tensor:
    """w = q / f''(u) on the support, differentiable: the diagonal part of dp/dtheta. (A power of u = 0 has no derivative to multiply by 0.)"""
    return torch.where(u > 0, q * operator_of(g).spread(torch.where(u > 0, u, 1.0)), 0.0)


def jacobian(p: Tensor, direction: Tensor, q: Tensor, g: Generator, vocab: Vocabulary = LOCAL) -> Tensor:
    """(diag(w) - w w^T / sum w) direction; symmetric, so the same for jvp and vjp."""
    w = weights(p / q, q, g)
    along, total = vocab.sums(w * direction, w)
    return w * (direction - vocab.spread(along / total))


class _Solve(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, q: Tensor, g: Generator, vocab: Vocabulary) -> tuple[Tensor, Tensor, Tensor]:
        best = vocab.amax(z)
        d = best - z
        p, excess = evaluate(d, top_of(d, q, g.handle, *vocab.numbers), q, g, vocab)
        return p, excess, best.squeeze(-1)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Generator, Vocabulary], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        _, q, ctx.g, ctx.vocab = inputs
        ctx.save_for_backward(output[0], q)
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx: Any, dp: Tensor, dvalue: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        p, q = ctx.saved_tensors
        through_p = jacobian(p, dp, q, ctx.g, ctx.vocab)
        return through_p + ctx.vocab.spread(dvalue.unsqueeze(-1)) * p, None, None, None


def _by_newton(z: Tensor, q: Tensor, g: Generator, vocab: Vocabulary = LOCAL) -> tuple[Tensor, Tensor, Tensor]:
    op = operator_of(g)
    best = vocab.amax(z.detach())
    far = best - z.detach()
    top = top_of(far, q, g.handle, *vocab.numbers)
    # tokens whose probability is 0 are constants: differentiating through them would make 0 * inf
    live = op.unlink(top - far) > 0
    d = torch.where(live, best - z, 0.0)
    u = torch.where(live, op.unlink(top - d), 0.0)
    mass, spread = vocab.sums(q * u, weights(u, q, g))
    top = top + (1 - mass) / spread
    u = torch.where(live, op.unlink(vocab.spread(top) - d), 0.0)
    return polish(q * u, weights(u, q, g), vocab), excess_of(d, u, live, top, q, g, vocab), best.squeeze(-1)
