"""A teacher that is read from a cache on disk, and the building of one from a model: the teacher itself need not be there.

A cache holds one row for every token of the training text that has a successor in its block: the k largest probabilities
of the teacher and the mass of all others, or every positive probability of a sparse teacher. Divergences of k + 1 classes are
divergences (`teachers.buckets`); objectives that need the whole distribution are refused. A sparse teacher's rows are the
whole distribution: divergences of them are exact, and so is the Fenchel-Young loss (`teachers.sparse`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..objectives.distillation import FenchelYoung, Mixture, RowObjective
from ..teachers.buckets import TopK, linear_top_k
from ..teachers.cache import Cache
from ..teachers.fingerprint import fingerprint
from ..teachers.format import Manifest, Spec
from ..teachers.linear_buckets import linear_bucketed_divergence
from ..teachers.sparse import SparseRows, linear_sparse_fenchel_young, linear_sparse_rows
from ..teachers.writer import build_cache
from ..terms import skewed
from .hooks import TEACHER_ROWS, Head, NextStates, head_of, last_hidden, unwrapped

__all__ = ["CachedTeacher", "block_rows", "cache_of", "check_cacheable", "model_mark", "tokenizer_mark", "write_cache"]

# rows of a shard, about: a killed build loses less than this
SHARD = 2**14


def check_cacheable(objective: RowObjective, temperature: float, *, sparse: bool = False) -> None:
    """Refuse an objective that the rows of a cache do not determine.

    Args:
        objective: of `distillation_objective`.
        temperature: what the teacher's logits were divided by.
        sparse: whether the rows are all positive probabilities of a sparse teacher, rather than the k largest.

    Raises:
        ValueError: neither a sum of divergences nor, for a sparse teacher, a Fenchel-Young loss; one at another temperature.
    """
    if isinstance(objective, FenchelYoung) and sparse:
        temperatures = [objective.temperature]
    elif isinstance(objective, Mixture):
        temperatures = [term.temperature for term in objective.terms]
    elif sparse:
        raise ValueError(
            f"objective: {type(objective).__name__} is not evaluated on sparse rows; pass a divergence or a "
            "Fenchel-Young loss, or the teacher itself"
        )
    else:
        raise ValueError(
            f"objective: {type(objective).__name__} needs the teacher's whole distribution, a cache has its largest "
            "probabilities; pass a divergence, or the teacher itself"
        )
    for own in temperatures:
        if own != temperature:
            raise ValueError(
                f"objective: got temperature {own:g}, the cache was made at {temperature:g}, which cannot "
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
        spec = self.cache.spec
        check_cacheable(objective, spec.temperature, sparse=spec.k is None)
        numbers = inputs.get(TEACHER_ROWS)
        if numbers is None:
            raise ValueError(
                f"the batch has no {TEACHER_ROWS}, only {', '.join(inputs)}: which rows of the cache are its?"
            )
        if inputs.get("shift_labels") is None:
            numbers = numbers[:, :-1]
        # rows that do not count are not read
        keep = states.counted
        kept = numbers.flatten().to(keep.device)[keep]
        student = (states.hidden[keep].to(head.weight.dtype), head.weight, head.bias)
        if isinstance(objective, FenchelYoung):
            t = objective.temperature
            loss = linear_sparse_fenchel_young(
                self.cache.sparse(kept).to(keep.device),
                student,
                objective.generator,
                temperature=t,
                softcap=head.softcap,
                scale=head.scale,
                vocabulary=vocabulary,
                reduction="sum",
            )
            # in the objective's units, that of a divergence, rather than those of a score
            return objective.factor / t * loss
        assert isinstance(objective, Mixture)
        buckets = self.cache.buckets(kept).to(keep.device)
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
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Tensor,
    k: int | None,
    *,
    temperature: float,
    vocabulary: int,
    generator: str = "kl",
) -> Spec:
    """What a cache of this teacher for these blocks [M, T] is a cache of: M (T - 1) rows.

    Args:
        model: the teacher.
        tokenizer: of the blocks.
        blocks: token ids.
        k: how many of the largest probabilities of softmax(logits / T) to keep; None for the whole softargmax of a sparse teacher.
        temperature: T.
        vocabulary: the first K classes alone are the teacher's.
        generator: of a sparse teacher's softargmax.

    Raises:
        ValueError: a generator that k does not go with.
    """
    if (k is None) == (generator == "kl"):
        raise ValueError(
            f"generator: got {generator!r} with k = {k}; pass k for a softmax, and k = None with the generator of a sparse teacher"
        )
    m, t = blocks.shape
    return Spec(
        teacher=model_mark(model),
        data=fingerprint(blocks),
        tokenizer=tokenizer_mark(tokenizer),
        vocabulary=vocabulary,
        tokens=m * (t - 1),
        k=None if k is None else min(k, vocabulary),
        generator=generator,
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

    def rows_of(hidden: Tensor) -> TopK | SparseRows:
        one = (hidden.to(head.weight.dtype), head.weight, head.bias)
        more: Any = {"softcap": head.softcap, "scale": head.scale, "vocabulary": spec.vocabulary}
        if spec.k is None:
            return linear_sparse_rows(one, spec.generator, temperature=spec.temperature, **more)
        return linear_top_k(one, spec.k, temperature=spec.temperature, **more)

    def rows_from(start: int) -> Iterable[TopK | SparseRows]:
        for i in range(start // (t - 1), m, batch_size):
            ids = blocks[i : i + batch_size].to(device)
            with torch.no_grad():
                rows = rows_of(last_hidden(model, input_ids=ids)[:, :-1].flatten(0, 1))
            yield rows.to("cpu")
            progress(min(m, i + batch_size) * (t - 1))

    model.eval()
    try:
        return build_cache(directory, spec, rows_from, rows_per_shard=per_shard * (t - 1))
    finally:
        model.train(was_training)
