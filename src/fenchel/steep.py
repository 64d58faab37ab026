"""The threshold where f' is flat at 0 (alpha > 2): the probability of a token jumps up as it enters the support, and Newton's tangents mislead.

Bisection on the threshold stops where no token lies between its ends: then it is known which token was the last to enter. Between that one and the next, S is
close to linear in the last one's own u, and Newton on u, kept in its bracket, takes a few steps. The middle is that of the numbers for as many steps as they
have digits, which finds the last of V tokens that are spread out in about log2(V); then that of their bit patterns, of which there are few however close the
tokens are.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .generators import Generator, operator_of
from .vocab import LOCAL, Vocabulary

STEPS = 22


def steep_top(
    d: Tensor,
    q: Tensor,
    g: Generator,
    high: Tensor,
    evaluate: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]],
    vocab: Vocabulary = LOCAL,
) -> tuple[Tensor, int]:
    """top [N, 1] as `solve.threshold` finds it, and the evaluations taken.

    Args:
        high: the right end of the bracket.
        evaluate: `solve.sums` over the whole vocabulary, of d, a threshold and q.
    """
    last, used = _last_to_enter(d, q, g, high, evaluate)
    [newest] = vocab.maxima(torch.where(d <= last, d, 0.0))
    [following] = vocab.maxima(torch.where(d > last, -d, -torch.inf))
    ceiling = torch.minimum(high, g.edge - following)
    op = operator_of(g)
    tiny = torch.finfo(d.dtype).tiny
    low, u = torch.zeros_like(newest), op.unlink(ceiling - newest)
    end, top = u, ceiling
    for _ in range(STEPS):
        mass, spread, _ = evaluate(d, top, q)
        used += 1
        low, end = torch.where(mass < 1, u, low), torch.where(mass < 1, end, u)
        new = u - (mass - 1) * op.spread(u.clamp_min(tiny)) / spread
        new = torch.where((new > low) & (new < end), new, (low + end) / 2)
        if bool((~((mass - 1).abs() > 1e-13) | (end - low <= 1e-15 * end)).all()):
            break
        u = torch.where((mass - 1).abs() > 1e-13, new, u)
        top = newest + g.link(torch.log(u.clamp_min(tiny)))
    # the newest token's u may be lost in the rounding of top; as long as it is in the support, `operators.polish` restores it
    return torch.maximum(top, torch.nextafter(g.edge + newest, torch.full_like(newest, torch.inf))), used


def _last_to_enter(
    d: Tensor, q: Tensor, g: Generator, high: Tensor, evaluate: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, int]:
    """[N, 1], a distance at which S < 1 and above which the first token has S >= 1; and the evaluations taken.

    Distances are not negative, so their bit patterns are ordered as they are.
    """
    bits, digits = (torch.int64, 52) if d.dtype == torch.float64 else (torch.int32, 23)
    # with top at the smallest distance of all, those at 0 are in: S < 1 unless they are enough
    low, high = torch.zeros_like(high), high - g.edge
    middle = low.view(bits).add(1).view(d.dtype)
    _, _, above = evaluate(d, g.edge + high, q)
    below = torch.zeros_like(above)
    used = 1
    for step in range(digits + 8 * d.element_size() + 2):
        mass, _, support = evaluate(d, g.edge + middle, q)
        used += 1
        enters = mass < 1
        low, below = torch.where(enters, middle, low), torch.where(enters, support, below)
        high, above = torch.where(enters, high, middle), torch.where(enters, above, support)
        ends = low.view(bits), high.view(bits)
        if bool(((below == above) | (ends[1] - ends[0] <= 1) | mass.isnan()).all()):
            break
        middle = (low + high) / 2 if step < digits else (ends[0] + (ends[1] - ends[0]) // 2).view(d.dtype)
    return low, used
