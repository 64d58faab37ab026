"""The threshold tau: for each row the number at which the probabilities sum to one.

With d_j = max(logits) - logits_j >= 0 the probabilities are p_j = q_j unlink(top - d_j), and one number a row is unknown: `top`, the link of the best
token, in [link(1/sum q), link(1/q_best)]. It is solved for *as a distance to the pole or to the edge of the support* (where the link is 0), so it keeps its
relative precision in float32; tau = max(logits) - top + link(1).

Newton on S(top) = sum_j q_j unlink(top - d_j) from the right end of the bracket converges monotonically, because unlink is convex for every named
generator and alpha <= 2; it crawls while S is large, so the step is taken on link(S / sum q), which is linear for a flat row and exact for KL. A step that
leaves the bracket becomes a bisection step (in log u), so failure is impossible; alpha > 2 goes its own way (`steep`). Iterates approach from above, so a
token below the support of an iterate never comes back: sparse generators drop such tokens on the way ("compaction"), and converged rows are read no more
("freezing").

All that is known of a row is what `sums` returns. Ranks that share a vocabulary add those three numbers up at each evaluation, and no more; how many
evaluations there are does not depend on V.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .generators import Generator, by_handle, operator_of
from .opaque import opaque
from .steep import steep_top
from .vocab import LOCAL, Vocabulary

EVALUATIONS = 64


@dataclass(frozen=True)
class Threshold:
    """What `threshold` found.

    Attributes:
        top: [N, 1], the link of each row's best token.
        mass: [N, 1], S at top: 1 but for rounding, or for the last Newton step, which `operators.polish` takes on p itself.
        spread: [N, 1], sum_j q_j / f''(u_j) at top: dS/dtop.
        support: [N, 1], how many entries have u > 0 at top (sparse generators only; undefined for others).
        evaluations: the evaluations of S that the slowest row took.
        reads: entries of d that were read, over all rows.
    """

    top: Tensor
    mass: Tensor
    spread: Tensor
    support: Tensor
    evaluations: int
    reads: int

    def rows(self, s: slice) -> "Threshold":
        """That of some of the rows."""
        return replace(self, top=self.top[s], mass=self.mass[s], spread=self.spread[s], support=self.support[s])


def shares(d: Tensor, top: Tensor, q: Tensor, g: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """What each entry adds to S and to dS/dtop, and whether it is in the support."""
    op = operator_of(g)
    u = op.unlink(top - d)
    return q * u, q * op.spread(u), u > 0


def sums(d: Tensor, top: Tensor, q: Tensor, g: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """S, dS/dtop and the size of the support at top, each [N, 1]: all that the solver knows of a row."""
    of_mass, of_spread, inside = shares(d, top, q, g)
    mass, spread = of_mass.sum(1, keepdim=True), of_spread.sum(1, keepdim=True)
    return mass, spread, inside.sum(1, keepdim=True) if g.sparse else torch.empty_like(mass, dtype=torch.int64)


def bracket(total: Tensor, best_q: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
    """Where S <= 1 and where S >= 1: all tokens as good as the best, and the best alone."""
    return g.link(-torch.log(total)), g.link(-torch.log(best_q))


def advance(
    top: Tensor, low: Tensor, high: Tensor, mass: Tensor, spread: Tensor, total: Tensor, target: Tensor, g: Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step: the next top, the bracket, narrower, and whether top itself will do (it is kept). Elementwise over rows.

    total: sum of q; target: link(1 / total), the left end of the first bracket.
    """
    above = mass >= 1
    low, high = torch.where(above, low, torch.maximum(low, top)), torch.where(above, torch.minimum(high, top), high)
    average = mass / total
    step = (g.link(torch.log(average)) - target) * (total * operator_of(g).spread(average) / spread)
    new = top - step
    miss, tolerance = (mass - 1).abs(), tolerance_of(top.dtype, g)
    rounding = 2 * torch.finfo(top.dtype).eps * top.abs()  # neighbouring floats: nothing is left to decide
    done = ~(miss > tolerance) | (high - low <= rounding) | ((step.abs() <= rounding) & (miss <= 1e3 * tolerance))
    new = torch.where((new >= low) & (new <= high) & (new != top), new, _between(low, high, g))
    return torch.where(done, top, new), low, high, done


