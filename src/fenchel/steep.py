"""The threshold where f' is flat at 0 (alpha > 2): the probability of a token jumps up as it enters the support, and Newton's tangents mislead.

The tokens' distances are sorted; bisection over *tokens* finds the last one to enter; between it and the next, S is close to linear in that token's own u,
and Newton on u, kept in its bracket, takes a few steps. At most log2(V) + 22 evaluations.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .generators import Generator, operator_of

STEPS = 22


def steep_top(
    d: Tensor, q: Tensor, g: Generator, high: Tensor, evaluate: Callable[..., tuple[Tensor, Tensor, Tensor]]
) -> tuple[Tensor, int]:
    """top [N, 1] as `solve.threshold` finds it, and the evaluations taken. high: the right end of the bracket."""
    ranked, order = d.sort(1)
    q = q if q.dim() == 0 else q.expand_as(d).gather(1, order)
    first, last = order.new_zeros(len(d), 1), order.new_full((len(d), 1), d.shape[1])
    used = 0
    while bool((last - first > 1).any()):
        middle = (first + last) // 2
        mass, _, _ = evaluate(ranked, g.edge + ranked.gather(1, middle), q, g)
        used += 1
        below = (mass < 1) & (middle > first)
        first, last = torch.where(below, middle, first), torch.where(below | (middle == first), last, middle)
    newest = ranked.gather(1, first)
    following = ranked.gather(1, last.clamp_max(d.shape[1] - 1))
    ceiling = torch.where(last < d.shape[1], torch.minimum(high, g.edge + following), high)
    op = operator_of(g)
    tiny = torch.finfo(d.dtype).tiny
    low, u = torch.zeros_like(newest), op.unlink(ceiling - newest)
    end, top = u, ceiling
    for _ in range(STEPS):
        mass, spread, _ = evaluate(ranked, top, q, g)
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
