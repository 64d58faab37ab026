"""The kernel of the Fenchel-Young head: a tile of logits becomes the rows' losses and their gradient c (p - y).

For a generator with finite f'(0) the gradient is sparse, and the way through a tile is chosen from what is measured on it:

* *support*: for a power generator with a scalar q one native pass over the tile finds thresholds and supports (`native.support`);
* *window*: a token further than link(1/q) - edge below its row's best (2 for alpha = 1.5, 1 for alpha = 2) has probability exactly 0. Where a sample of
  rows says that few tokens lie inside, one pass collects them and the threshold is solved on them alone (late in training);
* *solver*: else the threshold is solved on the tile, the solver itself dropping tokens as its iterates rise (early in training);
* products: gathered rows of the weight if the support is small, else dense. With the C kernels gathering takes as long as a dense product at a density of
  19 %, and memory for the entries, so one over the union of the columns that a tile's rows touch has no place left.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..generators import INF, Generator, operator_of
from ..losses.fenchel_young import one_hot_divergence
from ..operators import working_dtype
from ..solve import Threshold, measure_of_best, tolerance_of
from ..vocab import LOCAL, Vocabulary
from . import kernels, native
from .kernels import Rows
from .sweep import Sparse
from .tiles import (
    Operator,
    closed,
    closed_,
    distances_,
    finish_,
    land_,
    landed,
    measure_of,
    packed,
    positive,
    probability,
    solved,
    tile_function,
    value,
)

# Shares of a dense product at which the alternatives cost the same (measured at N = 2048, D = 512, V = 32,768 on two cores, see docs/benchmarks.md).
GATHERED_NATIVE, GATHERED_TORCH = 0.15, 0.01
WINDOWED = 0.10
# rows that are sampled to choose the way, and bytes of logits that are worked on at once, to stay in cache
SAMPLE, BLOCK_BYTES = 8, 8 * 2**20


@dataclass(frozen=True)
class YoungKernel:
    """What is constant over tiles.

    entries: N V of the call; may_skip: the head allows a sparse gradient; vocab: of which tiles are a shard; triton: by the kernels of `triton.young`. Ranks
    choose their way from reduced numbers, so they all go the same.
    """

    g: Generator
    y: Tensor
    q: Tensor
    class_weight: Tensor | None
    temperature: float
    smoothing: float
    entries: int
    may_skip: bool
    vocab: Vocabulary = LOCAL
    triton: bool = False

    def __call__(self, logits: list[Tensor], rows: slice, c: Tensor | None) -> tuple[Tensor, Sparse | None]:
        """Losses of a tile's rows, and with c the gradient: in place of the logits, or sparse."""
        z, y = logits[0], self.y[rows]
        if self.temperature != 1:
            z /= self.temperature
        weight = self.importance(y)
        weight = None if weight is None else weight.to(z.dtype)
        c = c if c is None or weight is None else c * weight
        if c is not None:
            c = c.to(z.dtype)
        if self.triton:
            from .triton.young import young_tile  # imports triton

            losses, sparse = young_tile(self, z, y, c)
        elif not (self.g.sparse and self.may_skip and self.smoothing == 0):
            losses, sparse = self._dense(z, y, c), None
        elif self.g.power in (1.0, 2.0) and self.q.dim() == 0 and not self.vocab.group and native.handles(z):
            losses, sparse = self._by_support(z, y, c)
        else:
            losses, sparse = (self._by_window if self.few_inside(z, WINDOWED) else self._by_solver)(z, y, c)
        return (losses if weight is None else losses * weight).to(z.dtype) * self.temperature, sparse

    def importance(self, y: Tensor) -> Tensor | None:
        """The class weights of labels, [n]."""
        return None if self.class_weight is None else self.vocab.pick(self.class_weight, y)

    def blocks(self, z: Tensor) -> list[slice]:
        """Rows that are worked on while they are in cache; on a group all of them, for each block costs its all-reduces."""
        row = z.shape[1] * torch.finfo(working_dtype(self.g, z.dtype)).bits // 8
        step = max(1, len(z) if self.vocab.group else BLOCK_BYTES // row)
        return [slice(i, min(i + step, len(z))) for i in range(0, len(z), step)]

    def few_inside(self, z: Tensor, share: float) -> bool:
        """Whether a sample of rows says that no more than a share of the tokens can have p > 0."""
        if not len(z):
            return False
        some = z[:: max(1, len(z) // SAMPLE)]
        best = self.vocab.amax(some)
        inside = self.vocab.sum((some > best - self.window(some, best)).to(z.dtype))
        return float(inside.mean()) < share * self.vocab.classes(z.shape[1])

    def window(self, z: Tensor, best: Tensor) -> Tensor:
        """How far below the best a token can have p > 0, [] or [n, 1]."""
        q = self.q if self.q.dim() == 0 else measure_of_best(best - z, self.q, self.vocab)
        return (self.g.link(-torch.log(q)) - self.g.edge).to(z.dtype)

    def _inside(self, z: Tensor) -> tuple[Tensor, Rows]:
        """The largest logit of each row, and the entries inside its window."""
        if self.q.dim() == 0 and not self.vocab.group:
            best, inside = kernels.window(z, float(self.window(z, z)))
            return best.unsqueeze(1), inside
        best = self.vocab.amax(z)
        limit = torch.nextafter(best - self.window(z, best), torch.full_like(best, -INF))
        return best, kernels.above(z, limit.squeeze(1))

    def _by_window(self, z: Tensor, y: Tensor, c: Tensor | None) -> tuple[Tensor, Sparse | None]:
        """Losses, and the gradient, from the tokens inside the window."""
        gaps, parts = [], []
        for b in self.blocks(z):
            best, inside = self._inside(z[b])
            gaps.append(best.squeeze(1) - self.vocab.pick(z[b], y[b]))
            inside = inside.with_vals(inside.vals - best.squeeze(1)[inside.row_index()])
            r = packed(inside, inside.vals, -INF)
            q = self.q if self.q.dim() == 0 else packed(inside, measure_of(self.q, inside), 1.0)
            found = solved(-r.to(q.dtype), q, self.g, r.numel(), self.vocab)
            parts.append(self._entries(inside, found, None if c is None else c[b]))
        return self._gathered(gaps, parts, y, c)

    def _by_solver(self, z: Tensor, y: Tensor, c: Tensor | None) -> tuple[Tensor, Sparse | None]:
        """Losses, and the gradient sparse or in place of the logits."""
        blocks, found = self.blocks(z), []
        for b in blocks:
            z[b] -= self.vocab.amax(z[b])
            found.append(solved(-z[b].to(self.q.dtype), self.q, self.g, self.entries, self.vocab))
        if self._is_dense(z, torch.cat([t.support for t in found])):
            parts = [
                self._distances(z[b].neg_(), t, y[b], None if c is None else c[b])
                for b, t in zip(blocks, found, strict=True)
            ]
            return torch.cat(parts), None
        gaps, parts = [], []
        for b, t in zip(blocks, found, strict=True):
            gaps.append(-self.vocab.pick(z[b], y[b]))
            support = kernels.above(z[b], (self.g.edge - t.top).squeeze(1).to(z.dtype))
            parts.append(self._entries(support, t, None if c is None else c[b]))
        return self._gathered(gaps, parts, y, c)

    def _by_support(self, z: Tensor, y: Tensor, c: Tensor | None) -> tuple[Tensor, Sparse | None]:
        """`_by_solver` where S is a moment of the logits: thresholds and supports come out of one pass over the tile."""
        best, found, inside = native.support(z, int(self.g.power), float(self.q), tolerance_of(z.dtype, self.g))
        if inside is None or self._is_dense(z, found.support):
            parts = [
                self._distances(z[b].neg_().add_(best[b]), found.rows(b), y[b], None if c is None else c[b])
                for b in self.blocks(z)
            ]
            return torch.cat(parts), None
        gaps = best.squeeze(1) - self.vocab.pick(z, y)
        inside = inside.with_vals(inside.vals - best.squeeze(1)[inside.row_index()])
        return self._gathered([gaps], [self._entries(inside, found, c)], y, c)

    def _is_dense(self, z: Tensor, support: Tensor) -> bool:
        """Whether so many entries of a tile are in the support that they are not worth gathering."""
        share = float(support.sum()) / max(1, len(z) * self.vocab.classes(z.shape[1]))
        return share >= (GATHERED_NATIVE if native.handles(z) else GATHERED_TORCH)

    def _gathered(
        self, gaps: list[Tensor], parts: list[tuple[Tensor, Rows]], y: Tensor, c: Tensor | None
    ) -> tuple[Tensor, Sparse | None]:
        """Losses and gradient of a tile from those of its blocks."""
        excess = torch.cat([excess for excess, _ in parts])
        losses = torch.cat(gaps) + excess + one_hot_divergence(y, self.q, self.g, self.vocab)
        if c is None:
            return losses, None
        p = kernels.joined([p for _, p in parts])
        at, mine = self.vocab.place(y, p.columns)
        mine = torch.ones_like(y, dtype=torch.bool) if mine is None else mine
        ends = torch.cat((p.row_ptr.new_zeros(1), mine.cumsum(0)))
        return losses, Sparse(p, Rows(ends, at[mine].to(torch.int32), -c[mine], p.columns))

    def _dense(self, z: Tensor, y: Tensor, c: Tensor | None) -> Tensor:
        """Losses; with c, the logits become c (p - y). A block is worked on while it is in cache."""
        losses = [z.new_zeros(0)]
        for b in self.blocks(z):
            if self.g.multiplicative and self.smoothing == 0:
                losses.append(self._closed(z[b], y[b], None if c is None else c[b]))
                continue
            tile_function(distances_, self.vocab, self.entries)(z[b])
            losses.append(self._distances(z[b], None, y[b], None if c is None else c[b]))
        return torch.cat(losses)

    def _closed(self, z: Tensor, y: Tensor, c: Tensor | None) -> Tensor:
        """`_dense` of a block whose threshold is the logarithm of a sum: one row program."""
        own, of = self.vocab.pick(z, y), Operator(self.g, self.vocab)
        if c is None:
            best, excess = tile_function(closed, of, self.entries)(z, self.q)
        else:
            best, excess = tile_function(closed_, of, self.entries)(z, self.q, c.unsqueeze(1))
            self.vocab.add_at_(z, y, -c)
        return best.squeeze(1) - own + excess + one_hot_divergence(y, self.q, self.g, self.vocab)

    def _distances(self, d: Tensor, found: Threshold | None, y: Tensor, c: Tensor | None) -> Tensor:
        """Losses of a block of distances below the best; with c, they become c (p - y)."""
        wide, found = self.solved(d, found)
        losses = self.at_threshold(wide, found, y, c)
        if c is not None and wide is not d:
            d.copy_(wide)
        return losses

    def solved(self, d: Tensor, found: Threshold | None = None) -> tuple[Tensor, Threshold]:
        """Distances in the dtype that the generator is computed in, and their threshold, solved for if it is not known."""
        wide = d.to(working_dtype(self.g, d.dtype))
        if found is None:
            near = d if _forgives(self.g) else wide
            found = solved(near, self.q.to(near.dtype), self.g, self.entries, self.vocab)
        return wide, found

    def _entries(self, rows: Rows, found: Threshold, c: Tensor | None) -> tuple[Tensor, Rows]:
        """value - best and c p, from entries that hold the support; their values are logits less their row's best."""
        op = operator_of(self.g)
        index, q = rows.row_index(), measure_of(self.q, rows)
        u = op.unlink(found.top.squeeze(1)[index] + rows.vals.to(found.top.dtype))
        gain = torch.zeros(len(found.top), dtype=torch.float64, device=u.device)
        gain.index_add_(0, index, (q * op.dual(u)).double())
        [gain] = self.vocab.across(gain.unsqueeze(1))
        excess = (gain + (self.g.link_one - self.g.f0 - found.top.double())).squeeze(1)
        shift = (1 - found.mass) / found.spread
        p = probability(u, shift.squeeze(1)[index], q, self.g)
        dtype = rows.vals.dtype
        return excess.to(dtype), positive(rows.with_vals((p if c is None else p * c[index]).to(dtype)))

    def _target(self, d: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """<y, best - z> and D_f(y||q) of the smoothed one-hot target, and how many classes it is smoothed over [n, 1] (None: not smoothed)."""
        gap = self.vocab.pick(d, y)
        if self.smoothing == 0:
            return gap, one_hot_divergence(y, self.q, self.g, self.vocab), None
        count, away = self.finite(d)
        return *self.smoothed(gap, away.squeeze(1), count.squeeze(1)), count

    def finite(self, d: Tensor) -> tuple[Tensor, ...]:
        """The number of the distances that are finite, and their sum, [n, 1]."""
        live = d < INF
        return self.vocab.across(
            live.sum(1, keepdim=True, dtype=d.dtype), torch.where(live, d, 0.0).sum(1, keepdim=True)
        )

    def smoothed(self, gap: Tensor, away: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """The first two of `_target`, from the target's distance below the best, the sum of all finite ones and their number."""
        eps = self.smoothing
        gap = (1 - eps) * gap + eps * away / classes
        if self.g.f0 == INF:
            return gap, torch.zeros_like(gap)
        # two distinct probabilities a row
        low = eps / classes

        def part(p: Tensor) -> Tensor:
            return self.q * (self.g.f(p / self.q) - self.g.f0)

        return gap, part(1 - eps + low) + (classes - 1) * part(low) + self.g.f0

    def at_threshold(self, d: Tensor, found: Threshold, y: Tensor, c: Tensor | None) -> Tensor:
        """Losses of distances; with c, they become c (p - y)."""
        gap, offset, count = self._target(d, y)
        of, top = Operator(self.g, self.vocab), found.top.to(d.dtype)
        solved_for = found.top.dtype == d.dtype
        if c is None:
            return gap + tile_function(value if solved_for else landed, of, self.entries)(d, top, self.q) + offset
        live = None if count is None else d < INF
        c = c.to(d.dtype).unsqueeze(1)
        if solved_for:
            excess = tile_function(finish_, of, self.entries)(d, top, (1 - found.mass) / found.spread, self.q, c)
        else:
            excess = tile_function(land_, of, self.entries)(d, top, self.q, c)
        self.less_target_(d, y, c, live, count, self.vocab)
        return gap + excess + offset

    def less_target_(
        self, d: Tensor, y: Tensor, c: Tensor, live: Tensor | None, count: Tensor | None, vocab: Vocabulary
    ) -> None:
        """c y taken off a gradient, y the labels smoothed over the entries that are live."""
        vocab.add_at_(d, y, -(1 - self.smoothing) * c.squeeze(1))
        if live is not None and count is not None:
            d.sub_(live * (self.smoothing * c / count))


@cache
def _forgives(g: Generator) -> bool:
    """Whether a threshold to the logits' own digits is near enough for the last step, in those of the generator, to give all that are asked for.

    Not at the edge of a support; and not where f grows at 0 faster than a logarithm: the value is then what is left of terms V^(1 - alpha) times as large.
    """
    return not g.sparse and abs(float(g.f(torch.tensor(1e-9, dtype=torch.float64)))) < 1e3
