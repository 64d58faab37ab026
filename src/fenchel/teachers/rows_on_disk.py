"""Rows to arrays and back: what is stored of a teacher's row, in the dtypes of the cache."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .buckets import TopK
from .format import CacheError, Spec
from .sparse import SparseRows

__all__ = ["decode_sparse", "decode_top_k", "encode"]

Array = np.ndarray[Any, Any]


def encode(rows: TopK | SparseRows, spec: Spec) -> dict[str, Array]:
    """The arrays of a shard, checked against what the cache is of.

    Raises:
        CacheError: rows of another kind, k, vocabulary or temperature, classes outside the vocabulary, log-probabilities that are NaN or positive.
    """
    if isinstance(rows, TopK):
        found, want = (rows.k, rows.vocabulary, rows.temperature), (spec.k, spec.vocabulary, spec.temperature)
        indices, logp = rows.indices, rows.buckets()
        if found != want:
            raise CacheError(f"rows: got (k, vocabulary, temperature) = {found}, the cache is for {want}")
        return {"indices": _classes(indices, spec), "logp": _logs(logp, spec)}
    if spec.k is not None or rows.vocabulary != spec.vocabulary:
        raise CacheError(
            f"rows: got sparse ones of {rows.vocabulary} classes, the cache is for k = {spec.k} of {spec.vocabulary}"
        )
    return {
        "counts": rows.support.to(torch.int32).cpu().numpy(),
        "cols": _classes(rows.cols, spec),
        "logp": _logs(rows.probs.log(), spec),
    }


def _classes(indices: Tensor, spec: Spec) -> Array:
    if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < spec.vocabulary):
        raise CacheError(f"rows: got a class outside [0, {spec.vocabulary})")
    return indices.cpu().numpy().astype(spec.index)


def _logs(logp: Tensor, spec: Spec) -> Array:
    # one ulp above 0 is a probability of 1 that was rounded
    if not bool((logp <= 1e-6).all()):
        raise CacheError(
            "rows: got a log-probability that is NaN or positive; the teacher's logits are not finite there"
        )
    values = logp.detach().double().clamp_max(0.0).cpu().numpy()
    # what is smaller than float16 can say is still more than nothing: only -inf means excluded
    lowest = float(np.finfo(spec.real).min)
    return np.where(np.isneginf(values), values, values.clip(lowest)).astype(spec.real)


def decode_top_k(arrays: Mapping[str, Array], spec: Spec) -> TopK:
    """Rows as they were, but for the rounding of what was stored; made to sum to one again, float32."""
    indices = torch.from_numpy(arrays["indices"].astype(np.int64))
    buckets = torch.log_softmax(torch.from_numpy(arrays["logp"].astype(np.float32)), -1)
    return TopK(indices, buckets[..., :-1], buckets[..., -1], spec.vocabulary, spec.temperature)


def decode_sparse(arrays: Mapping[str, Array], spec: Spec) -> SparseRows:
    """As `decode_top_k`, of sparse rows."""
    counts = torch.from_numpy(arrays["counts"].astype(np.int64))
    cols = torch.from_numpy(arrays["cols"].astype(np.int64))
    probs = torch.from_numpy(arrays["logp"].astype(np.float32)).exp()
    index = torch.repeat_interleave(counts, output_size=len(probs))
    sums = torch.zeros(len(counts)).index_add_(0, index, probs)
    return SparseRows(torch.cat((counts.new_zeros(1), counts.cumsum(0))), cols, probs / sums[index], spec.vocabulary)