Evaluate = Callable[[Tensor, Tensor, Tensor, Generator], tuple[Tensor, Tensor, Tensor]]
Compact = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def threshold(
    d: Tensor,
    q: Tensor,
    g: Generator,
    evaluate: Evaluate | None = None,
    compact: Compact | None = None,
    share: float = 0.5,
    vocab: Vocabulary = LOCAL,
) -> Threshold:
    """Solve sum_j q_j unlink(top - d_j) = 1 for each row.

    Args:
        d: [N, V], the distance of each logit below its row's maximum, >= 0; inf for a token outside the vocabulary. A row with NaN gives NaN.
        q: the reference measure, [], [V] or [N, V], in the dtype of d.
        g: the generator.
        evaluate: a faster `sums` (compiled), of this shard alone.
        compact: a faster `compacted` (native).
        share: entries are dropped once no row has more than this share of them left.
        vocab: of which d and q are a shard.
    """
    here, compact = evaluate or sums, compact or compacted
    numbers = 3 if g.sparse else 2  # the support of a generator without zeros is undefined

    def evaluated(d: Tensor, top: Tensor, q: Tensor) -> tuple[Tensor, ...]:
        some = here(d, top, q, g)
        return *vocab.across(*some[:numbers]), *some[numbers:]

    n = len(d)
    if g.multiplicative:
        zero = d.new_zeros(n, 1)
        mass, _, support = evaluated(d, zero, q)
        return Threshold(-torch.log(mass), zero + 1, zero + 1, support, 1, d.numel())
    one = d.new_ones(n, 1)
    total = _total(q, d, vocab) * one
    low, high = bracket(total, measure_of_best(d, q, vocab) * one, g)
    if is_steep(g):
        top, used = steep_top(d, q, g, high, evaluated, vocab)
        mass, spread, support = evaluated(d, top, q)
        return Threshold(top, mass, spread, support, used + 1, (used + 1) * d.numel())

    found = [high.clone(), one.clone(), one.clone(), torch.zeros_like(one, dtype=torch.int64)]
    rows: Tensor | None = None  # None while every row is active
    top, target, reads, used = high, low, 0, 0
    for _ in range(EVALUATIONS):
        used += 1
        mass, spread, support = evaluated(d, top, q)
        reads += d.numel()
        new, low, high, done = advance(top, low, high, mass, spread, total, target, g)
        keep = ~done.squeeze(1)
        for whole, part in zip(found, (top, mass, spread, support), strict=True):
            if rows is None:
                whole.copy_(part)
            else:
                whole[rows] = part
        alive = int(keep.sum())
        if alive == 0:
            break
        top = new
        if alive <= 0.75 * len(keep):
            rows = keep.nonzero().squeeze(1) if rows is None else rows[keep]
            d, top, low, high, support = d[keep], top[keep], low[keep], high[keep], support[keep]
            q = q[keep] if q.dim() == 2 else q
            total, target = total[keep], target[keep]
        if g.sparse and int(support.max()) <= share * d.shape[1]:
            d, q = compact(d, q, high - g.edge)
    return Threshold(found[0], found[1], found[2], found[3], used, reads)


def is_steep(g: Generator) -> bool:
    """Whether dS/dtop grows without bound at the edge of the support (alpha > 2), where Newton's steps are not monotone."""
    return g.sparse and bool(operator_of(g).spread(torch.tensor(1e-9)) > 1)


