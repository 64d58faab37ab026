"""A teacher's k largest probabilities and one bucket for the rest: a divergence of k + 1 classes.

Dropping the tail, as a sum over the k classes alone does, gives no divergence: it can be negative, and clamping it at zero removes the gradient with the
sign. Merging all other classes into one bucket, in both distributions, gives

    D(k buckets) = sum_{j in top k} q_j f(p_j/q_j) + q_T f(p_T/q_T),    p_T = 1 - sum p_j,    q_T = 1 - sum q_j.

Laws (tested): it is non-negative for every f; zero iff the buckets agree; never more than the divergence of all classes (merging classes is a data
processing); equal to it where the teacher has no mass outside its k classes, or all of it there.

The student's buckets are the softmax of its k logits and of the logsumexp of all the others, so neither tail is a difference: nothing cancels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checks import check_floating, check_positive, check_vocabulary
from ..divergences import divergence
from ..generators import Generator
from ..head.projection import MEMORY
from .complement import log_complement
from .tiles import OneHead, check_one_head, check_vocabulary_of, logits_by_tile

__all__ = ["TopK", "bucketed_divergence", "linear_top_k", "top_k"]


@dataclass(frozen=True, eq=False)
class TopK:
    """The largest probabilities of a teacher's rows, and what is left.

    Attributes:
        indices: [..., k] int64, different classes in each row; -1 for no class (rows of sparse teachers have fewer).
        logp: [..., k] their log-probabilities; -inf where there is no class.
        tail: [...] the log of the mass of all other classes; -inf for none.
        vocabulary: the number of classes V that the probabilities are of.
        temperature: what the teacher's logits were divided by.

    Raises:
        TypeError, ValueError: shapes or dtypes that do not fit together.

    Example:
        >>> t = top_k(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), 2)
        >>> t.indices.tolist(), t.logp.exp(), t.tail.exp()
        ([[0, 1]], tensor([[0.5000, 0.3000]]), tensor([0.2000]))
    """

    indices: Tensor
    logp: Tensor
    tail: Tensor
    vocabulary: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_floating("logp", self.logp, "[..., k]")
        check_floating("tail", self.tail, "[...]")
        if self.indices.dtype != torch.int64:
            raise TypeError(f"indices: got dtype {self.indices.dtype}; pass int64 [..., k]")
        if self.logp.dim() == 0 or self.indices.shape != self.logp.shape or self.tail.shape != self.logp.shape[:-1]:
            raise ValueError(
                f"TopK: got indices {list(self.indices.shape)}, logp {list(self.logp.shape)} and tail {list(self.tail.shape)}; "
                "pass [..., k], [..., k] and [...]"
            )
        check_positive("temperature", self.temperature)

    @property
    def k(self) -> int:
        """How many classes each row has."""
        return self.indices.shape[-1]

    @property
    def shape(self) -> torch.Size:
        """The leading shape [...]: one teacher row each."""
        return self.tail.shape

    def __len__(self) -> int:
        """How many rows there are along the first dimension."""
        return len(self.tail)

    def __getitem__(self, rows: object) -> "TopK":
        """Some of the rows, indexed as a tensor of shape [...] is."""
        return replace(self, indices=self.indices[rows], logp=self.logp[rows], tail=self.tail[rows])  # pyright: ignore[reportArgumentType]

    def buckets(self) -> Tensor:
        """The k + 1 log-probabilities, the tail last, [..., k + 1]."""
        return torch.cat((self.logp, self.tail.unsqueeze(-1)), -1)

    def to(self, device: torch.device | str) -> "TopK":
        """The same on another device."""
        return replace(self, indices=self.indices.to(device), logp=self.logp.to(device), tail=self.tail.to(device))

    def reshape(self, *shape: int) -> "TopK":
        """The same rows in another leading shape."""
        k = self.k
        return replace(
            self,
            indices=self.indices.reshape(*shape, k),
            logp=self.logp.reshape(*shape, k),
            tail=self.tail.reshape(*shape),
        )

    @staticmethod
    def cat(parts: "Iterable[TopK]") -> "TopK":
        """Rows of one teacher one after the other, [N]."""
        parts = list(parts)
        of = {(p.k, p.vocabulary, p.temperature) for p in parts}
        if len(of) != 1:
            raise ValueError(
                f"TopK.cat: got (k, vocabulary, temperature) = {sorted(of)}; pass parts that agree, at least one"
            )
        fields = zip(*((p.indices, p.logp, p.tail) for p in parts), strict=True)
        indices, logp, tail = (torch.cat(x) for x in fields)
        return replace(parts[0], indices=indices, logp=logp, tail=tail)

    @staticmethod
    def of_log_probabilities(indices: Tensor, logp: Tensor, vocabulary: int, *, temperature: float = 1.0) -> "TopK":
        """From log-probabilities alone, as inference servers return them: the tail is then 1 less their sum.

        Where the rest of the logits is gone there is no better tail than this one; its absolute error is that of the sum. `top_k` has no such error.

        Args:
            indices: [..., k] the classes, all different.
            logp: [..., k] their log-probabilities, -inf allowed; a sum above 1 by no more than 1e-3 counts as 1.

        Raises:
            ValueError: a row whose probabilities sum to more than 1.001.

        Example:
            >>> TopK.of_log_probabilities(torch.tensor([[7, 2]]), torch.tensor([[0.7, 0.2]]).log(), 32).tail.exp()
            tensor([0.1000])
        """
        check_floating("logp", logp, "[..., k]")
        total = torch.logsumexp(logp.detach(), -1)
        if bool((total > 1e-3).any()):
            raise ValueError(
                f"logp: got a row whose probabilities sum to {float(total.max().exp()):.6g}; pass log-probabilities"
            )
        return TopK(indices, logp, log_complement(total.clamp_max(0.0)), vocabulary, temperature)


def top_k(logits: Tensor, k: int, *, temperature: float = 1.0, vocabulary: int | None = None) -> TopK:
    """The k largest probabilities of softmax(logits / T), and the log of the mass of the others.

    The tail is the logsumexp of the other logits, less that of all: log(1 - sum of the k) would be rounding wherever they hold nearly everything.

    Args:
        logits: [..., V], or log-probabilities. -inf for a class outside the vocabulary.
        k: 1 to V. With k = V the tail is empty, -inf.
        temperature: T > 0; recorded in the result, since it cannot be changed afterwards.
        vocabulary: the first K classes alone, where the rest is padding.

    Returns:
        `TopK`, float32 at least, constants: no gradient flows to the teacher.

    Raises:
        ValueError, TypeError: k, T or vocabulary out of range, logits not floating.

    Example:
        >>> t = top_k(torch.tensor([0.0, 40.0, 1.0]), 1)
        >>> round(float(t.tail), 3), float((1 - t.logp.exp().sum()).log())      # the second one has cancelled
        (-38.687, -inf)
    """
    check_floating("logits", logits, "[..., V]")
    check_vocabulary("logits", logits)
    v = check_vocabulary_of(vocabulary, logits.shape[-1])
    check_k(k, v)
    temperature = check_positive("temperature", temperature)
    z = logits.detach()[..., :v]
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    z = z if temperature == 1 else z / temperature
    indices = z.topk(k, -1).indices
    buckets = torch.log_softmax(bucket_logits(z, indices), -1)
    return TopK(indices, buckets[..., :k], buckets[..., k], v, temperature)


def linear_top_k(
    head: OneHead,
    k: int,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    vocabulary: int | None = None,
    memory: int = MEMORY,
) -> TopK:
    """`top_k` of logits = cap(scale (hidden @ weight.T + bias)) that are never stored: what a cache is built from.

    Args:
        head: (hidden [..., D], weight [V, D]) or (hidden, weight, bias [V]).
        softcap, scale, memory: as `fenchel.linear_divergence`.
        k, temperature, vocabulary: as `top_k`.

    Example:
        >>> hidden, weight = torch.randn(6, 8), torch.randn(50, 8)
        >>> t = linear_top_k((hidden, weight), 4)
        >>> torch.equal(t.indices, top_k(hidden @ weight.T, 4).indices)
        True
    """
    hidden, weight, bias = check_one_head("head", head, softcap, scale, vocabulary)
    check_k(k, len(weight))
    tiles = logits_by_tile(
        hidden.detach().reshape(-1, hidden.shape[-1]), weight, bias, softcap=softcap, scale=scale, memory=memory
    )
    return TopK.cat(top_k(z, k, temperature=temperature) for z in tiles).reshape(*hidden.shape[:-1])


def check_k(k: int, v: int) -> None:
    """Raise ValueError unless 1 <= k <= V."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= v:
        raise ValueError(f"k: got {k!r}; pass 1 to V = {v}")


