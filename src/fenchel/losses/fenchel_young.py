"""The Fenchel-Young loss of any generator: cross-entropy for KL, sparsemax and entmax losses for alpha = 2 and 1.5.

    l(theta, y; q) = T [ softmax_f(theta/T; q) + D_f(y||q) - <theta/T, y> ]  >= 0,    gradient in theta: p - y,    zero iff p = y.

Laws (tested): non-negative; zero iff y = softargmax(theta); convex; gradient p - y; KL with class indices is torch's cross_entropy.

Where f(0) is infinite (reverse KL, Jeffreys, Neyman, alpha <= 0), D_f(y||q) of a one-hot y is infinite. There the loss is its theta-part, relative to its
value at theta = 0: same gradient, a usable curve, but not a zero minimum.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..agreement import Meeting, ProcessGroup
from ..checks import check_floating, check_positive, check_reduction, check_smoothing, check_vocabulary, reference
from ..generators import INF, Generator, generator, operator_of
from ..opaque import opaque
from ..operators import solve_rows, working_dtype
from ..vocab import LOCAL, Vocabulary

__all__ = ["FenchelYoungLoss", "fenchel_young"]


def fenchel_young(
    logits: Tensor,
    target: Tensor,
    generator: str | Generator = "kl",
    *,
    q: float | Tensor | None = None,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    group: ProcessGroup | None = None,
) -> Tensor:
    """The Fenchel-Young loss, with the arguments of torch's `cross_entropy`; the class dimension is the last one.

    l = T [softmax_f(theta/T; q) + D_f(y||q) - <theta/T, y>], gradient p - y in theta. With class weights w the target is reweighted to
    t = w y and the loss is (sum t) l(theta, t / sum t), which for KL is what torch does, up to the target's own entropy.

    Args:
        logits: [..., V]; -inf for a class outside the vocabulary. float16 and bfloat16 are computed in float32.
        target: class indices [...] (int64), or probabilities [..., V] that sum to one.
        generator: a name or a Generator.
        q: the reference measure: a number (default 1), [V], or the shape of logits. A class prior here is logit adjustment for any f.
        temperature: T > 0. The gradient stays p - y: no T^2 is needed.
        weight: class weights [V], >= 0.
        label_smoothing: eps in [0, 1]; mixes the target with the uniform distribution over the classes whose logit is finite.
        ignore_index: rows with this class index do not count. Only for class indices.
        reduction: "mean" (for class indices over the class weights of the rows that count, as torch), "sum", or "none" ([...]).
        group: the ranks that share the vocabulary (docs/parallel.md): logits, probability targets, class weights and a q that is no number are then this
            rank's shard, class indices those of the whole vocabulary. Not needed for DTensors, which say it themselves.

    Returns:
        A scalar, or [...] for "none", in the dtype of logits; on a group the same on every rank. If every row is ignored, a zero with a gradient of zero.

    Raises:
        ValueError: shapes that do not fit, an unknown name, a class outside [0, V), probabilities that are negative or do not sum to one; ranks of a group
            that disagree, on each of them.
        TypeError: a dtype that does not fit.

    Example:
        >>> logits, target = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
        >>> float(fenchel_young(logits, target, "alpha:2"))     # a margin of 1 suffices
        0.0
        >>> torch.allclose(fenchel_young(logits, target), torch.nn.functional.cross_entropy(logits, target))
        True

    Source: Blondel, Martins & Niculae 2020, arXiv 1901.02324, definition 2; Roulet et al., arXiv 2501.18537.
    """
    with Meeting(group) as meeting:
        check_floating("logits", logits, "[..., V]")
        logits, target = meeting.shard("logits", logits, -1), sharded_target(meeting, target)
        q, weight = meeting.shard("q", q, -1), meeting.shard("weight", weight)
        spec = young_spec(generator, temperature, label_smoothing, reduction)
        check_vocabulary("logits", logits)
        inside = working_dtype(spec.generator, logits.dtype)
        v = logits.shape[-1]
        measure = reference(q, logits, inside)
        class_weight = check_class_weight("weight", weight, v, logits.device, inside)
        y, indices = check_target(logits.shape, target, ignore_index, inside)
        vocab = meeting.agree(
            v,
            {"target": y} if indices else {},
            call="fenchel_young",
            **spec.facts,
            rows=logits.shape[:-1],
            dtype=logits.dtype,
            indices=indices,
            q=measure,
            weight=class_weight,
            ignore_index=ignore_index,
            derivative=torch.is_grad_enabled() and logits.requires_grad,
        )
    z = logits.reshape(-1, v).to(inside)
    checked = check_values(y, v, ignore_index, vocab)
    rows, size = young_rows(z, y, measure, class_weight, spec, ignore_index, vocab)
    return reduce(rows + checked, size, reduction, target.shape if indices else target.shape[:-1]).to(logits.dtype)


@dataclass(frozen=True)
class YoungSpec:
    """The keyword arguments of `fenchel_young`, checked once."""

    generator: Generator
    temperature: float
    label_smoothing: float
    reduction: str

    @property
    def facts(self) -> dict[str, Any]:
        """What ranks that share a vocabulary must agree on."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def young_spec(name: str | Generator, temperature: float, label_smoothing: float, reduction: str) -> YoungSpec:
    """The checked arguments that do not depend on tensors."""
    g = generator(name)
    operator_of(g)
    check_reduction(reduction)
    return YoungSpec(g, check_positive("temperature", temperature), check_smoothing(label_smoothing), reduction)