def _total(q: Tensor, d: Tensor, vocab: Vocabulary) -> Tensor:
    """Sum of q over the vocabulary, [], [1] or [N, 1]."""
    return q * vocab.classes(d.shape[1]) if q.dim() == 0 else vocab.sum(q)


def measure_of_best(d: Tensor, q: Tensor, vocab: Vocabulary = LOCAL) -> Tensor:
    """q at each row's best token, the one at distance 0, [] or [N, 1]."""
    if q.dim() == 0:
        return q
    place = d.nan_to_num(0.0).argmin(1, keepdim=True)
    own = q.expand_as(d).gather(1, place)
    return vocab.amax(torch.where(d.gather(1, place) == 0, own, 0.0)) if vocab.group else own


def tolerance_of(dtype: torch.dtype, g: Generator) -> float:
    """How far S may be from 1: the last step, taken on the probabilities (`polish`), squares the error where unlink is smooth."""
    if dtype == torch.float64:
        return 1e-12 if g.sparse else 1e-7
    return 1e-6 if g.sparse else 1e-4


def _between(low: Tensor, high: Tensor, g: Generator) -> Tensor:
    """The link of the geometric mean of the ends' u: a bracket over a pole spans many decades."""
    unlink = operator_of(g).unlink
    middle = g.link((torch.log(unlink(low)) + torch.log(unlink(high))) / 2)
    return torch.where((middle > low) & (middle < high), middle, (low + high) / 2)


def compacted(d: Tensor, q: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Drop what lies outside each row's window; rows are padded with d = inf."""
    kept = d < window
    counts = kept.sum(1)
    width = max(1, int(counts.max()))  # a shard may have none left
    row, column = kept.nonzero(as_tuple=True)
    first = torch.cumsum(counts, 0) - counts
    place = torch.arange(len(row), device=d.device) - first[row]
    packed = d.new_full((len(d), width), torch.inf)
    packed[row, place] = d[row, column]
    if q.dim() == 0:
        return packed, q
    packed_q = d.new_ones(len(d), width)
    packed_q[row, place] = q[column] if q.dim() == 1 else q[row, column]
    return packed, packed_q


def check_reference(q: Tensor, vocab: Vocabulary = LOCAL) -> None:
    """Raise ValueError unless every entry of q is positive and finite."""
    wrong = ~((q > 0) & (q < torch.inf))
    found = vocab.found(wrong) if q.dim() else LOCAL.found(wrong)
    if found is not None:
        entry = f"an entry {float(q[wrong].flatten()[0]):g}" if bool(wrong.any()) else "a wrong entry"
        raise ValueError(f"q: got {entry}{found}; pass positive finite numbers (mask a token by a logit of -inf)")


@opaque("top")
def top_of(
    d: Tensor, q: Tensor, number: int, group: str = "", offset: int = 0, size: int = 0, widest: int = 0
) -> Tensor:
    """`threshold(...).top`, opaque to the compiler and to functorch: its loop and its checks depend on the data."""
    vocab = Vocabulary(group, offset, size, widest)
    check_reference(q, vocab)
    return threshold(d, q, by_handle(number), vocab=vocab).top


@top_of.register_fake
def _(d: Tensor, q: Tensor, number: int, *shard: Any) -> Tensor:
    return d.new_empty(d.shape[0], 1)


@top_of.register_vmap
def _(info: Any, dims: tuple[int | None, ...], d: Tensor, q: Tensor, number: int, *shard: Any) -> tuple[Tensor, int]:
    d = d.expand(info.batch_size, *d.shape) if dims[0] is None else d.movedim(dims[0], 0)
    if dims[1] is not None or q.dim() == 2:
        q = q.unsqueeze(0) if dims[1] is None else q.movedim(dims[1], 0)
        while q.dim() < 3:
            q = q.unsqueeze(1)
        q = q.expand_as(d).reshape(-1, d.shape[-1])
    return top_of(d.reshape(-1, d.shape[-1]), q, number, *shard).view(info.batch_size, -1, 1), 0
