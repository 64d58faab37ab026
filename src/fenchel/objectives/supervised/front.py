"""The two front doors of supervised objectives: the same objective on logits, and on hidden states whose logits are never stored."""

import torch
from torch import Tensor

from ...agreement import Meeting, ProcessGroup
from ...checks import check_floating, check_reduction, check_vocabulary
from ...generators import Generator
from ...head.labelled import labelled_head
from ...head.labelled_on_ranks import check_shareable, shared_head, shared_rows
from ...head.projection import MEMORY, autocast, check_head, ranks_share
from ...head.triton.use import check_backend
from ...head.young import linear_fenchel_young
from ...losses.fenchel_young import fenchel_young, reduce, sharded_target
from ...losses.labelled import labelled_rows
from .fenchel_young import FenchelYoung
from .given import given
from .names import supervised_objective
from .objective import LabelObjective
from .sums import Sum

__all__ = ["check_kernel", "linear_supervised", "supervised"]


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
    group: ProcessGroup | None = None,
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
        group: the ranks that share the vocabulary (docs/parallel.md): logits, sets, probabilities, class weights and a q that is no number are then this
            rank's shard, class indices those of the whole vocabulary. Not needed for DTensors, which say it themselves. First derivatives alone.

    Returns:
        A scalar, or [...] for "none", in the dtype of logits; on a group the same on every rank. If every row is ignored, a zero with a gradient of zero.

    Raises:
        ValueError: shapes that do not fit, an unknown name, a class outside [0, V), probabilities that are negative or do not sum to one, an empty set or a
            kind of target that the objective does not take, a q with zeros; ranks of a group that disagree, on each of them.
        TypeError: a dtype that does not fit; on a group, an objective that needs whole rows.

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
            group=group,
        )
        total = _plus(total, factor, part)
    if others is None:
        assert total is not None
        return total
    with Meeting(group) as meeting:
        check_floating("logits", logits, "[..., V]")
        logits, target = meeting.shard("logits", logits, -1), sharded_target(meeting, target)
        q, weight = meeting.shard("q", q), meeting.shard("weight", weight)
        check_vocabulary("logits", logits)
        v, inside = logits.shape[-1], torch.promote_types(logits.dtype, torch.float32)
        told = given(others, logits.shape, logits.device, target, q, weight, label_smoothing, ignore_index, inside)
        if meeting.group is not None:
            check_shareable(told.table, inside)
        vocab = meeting.agree(
            v,
            told.indices,
            call="supervised",
            **told.facts,
            rows=logits.shape[:-1],
            dtype=logits.dtype,
            reduction=reduction,
            derivative=torch.is_grad_enabled() and logits.requires_grad,
        )
    z, checked, size = logits.reshape(-1, v).to(inside), told.checked(v, vocab), told.size(vocab).to(inside)
    whole = lambda: labelled_rows(z, told.y, told.log_q, told.class_weight, others, told.labels)
    rows = shared_rows(z, told.shared(vocab)) if vocab.group else whole()
    rows = reduce(rows + checked, size, reduction, logits.shape[:-1]).to(logits.dtype)
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
    accumulator: bool = True,
    backend: str = "auto",
    group: ProcessGroup | None = None,
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
        accumulator, backend: as `linear_fenchel_young`. Only generators' losses can be made without an accumulator, and have Triton kernels: for others
            False and "triton" are refused.
        group: the ranks that share the vocabulary (docs/parallel.md): weight, bias, class weights, sets, probabilities and a q that is no number are then
            this rank's shard; hidden and class indices are the same on every rank, whole. Not needed for DTensors, which say it themselves.

    Returns:
        A scalar or [...] for "none", float32 at least. Any upstream gradient and, without a group, second derivatives are right; "mean" and "sum" of class
        indices make their gradients in the forward pass.

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
    check_kernel(chosen, backend, accumulator)
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
            accumulator=accumulator,
            backend=backend,
            group=group,
        )
        total = _plus(total, factor, part)
    if others is None:
        assert total is not None
        return total
    with Meeting(group) as meeting:
        hidden, weight = meeting.whole("hidden", hidden), meeting.shard("weight", weight)
        bias, target = meeting.shard("bias", bias), sharded_target(meeting, target)
        q, class_weight = meeting.shard("q", q), meeting.shard("class_weight", class_weight)
        hidden, weight, bias = autocast(hidden, weight, bias)
        lead = check_head(hidden, weight, bias, softcap, scale)
        v, inside = len(weight), torch.promote_types(hidden.dtype, torch.float32)
        shape = torch.Size((*lead, v))
        told = given(others, shape, hidden.device, target, q, class_weight, label_smoothing, ignore_index, inside)
        if meeting.group is not None:
            check_shareable(told.table, inside)
        vocab = meeting.agree(
            v,
            told.indices,
            {"hidden": hidden},
            call="linear_supervised",
            **told.facts,
            softcap=softcap,
            scale=scale,
            reduction=reduction,
            memory=memory,
            **ranks_share(hidden, weight, bias),
        )
    checked, size = told.checked(v, vocab), told.size(vocab).to(inside)
    options = {"size": size, "softcap": softcap, "scale": float(scale), "reduction": reduction, "memory": memory}
    if vocab.group:
        rows = shared_head(hidden, weight, bias, told.shared(vocab), **options)
    else:
        columns = {"log_q": told.log_q, "class_weight": told.class_weight}
        rows = labelled_head(others, hidden, weight, bias, told.y, **columns, labels=told.labels, **options)
    return _plus(total, 1.0, rows + checked)


def check_kernel(objective: LabelObjective, backend: str, accumulator: bool = True) -> None:
    """Refuse what only generators' losses have, for an objective that is something else or a sum with something else.

    Raises:
        ValueError: a Triton kernel or no accumulator; a backend that is none.
    """
    check_backend(backend)
    _, others = _apart(objective)
    for name, got, wrong, usual in (("backend", backend, "triton", "auto"), ("accumulator", accumulator, False, True)):
        if others is not None and got == wrong:
            raise ValueError(
                f"{name}: got {got!r}, which only the losses of generators have, not {type(others).__name__}; pass {name}={usual!r}"
            )


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