def bucketed_divergence(
    teacher: TopK,
    student_logits: Tensor,
    generator: str | Generator = "kl",
    *,
    first: str = "teacher",
    temperature: float | None = None,
    vocabulary: int | None = None,
) -> Tensor:
    """D_f of k + 1 buckets: the teacher's k classes and all the others in one.

    sum_{j in top k} q_j f(p_j/q_j) + q_T f(p_T/q_T): a divergence for every f, at most D_f of the whole distributions.

    Args:
        teacher: of `top_k`, a cache, or a sparse teacher; a constant.
        student_logits: [..., V]; -inf for a class that the student excludes. float16 and bfloat16 are computed in float32.
        generator: a name or a Generator; all have a divergence. `fenchel.terms.skewed` gives skewed ones.
        first: "teacher" for D_f(teacher||student), "student" for D_f(student||teacher).
        temperature: divides the student's logits; None: what the teacher's were divided by. No factor T^2 is applied.
        vocabulary: compare with the student's first K classes, where the rest is padding; K must be the teacher's vocabulary.

    Returns:
        [...], the dtype of the logits, differentiable in them to any order. +inf where the divergence is infinite.

    Raises:
        ValueError, TypeError: rows, vocabularies or devices that differ, an unknown generator or orientation.

    Example:
        >>> teacher = top_k(torch.tensor([[0.6, 0.4]]).log(), 1)
        >>> bucketed_divergence(teacher, torch.tensor([[0.9, 0.1]]).log())      # 0.6 log 6/9 + 0.4 log 4; 0.6 log 6/9 = -0.243 alone
        tensor([0.3112])

    Source: the data-processing inequality of f-divergences (Csiszar 1967); -0.243 is what a sum over the top k alone gives.
    """
    check_floating("student_logits", student_logits, "[..., V]")
    check_vocabulary("student_logits", student_logits)
    student_logits = student_logits[..., : check_student(teacher, student_logits.shape[-1], vocabulary)]
    check_rows(teacher, student_logits, "student_logits")
    z = student_logits.to(torch.promote_types(student_logits.dtype, torch.float32))
    rows = bucket_rows(
        z, teacher.indices, teacher.buckets(), generator, first, student_temperature(teacher, temperature)
    )
    return rows.to(student_logits.dtype)