def check_class_weight(
    name: str, weight: Tensor | None, v: int, device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """The class weights as a constant [V] tensor."""
    if weight is None:
        return None
    check_floating(name, weight, f"[{v}]")
    if tuple(weight.shape) != (v,):
        raise ValueError(f"{name}: got shape {tuple(weight.shape)}; pass [V] = [{v}]")
    if weight.device != device:
        raise ValueError(
            f"{name}: got device {weight.device}, the logits are on {device}; pass {name}.to({str(device)!r})"
        )
    if weight.requires_grad:
        raise ValueError(
            f"{name}: got a tensor that requires a gradient; class weights are constants: pass {name}.detach()"
        )
    return weight.to(dtype)


def sharded_target(meeting: Meeting, target: Tensor) -> Tensor:
    """Class indices, of which every rank holds all, or this rank's shard of probabilities or of sets (bool)."""
    if isinstance(target, Tensor) and (target.is_floating_point() or target.dtype == torch.bool):
        return meeting.shard("target", target, -1)
    return meeting.whole("target", target)


def check_target(shape: torch.Size, target: Tensor, ignore_index: int, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """The target as [N] class indices (True) or [N, V] probabilities (False)."""
    if not isinstance(target, Tensor):
        raise TypeError(
            f"target: got {type(target).__name__}; pass class indices {list(shape[:-1])} or probabilities {list(shape)}"
        )
    if target.is_floating_point():
        if target.shape != shape:
            raise ValueError(
                f"target: got probabilities of shape {tuple(target.shape)}; pass {list(shape)}, as the logits"
            )
        if ignore_index >= 0:
            raise ValueError(f"ignore_index: got {ignore_index} with probability targets; it needs class indices")
        return target.reshape(-1, shape[-1]).to(dtype), False
    if target.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"target: got dtype {target.dtype}; pass int64 class indices or floating probabilities")
    if target.shape != shape[:-1]:
        raise ValueError(
            f"target: got class indices of shape {tuple(target.shape)}; pass {list(shape[:-1])} for logits {list(shape)}"
        )
    return target.reshape(-1).long(), True


def young_rows(
    z: Tensor,
    y: Tensor,
    q: Tensor,
    class_weight: Tensor | None,
    spec: YoungSpec,
    ignore_index: int,
    vocab: Vocabulary = LOCAL,
) -> tuple[Tensor, Tensor]:
    """The loss of each row [N] (0 where ignored) and what "mean" divides by; differentiable to any order in z."""
    g, t, eps = spec.generator, spec.temperature, spec.label_smoothing
    indices = y.dim() == 1
    counted = (y != ignore_index) if indices else None
    z = z if t == 1 else z / t
    p, excess, best = solve_rows(z, q, g, vocab)
    if indices and eps == 0:
        y = torch.where(y == ignore_index, 0, y)
        gap = best - vocab.pick(z, y)
        mass = None if class_weight is None else vocab.pick(class_weight, y)
        rows = gap + excess + one_hot_divergence(y, q, g, vocab)
    else:
        y = torch.where(y == ignore_index, 0, y) if indices else y
        share, mass = spread_target(z, y, class_weight, eps, vocab)
        gap = vocab.sum(torch.where(share > 0, share * (best.unsqueeze(-1) - z), 0.0)).squeeze(-1)
        rows = gap + excess + divergence_of(share, q, g, vocab)
    rows = t * rows if mass is None else t * rows * mass
    if counted is None:
        return rows, rows.new_full((), len(rows))
    return torch.where(counted, rows, 0.0), mean_size(y, counted, class_weight, vocab).to(rows.dtype)


def mean_size(y: Tensor, counted: Tensor, class_weight: Tensor | None, vocab: Vocabulary = LOCAL) -> Tensor:
    """What "mean" divides by, for class indices: the class weights of the rows that count, added up."""
    if class_weight is None:
        return counted.double().sum()
    return torch.where(counted, vocab.pick(class_weight, torch.where(counted, y, 0)), 0.0).sum()


def spread_target(
    z: Tensor, y: Tensor, class_weight: Tensor | None, eps: float, vocab: Vocabulary = LOCAL
) -> tuple[Tensor, Tensor | None]:
    """The target distribution [N, V] after smoothing and class weights, and the mass that multiplies its loss."""
    share = vocab.one_hot(y, z) if y.dim() == 1 else y
    if eps > 0:
        live = (z.detach() > -INF).to(z.dtype)
        share = (1 - eps) * share + eps * live / vocab.sum(live)
    if class_weight is None:
        return share, None
    share = share * class_weight
    mass = vocab.sum(share).squeeze(-1)
    return share / torch.where(mass > 0, mass, 1.0).unsqueeze(-1), mass


def one_hot_divergence(y: Tensor, q: Tensor, g: Generator, vocab: Vocabulary = LOCAL) -> Tensor:
    """D_f(one-hot||q) less f(0) (sum q - 1): 0 for q = 1; left out where f(0) is infinite."""
    if g.f0 == INF:
        return q.new_zeros(())
    own = q if q.dim() == 0 else vocab.pick(q, y)
    return own * (g.f(1 / own) - g.f0) + g.f0


def divergence_of(share: Tensor, q: Tensor, g: Generator, vocab: Vocabulary = LOCAL) -> Tensor:
    """D_f(share||q) less f(0) (sum q - 1), [N]; left out where f(0) is infinite."""
    if g.f0 == INF:
        return share.new_zeros(())
    return vocab.sum(torch.where(share > 0, q * (g.f(share / q) - g.f0), 0.0)).squeeze(-1) + g.f0


def reduce(rows: Tensor, size: Tensor, reduction: str, shape: torch.Size) -> Tensor:
    """Rows to a scalar, or to their shape; a mean over nothing is a differentiable zero."""
    if reduction == "none":
        return rows.view(shape)
    total = rows.sum()
    return total if reduction == "sum" else total / torch.where(size > 0, size, 1.0)


# Checks of values are opaque: a Python `if` on a tensor would break vmap and fullgraph. They return a 0 that is added to the loss: an operator
# whose result is unused would be dropped from a compiled graph, and the check with it.


def check_values(y: Tensor, width: int, ignore_index: int, vocab: Vocabulary = LOCAL) -> Tensor:
    """A zero, once class indices y [N] are known to be classes, or probabilities y [N, width] to be probabilities."""
    if y.dim() == 1:
        return _check_labels(y, vocab.classes(width), ignore_index)
    return _check_probabilities(y, *vocab.numbers)


@opaque("check_labels")
def _check_labels(y: Tensor, v: int, ignore_index: int) -> Tensor:
    wrong = (y != ignore_index) & ((y < 0) | (y >= v))
    if bool(wrong.any()):
        raise ValueError(
            f"target: got class {int(y[wrong][0])}; pass classes in [0, {v}), or ignore_index = {ignore_index} to leave a row out"
        )
    return torch.zeros((), device=y.device)


@opaque("check_probabilities")
def _check_probabilities(y: Tensor, group: str = "", offset: int = 0, size: int = 0, widest: int = 0) -> Tensor:
    vocab = Vocabulary(group, offset, size, widest)
    mass, least = vocab.sum(y), -vocab.amax(-y)
    off = ~((mass - 1).abs() < 1e-3)
    if bool(off.any()) or bool((least < 0).any()):
        got = (
            f"a row that sums to {float(mass[off][0]):.6g}" if bool(off.any()) else f"an entry {float(least.min()):.6g}"
        )
        raise ValueError(f"target: got {got}; pass probabilities: non-negative rows that sum to one")
    return torch.zeros((), device=y.device)


for _check in (_check_labels, _check_probabilities):

    @_check.register_fake
    def _(y: Tensor, *rest: Any) -> Tensor:
        return torch.zeros((), device=y.device)

    @_check.register_vmap
    def _(info: Any, dims: Any, y: Tensor, *rest: Any, check: Any = _check) -> tuple[Tensor, None]:
        return check(y.movedim(dims[0], 0), *rest), None


class FenchelYoungLoss(nn.Module):
    """`fenchel_young` as a module, as torch's `CrossEntropyLoss`.

    Args and errors: as `fenchel_young`; class weights and q are buffers, so they move with the module.

    Example:
        >>> criterion = FenchelYoungLoss("alpha:1.5", label_smoothing=0.1)
        >>> criterion(torch.zeros(2, 4), torch.tensor([0, 3])).shape
        torch.Size([])
    """

    weight: Tensor | None
    q: Tensor | float | None

    def __init__(
        self,
        generator: str | Generator = "kl",
        *,
        q: float | Tensor | None = None,
        temperature: float = 1.0,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        young_spec(generator, temperature, label_smoothing, reduction)
        self.generator, self.temperature, self.label_smoothing = generator, temperature, label_smoothing
        self.ignore_index, self.reduction = ignore_index, reduction
        self.register_buffer("weight", weight)
        if isinstance(q, Tensor):
            self.register_buffer("q", q)
        else:
            self.q = q

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of logits [..., V] against target."""
        return fenchel_young(
            logits,
            target,
            self.generator,
            q=self.q,
            temperature=self.temperature,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
