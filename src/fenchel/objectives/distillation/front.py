"""The two front doors of distillation: the same objective on logits, and on hidden states whose logits are never stored."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...agreement import Meeting, ProcessGroup
from ...checks import check_floating, check_reduction, check_vocabulary
from ...generators import Generator
from ...head.divergence import linear_divergence
from ...head.pairs import OneHead, linear_pair_rows, rows_that_count, two_heads, two_shards
from ...head.projection import MEMORY
from ...head.triton.use import check_backend
from .divergence import Mixture
from .names import distillation_objective
from .objective import RowObjective

__all__ = ["check_kernel", "distillation", "linear_distillation"]


def distillation(
    objective: str | Generator | RowObjective,
    teacher_logits: Tensor,
    student_logits: Tensor,
    target: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """An objective of distillation, from the logits of both models.

    The teacher is a constant: no gradient reaches it. Nothing is added that the objective does not name: no cross-entropy, no temperature, no T^2.

    Args:
        objective: a name (`distillation_names`), a Generator, or an object such as `Mixture((Term("kl", temperature=2.0, factor=4.0),))`.
        teacher_logits, student_logits: [..., V], over the same vocabulary; -inf for a class outside it. float16 and bfloat16 are computed in float32.
        target: class indices [...] (int64), for the objectives that need them, and only for those.
        mask: bool [...], the rows that count. The others are dropped, give 0 and have no gradient, whatever they hold.
        reduction: "none" ([...]), "sum", or "mean" over the rows that count; 0, differentiable, if none does.

    Returns:
        [...] or a scalar, float32 at least.

    Raises:
        ValueError: shapes or devices that do not fit, an unknown name, a target that is missing or not used, a class outside [0, V).
        TypeError: a dtype that does not fit.

    Example:
        >>> teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> distillation("kl", teacher, student)  # 0.5 log 2 + 0.5 log 2/3
        tensor(0.1438)
        >>> distillation("reverse_kl", teacher, student)  # KL(student||teacher)
        tensor(0.1308)
        >>> distillation("kl:temperature=2,factor=4", teacher, student)  # as Hinton et al. 2015
        tensor(0.1490)

    Source: Hinton, Vinyals & Dean, arXiv 1503.02531; each objective names its own.
    """
    chosen = distillation_objective(objective)
    check_reduction(reduction)
    for name, logits in (("teacher_logits", teacher_logits), ("student_logits", student_logits)):
        check_vocabulary(name, check_floating(name, logits, "[..., V]"))
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"student_logits: got shape {list(student_logits.shape)}, the teacher's have {list(teacher_logits.shape)}; pass the same rows over the same "
            "vocabulary (if they differ in padding alone, cut both to the real tokens)"
        )
    if teacher_logits.device != student_logits.device:
        raise ValueError(
            f"student_logits: got device {student_logits.device}, the teacher's are on {teacher_logits.device}; move one of them"
        )
    lead, v = student_logits.shape[:-1], student_logits.shape[-1]
    counted = rows_that_count(mask, lead, student_logits.device)
    y = _checked_target(chosen, target, lead, v, counted)
    inside = torch.promote_types(torch.promote_types(teacher_logits.dtype, student_logits.dtype), torch.float32)
    teacher, student = teacher_logits.detach().reshape(-1, v), student_logits.reshape(-1, v)
    if mask is None:
        rows = chosen.rows(teacher.to(inside), student.to(inside), y)
    else:
        keep = counted.nonzero().squeeze(1)
        some = chosen.rows(teacher[keep].to(inside), student[keep].to(inside), None if y is None else y[keep])
        rows = some.new_zeros(len(counted)).index_copy(0, keep, some)
    return _reduced(rows, counted, lead, reduction)


def linear_distillation(
    objective: str | Generator | RowObjective,
    teacher: OneHead,
    student: OneHead,
    target: Tensor | None = None,
    *,
    softcap: float | None | tuple[float | None, float | None] = None,
    scale: float | tuple[float, float] = 1.0,
    mask: Tensor | None = None,
    vocabulary: int | None = None,
    reduction: str = "mean",
    memory: int = MEMORY,
    backend: str = "auto",
    group: ProcessGroup | None = None,
) -> Tensor:
    """An objective of distillation, from hidden states and output embeddings; neither model's logits are stored.

    The same number and the same gradients as `distillation` of logits = cap(scale (hidden @ weight.T + bias)), cap(x) = softcap tanh(x / softcap).
    Divergences and their mixtures take the kernel of `linear_divergence`, one call per term; every other objective `linear_pair_rows`.

    Args:
        objective, target, mask, reduction: as `distillation`.
        teacher, student: (hidden [..., D], weight [V, D]) or (hidden, weight, bias [V]). The two widths D may differ. The teacher is a constant.
        softcap, scale: one value for both heads, or a pair (the teacher's, the student's).
        vocabulary: compare the first K tokens, for models whose vocabularies are padded differently. Different V without it raise.
        memory: bytes that a tile of both heads' logits may take.
        backend: as `linear_divergence`. Only divergences and their mixtures have Triton kernels: for others "triton" is refused.
        group: the ranks that share the vocabulary (docs/parallel.md), for divergences and their mixtures; as in `linear_divergence`.

    Returns:
        [...] or a scalar, float32 at least. Any upstream gradient and second derivatives are right.

    Raises:
        ValueError, TypeError: as `distillation`; vocabularies that differ; a sharded one for an objective that needs whole rows.

    Example:
        >>> teacher, student = (torch.randn(6, 16), torch.randn(50, 16)), (torch.randn(6, 8), torch.randn(50, 8))
        >>> target = torch.randint(50, (6,))
        >>> fused = linear_distillation("dkd:alpha=1,beta=8", teacher, student, target)
        >>> want = distillation("dkd:alpha=1,beta=8", teacher[0] @ teacher[1].T, student[0] @ student[1].T, target)
        >>> torch.allclose(fused, want, rtol=1e-4)
        True
    """
    chosen = distillation_objective(objective)
    check_reduction(reduction)
    check_kernel(chosen, backend)
    with Meeting(group) as meeting:
        teacher, student, mask = two_shards(meeting, ("teacher", "student"), teacher, student, mask, vocabulary)
        group = meeting.group
        if group is not None and not isinstance(chosen, Mixture):
            raise ValueError(
                f"group: got one, but {type(chosen).__name__} needs whole rows of logits; pass a divergence or a mixture of divergences, or gather the weights"
            )
        pair = two_heads(("teacher", "student"), teacher, student, softcap, scale, vocabulary)
        fixed: Any = tuple(None if x is None else x.detach() for x in teacher)
        device = pair.heads[1][0].device
        counted = rows_that_count(mask, pair.lead, device)
        y = _checked_target(chosen, target, pair.lead, len(pair.heads[1][1]), counted)
    if isinstance(chosen, Mixture):
        parts = []
        for term in chosen.terms:
            p, q = term.ordered(fixed, student)
            part = linear_divergence(
                p,
                q,
                term.generator,
                temperature=term.temperature,
                softcap=term.ordered(*pair.softcap),
                scale=term.ordered(*pair.scale),
                mask=mask,
                skew=term.skew,
                vocabulary=vocabulary,
                reduction=reduction,
                memory=memory,
                backend=backend,
                group=group,
            )
            parts.append(part if term.factor == 1 else term.factor * part)
        return sum(parts[1:], parts[0])
    by_row = () if y is None else (y.view(pair.lead),)
    rows = linear_pair_rows(
        _RowFunction(chosen),
        fixed,
        student,
        *by_row,
        softcap=softcap,
        scale=scale,
        mask=mask,
        vocabulary=vocabulary,
        memory=memory,
    )
    return _reduced(rows.view(-1), counted, pair.lead, reduction)


def check_kernel(objective: RowObjective, backend: str) -> None:
    """Refuse Triton for an objective that has no kernel of its own.

    Raises:
        ValueError: that, or a backend that is none.
    """
    if check_backend(backend) == "triton" and not isinstance(objective, Mixture):
        raise ValueError(
            f"backend: got 'triton', which only divergences and their mixtures have, not {type(objective).__name__}; pass backend='auto'"
        )


@dataclass(frozen=True)
class _RowFunction:
    """An objective as the function of a tile."""

    objective: RowObjective

    def __call__(self, teacher: Tensor, student: Tensor, *target: Tensor) -> Tensor:
        return self.objective.rows(teacher, student, target[0] if target else None)


def _checked_target(
    objective: RowObjective, target: Tensor | None, lead: torch.Size, v: int, counted: Tensor
) -> Tensor | None:
    """The classes [N] of the rows that count, 0 for the others; None where the objective needs none."""
    kind = type(objective).__name__
    if target is None:
        if objective.needs_target:
            raise ValueError(f"target: got None; {kind} needs class indices {list(lead)} (int64)")
        return None
    if not objective.needs_target:
        raise ValueError(f"target: got one, but {kind} does not use it; leave it out, and leave rows out with mask")
    if not isinstance(target, Tensor) or target.dtype != torch.int64:
        raise TypeError(
            f"target: got {target.dtype if isinstance(target, Tensor) else type(target).__name__}; pass class indices {list(lead)} (int64)"
        )
    if target.shape != lead or target.device != counted.device:
        raise ValueError(
            f"target: got shape {list(target.shape)} on {target.device}; pass {list(lead)} on {counted.device}"
        )
    y = torch.where(counted, target.reshape(-1), 0)
    if not torch.compiler.is_compiling():  # there an index that is out of range is an error of gather
        wrong = (y < 0) | (y >= v)
        if bool(wrong.any()):
            raise ValueError(
                f"target: got class {int(y[wrong][0])}; pass classes in [0, {v}), and leave rows out with mask"
            )
    return y


def _reduced(rows: Tensor, counted: Tensor, lead: torch.Size, reduction: str) -> Tensor:
    if reduction == "none":
        return rows.view(lead)
    total = rows.sum()
    return total if reduction == "sum" else total / counted.sum().clamp_min(1)
