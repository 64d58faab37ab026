"""The Fenchel-Young loss of hidden @ weight.T, the logits never stored.

Class-index targets run through a kernel that solves for the threshold and turns a tile of logits in place into p - y; with a uniform upstream
gradient (mean, sum) gradients are made in the forward pass, so a step costs three products. Probability targets, and label smoothing combined with class
weights or a vector q, run through the generic head. Second derivatives always do: the row function is the same.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..agreement import Meeting, ProcessGroup
from ..checks import check_flag, reference
from ..generators import Generator, by_handle
from ..losses.fenchel_young import (
    YoungSpec,
    check_class_weight,
    check_target,
    check_values,
    mean_size,
    reduce,
    sharded_target,
    young_rows,
    young_spec,
)
from ..opaque import opaque
from ..operators import working_dtype
from ..vocab import LOCAL, Vocabulary
from . import kernels, native
from .by_classes import accumulates, sweep_by_classes
from .derived import rows_of, total
from .kept import kept
from .opaque import one_by_one, returned, unmade
from .projection import MEMORY, autocast, check_head, ranks_share, rows_per_tile
from .rows import Rows, Tile, applied
from .sweep import Head, sweep
from .triton.use import check_backend, chosen
from .young_by_classes import YoungByClasses
from .young_kernel import YoungKernel

__all__ = ["linear_fenchel_young"]


def linear_fenchel_young(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    generator: str | Generator = "kl",
    *,
    bias: Tensor | None = None,
    q: float | Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    temperature: float = 1.0,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    memory: int = MEMORY,
    accumulator: bool = True,
    backend: str = "auto",
    group: ProcessGroup | None = None,
) -> Tensor:
    """`fenchel_young` of logits = cap(scale (hidden @ weight.T + bias)) that are never stored.

    Args:
        hidden: [..., D]; float16 and bfloat16 are accumulated in float32.
        weight: [V, D], the output embedding; may be tied.
        target: class indices [...], or probabilities [..., V].
        generator: a name or a Generator; sparse ones (alpha > 1) cost less the smaller their support is.
        bias: [V].
        q: the reference measure: a number (default 1) or [V].
        softcap: cap(x) = softcap tanh(x / softcap).
        scale: a factor on the logits.
        temperature, label_smoothing, ignore_index, reduction: as `fenchel_young`; ignored rows are dropped before the first product.
        class_weight: `fenchel_young`'s weight, [V].
        memory: bytes that a tile of logits may take.
        accumulator: False: a half-precision weight's gradient is made by blocks of classes, in float32 and rounded once, without a float32 [V, D] in which
            it is added up: one product more (docs/kernels.md). A float32 or float64 gradient is its own accumulator, and made as ever.
        backend: "triton": the tiles' row kernels in Triton, or an error that says why not; "torch": without; "auto": Triton on a GPU, where it can.
        group: the ranks that share the vocabulary (docs/parallel.md): weight, bias, class weights, probability targets and a q that is no number are
            then this rank's shard; hidden and class indices are the same on every rank, whole. Not needed for DTensors, which say it themselves.

    Returns:
        A scalar or [...] for "none", float32 at least. Any upstream gradient is right; "mean" and "sum" make their gradients in the forward pass.

    Raises:
        ValueError, TypeError: as `fenchel_young`, and for shapes, dtypes or devices of the head that do not fit.
        RuntimeError: a sharded vocabulary under torch.compile.

    Example:
        >>> hidden, weight = torch.randn(6, 8), torch.randn(50, 8)
        >>> target = torch.tensor([1, 2, 3, -100, 5, 6])
        >>> fused = linear_fenchel_young(hidden, weight, target, "alpha:1.5")
        >>> from fenchel import fenchel_young
        >>> torch.allclose(fused, fenchel_young(hidden @ weight.T, target, "alpha:1.5"), atol=1e-5)
        True

    Source: as `fenchel_young`; cross-entropy without logits: Wijmans et al., arXiv 2411.09009.
    """
    with Meeting(group) as meeting:
        hidden, weight = meeting.whole("hidden", hidden), meeting.shard("weight", weight)
        bias, target = meeting.shard("bias", bias), sharded_target(meeting, target)
        q, class_weight = meeting.shard("q", q), meeting.shard("class_weight", class_weight)
        spec = young_spec(generator, temperature, label_smoothing, reduction)
        check_backend(backend)
        check_flag("accumulator", accumulator)
        hidden, weight, bias = autocast(hidden, weight, bias)
        lead = check_head(hidden, weight, bias, softcap, scale)
        v, inside = weight.shape[0], working_dtype(spec.generator, hidden.dtype)
        q_ = reference(q, hidden.new_zeros(0, v), inside)
        w_ = check_class_weight("class_weight", class_weight, v, hidden.device, inside)
        y, indices = check_target(torch.Size((*lead, v)), target, ignore_index, inside)
        vocab = meeting.agree(
            v,
            {"target": y} if indices else {},
            {"hidden": hidden},
            call="linear_fenchel_young",
            **spec.facts,
            softcap=softcap,
            scale=scale,
            q=q_,
            class_weight=w_,
            ignore_index=ignore_index,
            memory=memory,
            accumulator=accumulator,
            backend=backend,
            indices=indices,
            kernels=native.available,
            **ranks_share(hidden, weight, bias),
        )
    flat = vocab.spread(hidden.reshape(-1, hidden.shape[-1]))
    row_function = partial(_rows_of, q=q_, class_weight=w_, spec=spec, ignore_index=ignore_index, vocab=vocab)
    ignored = ignore_index if indices else None
    tile = Tile(row_function, softcap, float(scale), rows_per_tile(vocab.width(v), 16, memory), ignored)
    if not indices or (spec.label_smoothing > 0 and (q_.dim() > 0 or w_ is not None)):
        asked = {"backend": backend, "accumulator": accumulator}
        for name, wrong, usual in (("backend", "triton", "auto"), ("accumulator", False, True)):
            if asked[name] == wrong:
                raise ValueError(
                    f"{name}: got {wrong!r} with probability targets, or with label smoothing beside class weights or a vector q, "
                    f"which have no kernel; pass {name}={usual!r}"
                )
        checked = check_values(y, v, ignore_index, vocab)
        with torch.autocast(hidden.device.type, enabled=False):
            rows: Tensor = applied(Rows, tile, flat, weight, bias, y)
        return reduce(rows + checked, _size(y, w_, ignore_index, vocab), reduction, lead).to(rows.dtype)
    call = YoungCall(spec, ignore_index, softcap, float(scale), memory, accumulator, backend, tile, vocab)
    return _run(call, flat, weight, bias, y, q_, w_, lead)


def _rows_of(
    z: Tensor,
    y: Tensor,
    *,
    q: Tensor,
    class_weight: Tensor | None,
    spec: YoungSpec,
    ignore_index: int,
    vocab: Vocabulary,
) -> Tensor:
    inside = working_dtype(spec.generator, z.dtype)
    return young_rows(z.to(inside), y, q, class_weight, spec, ignore_index, vocab)[0].to(z.dtype)


def _size(y: Tensor, class_weight: Tensor | None, ignore_index: int, vocab: Vocabulary) -> Tensor:
    """What "mean" divides by."""
    if y.dim() == 2:
        return torch.tensor(float(len(y)), dtype=torch.float64, device=y.device)
    return mean_size(y, y != ignore_index, class_weight, vocab)


@dataclass(frozen=True, eq=False)
class YoungCall:
    """One call: what is no tensor. Its tensors are hidden, weight, bias, y, q and the class weights."""

    spec: YoungSpec
    ignore_index: int
    softcap: float | None
    scale: float
    memory: int
    accumulator: bool
    backend: str
    tile: Tile
    vocab: Vocabulary = LOCAL
    free = 3
    constants = 2

    def op(self, tensors: tuple[Tensor | None, ...], c: Tensor | None, want: list[bool]) -> tuple[Tensor, ...]:
        """`Fast.op`."""
        s = self.spec
        return _young(
            *tensors,
            c,
            s.temperature,
            s.label_smoothing,
            self.ignore_index,
            self.softcap,
            self.scale,
            s.generator.handle,
            self.memory,
            self.accumulator,
            self.backend,
            *self.vocab.numbers,
            want,
        )


def _run(
    call: YoungCall,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    q: Tensor,
    w: Tensor | None,
    lead: torch.Size,
) -> Tensor:
    tensors = (hidden, weight, bias, y, q, w)
    if call.spec.reduction == "none":
        return rows_of(call, *tensors).view(lead)
    size = _size(y, w, call.ignore_index, call.vocab)
    each = torch.ones_like(size) if call.spec.reduction == "sum" else 1 / torch.where(size > 0, size, 1.0)
    c = torch.where(y != call.ignore_index, each, 0.0).to(torch.promote_types(hidden.dtype, torch.float32))
    return total(call, c, *tensors)


@opaque("young")
def _young(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    q: Tensor,
    class_weight: Tensor | None,
    c: Tensor | None,
    temperature: float,
    smoothing: float,
    ignore_index: int,
    softcap: float | None,
    scale: float,
    number: int,
    memory: int,
    accumulator: bool,
    backend: str,
    group: str,
    offset: int,
    classes: int,
    widest: int,
    want: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per-row losses, and the wanted gradients of sum_i c_i loss_i (empty tensors for the others)."""
    vocab = Vocabulary(group, offset, classes, widest)
    check_values(y, len(weight), ignore_index, vocab)
    counted = kept(y != ignore_index)
    part, labels, row_c = counted.of(hidden), counted.of(y), None if c is None else counted.of(c)
    head = Head(part, weight, bias, softcap, scale, (want[0], want[1], want[2]))
    g, entries = by_handle(number), len(part) * len(weight)
    triton = chosen(backend, hidden.device, group, partial(_obstacle, g, q.dtype))
    may_skip = softcap is None and (triton or kernels.gathers(weight, head.dtype))
    kernel = YoungKernel(g, labels, q, class_weight, temperature, smoothing, entries, may_skip, vocab, triton)
    if row_c is None or accumulator or not accumulates(head):
        rows, [grads] = sweep([head], kernel, row_c, memory, vocab=vocab)
    else:
        rows, grads = sweep_by_classes(head, YoungByClasses(kernel), row_c, memory, vocab)
    out = returned(grads, (hidden, weight, bias), counted)
    return counted.back(rows), out[0], out[1], out[2]


def _obstacle(g: Generator, dtype: torch.dtype) -> str | None:
    from .triton.functions import solver_obstacle  # imports triton

    return solver_obstacle(g, dtype)


@_young.register_fake
def _(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
    out = unmade((hidden, weight, bias), rest[2], rest[-1])
    return rows, out[0], out[1], out[2]


_young.register_vmap(one_by_one(_young))