def bucket_rows(
    z: Tensor, indices: Tensor, buckets: Tensor, generator: str | Generator, first: str, temperature: float
) -> Tensor:
    """The divergence of teacher buckets [..., k + 1] and a student's logits [..., V], float32 at least."""
    student = bucket_logits(z if temperature == 1 else z / temperature, indices)
    constant = buckets.detach().to(z.dtype)
    p, q = (constant, student) if check_first(first) else (student, constant)
    return divergence(p, q, generator)


def bucket_logits(z: Tensor, indices: Tensor) -> Tensor:
    """The logits of k classes and the logsumexp of all others, [..., k + 1]; -inf where indices are -1 or nothing is left.

    Their softmax is the student's buckets.
    """
    v, there = z.shape[-1], indices >= 0
    own = torch.where(there, z.gather(-1, torch.where(there, indices, 0)), -torch.inf)
    # one column more, for the places that hold no class
    taken = torch.zeros(*z.shape[:-1], v + 1, dtype=torch.bool, device=z.device)
    taken = taken.scatter(-1, torch.where(there, indices, v), True)[..., :v]
    return torch.cat((own, log_sum(z.masked_fill(taken, -torch.inf)).unsqueeze(-1)), -1)


def log_sum(z: Tensor) -> Tensor:
    """logsumexp [...] whose gradient, of any order, is 0 rather than NaN for rows of -inf alone."""
    best = z.detach().amax(-1, keepdim=True)
    best = torch.where(best == -torch.inf, 0.0, best)
    total = (z - best).exp().sum(-1)
    nothing = total == 0
    return torch.where(nothing, -torch.inf, torch.where(nothing, 1.0, total).log() + best.squeeze(-1))


def check_first(first: str) -> bool:
    """Whether the teacher comes first.

    Raises:
        ValueError: neither "teacher" nor "student".
    """
    if first not in ("teacher", "student"):
        raise ValueError(
            f"first: got {first!r}; pass 'teacher' for D(teacher||student) or 'student' for D(student||teacher)"
        )
    return first == "teacher"


def student_temperature(teacher: TopK, temperature: float | None) -> float:
    """What the student's logits are divided by."""
    return teacher.temperature if temperature is None else check_positive("temperature", temperature)


def check_student(teacher: TopK, v: int, vocabulary: int | None) -> int:
    """How many of the student's V classes count: the teacher's.

    Raises:
        ValueError: vocabularies that differ.
    """
    if check_vocabulary_of(vocabulary, v) != teacher.vocabulary:
        raise ValueError(
            f"student: got V = {check_vocabulary_of(vocabulary, v)}, the teacher's rows are over {teacher.vocabulary} classes; if they "
            f"differ in padding alone, pass vocabulary = the number of real tokens, to `top_k` too"
        )
    return teacher.vocabulary


def check_rows(teacher: TopK, student: Tensor, name: str) -> None:
    """Raise ValueError unless the teacher has a row for each row of the student [..., *]."""
    if teacher.shape != student.shape[:-1]:
        raise ValueError(
            f"{name}: got rows {list(student.shape[:-1])}, the teacher has {list(teacher.shape)}; pass the same rows"
        )
    if teacher.indices.device != student.device:
        raise ValueError(
            f"{name}: got device {student.device}, the teacher is on {teacher.indices.device}; move one of them"
        )
