"""How many all-reduces a call on a shared vocabulary makes."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

import fenchel
from tests.parallel.ranks import Case, Share

SIZES = (64, 4096, 65536)
SMOOTH = ("kl", "js", "reverse_kl", "hellinger", "jeffreys", "neyman", "alpha:0.5")
SPARSE = ("alpha:1.25", "alpha:1.5", "alpha:2", "le_cam")
STEEP = ("alpha:3", "alpha:10")
# the sums and maxima over classes of a supervised objective's value and gradient, those that are made together counted once
REDUCTIONS = {"gce:0.7": 3, "nce": 4, "margin:1.5": 4, "binary": 1, "gce:0.7 + nce": 4, "soft_top_k:3": 32}


def counted(call: Callable[[], Any]) -> int:
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as spy:
        call()
    return spy.call_count


def logits(v: int) -> Tensor:
    scales = torch.tensor([[0.01], [0.3], [1.0], [5.0]])
    return torch.randn(4, v, generator=torch.Generator().manual_seed(v)) * scales


def counts(share: Share) -> dict[str, Any]:
    found: dict[str, Any] = {}
    y = torch.tensor([0, 20, 40, 63])
    for v in SIZES:
        z = share.leaf(logits(v))
        for name in (*SMOOTH, *SPARSE, *STEEP):
            found[f"softargmax {name} {v}"] = counted(
                lambda name=name, z=z: fenchel.softargmax(z, name, group=share.group)
            )
        for name in ("kl", "alpha:1.5"):
            loss = fenchel.fenchel_young(z, y, name, group=share.group)
            found[f"loss {name} {v}"] = counted(
                lambda name=name, z=z: fenchel.fenchel_young(z, y, name, group=share.group)
            )
            found[f"backward of loss {name} {v}"] = counted(loss.backward)
        for name in REDUCTIONS:
            loss = fenchel.supervised(z, y, name, group=share.group)
            found[f"supervised {name} {v}"] = counted(
                lambda name=name, z=z: fenchel.supervised(z, y, name, group=share.group)
            )
            found[f"backward of supervised {name} {v}"] = counted(loss.backward)
        divergence = fenchel.divergence(z, z.flip(0), group=share.group)
        found[f"divergence {v}"] = counted(lambda z=z: fenchel.divergence(z, z.flip(0), group=share.group))
        found[f"backward of divergence {v}"] = counted(divergence.sum().backward)
        hidden, weight = torch.eye(4, requires_grad=True), share.leaf(logits(v).T.contiguous(), 0)
        heads: dict[str, Callable[[], Tensor]] = {
            "head kl": lambda h=hidden, w=weight: fenchel.linear_fenchel_young(h, w, y, group=share.group),
            "head alpha:1.5": lambda h=hidden, w=weight: fenchel.linear_fenchel_young(
                h, w, y, "alpha:1.5", group=share.group
            ),
            "head gce": lambda h=hidden, w=weight: fenchel.linear_supervised(h, w, y, "gce:0.7", group=share.group),
            "head logp": lambda h=hidden, w=weight: fenchel.linear_logp(h, w, y, group=share.group).logp.sum(),
            "head js": lambda h=hidden, w=weight: fenchel.linear_divergence(
                (h, w), (h * 2, w), "js", reduction="sum", group=share.group
            ),
        }
        for name, head in heads.items():
            loss = head()
            found[f"{name} {v}"] = counted(head)
            found[f"backward of {name} {v}"] = counted(loss.backward)
    return found


CASES: dict[str, Case] = {"counts": counts}
