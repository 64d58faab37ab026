"""Divergences between teacher and student as objectives: any generator, either way round, skewed, and weighted sums of such.

Every generator's name is an objective: D_f(teacher||student). So "kl" is what the field calls forward KL, and "reverse_kl" is KL(student||teacher).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from ...checks import check_positive, check_weight
from ...divergences import renyi, skew_divergence
from ...generators import Generator, jensen_shannon
from ...generators import generator as named
from ...terms import check_skew
from .objective import RowObjective

__all__ = ["Mixture", "Renyi", "Term", "gjsd", "skew_kl", "skew_reverse_kl"]


@dataclass(frozen=True)
class Term:
    """factor D_f(a || skew a + (1 - skew) b), a the distribution named by `first`, b the other; both are softmax(logits / T).

    Attributes:
        generator: a name or a Generator.
        first: "teacher" or "student".
        skew: the weight of a in the mixture, in [0, 1).
        temperature: T > 0, divides both models' logits.
        factor: > 0, multiplies: the weight in a mixture, times T**2 where you want the scaling of Hinton et al. 2015. Nothing is scaled unless it is here.

    Example:
        >>> Term("kl", first="student").factor
        1.0
    """

    generator: str | Generator = "kl"
    first: Literal["teacher", "student"] = "teacher"
    skew: float = 0.0
    temperature: float = 1.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        named(self.generator)
        if self.first not in ("teacher", "student"):
            raise ValueError(f"first: got {self.first!r}; pass 'teacher' or 'student'")
        check_skew(self.skew)
        check_positive("temperature", self.temperature)
        check_positive("factor", self.factor)

    def rows(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The term of each row [N], from logits [N, V]."""
        p, q = self.ordered(teacher, student)
        return self.factor * skew_divergence(p, q, self.generator, skew=self.skew, temperature=self.temperature)

    def ordered(self, teacher: Any, student: Any) -> tuple[Any, Any]:
        """(a, b): what belongs to the teacher and to the student, in the order of the divergence."""
        return (teacher, student) if self.first == "teacher" else (student, teacher)


@dataclass(frozen=True)
class Mixture:
    """A sum of divergences between teacher and student, sum_k factor_k D_k.

    `linear_distillation` gives each term the kernel of `linear_divergence`.

    Attributes:
        terms: one `Term` or more.

    Example:
        >>> import torch
        >>> both = Mixture((Term("kl", factor=0.5), Term("kl", first="student", factor=0.5)))
        >>> from fenchel import divergence
        >>> t, s = torch.randn(3, 5), torch.randn(3, 5)
        >>> torch.allclose(both.rows(t, s), (divergence(t, s) + divergence(s, t)) / 2)
        True
    """

    terms: tuple[Term, ...]
    needs_target: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.terms or not all(isinstance(t, Term) for t in self.terms):
            raise ValueError(f"terms: got {self.terms!r}; pass a tuple of one Term or more")

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None = None) -> Tensor:
        """The sum of each row [N]; logits [N, V]."""
        rows = [term.rows(teacher, student) for term in self.terms]
        return sum(rows[1:], rows[0])


@dataclass(frozen=True)
class Renyi:
    """factor times the Renyi divergence of the student from the teacher, log(sum_j t_j^a s_j^(1-a)) / (a - 1), a = order.

    order = 1 is KL(teacher||student); see `fenchel.renyi`.

    Attributes:
        order: a > 0.
        temperature: T > 0, divides both models' logits.
        factor: > 0, multiplies.

    Example:
        >>> import torch
        >>> t, s = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> Renyi(2.0).rows(t, s)  # log(0.25/0.25 + 0.25/0.75)
        tensor([0.2877])
    """

    order: float
    temperature: float = 1.0
    factor: float = 1.0
    needs_target: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("order", "temperature", "factor"):
            check_positive(name, getattr(self, name))

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None = None) -> Tensor:
        """The divergence of each row [N]; logits [N, V]."""
        return self.factor * renyi(teacher, student, self.order, temperature=self.temperature)


def gjsd(beta: float, *, scaled: bool = False, temperature: float = 1.0, factor: float = 1.0) -> Mixture:
    """The generalised Jensen-Shannon divergence of GKD, beta KL(t||m) + (1 - beta) KL(s||m), m = beta t + (1 - beta) s.

    It is the generator `js:BETA` of (teacher, student). As beta -> 0 or 1 it tends to 0, like beta KL(t||s) and (1 - beta) KL(s||t): those limits are
    values, not switches. TRL and GKD switch at the ends, to KL(t||s) at 0 and to KL(s||t) at 1: a jump, since at beta = 1e-4 their gradient is 1e-4 of
    that. Pass "kl" or "reverse_kl" for these, or `scaled` for a family that reaches them without a jump.

    Args:
        beta: in (0, 1); in [0, 1] where scaled.
        scaled: divide by beta (1 - beta). Then beta = 0 is KL(t||s) and beta = 1 is KL(s||t), the limits, and gradients near s = t do not depend on beta.
        temperature, factor: as in `Term`.

    Raises:
        ValueError: beta outside its range.

    Example:
        >>> import torch
        >>> t, s = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> [round(gjsd(b, scaled=True).rows(t, s).item(), 4) for b in (0.0, 1e-4, 0.5, 1.0)]
        [0.1438, 0.1438, 0.1354, 0.1308]

    Source: Agarwal et al., arXiv 2306.13649 (GKD), whose m this is.
    """
    check_weight("beta", beta)
    if not isinstance(scaled, bool):
        raise TypeError(f"scaled: got {scaled!r}; pass True or False")
    if scaled and beta in (0, 1):
        first: Literal["teacher", "student"] = "teacher" if beta == 0 else "student"
        return Mixture((Term("kl", first=first, temperature=temperature, factor=factor),))
    if not 0 < beta < 1:
        raise ValueError(
            f"gjsd: got beta = {beta:g}; pass 0 < beta < 1 (at 0 and 1 it is 0 for all models: pass kl for GKD's beta = 0 and reverse_kl for its beta = 1)"
        )
    scale = beta * (1 - beta) if scaled else 1.0
    return Mixture((Term(jensen_shannon(beta), temperature=temperature, factor=factor / scale),))


def skew_kl(skew: float, temperature: float = 1.0, factor: float = 1.0) -> Mixture:
    """DistiLLM's skew KL: KL(t || skew t + (1 - skew) s), finite whatever the student excludes.

    DistiLLM's code leaves out the entropy of the teacher, a constant: the gradient is the same, the value is not.

    Example:
        >>> import torch
        >>> t, s = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
        >>> skew_kl(0.5).rows(t, s)
        tensor([0.1438])

    Source: Ko et al., arXiv 2402.03898 (their skew is 0.1).
    """
    return Mixture((Term("kl", skew=skew, temperature=temperature, factor=factor),))


def skew_reverse_kl(skew: float, temperature: float = 1.0, factor: float = 1.0) -> Mixture:
    """DistiLLM's skew reverse KL: KL(s || skew s + (1 - skew) t).

    Example:
        >>> import torch
        >>> t, s = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> skew_reverse_kl(0.5).rows(t, s)
        tensor([0.1438])

    Source: Ko et al., arXiv 2402.03898 (their skew is 0.1).
    """
    return Mixture((Term("kl", first="student", skew=skew, temperature=temperature, factor=factor),))


OBJECTIVES: dict[str, Callable[..., RowObjective]] = {
    "gjsd": gjsd,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "renyi": Renyi,
}
