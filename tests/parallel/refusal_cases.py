"""Calls that ranks disagree on: what each rank is told. Every case is followed by one that all agree on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import fenchel
from tests.parallel.ranks import Case, Share, refused

N, V, D = 3, 6, 4


def z(rank: int = 0) -> Tensor:
    return torch.arange(N * V, dtype=torch.float32).view(N, V) / 7


Y = torch.tensor([0, 2 * V - 1, 3])
HIDDEN, WEIGHT = torch.ones(N, D), torch.ones(V, D)


@dataclass(frozen=True)
class Refusal:
    """A call of two ranks that must fail.

    Attributes:
        call: takes the rank and the group.
        everywhere: what both ranks are told.
        on_one: what rank 1 is told instead, where it alone is at fault.
    """

    call: Callable[[int, Any], Any]
    everywhere: str
    on_one: str | None = None


def young(
    rank: int, group: Any, logits: Tensor | None = None, target: Tensor = Y, generator: Any = "kl", **more: Any
) -> Tensor:
    return fenchel.fenchel_young(z() if logits is None else logits, target, generator, group=group, **more)


def head(
    rank: int, group: Any, hidden: Tensor = HIDDEN, weight: Tensor = WEIGHT, target: Tensor = Y, **more: Any
) -> Tensor:
    return fenchel.linear_fenchel_young(hidden, weight, target, group=group, **more)


def labelled(
    rank: int, group: Any, objective: Any = "gce:0.7", logits: Tensor | None = None, target: Tensor = Y, **more: Any
) -> Tensor:
    return fenchel.supervised(z() if logits is None else logits, target, objective, group=group, **more)


@dataclass(frozen=True)
class Ranked:
    """Of what is no sum over classes."""

    takes = frozenset[str]()

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        return (logits.sort(-1).values * target).sum(-1)


@dataclass(frozen=True)
class Counted:
    """Of the number of classes that are here."""

    takes = frozenset[str]()

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.sum(-1) / logits.shape[-1]


def twice(rank: int, group: Any, loss: Callable[[Tensor], Tensor]) -> Tensor:
    x = z().requires_grad_()
    [first] = torch.autograd.grad(loss(x), x, create_graph=True)
    return first


def on_mesh(shape: tuple[int, ...], placements: list[Any], x: Tensor = WEIGHT) -> Tensor:
    return distribute_tensor(x, init_device_mesh("cpu", shape), placements)


def sharded_by_fsdp() -> nn.Linear:
    return fully_shard(nn.Linear(D, 2 * V, bias=False), mesh=init_device_mesh("cpu", (2,)))


def mine(f: Any = None) -> fenchel.Generator:
    return fenchel.Generator.from_f(f or (lambda u: u * u.log()), name="mine")


REFUSALS = {
    "generator": Refusal(
        lambda r, g: young(r, g, generator=("kl", "js")[r]),
        r"^ValueError: generator: rank 0 got kl .*, rank 1 got js .*; pass the same",
    ),
    "one name, two generators": Refusal(
        lambda r, g: young(r, g, generator=mine() if r else mine(lambda u: (u * u - 1) / 2)),
        "^ValueError: generator: rank 0 got mine",
    ),
    "rows": Refusal(
        lambda r, g: fenchel.softargmax(z()[: 3 - r], group=g),
        r"^ValueError: rows: rank 0 got \(3,\), rank 1 got \(2,\); pass the same",
    ),
    "dtype": Refusal(
        lambda r, g: fenchel.softargmax(z().double() if r else z(), group=g),
        "^ValueError: dtype: rank 0 got torch.float32",
    ),
    "temperature": Refusal(
        lambda r, g: fenchel.entropy(z(), temperature=1.0 + r, group=g),
        "^ValueError: temperature: rank 0 got 1.0, rank 1 got 2.0",
    ),
    "reduction": Refusal(
        lambda r, g: young(r, g, reduction=("sum", "none")[r]),
        "^ValueError: reduction: rank 0 got 'sum', rank 1 got 'none'",
    ),
    "kind of q": Refusal(
        lambda r, g: young(r, g, q=1.0 if r else torch.ones(V)),
        "^ValueError: q: rank 0 got a tensor of 1 dimensions, rank 1 got 1;",
    ),
    "value of q": Refusal(lambda r, g: young(r, g, q=1.0 + r), "^ValueError: q: rank 0 got 1, rank 1 got 2;"),
    "function": Refusal(
        lambda r, g: (fenchel.softargmax, fenchel.entropy)[r](z(), group=g),
        "^ValueError: call: rank 0 got 'softargmax', rank 1 got 'entropy'",
    ),
    "derivative": Refusal(
        lambda r, g: young(r, g, z().requires_grad_(bool(r))),
        "^ValueError: derivative: rank 0 got False, rank 1 got True",
    ),
    "labels": Refusal(
        lambda r, g: young(r, g, target=Y + r * torch.tensor([1, -1, 0])),
        "^ValueError: target: ranks 0 and 1 hold different ones",
    ),
    "labels in another order": Refusal(
        lambda r, g: head(r, g, target=Y[[1, 0, 2]] if r else Y),
        "^ValueError: target: ranks 0 and 1 hold different ones",
    ),
    "hidden states": Refusal(
        lambda r, g: head(r, g, HIDDEN + r * 1e-3), "^ValueError: hidden: ranks 0 and 1 hold different ones"
    ),
    "memory": Refusal(
        lambda r, g: head(r, g, memory=1000 + r), "^ValueError: memory: rank 0 got 1000, rank 1 got 1001"
    ),
    "width of the model": Refusal(
        lambda r, g: fenchel.linear_logp(HIDDEN[:, : 4 - r], WEIGHT[:, : 4 - r], Y, group=g),
        r"^ValueError: hidden: rank 0 got \(\(3, 4\)",
    ),
    "mask": Refusal(
        lambda r, g: fenchel.linear_divergence((HIDDEN, WEIGHT), (HIDDEN, WEIGHT), mask=torch.arange(N) != r, group=g),
        "^ValueError: mask: ranks 0 and 1 hold different ones",
    ),
    "refused on one rank": Refusal(
        lambda r, g: young(r, g, z().long() if r else z()),
        "^ValueError: rank 1 was refused its arguments: logits: got dtype torch.int64; pass a floating",
        "^TypeError: logits: got dtype torch.int64",
    ),
    "no class on one rank": Refusal(
        lambda r, g: fenchel.softmax_value(z()[:, : V * (1 - r)], group=g),
        "^ValueError: rank 1 was refused its arguments: logits: got shape .3, 0.; pass",
        "^ValueError: logits: got shape",
    ),
    "q on one rank": Refusal(
        lambda r, g: young(r, g, q=torch.full((V,), 1.0 - r)),
        "^ValueError: q: got a wrong entry on rank 1; pass positive",
        "^ValueError: q: got an entry 0 on rank 1; pass positive",
    ),
    "probabilities": Refusal(
        lambda r, g: young(r, g, target=torch.full((N, V), 0.1)),
        "^ValueError: target: got a row that sums to 1.2; pass probabilities",
    ),
    "a class of nobody": Refusal(
        lambda r, g: young(r, g, target=Y + 1), r"^ValueError: target: got class 12; pass classes in \[0, 12\)"
    ),
    "a class of nobody, fused": Refusal(
        lambda r, g: head(r, g, target=Y + 1), r"^ValueError: target: got class 12; pass classes in \[0, 12\)"
    ),
    "what is no group": Refusal(
        lambda r, g: young(r, init_device_mesh("cpu", (2,))),
        r"^TypeError: group: got DeviceMesh; pass a ProcessGroup \(of a DeviceMesh: mesh.get_group",
    ),
    "replicated": Refusal(
        lambda r, g: head(r, None, weight=on_mesh((2,), [Replicate()])),
        r"^ValueError: weight: got a DTensor placed \(Replicate\(\),\) on rank [01]; pass one with Shard\(0\)",
    ),
    "sharded along the width": Refusal(
        lambda r, g: head(r, None, weight=on_mesh((2,), [Shard(1)])),
        r"^ValueError: weight: got a DTensor placed \(Shard\(dim=1\),\) on rank [01]; pass one with Shard\(0\)",
    ),
    "hidden states that are sharded": Refusal(
        lambda r, g: head(r, None, on_mesh((2,), [Shard(0)], HIDDEN), on_mesh((2,), [Shard(0)])),
        r"^ValueError: hidden: got a DTensor placed \(Shard\(dim=0\),\) on rank [01]; every rank needs all of it",
    ),
    "two vocabularies": Refusal(
        lambda r, g: head(r, None, weight=on_mesh((2,), [Shard(0)]), bias=on_mesh((2,), [Shard(0)], torch.ones(V + 1))),
        r"^ValueError: bias: got 7 classes on rank [01], another argument has 6",
    ),
    "a weight that FSDP sharded, outside of its module": Refusal(
        lambda r, g: head(r, None, HIDDEN + r, sharded_by_fsdp().weight, Y + r),
        "^ValueError: target: ranks 0 and 1 hold different ones; .*where FSDP shards the weight, call the loss in the forward of its module",
    ),
    "a vocabulary that is cut": Refusal(
        lambda r, g: fenchel.linear_divergence((HIDDEN, WEIGHT), (HIDDEN, WEIGHT), vocabulary=5, group=g),
        "^ValueError: vocabulary: got 5 for heads that are sharded; leave it out, and mask",
    ),
    "an objective of whole rows": Refusal(
        lambda r, g: fenchel.linear_distillation("dkd", (HIDDEN, WEIGHT), (HIDDEN, WEIGHT), Y, group=g),
        "^ValueError: group: .*whole rows",
    ),
    "supervised objective": Refusal(
        lambda r, g: labelled(r, g, ("gce:0.7", "gce:0.5")[r]),
        r"^ValueError: objective: rank 0 got 'CompSum\(tau=1.7\)', rank 1 got 'CompSum\(tau=1.5\)'",
    ),
    "kind of supervised objective": Refusal(
        lambda r, g: labelled(r, g, ("gce", "kl")[r]),
        "^ValueError: call: rank 0 got 'supervised', rank 1 got 'fenchel_young'",
    ),
    "kind of target": Refusal(
        lambda r, g: labelled(r, g, "binary", target=z() > 1 if r else Y),
        "^ValueError: target: rank 0 got 'class indices', rank 1 got 'sets'",
    ),
    "labels of a supervised head": Refusal(
        lambda r, g: fenchel.linear_supervised(HIDDEN, WEIGHT, Y + r, "nce", group=g),
        "^ValueError: target: ranks 0 and 1 hold different ones",
    ),
    "prior on one rank": Refusal(
        lambda r, g: labelled(r, g, q=torch.full((V,), 1.0 - r)),
        "^ValueError: rank 1 was refused its arguments: q: got a class that is not positive",
        "^ValueError: q: got a class that is not positive",
    ),
    "a supervised class of nobody": Refusal(
        lambda r, g: labelled(r, g, target=Y + 1), r"^ValueError: target: got class 12; pass classes in \[0, 12\)"
    ),
    "a set without a class": Refusal(
        lambda r, g: labelled(r, g, "candidates", target=z() > 100), "^ValueError: target: got a row without any class"
    ),
    "an objective that sorts": Refusal(
        lambda r, g: labelled(r, g, Ranked()),
        "^TypeError: objective: Ranked on a vocabulary that ranks share must .*the operation aten.sort.default; gather",
    ),
    "an objective that counts": Refusal(
        lambda r, g: fenchel.linear_supervised(HIDDEN, WEIGHT, Y, Counted(), group=g),
        "^TypeError: objective: Counted on .* a number in it depends on V; gather",
    ),
    "second derivatives": Refusal(
        lambda r, g: twice(r, g, lambda x: labelled(r, g, logits=x)),
        "^RuntimeError: second derivatives: a supervised objective on a vocabulary that ranks share has first ones",
    ),
    "second derivatives of a head": Refusal(
        lambda r, g: twice(r, g, lambda x: fenchel.linear_supervised(x, torch.eye(V), Y, "gce", group=g)),
        "^RuntimeError: second derivatives: a supervised objective on a vocabulary that ranks share has first ones",
    ),
    "forward mode": Refusal(
        lambda r, g: torch.func.jvp(lambda x: fenchel.softargmax(x, "js", group=g), (z(),), (z(),)),
        "^(RuntimeError|NotImplementedError): .*(jvp|forward)",
    ),
    "compiled": Refusal(
        lambda r, g: torch.compile(lambda x: fenchel.softargmax(x, group=g), backend="eager", fullgraph=True)(z()),
        "(?s).*cannot be compiled; call it outside of torch.compile",
    ),
}


def case(share: Share, refusal: Refusal) -> dict[str, str]:
    told = refused(lambda: refusal.call(share.rank, dist.group.WORLD))
    # the ranks hold the same logits, so each has half of three rows' probability
    after = fenchel.softargmax(z(), group=dist.group.WORLD).sum()
    return {"told": told, "after": f"{float(after):.3f}"}


CASES: dict[str, Case] = {f"refused {name}": partial(case, refusal=refusal) for name, refusal in REFUSALS.items()}
