"""A teacher that is read from a cache on disk, and the building of one from a model: the teacher itself need not be there.

A cache holds one row for every token of the training text that has a successor in its block: the k largest probabilities
of the teacher and the mass of all others. Divergences of these k + 1 classes are divergences (`teachers.buckets`);
objectives that need the whole distribution are refused.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..objectives.distillation import Mixture, RowObjective
from ..teachers.buckets import TopK, linear_top_k
from ..teachers.cache import Cache
from ..teachers.fingerprint import fingerprint
from ..teachers.format import Manifest, Spec
from ..teachers.linear_buckets import linear_bucketed_divergence
from ..teachers.writer import build_cache
from ..terms import skewed
from .hooks import TEACHER_ROWS, Head, NextStates, head_of, last_hidden, unwrapped

__all__ = ["CachedTeacher", "block_rows", "cache_of", "check_cacheable", "model_mark", "tokenizer_mark", "write_cache"]

# rows of a shard, about: a killed build loses less than this
SHARD = 2**14


def check_cacheable(objective: RowObjective, temperature: float) -> None:
    """Refuse an objective that k + 1 probabilities at a temperature do not determine.

    Raises:
        ValueError: not a sum of divergences, or one at another temperature.
    """
    if not isinstance(objective, Mixture):
        raise ValueError(
            f"objective: {type(objective).__name__} needs the teacher's whole distribution, a cache has its largest "
            "probabilities; pass a divergence, or the teacher itself"
        )
    for term in objective.terms:
        if term.temperature != temperature:
            raise ValueError(
                f"objective: got temperature {term.temperature:g}, the cache was made at {temperature:g}, which cannot "
                "be changed afterwards; pass the same"
            )


@dataclass(frozen=True, eq=False)
class CachedTeacher:
    """A `Teacher` that is a cache: batches say in "teacher_rows" [B, T] which of its rows belong to their tokens.

    The divergence is that of the cache's k classes and one for all others (of all classes, for caches of sparse teachers).
    """

    cache: Cache

    def __call__(
        self,
        objective: RowObjective,
        states: NextStates,
        head: Head,
        inputs: Mapping[str, Any],
        vocabulary: int | None = None,
    ) -> Tensor:
        """The objective, from the cached rows; see `Teacher`.

        Raises:
            ValueError: as `check_cacheable`; a batch without row numbers.
        """
        check_cacheable(objective, self.cache.spec.temperature)
        assert isinstance(objective, Mixture)
        numbers = inputs.get(TEACHER_ROWS)
        if numbers is None:
            raise ValueError(
                f"the batch has no {TEACHER_ROWS}, only {', '.join(inputs)}: which rows of the cache are its?"
            )
        if inputs.get("shift_labels") is None:
            numbers = numbers[:, :-1]
        # rows that do not count are not read
        keep = states.counted
        buckets = self.cache.buckets(numbers.flatten().to(keep.device)[keep]).to(keep.device)
        student = (states.hidden[keep].to(head.weight.dtype), head.weight, head.bias)
        total = states.hidden.new_zeros((), dtype=torch.promote_types(states.hidden.dtype, torch.float32))
        for term in objective.terms:
            total = total + term.factor * linear_bucketed_divergence(
                buckets,
                student,
                skewed(term.generator, term.skew),
                first=term.first,
                # rows of a sparse teacher do not say theirs
                temperature=term.temperature,
                softcap=head.softcap,
                scale=head.scale,
                vocabulary=vocabulary,
                reduction="sum",
            )
        return total


def model_mark(model: Any) -> str:
    """What identifies a teacher: its weights and the configuration that they are used with."""
    model = unwrapped(model)
    config = {
        k: v for k, v in model.config.to_dict().items() if isinstance(v, (str, int, float, bool, list, type(None)))
    }
    # where it lay and which version wrote it do not change what it says
    for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        config.pop(name, None)
    return fingerprint(model.state_dict(), config)


def tokenizer_mark(tokenizer: PreTrainedTokenizerBase) -> str:
    """What identifies a tokeniser: which id means what."""
    return fingerprint(tokenizer.get_vocab())


def cache_of(
    model: Any, tokenizer: PreTrainedTokenizerBase, blocks: Tensor, k: int, *, temperature: float, vocabulary: int
) -> Spec:
    """What a cache of this teacher for these blocks [M, T] is a cache of: M (T - 1) rows."""
    m, t = blocks.shape
    return Spec(
        teacher=model_mark(model),
        data=fingerprint(blocks),
        tokenizer=tokenizer_mark(tokenizer),
        vocabulary=vocabulary,
        tokens=m * (t - 1),
        k=min(k, vocabulary),
        temperature=temperature,
    )


def block_rows(block: int, length: int) -> Tensor:
    """The rows [T] of a block's tokens in a cache; -1 for the last, which has no successor."""
    rows = torch.arange(block * (length - 1), (block + 1) * (length - 1))
    return torch.cat([rows, rows.new_tensor([-1])])


def write_cache(
    directory: str | Path,
    spec: Spec,
    model: Any,
    blocks: Tensor,
    *,
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda rows: None,
) -> Manifest:
    """Builds the cache `spec`, made by `cache_of`, from the teacher; goes on where a killed build was.

    Args:
        directory: as `build_cache`.
        model, blocks: as `cache_of`.
        batch_size: blocks that go through the model at a time.
        progress: hears how many rows are done.

    Raises:
        CacheError: as `build_cache`.
    """
    m, t = blocks.shape
    per_shard = max(1, SHARD // (t - 1))
    head, was_training = head_of(model).detached(), model.training
    device = head.weight.device

    def rows_from(start: int) -> Iterable[TopK]:
        for i in range(start // (t - 1), m, batch_size):
            ids = blocks[i : i + batch_size].to(device)
            with torch.no_grad():
                hidden = last_hidden(model, input_ids=ids)[:, :-1].flatten(0, 1)
                rows = linear_top_k(
                    (hidden.to(head.weight.dtype), head.weight, head.bias),
                    spec.k or 1,
                    temperature=spec.temperature,
                    softcap=head.softcap,
                    scale=head.scale,
                    vocabulary=spec.vocabulary,
                )
            yield rows.to("cpu")
            progress(min(m, i + batch_size) * (t - 1))

    model.eval()
    try:
        return build_cache(directory, spec, rows_from, rows_per_shard=per_shard * (t - 1))
    finally:
        model.train(was_training)
