"""Ranks that share a vocabulary agree on a call before its first collective: all go on, or all raise.

One all-gather of eight integers a rank says what each was asked for; only if they differ does a second one say who differs, and in what. The outcome cannot be
kept for the next call: a rank sees when its own arguments change and not when another's do, and then one would meet while the other goes on.

Also here: the shard of a tensor that a rank holds, where the tensor is a DTensor.
"""

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from .generators import Generator
from .vocab import LOCAL, Vocabulary

__all__ = ["Meeting", "ProcessGroup", "as_sharded", "is_sharded"]

NOTHING: Mapping[str, Tensor] = {}
OWN_DATA = "ranks with data of their own share no vocabulary; where FSDP shards the weight, call the loss in the forward of its module"


class Meeting:
    """The checks of one call on all ranks of a group; without a group, those of this process.

    What may raise on one rank alone stands inside `with`, and `agree` is its last line: if a check raises, the other ranks are told and raise too.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        self.group = group
        self.classes: int | None = None
        self.over = False
        if group is not None:
            _check_group(group)

    def __enter__(self) -> "Meeting":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.group is not None and isinstance(error, Exception) and not self.over:
            _gathered(self.group, [1] + [0] * 7)
            _told(self.group, {"refused": str(error)})

    def shard(self, name: str, x: Any, dim: int = 0) -> Any:
        """This rank's part of what is sharded along `dim`: a DTensor's local tensor; anything else is that part.

        Raises:
            ValueError: a DTensor that is placed otherwise, or over ranks other than the group's.
        """
        if not is_sharded(x):
            return x
        from torch.distributed.tensor import Replicate, Shard

        dim = dim % x.dim()
        sharded = [i for i, placement in enumerate(x.placements) if placement != Replicate()]
        if len(sharded) != 1 or x.placements[sharded[0]] != Shard(dim):
            raise ValueError(
                f"{name}: got a DTensor placed {tuple(x.placements)} on rank {_rank()}; pass one with Shard({dim}) on one dimension of its mesh and "
                f"Replicate() on the others ({name}.redistribute), or this rank's part and group="
            )
        group = x.device_mesh.get_group(sharded[0])
        if self.group is None:
            _check_group(group)
            self.group = group
        elif _ranks_of(self.group) != _ranks_of(group):
            raise ValueError(
                f"{name}: got a DTensor over another group of ranks than the other arguments on rank {_rank()}; pass one layout of the vocabulary"
            )
        if self.classes not in (None, x.shape[dim]):
            raise ValueError(
                f"{name}: got {x.shape[dim]} classes on rank {_rank()}, another argument has {self.classes}; pass one vocabulary"
            )
        self.classes = x.shape[dim]
        return x.to_local()

    def whole(self, name: str, x: Any) -> Any:
        """A tensor that every rank holds whole: a replicated DTensor's local tensor; anything else as it is.

        Raises:
            ValueError: a DTensor that is not replicated.
        """
        if not is_sharded(x):
            return x
        from torch.distributed.tensor import Replicate

        if any(placement != Replicate() for placement in x.placements):
            raise ValueError(
                f"{name}: got a DTensor placed {tuple(x.placements)} on rank {_rank()}; every rank needs all of it: pass one with Replicate() throughout "
                f"({name}.redistribute)"
            )
        return x.to_local()

    def agree(
        self,
        width: int,
        same: Mapping[str, Tensor] = NOTHING,
        close: Mapping[str, Tensor] = NOTHING,
        **facts: Any,
    ) -> Vocabulary:
        """The vocabulary of which `width` classes are here, once all ranks say the same.

        Args:
            same: whole numbers of which every rank must hold the same.
            close: floating ones, but for rounding.
            facts: what else must be the same; tensors among them by their kind, functions by what they return.

        Raises:
            ValueError: on every rank, if one differs or was refused its arguments, or if their shards are not the whole of a DTensor.
        """
        if self.group is None:
            return LOCAL
        said = {name: _text(x) for name, x in facts.items()}
        said["the size of the vocabulary"] = str(self.classes)
        self.over = True
        rows = _gathered(self.group, [0, width, _digest(said), *_checksum(same), *_sketch(close), 0])
        first, ranks = rows[0], _ranks_of(self.group)
        if any(r[0] for r in rows) or any(r[2] != first[2] for r in rows):
            _differ(ranks, _told(self.group, said))
        for r, rank in zip(rows, ranks, strict=True):
            if r[3:5] != first[3:5]:
                raise ValueError(
                    f"{', '.join(same)}: ranks {ranks[0]} and {rank} hold different ones; pass the same to every rank ({OWN_DATA})"
                )
            # a NaN on both is no difference
            if abs(_float(r[5]) - _float(first[5])) > max(_float(r[6]), _float(first[6])):
                raise ValueError(
                    f"{', '.join(close)}: ranks {ranks[0]} and {rank} hold different ones; pass the same to every rank ({OWN_DATA})"
                )
        widths = [r[1] for r in rows]
        if self.classes not in (None, sum(widths)):
            raise ValueError(
                f"ranks {ranks} hold {widths} classes, the vocabulary has {self.classes}; pass shards that cover it"
            )
        here = torch.distributed.get_rank(self.group)
        return Vocabulary(self.group.group_name, sum(widths[:here]), sum(widths), max(widths))


def as_sharded(x: Tensor, like: Tensor) -> Tensor:
    """x, this rank's shard, laid out as `like`: a DTensor if that is one."""
    if not is_sharded(like):
        return x
    from torch.distributed.tensor import DTensor

    layout: Any = like
    stride = torch.empty(like.shape, device="meta").stride()
    return DTensor.from_local(
        x.contiguous(), layout.device_mesh, layout.placements, run_check=False, shape=like.shape, stride=stride
    )


