"""What language-model post-training asks of a head: the log-probability of each token, the entropy and the log-partition, the logits never stored."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..agreement import Meeting, ProcessGroup
from ..checks import check_positive
from ..losses.fenchel_young import check_target, check_values
from ..opaque import opaque
from ..vocab import LOCAL, Vocabulary
from .derived import rows_of
from .kept import kept
from .opaque import one_by_one, returned, unmade
from .projection import MEMORY, autocast, check_head, ranks_share, rows_per_tile
from .rows import Tile
from .sweep import Head, sweep
from .tiles import compiles, tile_function
from .triton.use import check_backend, chosen

__all__ = ["LogProbabilities", "linear_logp"]

# log 0, but finite: 0 * FAR is 0
FAR = 1e30


@dataclass(frozen=True, eq=False)
class LogProbabilities:
    """What `linear_logp` returns; each is [...], float32 at least, and 0 at ignored positions.

    Attributes:
        logp: log p_target.
        entropy: -sum_j p_j log p_j, in nats.
        logsumexp: log sum_j exp(z_j / T), of the logits that the softmax is taken of.

    Example:
        >>> linear_logp(torch.zeros(1, 2), torch.zeros(4, 2), torch.tensor([3])).entropy    # log 4
        tensor([1.3863])
    """

    logp: Tensor
    entropy: Tensor
    logsumexp: Tensor


def linear_logp(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    temperature: float = 1.0,
    ignore_index: int = -100,
    memory: int = MEMORY,
    backend: str = "auto",
    group: ProcessGroup | None = None,
) -> LogProbabilities:
    """log p_target, entropy and logsumexp of p = softmax(z / T), z = cap(scale (hidden @ weight.T + bias)) never stored.

    One product makes all three. Any gradient may arrive at any of them, twice over: the backward pass recomputes.

    Args:
        hidden: [..., D]; float16 and bfloat16 are accumulated in float32.
        weight: [V, D], the output embedding; may be tied.
        target: class indices [...].
        bias: [V]; -inf takes a class out of the vocabulary.
        softcap: cap(x) = softcap tanh(x / softcap).
        scale: a factor on the logits.
        temperature: T > 0, the sampling temperature: all three results are those of the tempered distribution.
        ignore_index: positions with this class give 0 and no gradient, and are dropped before the first product.
        memory: bytes that a tile of logits may take.
        backend: "triton": the tiles' row kernels in Triton, or an error that says why not; "torch": without; "auto": Triton on a GPU, where it can.
        group: the ranks that share the vocabulary (docs/parallel.md): weight and bias are then this rank's shard; hidden and target are the same on
            every rank, whole. Not needed for DTensors, which say it themselves.

    Returns:
        `LogProbabilities`, each [...].

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, a class outside [0, V); ranks of a group that disagree, on each of them.
        RuntimeError: a sharded vocabulary under torch.compile.

    Example:
        >>> hidden, weight = torch.randn(3, 8), torch.randn(50, 8)
        >>> out = linear_logp(hidden, weight, torch.tensor([4, 9, -100]))
        >>> want = torch.log_softmax(hidden @ weight.T, -1)
        >>> torch.allclose(out.logp[:2], torch.stack([want[0, 4], want[1, 9]]), atol=1e-5), float(out.logp[2])
        (True, 0.0)

    Source: as TRL's and verl's fused log-probabilities; the entropy's gradient is -p (log p + H).
    """
    with Meeting(group) as meeting:
        hidden, weight = meeting.whole("hidden", hidden), meeting.shard("weight", weight)
        bias, target = meeting.shard("bias", bias), meeting.whole("target", target)
        temperature = check_positive("temperature", temperature)
        check_backend(backend)
        hidden, weight, bias = autocast(hidden, weight, bias)
        lead = check_head(hidden, weight, bias, softcap, scale)
        y, indices = check_target(torch.Size((*lead, len(weight))), target, ignore_index, hidden.dtype)
        if not indices:
            raise TypeError(f"target: got dtype {target.dtype}; pass class indices {list(lead)} (int64)")
        vocab = meeting.agree(
            len(weight),
            {"target": y},
            {"hidden": hidden},
            call="linear_logp",
            softcap=softcap,
            scale=scale,
            temperature=temperature,
            ignore_index=ignore_index,
            memory=memory,
            backend=backend,
            **ranks_share(hidden, weight, bias),
        )
    rows = rows_per_tile(vocab.width(len(weight)), 16, memory)
    tile = Tile(_Rows(temperature, ignore_index, vocab), softcap, float(scale), rows, ignore_index)
    call = LogpCall(temperature, ignore_index, softcap, float(scale), memory, backend, tile, vocab)
    out = rows_of(call, vocab.spread(hidden.reshape(-1, hidden.shape[-1])), weight, bias, y)
    logp, entropy, lse = out.unbind(1)
    return LogProbabilities(logp.view(lead), entropy.view(lead), lse.view(lead))


@dataclass(frozen=True)
class _Rows:
    """The three results of rows of logits, differentiable: for the generic head."""

    temperature: float
    ignore_index: int
    vocab: Vocabulary

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        counted = (y != self.ignore_index).unsqueeze(1)
        z = torch.where(counted, z if self.temperature == 1 else z / self.temperature, 0.0)
        log_p = self.vocab.log_softmax(z)
        own = self.vocab.pick(log_p, torch.where(counted, y.unsqueeze(1), 0).squeeze(1))
        entropy = -self.vocab.sum(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).squeeze(1)
        return torch.where(counted, torch.stack((own, entropy, self.vocab.logsumexp(z)), 1), 0.0)


@dataclass(frozen=True, eq=False)
class LogpCall:
    """The arguments of one call that are no tensors."""

    temperature: float
    ignore_index: int
    softcap: float | None
    scale: float
    memory: int
    backend: str
    tile: Tile
    vocab: Vocabulary = LOCAL
    free = 3
    constants = 0

    def op(self, tensors: tuple[Tensor | None, ...], c: Tensor | None, want: list[bool]) -> Any:
        numbers = (self.temperature, self.ignore_index, self.softcap, self.scale, self.memory, self.backend)
        return _logp(*tensors, c, *numbers, *self.vocab.numbers, want)  # pyright: ignore[reportArgumentType]


@opaque("logp")
def _logp(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    c: Tensor | None,
    temperature: float,
    ignore_index: int,
    softcap: float | None,
    scale: float,
    memory: int,
    backend: str,
    group: str,
    offset: int,
    classes: int,
    widest: int,
    want: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[N, 3]: log-probability, entropy and logsumexp; and the wanted gradients of sum(c rows), c [N, 3] (empty tensors for the others)."""
    vocab = Vocabulary(group, offset, classes, widest)
    check_values(y, len(weight), ignore_index, vocab)
    counted = kept(y != ignore_index)
    part, labels = counted.of(hidden), counted.of(y)
    row_c = None if c is None else counted.of(c)
    head = Head(part, weight, bias, softcap, scale, (want[0], want[1], want[2]))
    kernel = LogpKernel(labels, temperature, len(part) * len(weight), vocab, chosen(backend, hidden.device, group))
    rows, [grads] = sweep([head], kernel, None if row_c is None else row_c.to(head.dtype), memory, kernel.spare, vocab)
    out = returned(grads, (hidden, weight, bias), counted)
    return counted.back(rows.view(-1, 3)), out[0], out[1], out[2]


