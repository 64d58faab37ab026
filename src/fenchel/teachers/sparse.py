"""Sparse teachers: the whole distribution of a softargmax with exact zeros, as rows of few entries.

For a generator with a finite f'(0) (`alpha:A` with A > 1, `chi2`, `le_cam`) most probabilities are exactly zero, so the rest is the distribution: nothing is
cut off, as the k largest of a softmax do, and no tail is left. Two objectives, both exact:

    D_f(p||q) = sum_{p_j > 0} q_j f(p_j/q_j) + f(0) (1 - sum_{p_j > 0} q_j)        q = softmax of the student
    l(theta, p) = T [softmax_f(theta/T) + D_f(p||1) - <p, theta/T>]                the Fenchel-Young loss of the target p

The first is `bucketed_divergence` with an empty tail; the second is the loss whose minimum is the student's own softargmax equal to p, so that the student
learns the zeros too.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..checks import check_floating, check_positive, check_reduction, check_vocabulary
from ..generators import INF, Generator, operator_of
from ..generators import generator as named
from ..head.gathered import Rows
from ..head.projection import MEMORY
from ..head.rows import linear_rows
from ..head.tiles import packed
from ..losses.fenchel_young import divergence_of, reduce
from ..operators import softargmax, solve_rows, working_dtype
from .buckets import TopK
from .tiles import OneHead, check_one_head, logits_by_tile

__all__ = ["SparseRows", "linear_sparse_fenchel_young", "linear_sparse_rows", "sparse_fenchel_young", "sparse_rows"]


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Distributions with few entries: row i holds the classes cols[row_ptr[i]:row_ptr[i + 1]].

    Attributes:
        row_ptr: [N + 1] int64.
        cols: [entries] int64, the classes with a positive probability.
        probs: [entries] their probabilities.
        vocabulary: the number of classes V.

    Example:
        >>> rows = sparse_rows(torch.tensor([[2.0, 1.5, -1.0], [3.0, 0.0, 0.0]]), "alpha:2")
        >>> rows.row_ptr.tolist(), rows.cols.tolist(), rows.probs
        ([0, 2, 3], [0, 1, 0], tensor([0.7500, 0.2500, 1.0000]))
    """

    row_ptr: Tensor
    cols: Tensor
    probs: Tensor
    vocabulary: int

    def __post_init__(self) -> None:
        check_floating("probs", self.probs, "[entries]")
        if self.row_ptr.dtype != torch.int64 or self.cols.dtype != torch.int64:
            raise TypeError(f"SparseRows: got row_ptr {self.row_ptr.dtype} and cols {self.cols.dtype}; pass int64")
        if (
            self.row_ptr.dim() != 1
            or len(self.row_ptr) == 0
            or self.cols.dim() != 1
            or self.cols.shape != self.probs.shape
        ):
            raise ValueError(
                f"SparseRows: got row_ptr {list(self.row_ptr.shape)}, cols {list(self.cols.shape)} and probs {list(self.probs.shape)}; "
                "pass [N + 1], [entries] and [entries]"
            )

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.row_ptr) - 1

    @property
    def support(self) -> Tensor:
        """How many classes each row holds, [N]."""
        return self.row_ptr.diff()

    def __getitem__(self, rows: slice) -> "SparseRows":
        """Consecutive rows."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"SparseRows: got a step of {step}; pass consecutive rows")
        row_ptr = self.row_ptr[start : max(start, stop) + 1]
        entries = slice(int(row_ptr[0]), int(row_ptr[-1]))
        return replace(self, row_ptr=row_ptr - row_ptr[0], cols=self.cols[entries], probs=self.probs[entries])

    def to(self, device: torch.device | str) -> "SparseRows":
        """The same on another device."""
        return replace(self, row_ptr=self.row_ptr.to(device), cols=self.cols.to(device), probs=self.probs.to(device))

    def padded(self) -> tuple[Tensor, Tensor]:
        """Classes and probabilities as [N, widest row], filled with -1 and 0."""
        rows = Rows(self.row_ptr, self.cols, self.probs, self.vocabulary)
        return packed(rows, self.cols, -1), packed(rows, self.probs, 0.0)

    def buckets(self) -> TopK:
        """The same rows with a tail of exactly nothing: the divergence of the buckets is that of the whole distributions.

        Example:
            >>> rows = sparse_rows(torch.tensor([[2.0, 1.5, -1.0], [3.0, 0.0, 0.0]]), "alpha:2")
            >>> rows.buckets().indices.tolist(), rows.buckets().tail
            ([[0, 1], [0, -1]], tensor([-inf, -inf]))
        """
        cols, probs = self.padded()
        return TopK(cols, probs.log(), probs.new_full((len(self),), -torch.inf), self.vocabulary)

    @staticmethod
    def cat(parts: "Iterable[SparseRows]") -> "SparseRows":
        """Rows of one vocabulary one after the other."""
        parts = list(parts)
        if len({p.vocabulary for p in parts}) != 1:
            raise ValueError(
                f"SparseRows.cat: got vocabularies {sorted({p.vocabulary for p in parts})}; pass parts of one"
            )
        counts = torch.cat([p.support for p in parts])
        return replace(
            parts[0],
            row_ptr=torch.cat((counts.new_zeros(1), counts.cumsum(0))),
            cols=torch.cat([p.cols for p in parts]),
            probs=torch.cat([p.probs for p in parts]),
        )


def sparse_rows(logits: Tensor, generator: str | Generator, *, temperature: float = 1.0) -> SparseRows:
    """The positive entries of softargmax(logits / T).

    Args:
        logits: [N, V].
        generator: a sparse one.
        temperature: T > 0.

    Raises:
        ValueError: a generator without exact zeros, logits that are not [N, V].

    Example:
        >>> rows = sparse_rows(torch.tensor([[9.0, 0.0, 8.9, 8.0]]), "alpha:1.5")
        >>> rows.cols.tolist(), round(float(rows.probs.sum()), 4)
        ([0, 2, 3], 1.0)
    """
    check_floating("logits", logits, "[N, V]")
    check_vocabulary("logits", logits)
    if logits.dim() != 2:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}; pass [N, V]")
    p = softargmax(logits.detach(), _sparse(generator), temperature=temperature)
    # NaN stays: a row that is not finite is seen, not lost
    row, cols = (~(p <= 0)).nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(p))
    row_ptr = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return SparseRows(row_ptr, cols, p[row, cols], p.shape[1])


def linear_sparse_rows(
    head: OneHead,
    generator: str | Generator,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    vocabulary: int | None = None,
    memory: int = MEMORY,
) -> SparseRows:
    """`sparse_rows` of logits = cap(scale (hidden @ weight.T + bias)) that are never stored.

    Args:
        head: (hidden [..., D], weight [V, D]) or (hidden, weight, bias [V]); leading dimensions are flattened to N.
        generator, temperature: as `sparse_rows`.
        softcap, scale, memory: as `fenchel.linear_divergence`.
        vocabulary: the first K classes alone, where the rest is padding.

    Example:
        >>> hidden, weight = 4 * torch.randn(6, 8), torch.randn(50, 8)
        >>> rows = linear_sparse_rows((hidden, weight), "alpha:1.5")
        >>> torch.equal(rows.cols, sparse_rows(hidden @ weight.T, "alpha:1.5").cols)
        True
    """
    hidden, weight, bias = check_one_head("head", head, softcap, scale, vocabulary)
    flat = hidden.detach().reshape(-1, hidden.shape[-1])
    # the solver's sweeps have tiles of their own beside the logits
    tiles = logits_by_tile(flat, weight, bias, softcap=softcap, scale=scale, memory=max(1, memory // 4))
    return SparseRows.cat(sparse_rows(z, generator, temperature=temperature) for z in tiles)


def sparse_fenchel_young(
    target: SparseRows,
    logits: Tensor,
    generator: str | Generator,
    *,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """The Fenchel-Young loss of probability targets that are given sparsely: `fenchel_young` without the [N, V] target.

    l = T [softmax_f(theta/T) + D_f(p||1) - <p, theta/T>], gradient softargmax_f(theta/T) - p.

    Args:
        target: N rows, of `sparse_rows` or a cache; a constant. Any positive entries that sum to one will do, also for a generator without zeros.
        logits: [..., V] with N rows in all; -inf for a class that the student excludes (+inf where the target has it).
        generator: a name or a Generator; the teacher's own, if the student is to become the teacher.
        temperature: T > 0; the gradient stays softargmax - p.
        reduction: "mean", "sum" or "none" ([...]).

    Raises:
        ValueError, TypeError: rows, vocabularies or devices that differ, targets that do not sum to one, a generator without a loss.

    Example:
        >>> logits = torch.tensor([[2.0, 1.5, -1.0], [3.0, 0.0, 0.0]])
        >>> rows = sparse_rows(logits, "alpha:2")
        >>> float(sparse_fenchel_young(rows, logits, "alpha:2")), bool(sparse_fenchel_young(rows, -logits, "alpha:2") > 1)
        (0.0, True)

    Source: as `fenchel_young`.
    """
    g = _with_loss(generator)
    check_reduction(reduction)
    check_floating("logits", logits, "[..., V]")
    check_vocabulary("logits", logits)
    t = check_positive("temperature", temperature)
    cols, probs, constant = _target(target, logits, logits.shape[-1], working_dtype(g, logits.dtype), g)
    z = logits.reshape(-1, logits.shape[-1]).to(probs.dtype)
    rows = _young_rows(z, cols, probs, generator=g, temperature=t) + t * constant
    return reduce(rows, rows.new_tensor(len(rows)), reduction, logits.shape[:-1]).to(logits.dtype)


def linear_sparse_fenchel_young(
    target: SparseRows,
    student: OneHead,
    generator: str | Generator,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    vocabulary: int | None = None,
    reduction: str = "mean",
    memory: int = MEMORY,
) -> Tensor:
    """`sparse_fenchel_young` of logits = cap(scale (hidden @ weight.T + bias)): neither they nor dense targets are stored.

    Args:
        target, generator, temperature, reduction: as `sparse_fenchel_young`.
        student: (hidden [..., D], weight [V, D]) or (hidden, weight, bias [V]).
        softcap, scale, memory: as `fenchel.linear_rows`.
        vocabulary: the student's first K classes, where the rest is padding; K must be the target's vocabulary.

    Returns:
        A scalar or [...], float32 at least; twice differentiable.

    Example:
        >>> hidden, weight = torch.randn(6, 8), torch.randn(50, 8)
        >>> rows = sparse_rows(torch.randn(6, 50), "alpha:1.5")
        >>> fused = linear_sparse_fenchel_young(rows, (hidden, weight), "alpha:1.5")
        >>> torch.allclose(fused, sparse_fenchel_young(rows, hidden @ weight.T, "alpha:1.5"), atol=1e-5)
        True
    """
    g = _with_loss(generator)
    check_reduction(reduction)
    hidden, weight, bias = check_one_head("student", student, softcap, scale, vocabulary)
    t = check_positive("temperature", temperature)
    cols, probs, constant = _target(target, hidden, len(weight), working_dtype(g, hidden.dtype), g)
    flat = hidden.reshape(-1, hidden.shape[-1])
    fn = partial(_young_rows, generator=g, temperature=t)
    # a few temporaries of a tile live at once in the solver
    part = max(1, memory // 4)
    rows = linear_rows(fn, flat, weight, cols, probs, bias=bias, softcap=softcap, scale=scale, memory=part)
    rows = rows + t * constant.to(rows.dtype)
    return reduce(rows, rows.new_tensor(len(rows)), reduction, hidden.shape[:-1])


def _young_rows(z: Tensor, cols: Tensor, probs: Tensor, *, generator: Generator, temperature: float) -> Tensor:
    """T (softmax_f(z/T) - <p, z/T>) of each row: all of the loss but D_f(p||1), which does not depend on z."""
    probs = probs.detach()
    wide = z.to(probs.dtype)
    scaled = wide if temperature == 1 else wide / temperature
    one = torch.ones((), dtype=probs.dtype, device=z.device)
    _, excess, best = solve_rows(scaled, one, generator)
    own = scaled.gather(1, cols.clamp_min(0))
    # the best logit is taken off first: exact at any magnitude, since p sums to one
    gap = torch.where(probs > 0, probs * (best.unsqueeze(1) - own), 0.0).sum(1)
    return (temperature * (gap + excess)).to(z.dtype)


def _target(
    target: SparseRows, student: Tensor, v: int, dtype: torch.dtype, g: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Padded classes and probabilities [N, widest], and D_f(p||1) [N], checked against the student's rows [..., *]."""
    n = student.shape[:-1].numel()
    if len(target) != n:
        raise ValueError(f"target: got {len(target)} rows, the student has {n}; pass the same rows")
    if target.vocabulary != v:
        raise ValueError(
            f"target: got rows over {target.vocabulary} classes, the student has V = {v}; if they differ in padding alone, pass vocabulary "
            "= the number of real tokens"
        )
    if target.cols.device != student.device:
        raise ValueError(
            f"target: got device {target.cols.device}, the student is on {student.device}; move one of them"
        )
    cols, probs = target.padded()
    probs = probs.detach().to(dtype)
    off = ~((probs.sum(1) - 1).abs() < 1e-3) | (probs < 0).any(1)
    if bool(off.any()):
        raise ValueError(
            f"target: got a row that sums to {float(probs[off][0].sum()):.6g}; pass positive entries that sum to one"
        )
    one = torch.ones((), dtype=dtype, device=probs.device)
    return cols, probs, divergence_of(probs, one, g)


def _sparse(generator: str | Generator) -> Generator:
    g = named(generator)
    operator_of(g)
    if not g.sparse:
        raise ValueError(
            f"generator {g.name!r}: every probability is positive, so there are no sparse rows; use `top_k`, or alpha:A with A > 1"
        )
    return g


def _with_loss(generator: str | Generator) -> Generator:
    """The generator, if its loss has a minimum of zero: probability targets make no sense of the others."""
    g = named(generator)
    operator_of(g)
    if g.f0 == INF:
        raise ValueError(
            f"generator {g.name!r}: D_f of a distribution with zeros is infinite; pass one with finite f(0)"
        )
    return g
