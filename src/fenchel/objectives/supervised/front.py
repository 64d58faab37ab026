"""The two front doors of supervised objectives: the same objective on logits, and on hidden states whose logits are never stored."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...agreement import is_sharded
from ...checks import check_floating, check_reduction, check_smoothing, check_vocabulary
from ...generators import Generator
from ...head.labelled import labelled_head
from ...head.projection import MEMORY, autocast, check_head
from ...head.young import linear_fenchel_young
from ...losses.fenchel_young import check_class_weight, check_target, check_values, fenchel_young, mean_size, reduce
from ...losses.labelled import Labels, labelled_rows
from .fenchel_young import FenchelYoung
from .names import supervised_objective
from .objective import DISTRIBUTION, LABELS, SET, LabelObjective
from .sums import Sum

__all__ = ["linear_supervised", "supervised"]


def supervised(
    logits: Tensor,
    target: Tensor,
    objective: str | Generator | LabelObjective = "kl",
    *,
    q: float | Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """A supervised objective of logits, with the arguments of `fenchel_young`; the class dimension is the last one.

    A generator's name or a Generator is `fenchel_young` of it.

    Args:
        logits: [..., V]; -inf for a class outside the vocabulary. float16 and bfloat16 are computed in float32.
        target: class indices [...] (integers); for objectives that take them, sets of classes [..., V] (bool) or probabilities [..., V] (floating).
        objective: a name (`supervised_names`), a sum of names ("nce + 0.5*rce"), a Generator, or an object such as `CompSum(1.7)`.
        q: the reference measure, positive: a number (default 1) or [V]. A class prior here is logit adjustment: softmax(z) becomes p_j in proportion to
            q_j exp(z_j) for every objective, and softargmax(z; q) for a generator.
        weight: class weights [V], >= 0. Not for sets.
        label_smoothing: eps in [0, 1]; mixes the target with the uniform distribution over the classes whose logit is finite. For objectives that take
            probabilities.
        ignore_index: rows with this class index do not count, whatever they hold. Only for class indices.
        reduction: "mean" (for class indices over the class weights of the rows that count), "sum", or "none" ([...]).

    Returns:
        A scalar, or [...] for "none", in the dtype of logits. If every row is ignored, a zero with a gradient of zero.

    Raises:
        ValueError: shapes that do not fit, an unknown name, a class outside [0, V), probabilities that are negative or do not sum to one, an empty set or a
            kind of target that the objective does not take, a q with zeros.
        TypeError: a dtype that does not fit.

    Example:
        >>> logits, target = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([0])
        >>> supervised(logits, target, "gce:1")     # 1 - p
        tensor(0.5000)
        >>> supervised(logits, target, "cross_entropy + 2*mae")     # log 2 + 1
        tensor(1.6931)
        >>> supervised(logits, torch.tensor([[True, False, True]]), "candidates")     # -log 0.7
        tensor(0.3567)

    Source: each objective names its own; logit adjustment: Menon et al., arXiv 2007.07314.
    """
    chosen = supervised_objective(objective)
    check_reduction(reduction)
    young, others = _apart(chosen)
    total: Tensor | None = None
    for factor, loss in young:
        part = fenchel_young(
            logits,
            target,
            loss.generator,
            q=q,
            temperature=loss.temperature,
            weight=weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            reduction=reduction,
        )
        total = _plus(total, factor, part)
    if others is None:
        assert total is not None
        return total
    check_vocabulary("logits", check_floating("logits", logits, "[..., V]"))
    if is_sharded(logits):
        raise TypeError("logits: got a DTensor; this objective needs whole rows: pass logits.full_tensor()")
    inside = torch.promote_types(logits.dtype, torch.float32)
    given = _given(others, logits.shape, logits.device, target, q, weight, label_smoothing, ignore_index, inside)
    z = logits.reshape(-1, logits.shape[-1]).to(inside)
    rows = labelled_rows(z, given.y, given.log_q, given.class_weight, others, given.labels) + given.checked
    rows = reduce(rows, given.size, reduction, logits.shape[:-1]).to(logits.dtype)
    return _plus(total, 1.0, rows)


def linear_supervised(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    objective: str | Generator | LabelObjective = "kl",
    *,
    bias: Tensor | None = None,
    q: float | Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    memory: int = MEMORY,
) -> Tensor:
    """`supervised` of logits = cap(scale (hidden @ weight.T + bias)) that are never stored.

    Generators take the kernel of `linear_fenchel_young`. Every other objective, and a sum of such, is one kernel that is made of its own row function.

    Args:
        hidden: [..., D]; float16 and bfloat16 are accumulated in float32.
        weight: [V, D], the output embedding; may be tied.
        target, objective, q, label_smoothing, ignore_index, reduction: as `supervised`; ignored rows are dropped before the first product.
        bias: [V].
        softcap: cap(x) = softcap tanh(x / softcap).
        scale: a factor on the logits.
        class_weight: `supervised`'s weight, [V].
        memory: bytes that a tile of logits may take.

    Returns:
        A scalar or [...] for "none", float32 at least. Any upstream gradient and second derivatives are right; "mean" and "sum" of class indices make their
        gradients in the forward pass.

    Raises:
        ValueError, TypeError: as `supervised`, and for shapes, dtypes or devices of the head that do not fit.

    Example:
        >>> hidden, weight = torch.randn(6, 8), torch.randn(50, 8)
        >>> target = torch.tensor([1, 2, 3, -100, 5, 6])
        >>> fused = linear_supervised(hidden, weight, target, "nce + 0.5*rce")
        >>> torch.allclose(fused, supervised(hidden @ weight.T, target, "nce + 0.5*rce"), atol=1e-5)
        True

    Source: each objective names its own.
    """
    chosen = supervised_objective(objective)
    check_reduction(reduction)
    young, others = _apart(chosen)
    total: Tensor | None = None
    for factor, loss in young:
        part = linear_fenchel_young(
            hidden,
            weight,
            target,
            loss.generator,
            bias=bias,
            q=q,
            softcap=softcap,
            scale=scale,
            temperature=loss.temperature,
            class_weight=class_weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            reduction=reduction,
            memory=memory,
        )
        total = _plus(total, factor, part)
    if others is None:
        assert total is not None
        return total
    hidden, weight, bias = autocast(hidden, weight, bias)
    lead = check_head(hidden, weight, bias, softcap, scale)
    inside = torch.promote_types(hidden.dtype, torch.float32)
    shape = torch.Size((*lead, len(weight)))
    given = _given(others, shape, hidden.device, target, q, class_weight, label_smoothing, ignore_index, inside)
    rows = labelled_head(
        others,
        hidden,
        weight,
        bias,
        given.y,
        log_q=given.log_q,
        class_weight=given.class_weight,
        labels=given.labels,
        size=given.size,
        softcap=softcap,
        scale=float(scale),
        reduction=reduction,
        memory=memory,
    )
    return _plus(total, 1.0, rows + given.checked)


def _apart(objective: LabelObjective) -> tuple[list[tuple[float, FenchelYoung]], LabelObjective | None]:
    """The Fenchel-Young losses of a sum, which have kernels of their own, and what is left of it."""
    if isinstance(objective, FenchelYoung):
        return [(1.0, objective)], None
    if not isinstance(objective, Sum):
        return [], objective
    return [(w, o) for w, o in objective.terms if isinstance(o, FenchelYoung)], objective.others


def _plus(total: Tensor | None, factor: float, part: Tensor) -> Tensor:
    part = part if factor == 1 else factor * part
    return part if total is None else total + part


@dataclass(frozen=True)
class _Given:
    """The checked arguments of both doors."""

    y: Tensor
    log_q: Tensor | None
    class_weight: Tensor | None
    labels: Labels
    size: Tensor
    checked: Tensor


def _given(
    objective: LabelObjective,
    shape: torch.Size,
    device: torch.device,
    target: Any,
    q: float | Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    dtype: torch.dtype,
) -> _Given:
    v, kind = shape[-1], type(objective).__name__
    labels = Labels(check_smoothing(label_smoothing), ignore_index)
    class_weight = check_class_weight("weight", weight, v, device, dtype)
    if isinstance(target, Tensor) and target.device != device:
        raise ValueError(f"target: got device {target.device}, the logits are on {device}; move one of them")
    if labels.label_smoothing > 0 and not objective.takes >= DISTRIBUTION:
        raise ValueError(f"label_smoothing: got {label_smoothing}, but {kind} takes no probabilities; leave it out")
    if isinstance(target, Tensor) and target.dtype == torch.bool:
        y, checked = _sets(objective, shape, target, dtype)
        if weight is not None or label_smoothing > 0:
            raise ValueError("target: got sets of classes with class weights or label smoothing; leave these out")
    else:
        y, indices = check_target(shape, target, ignore_index, dtype)
        if not indices and not objective.takes >= DISTRIBUTION:
            others = ", or sets [..., V] (bool)" if objective.takes >= SET else ""
            raise ValueError(f"target: got probabilities, but {kind} does not take them; pass class indices{others}")
        checked = check_values(y, v, ignore_index)
    size = (
        mean_size(y, y != ignore_index, class_weight).to(dtype)
        if y.dim() == 1
        else torch.full((), float(len(y)), dtype=dtype, device=device)
    )
    return _Given(y, _log_q(q, v, device, dtype), class_weight, labels, size, checked)


def _sets(objective: LabelObjective, shape: torch.Size, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sets of classes as zeros and ones [N, V]; and a zero, once they are known to be what the objective takes."""
    if not objective.takes >= SET:
        kind = type(objective).__name__
        raise ValueError(f"target: got sets of classes (bool), but {kind} does not take them; pass class indices")
    if target.shape != shape:
        raise ValueError(f"target: got sets of shape {list(target.shape)}; pass bool {list(shape)}, as the logits")
    y = target.reshape(-1, shape[-1])
    if not objective.takes >= LABELS and not torch.compiler.is_compiling() and not bool(y.any(-1).all()):
        raise ValueError("target: got a row without any class; pass one class or more per row, or leave the row out")
    return y.to(dtype), torch.zeros((), dtype=dtype, device=y.device)


def _log_q(q: float | Tensor | None, v: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """log q [V], or None for a q that is the same for all classes."""
    if q is None:
        return None
    if not isinstance(q, Tensor):
        q = torch.as_tensor(q, dtype=dtype, device=device)
    check_floating("q", q, f"[{v}]")
    if tuple(q.shape) not in ((), (v,)) or q.device != device or q.requires_grad:
        raise ValueError(
            f"q: got shape {list(q.shape)} on {q.device}; pass a number or a constant [V] = [{v}] on {device} (a measure per row needs a generator's loss)"
        )
    if not torch.compiler.is_compiling() and not bool(((q > 0) & (q < torch.inf)).all()):
        raise ValueError("q: got a class that is not positive and finite; pass positive numbers (add a small count)")
    return None if q.dim() == 0 else q.to(dtype).log()
