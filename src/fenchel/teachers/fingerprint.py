"""One short string for weights, configurations, data and tokenizers: equal iff they are."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["fingerprint"]

BLOCK = 2**24


def fingerprint(*parts: Any) -> str:
    """The SHA-256 of tensors, texts, bytes, numbers, None, and lists, tuples and mappings of them: 64 hexadecimal digits.

    A tensor counts by its dtype, shape and bits, wherever it lives; a mapping by its sorted items. Parts keep their boundaries: ("ab", "c") differs from
    ("a", "bc"), 1 from 1.0, from True and from "1".

    Args:
        parts: e.g. `model.state_dict()` and the configuration; the token ids of the data; `tokenizer.to_str()`.

    Raises:
        TypeError: something else, which has no bytes of its own.

    Example:
        >>> weights = {"w": torch.zeros(2), "b": torch.ones(1)}
        >>> mark = fingerprint(weights, "config")
        >>> len(mark), mark == fingerprint(dict(reversed(weights.items())), "config"), mark == fingerprint(weights, "other")
        (64, True, False)
    """
    digest = hashlib.sha256()
    _add(digest, parts)
    return digest.hexdigest()


def _add(digest: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        flat = part.detach().reshape(-1)
        _piece(digest, f"tensor {part.dtype} {list(part.shape)}".encode())
        # views of bits, a block at a time: bfloat16 has no numpy, and a copy of everything is large
        for i in range(0, len(flat), BLOCK):
            digest.update(flat[i : i + BLOCK].contiguous().view(torch.uint8).cpu().numpy().tobytes())
    elif isinstance(part, bytes):
        _piece(digest, b"bytes")
        _piece(digest, part)
    elif part is None or isinstance(part, (str, bool, int, float)):
        _piece(digest, type(part).__name__.encode())
        _piece(digest, part.encode() if isinstance(part, str) else repr(part).encode())
    elif isinstance(part, Mapping):
        _piece(digest, f"mapping {len(part)}".encode())
        for key in sorted(part, key=lambda k: (type(k).__name__, str(k))):
            _add(digest, key)
            _add(digest, part[key])
    elif isinstance(part, (list, tuple)):
        _piece(digest, f"list {len(part)}".encode())
        for x in part:
            _add(digest, x)
    else:
        raise TypeError(
            f"fingerprint: got {type(part).__name__}; pass tensors, texts, bytes, numbers, None, or lists and mappings of them"
        )


def _piece(digest: Any, data: bytes) -> None:
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)