@_logp.register_fake
def _(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, c: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = hidden.new_empty(len(hidden), 3, dtype=torch.promote_types(hidden.dtype, torch.float32))
    out = unmade((hidden, weight, bias), c, rest[-1])
    return rows, out[0], out[1], out[2]


_logp.register_vmap(one_by_one(_logp))


@dataclass(frozen=True)
class LogpKernel:
    """A tile of logits to the three results and, in place, to their gradient.

    d/dz of (logp, H, lse): onehot - p, -p (log p + H) and p.
    """

    y: Tensor
    temperature: float
    entries: int
    vocab: Vocabulary = LOCAL
    triton: bool = False

    @property
    def spare(self) -> int:
        """Tiles of scratch: what is not compiled keeps log-probabilities beside the logits."""
        return 0 if self.triton or compiles(self.entries) else 1

    def __call__(self, logits: list[Tensor], rows: slice, c: Tensor | None) -> tuple[Tensor, None]:
        z, y = logits[0], self.y[rows]
        if self.temperature != 1:
            z /= self.temperature
        own = self.vocab.pick(z, y).unsqueeze(1)
        if self.triton:
            from .triton.softmax import logp_gradient_, softmax_rows  # imports triton

            best, spread, entropy = softmax_rows(z)
            if c is not None:
                logp_gradient_(z, best, spread, entropy, y, c / self.temperature)
            best, spread, entropy = (x.unsqueeze(1) for x in (best, spread, entropy))
        elif c is None:
            best, spread, entropy = tile_function(_values, self.vocab, self.entries)(z)
        else:
            c = c / self.temperature
            best, spread, entropy = tile_function(_gradient_, self.vocab, self.entries)(z, c)
            self.vocab.add_at_(z, y, c[:, 0])
        return torch.cat(((own - best) - spread, entropy, best + spread), 1), None


def _values(z: Tensor, vocab: Vocabulary) -> tuple[Tensor, Tensor, Tensor]:
    """The largest logit, logsumexp less it, and the entropy, each [n, 1]."""
    _p, _log_p, best, spread, entropy = _softmax(z, vocab)
    return best, spread, entropy


def _gradient_(z: Tensor, c: Tensor, vocab: Vocabulary) -> tuple[Tensor, Tensor, Tensor]:
    """`_values`; z becomes p (c_lse - c_logp - c_H (log p + H))."""
    p, log_p, best, spread, entropy = _softmax(z, vocab)
    own, of_entropy, of_lse = (x.unsqueeze(1) for x in c.unbind(1))
    z.copy_(pulled(p, log_p, entropy, own, of_entropy, of_lse))
    return best, spread, entropy


def pulled(p: Tensor, log_p: Tensor, entropy: Tensor, own: Tensor, of_entropy: Tensor, of_lse: Tensor) -> Tensor:
    """The gradient in an entry that is not the target's, of upstream gradients of the log-probability, entropy and logsumexp; elementwise."""
    return p * (of_lse - own - of_entropy * (log_p + entropy))


def _softmax(z: Tensor, vocab: Vocabulary) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    best = vocab.amax(z)
    spread = torch.log(vocab.sum(torch.exp(z - best)))
    log_p = (z - best - spread).clamp_min(-FAR)
    p = log_p.exp()
    return p, log_p, best, spread, -vocab.sum(p * log_p)
