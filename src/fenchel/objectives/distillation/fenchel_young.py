"""The Fenchel-Young loss of a teacher: the student whose own softargmax is the teacher's distribution, exact zeros included."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...checks import check_positive
from ...generators import INF, Generator, operator_of
from ...generators import generator as named
from ...losses.fenchel_young import young_rows, young_spec
from ...operators import working_dtype
from .objective import RowObjective

__all__ = ["FenchelYoung"]

# of class indices, which there are none of
IGNORED = -100


@dataclass(frozen=True)
class FenchelYoung:
    """factor [softmax_f(s/T) + D_f(p||1) - <p, s/T>],  p = softmax(t/T) of the teacher's logits t: zero iff softargmax_f(s/T) = p.

    A divergence compares two softmaxes, and a softmax has no zeros; this loss gives its student those of a sparse teacher. The teacher's distribution is
    p whatever f is: pass the log-probabilities of a sparse one as its logits, with -inf for zero. The student predicts with softargmax_f. For "kl" the
    loss is KL(teacher||student), and the gradient in s is factor/T (softargmax_f(s/T) - p) for all f.

    Attributes:
        generator: f, a name or a Generator with finite f(0); the teacher's own, if the student is to become the teacher.
        temperature: T > 0, divides both models' logits.
        factor: > 0, multiplies.

    Raises:
        ValueError: a generator without an operator, or with infinite f(0), whose D_f of a distribution with zeros is infinite.

    Example:
        >>> teacher = torch.tensor([[0.75, 0.25, 0.0]]).log()
        >>> FenchelYoung("alpha:2").rows(teacher, torch.tensor([[2.0, 1.5, -1.0]]))
        tensor([0.])

    Source: Blondel, Martins & Niculae, arXiv 1901.02324, definition 2.
    """

    generator: str | Generator
    temperature: float = 1.0
    factor: float = 1.0
    needs_target: ClassVar[bool] = False

    def __post_init__(self) -> None:
        g = named(self.generator)
        operator_of(g)
        if g.f0 == INF:
            raise ValueError(
                f"generator {g.name!r}: D_f of a distribution with zeros is infinite; pass one with finite f(0)"
            )
        check_positive("temperature", self.temperature)
        check_positive("factor", self.factor)

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None = None) -> Tensor:
        """The loss of each row [N]; logits [N, V]."""
        spec = young_spec(self.generator, 1.0, 0.0, "none")
        inside = working_dtype(spec.generator, student.dtype)
        p, z = torch.softmax(teacher.to(inside) / self.temperature, -1), student.to(inside) / self.temperature
        rows, _ = young_rows(z, p, z.new_ones(()), None, spec, IGNORED)
        return (self.factor * rows).to(student.dtype)


OBJECTIVES: dict[str, Callable[..., RowObjective]] = {"fenchel_young": FenchelYoung}
