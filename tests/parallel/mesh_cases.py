"""DTensors, data parallelism and FSDP: the embedding is sharded by torch, and gradients come back as its own kinds of tensor."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import fenchel
from tests.parallel.dense_cases import TARGET, N, Q, V, logits, made
from tests.parallel.ranks import Case, Share

D = 5
F64 = torch.float64


def laid_out(share: Share, x: Tensor, dim: int = 0, shape: tuple[int, ...] | None = None) -> Tensor:
    """x as a leaf: whole where one process runs, else sharded along dim over the last dimension of a mesh."""
    if share.world == 1:
        return x.clone().requires_grad_()
    mesh = init_device_mesh("cpu", shape or (share.world,))
    return distribute_tensor(x, mesh, [*[Replicate()] * (mesh.ndim - 1), Shard(dim)]).requires_grad_()


def whole(x: Tensor) -> Tensor:
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach()


def gradients(loss: Tensor, **leaves: Tensor) -> dict[str, Tensor]:
    loss.sum().backward()
    for name, leaf in leaves.items():
        assert type(leaf.grad) is type(leaf), f"the gradient of {name} is a {type(leaf.grad).__name__}"
    return {"loss": loss.detach(), **{name: whole(leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None}}


def head(share: Share, shape: tuple[int, ...] | None = None, **arguments: Any) -> dict[str, Tensor]:
    hidden = made(50, N, D).requires_grad_()
    weight, bias = (laid_out(share, x, 0, shape) for x in (made(51, V, D), made(52, V)))
    q = laid_out(share, Q, 0, shape).detach()
    loss = fenchel.linear_fenchel_young(hidden, weight, TARGET, "alpha:1.5", bias=bias, q=q, **arguments)
    return gradients(loss, hidden=hidden, weight=weight, bias=bias)


def two_heads(share: Share) -> dict[str, Tensor]:
    hp, hq = made(53, N, D).requires_grad_(), made(54, N, D).requires_grad_()
    wp, wq = (laid_out(share, x) for x in (made(55, V, D), made(56, V, D)))
    loss = fenchel.linear_distillation("0.5*kl + 0.5*reverse_kl", (hp, wp), (hq, wq))
    return gradients(loss, hq=hq, wq=wq)


def logp(share: Share) -> dict[str, Tensor]:
    hidden, weight = made(57, N, D).requires_grad_(), laid_out(share, made(58, V, D))
    return gradients(fenchel.linear_logp(hidden, weight, TARGET).logp, hidden=hidden, weight=weight)


def supervised(share: Share) -> dict[str, Tensor]:
    objective = "gce:0.7 + 0.5*fenchel_young:alpha:1.5"
    hidden, weight = made(59, N, D).requires_grad_(), laid_out(share, made(49, V, D))
    loss = fenchel.linear_supervised(hidden, weight, TARGET, objective, q=laid_out(share, Q).detach())
    z = laid_out(share, logits(), -1)
    of_logits = gradients(fenchel.supervised(z, TARGET, objective, label_smoothing=0.1), z=z)
    found = gradients(loss, hidden=hidden, weight=weight)
    return found | {f"{name} of logits": x for name, x in of_logits.items()}


def dense(share: Share) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, dim in (("softargmax", -1), ("entropy", 0)):
        z = laid_out(share, logits() if dim == -1 else logits().T.contiguous(), dim)
        out = getattr(fenchel, name)(z, "js", dim=dim)
        assert isinstance(out, DTensor) == (share.world > 1 and name == "softargmax")
        loss = out.square().sum()
        found |= {
            f"{name} {k}": v
            for k, v in gradients(loss.full_tensor() if isinstance(loss, DTensor) else loss, z=z).items()
        }
    z = laid_out(share, logits(), -1)
    return found | gradients(fenchel.fenchel_young(z, TARGET, "alpha:1.5", label_smoothing=0.1), z=z)


class Model(nn.Module):
    """A model whose head and loss are one module, as FSDP wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, D, dtype=F64)
        self.head = Head()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.body(x).tanh(), y)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(V, D, dtype=F64))

    def forward(self, hidden: Tensor, y: Tensor) -> Tensor:
        return fenchel.linear_fenchel_young(hidden, self.weight, y, "alpha:1.5")


def model() -> Model:
    net = Model()
    for i, p in enumerate(net.parameters()):
        p.data.copy_(made(60 + i, *p.shape))
    return net


def batch(replica: int, replicas: int) -> tuple[Tensor, Tensor]:
    x, y = made(70, 8, 3), torch.arange(8) * 2
    return x.tensor_split(replicas)[replica], y.tensor_split(replicas)[replica]


def grads_of(net: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): whole(p.grad) for name, p in net.named_parameters() if p.grad is not None}


def data_parallel(share: Share) -> dict[str, Tensor]:
    net: nn.Module = model() if share.world == 1 else DistributedDataParallel(model())
    net(*batch(share.rank, share.world)).backward()
    return grads_of(net)


def fsdp(share: Share) -> dict[str, Tensor]:
    net = model()
    if share.world > 1:
        mesh = init_device_mesh("cpu", (share.world,))
        fully_shard(net.head, mesh=mesh)
        fully_shard(net, mesh=mesh)
        assert isinstance(net.head.weight, DTensor)
    net(*batch(share.rank, share.world)).backward()
    return grads_of(net)


def fsdp_and_tensor_parallel(share: Share) -> dict[str, Tensor]:
    """Two replicas of the data, each with the vocabulary over half of the ranks."""
    net = model()
    if share.world == 1:
        net(*batch(0, 1)).backward()
        return grads_of(net)
    mesh = init_device_mesh("cpu", (2, share.world // 2), mesh_dim_names=("data", "tensor"))
    net.head.weight = nn.Parameter(distribute_tensor(net.head.weight.data, mesh["tensor"], [Shard(0)]))
    fully_shard(net.head, mesh=mesh["data"])
    fully_shard(net.body, mesh=mesh["data"])
    net(*batch(mesh["data"].get_local_rank(), 2)).backward()
    return grads_of(net)


def cases(world: int) -> dict[str, Case]:
    any_number: dict[str, Case] = {
        "head": head,
        "head none": partial(head, reduction="none"),
        "two heads": two_heads,
        "logp": logp,
        "supervised": supervised,
        "dense": dense,
        "data parallel": data_parallel,
        "fsdp": fsdp,
    }
    four: dict[str, Case] = {
        "head on a dimension of a mesh": partial(head, shape=(2, 2)),
        "fsdp and tensor parallel": fsdp_and_tensor_parallel,
    }
    return any_number | four if world == 4 else any_number