def entries(name: str, x: Tensor) -> Tensor:
    """This rank's entries of x, for what is done to each of them alone.

    Raises:
        ValueError: a DTensor of which ranks hold summands.
    """
    if not is_sharded(x):
        return x
    layout: Any = x
    if any(p.is_partial() for p in layout.placements):
        raise ValueError(
            f"{name}: got a DTensor placed {tuple(layout.placements)}, of which each rank holds a summand; redistribute it first"
        )
    return layout.to_local()


def is_sharded(x: Any) -> bool:
    """Whether x is a DTensor, however it is placed."""
    if type(x) in (Tensor, nn.Parameter) or not isinstance(x, Tensor) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def _check_group(group: Any) -> None:
    """Raises unless a sharded call can be made with this group here."""
    if torch.compiler.is_compiling():
        # a compiler is free to move collectives that do not depend on each other, each rank's its own way
        raise RuntimeError(
            "group: a call on a sharded vocabulary cannot be compiled; call it outside of torch.compile, or in a function under torch.compiler.disable"
        )
    if not isinstance(group, ProcessGroup):
        raise TypeError(f"group: got {type(group).__name__}; pass a ProcessGroup (of a DeviceMesh: mesh.get_group())")
    if torch.distributed.get_rank(group) < 0:
        raise ValueError(
            f"group: rank {_rank()} is not in it; call with the group that this rank shares its vocabulary with"
        )


def _ranks_of(group: ProcessGroup) -> list[int]:
    return torch.distributed.get_process_group_ranks(group)


def _rank() -> int:
    return torch.distributed.get_rank()


def _gathered(group: ProcessGroup, row: list[int]) -> list[list[int]]:
    """Every rank's row."""
    from torch.distributed.distributed_c10d import _device_capability

    kinds = _device_capability(group)
    mine = torch.tensor(row, dtype=torch.int64, device="cpu" if "cpu" in kinds else kinds[0])
    rows = [torch.zeros_like(mine) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(rows, mine, group)
    return torch.stack(rows).tolist()


def _told(group: ProcessGroup, said: dict[str, str]) -> list[dict[str, str]]:
    """What every rank says."""
    heard: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(heard, said, group)
    return heard


def _differ(ranks: list[int], heard: list[dict[str, str]]) -> None:
    for rank, said in zip(ranks, heard, strict=True):
        if "refused" in said:
            raise ValueError(f"rank {rank} was refused its arguments: {said['refused']}")
    for rank, said in zip(ranks, heard, strict=True):
        for name in {**heard[0], **said}:
            one, two = heard[0].get(name, "nothing"), said.get(name, "nothing")
            if one != two:
                raise ValueError(
                    f"{name}: rank {ranks[0]} got {one}, rank {rank} got {two}; pass the same to every rank that shares the vocabulary"
                )


def _text(x: Any) -> str:
    if isinstance(x, Generator):
        values = x.of_log_ratio(torch.tensor([-2.0, -0.5, 0.5], dtype=torch.float64)).tolist()
        return f"{x.name} ({', '.join(f'{v:.6g}' for v in values)} at u = exp(-2), exp(-1/2), exp(1/2))"
    if callable(x):
        return repr(x())
    if isinstance(x, Tensor):
        return f"{float(x):g}" if x.dim() == 0 else f"a tensor of {x.dim()} dimensions"
    return repr(tuple(x) if isinstance(x, torch.Size) else x)


def _digest(said: dict[str, str]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(sorted(said.items())).encode(), digest_size=7).digest(), "big")


def _checksum(tensors: Mapping[str, Tensor]) -> list[int]:
    """Two numbers that depend on every entry and on its place."""
    sums = [0, 0]
    for x in tensors.values():
        flat = x.detach().reshape(-1).long()
        place = torch.arange(1, len(flat) + 1, device=flat.device)
        one, two = torch.stack((flat.sum(), (flat * place).sum())).tolist()
        sums = [sums[0] + one, sums[1] + two]
    return sums


def _sketch(tensors: Mapping[str, Tensor]) -> list[int]:
    """Two numbers: a sum of all entries, and by how much it may differ where the entries differ by rounding."""
    total, slack = 0.0, 0.0
    for x in tensors.values():
        if x.numel():
            x = x.detach()
            total += float(x.sum(dtype=torch.float64))
            size = float(x.abs().sum(dtype=torch.float64))
            slack += size * (1e-6 + 8 * torch.finfo(x.dtype).eps / x.numel() ** 0.5)
    return [_bits(total), _bits(slack)]


def _bits(x: float) -> int:
    return struct.unpack("q", struct.pack("d", x))[0]


def _float(bits: int) -> float:
    return struct.unpack("d", struct.pack("q", bits))[0]
