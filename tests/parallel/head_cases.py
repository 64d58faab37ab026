"""Heads whose output embedding several ranks share."""

import math
import os
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import fenchel
from tests.parallel.dense_cases import TARGET, WEIGHT, N, Q, V, made, probabilities
from tests.parallel.ranks import Case, Part, Share
from tests.table import DISTINCT, MINE

D = 5
F32, F64 = torch.float32, torch.float64
MEMORY = 3 * 16 * 14  # three rows a tile in float32, where the widest shard has 14 classes


def parts(share: Share, dtype: torch.dtype, scale: float = 1.0, seed: int = 20) -> list[Tensor]:
    """Hidden states, and this rank's shard of the embedding and of a bias that takes three classes out of the vocabulary."""
    bias = made(seed + 2, V, dtype=dtype)
    bias[[0, 2, 21]] = -math.inf
    hidden = made(seed, N, D, dtype=dtype).mul(scale).requires_grad_()
    return [hidden, share.leaf(made(seed + 1, V, D, dtype=dtype), 0), share.leaf(bias, 0)]


def derivatives(out: Tensor, upstream: Tensor, tensors: list[Tensor], names: str = "hwb") -> dict[str, Any]:
    """First derivatives, and those of their squares."""
    first = torch.autograd.grad(out, tensors, upstream, create_graph=True)
    # each rank's part of the sum of squares: that of hidden states is the same on all, and counted once
    squares = sum(x.square().sum() for x in first)
    second = torch.autograd.grad(squares, tensors)
    found: dict[str, Any] = {}
    for order, grads in (("first", first), ("second", second)):
        for name, x, of in zip(names, grads, tensors, strict=True):
            whole = of.shape[0] == N
            found[f"{order} {name}"] = x.detach() if whole else Part(x.detach(), 0)
    return found


def young(
    share: Share, g, dtype: torch.dtype, scale: float = 1.0, twice: bool = False, **arguments: Any
) -> dict[str, Any]:
    tensors = parts(share, dtype, scale)
    target = arguments.pop("target", torch.where(TARGET == 0, 5, TARGET))
    if target.is_floating_point():
        target = share.cut(target.to(dtype))
    for name in ("q", "class_weight"):
        if isinstance(arguments.get(name), Tensor):
            arguments[name] = share.cut(arguments[name].to(dtype))
    hidden, weight, bias = tensors
    out = fenchel.linear_fenchel_young(
        hidden, weight, target, g, bias=bias, group=share.group, memory=MEMORY, **arguments
    )
    upstream = made(30, N, dtype=dtype) if out.dim() else torch.tensor(0.7, dtype=dtype)
    if twice:
        return {"loss": out.detach(), **derivatives(out, upstream, tensors)}
    grads = torch.autograd.grad(out, tensors, upstream)
    return {"loss": out.detach(), "h": grads[0], "w": Part(grads[1], 0), "b": Part(grads[2], 0)}


def logp(share: Share, dtype: torch.dtype, **arguments: Any) -> dict[str, Any]:
    tensors = parts(share, dtype)
    hidden, weight, bias = tensors
    target = torch.where(TARGET == 0, 5, TARGET)
    out = fenchel.linear_logp(hidden, weight, target, bias=bias, group=share.group, memory=MEMORY, **arguments)
    stacked = torch.stack((out.logp, out.entropy, out.logsumexp), 1)
    found = {"rows": stacked.detach(), **derivatives(stacked, made(31, N, 3, dtype=dtype), tensors)}
    # second derivatives of float32 are rounding on top of rounding
    return {name: x for name, x in found.items() if dtype == F64 or "second" not in name}


def divergence(share: Share, g, dtype: torch.dtype, twice: bool = False, **arguments: Any) -> dict[str, Any]:
    p, q = parts(share, dtype, seed=20), parts(share, dtype, seed=40)
    mask = torch.tensor([True, True, False, True, True, True])
    out = fenchel.linear_divergence(tuple(p), tuple(q), g, mask=mask, group=share.group, memory=4 * MEMORY, **arguments)
    upstream = made(32, N, dtype=dtype) if out.dim() else torch.tensor(0.7, dtype=dtype)
    if twice:
        return {"rows": out.detach(), **derivatives(out, upstream, [*p, *q], "hwbHWB")}
    grads = torch.autograd.grad(out, [*p, *q], upstream)
    names = zip("hwbHWB", grads, strict=True)
    return {"rows": out.detach(), **{n: x if n in "hH" else Part(x, 0) for n, x in names}}


def compiled(share: Share, case: Case) -> Any:
    """A case whose tiles are compiled, small as they are."""
    with mock.patch.dict(os.environ, FENCHEL_COMPILE="1"):
        return case(share)


def by_classes(share: Share, **arguments: Any) -> dict[str, Any]:
    """The gradient without an accumulator, in float64, whose rounding hides nothing."""
    with mock.patch("fenchel.head.young.accumulates", lambda head: head.want[1]):
        return young(share, dtype=F64, accumulator=False, **arguments)


CASES: dict[str, Case] = {}
for g in (*(case.g for case in DISTINCT), next(case.g for case in MINE if case.book == "chi2")):
    CASES |= {
        f"young {g.name}": partial(young, g=g, dtype=F64),
        f"divergence {g.name}": partial(divergence, g=g, dtype=F64, reduction="mean"),
    }
for name in ("kl", "reverse_kl", "alpha:1.5", "alpha:3"):
    CASES |= {
        f"young {name} none": partial(young, g=name, dtype=F64, reduction="none", twice=True),
        f"young {name} sum, twice": partial(young, g=name, dtype=F64, reduction="sum", twice=True),
        f"young {name} smoothing": partial(young, g=name, dtype=F64, label_smoothing=0.2),
        f"young {name} peaked": partial(young, g=name, dtype=F64, scale=30.0),
        f"young {name} q": partial(young, g=name, dtype=F64, q=Q, scale=9.0),
        f"young {name} float32": partial(young, g=name, dtype=F32, scale=3.0),
        f"young {name} weights": partial(young, g=name, dtype=F64, class_weight=WEIGHT),
        f"young {name} everything": partial(
            young,
            g=name,
            dtype=F64,
            q=Q,
            class_weight=WEIGHT,
            label_smoothing=0.1,
            temperature=0.7,
            softcap=3.0,
            scale=2.0,
        ),
        f"young {name} one rank's targets": partial(young, g=name, dtype=F64, target=torch.full((N,), 22)),
        f"young {name} all ignored": partial(young, g=name, dtype=F64, target=torch.full((N,), -100)),
        f"young {name} probabilities": partial(young, g=name, dtype=F64, target=probabilities()),
    }
CASES |= {
    f"{name}, compiled": partial(compiled, case=CASES[name])
    for name in ("young kl float32", "young reverse_kl smoothing", "young alpha:1.5 q", "divergence js")
}
CASES |= {
    "young kl by classes": partial(by_classes, g="kl", label_smoothing=0.2),
    "young alpha:1.5 by classes": partial(by_classes, g="alpha:1.5", q=Q, class_weight=WEIGHT, softcap=3.0),
    "logp": partial(logp, dtype=F64),
    "logp float32": partial(logp, dtype=F32),
    "logp temperature, softcap": partial(logp, dtype=F64, temperature=0.6, softcap=4.0, scale=1.5),
    "divergence kl none": partial(divergence, g="kl", dtype=F64, twice=True),
    "divergence js skew": partial(divergence, g="js", dtype=F64, twice=True, skew=0.2, temperature=1.3, softcap=5.0),
    "divergence kl float32": partial(divergence, g="kl", dtype=F32, reduction="mean"),
}
