"""How near a student's next-token distributions are to its teacher's, on held-out text."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fenchel.divergences import divergence
from fenchel.integrations.distillation import between
from fenchel.integrations.hooks import Head, NextStates, head_of
from fenchel.objectives.distillation import distillation_objective
from fenchel.operators import softargmax
from fenchel.study.data import Windows
from fenchel.study.definitions import Metric
from fenchel.study.evaluate import heldout_states
from fenchel.teachers.tiles import logits_by_tile

MEASURES = (
    Metric(
        "teacher_kl",
        "KL(teacher‖student)",
        "lower",
        ("teacher_kl",),
        "mean of Σ_j t_j log(t_j / s_j)",
        "How many nats per token are lost by taking the student for the teacher: of the softmax of both models' logits, "
        "whatever they predict with.",
    ),
    Metric(
        "teacher_tv",
        "TV(teacher, student)",
        "lower",
        ("teacher_tv",),
        "mean of ½ Σ_j |t_j − s_j|",
        "Total variation between what the two models predict, each with its own operator: from 0 to 1, also where one has "
        "exact zeros.",
    ),
    Metric(
        "agreement",
        "agrees with the teacher",
        "higher",
        ("agreement",),
        "mean of 1[argmax s = argmax t]",
        "Share of held-out tokens where both models' most probable prediction is the same.",
        unit="percent",
    ),
)


@torch.no_grad()
def fidelity(
    teacher: Any,
    student: Any,
    windows: Windows,
    vocabulary: int | None = None,
    generators: tuple[str, str] = ("kl", "kl"),
) -> dict[str, Any]:
    """{"summary", "per_document"} of `MEASURES` over the windows; the teacher and the student predict with softargmax of `generators`."""
    (theirs, _, _), (ours, target, document) = heldout_states(teacher, windows), heldout_states(student, windows)
    heads = head_of(teacher), head_of(student)
    states = NextStates(ours, target)
    kl, tv = (
        between(objective, theirs, heads[0], states, heads[1], vocabulary, "none")
        for objective in (distillation_objective("kl"), Predictions(*generators))
    )
    same = best(theirs, heads[0], vocabulary) == best(ours, heads[1], vocabulary)
    columns = {"teacher_kl": kl.double(), "teacher_tv": tv.double(), "agreement": same.double()}
    counts = torch.bincount(document, minlength=len(windows.names)).clamp(min=1)
    return {
        "summary": {name: float(values.mean()) for name, values in columns.items()},
        "per_document": {
            name: (torch.bincount(document, values, minlength=len(windows.names)) / counts).tolist()
            for name, values in columns.items()
        },
    }


@dataclass(frozen=True)
class Predictions:
    """The total variation of what two models predict, as a row objective.

    Attributes:
        teacher, student: the generators whose softargmax they predict with.
    """

    teacher: str
    student: str
    needs_target: ClassVar[bool] = False

    def rows(self, teacher: Tensor, student: Tensor, target: Tensor | None = None) -> Tensor:
        """Each row's [N]; logits [N, V]."""
        p, q = softargmax(teacher, self.teacher), softargmax(student, self.student)
        return divergence(p.log(), q.log(), "tv")


def best(hidden: Tensor, head: Head, vocabulary: int | None = None) -> Tensor:
    """The most probable token [N] of each row."""
    weight, bias = head.weight[:vocabulary], None if head.bias is None else head.bias[:vocabulary]
    tiles = logits_by_tile(hidden, weight, bias, softcap=head.softcap, scale=head.scale)
    return torch.cat([tile.argmax(1) for tile in tiles])
