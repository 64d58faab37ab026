"""The Fenchel-Young loss of a generator among the supervised objectives: what "kl" or "alpha:1.5" is."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...checks import check_positive
from ...generators import Generator, operator_of
from ...generators import generator as named
from ...losses.fenchel_young import young_rows, young_spec
from ...operators import working_dtype
from .objective import DISTRIBUTION, LabelObjective

__all__ = ["FenchelYoung"]

# of class indices, which there are none of
IGNORED = -100


@dataclass(frozen=True)
class FenchelYoung:
    """T [softmax_f(z/T) + D_f(y||1) - <y, z/T>], gradient softargmax_f(z/T) - y: `fenchel.fenchel_young`, whose fused head it takes.

    Attributes:
        generator: f, a name or a Generator with an operator.
        temperature: T > 0.

    Example:
        >>> import torch
        >>> FenchelYoung("alpha:2").rows(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([0.])

    Source: Blondel, Martins & Niculae, arXiv 1901.02324, definition 2.
    """

    generator: str | Generator = "kl"
    temperature: float = 1.0
    takes = DISTRIBUTION

    def __post_init__(self) -> None:
        operator_of(named(self.generator))
        check_positive("temperature", self.temperature)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each row [N]; logits and target [N, V]."""
        spec = young_spec(self.generator, self.temperature, 0.0, "none")
        z = logits.to(working_dtype(spec.generator, logits.dtype))
        return young_rows(z, target.to(z.dtype), z.new_ones(()), None, spec, IGNORED)[0].to(logits.dtype)


OBJECTIVES: dict[str, Callable[..., LabelObjective]] = {"fenchel_young": FenchelYoung}
