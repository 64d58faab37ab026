"""`python -m tests.ranks DIRECTORY RANK`: one of two gloo processes that train every path of `tests/composability.py` as one would.

A model is a linear body and the weight of a head. Each rank has half of the rows, and every parameter must get the gradient that a single process finds for
the mean over all of them. Writes what went wrong, by column and path.
"""

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path as File

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tests.composability import PATHS, RANKED, D, Function, N, inputs

RANKS = 2


class Model(nn.Module):
    """rows = f(body(x), weight, labels)."""

    def __init__(self, f: Function) -> None:
        super().__init__()
        hidden, weight, _ = inputs()
        self.body = nn.Linear(D, D, dtype=torch.float64)
        with torch.no_grad():
            self.body.weight.copy_(hidden[:D])
            self.body.bias.zero_()
        self.weight = nn.Parameter(weight.detach().clone())
        self.f = f
        self.shared = False

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = self.body(x)
        if self.shared:
            hidden = DTensor.from_local(hidden, self.weight.device_mesh, [Replicate()])
        rows = self.f(hidden, self.weight, y)
        return rows.full_tensor() if isinstance(rows, DTensor) else rows


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def fsdp2(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (RANKS,))
    assert isinstance(model.body, nn.Module)
    fully_shard(model.body, mesh=mesh, reshard_after_forward=True)
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


def tensor_parallel(model: nn.Module) -> nn.Module:
    assert isinstance(model, Model)
    mesh = init_device_mesh("cpu", (RANKS,))
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
    model.shared = True
    return model


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradients of the mean, by parameter; sharded ones put together."""
    model(x, y).mean().backward()
    found = {}
    for name, p in model.named_parameters():
        assert p.grad is not None, f"no gradient for {name}"
        found[name.removeprefix("module.")] = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
    return found


def difference(f: Function, wrap: Callable[[nn.Module], nn.Module], rank: int) -> str:
    """ "" where the ranks find the gradients of one process, else which differs."""
    _, _, y = inputs()
    x = torch.sin(torch.arange(N * D, dtype=torch.float64)).view(N, D)
    want = gradients(Model(f), x, y)
    mine = slice(None) if wrap is tensor_parallel else slice(rank * N // RANKS, (rank + 1) * N // RANKS)
    try:
        got = gradients(wrap(Model(f)), x[mine], y[mine])
    except (TypeError, ValueError) as error:  # raised on every rank: they stay in step
        return f"{type(error).__name__}: {error}"
    if got.keys() != want.keys():
        return f"parameters {sorted(got)}, not {sorted(want)}"
    off = {name: float((got[name] - want[name]).abs().max()) for name in want}
    return "; ".join(f"{name} is off by {by:.1e}" for name, by in off.items() if not by <= 1e-10)


def main() -> None:
    directory, rank = File(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    store = dist.FileStore(str(directory / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    wraps = dict(zip([name for name, _ in RANKED], (ddp, fsdp2, tensor_parallel), strict=True))
    found = {
        column: {path.name: difference(path.of(path.generators[-1]), wrap, rank) for path in PATHS}
        for column, wrap in wraps.items()
    }
    (directory / f"rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
    # without the interpreter's own end, on which a thread of FSDP's or gloo's that still runs aborts the process now and then (torch 2.13)
    os._exit(0)


if __name__ == "__main__":
    main()
