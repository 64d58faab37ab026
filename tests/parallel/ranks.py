"""Runs the same functions on one process and on several that share a vocabulary, and lays the results side by side."""

import importlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}
# classes that the ranks hold: uneven, one rank with a single class
WIDTHS: dict[int, dict[int, tuple[int, ...]]] = {
    23: {1: (23,), 2: (14, 9), 4: (3, 9, 1, 10)},
}


@dataclass(frozen=True)
class Part:
    """A result of which each rank has a part; joined along `dim`."""

    tensor: Tensor
    dim: int


@dataclass(frozen=True)
class Share:
    """What one rank holds of the vocabulary; alone, all of it."""

    rank: int = 0
    world: int = 1

    @property
    def group(self) -> Any:
        """The group to pass."""
        return None if self.world == 1 else dist.group.WORLD

    def cut(self, x: Tensor, dim: int = -1) -> Tensor:
        """This rank's part of x, as a leaf of its own."""
        widths = WIDTHS[x.shape[dim]][self.world] if x.shape[dim] in WIDTHS else None
        parts = x.tensor_split(self.world, dim) if widths is None else x.split(widths, dim)
        return parts[self.rank].clone().contiguous().detach()

    def leaf(self, x: Tensor, dim: int = -1) -> Tensor:
        """`cut` that requires a gradient."""
        return self.cut(x, dim).requires_grad_()


Case = Callable[[Share], Mapping[str, Tensor | Part | str]]


def refused(call: Callable[[], Any]) -> str:
    """What a call raises, with its type."""
    try:
        call()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def run(module: str, world: int, folder: Path, timeout: float = 200) -> list[dict[str, Any]]:
    """The results of `module.cases(world)` on each of `world` processes."""
    together(_work, world, folder, timeout, module)
    return [torch.load(folder / f"results{rank}", weights_only=False) for rank in range(world)]


def together(work: Callable[..., None], world: int, folder: Path, timeout: float, *arguments: Any) -> None:
    """Runs work(rank, world, folder, *arguments) on processes of their own; ends them all if one fails or they take too long."""
    context = multiprocessing.get_context("forkserver")
    # imported once, by the process that the others are forked from; nothing that computes a gradient, which forbids to fork
    context.set_forkserver_preload(["torch", "torch.distributed.tensor", "torch.distributed.fsdp", "pytest", "fenchel"])
    with mock.patch.dict(os.environ, ENVIRONMENT):
        children = [
            context.Process(target=_guarded, args=(work, rank, world, folder, arguments), daemon=True)
            for rank in range(world)
        ]
        for child in children:
            child.start()
    end = time.monotonic() + timeout
    try:
        while any(child.is_alive() for child in children) and not any(child.exitcode for child in children):
            assert time.monotonic() < end, f"{world} processes took longer than {timeout} s"
            time.sleep(0.05)
        for rank, child in enumerate(children):
            assert not child.exitcode, f"rank {rank} failed:\n" + (folder / f"errors{rank}").read_text()
    finally:
        for child in children:
            child.kill()
            child.join()
            child.close()


def _guarded(work: Callable[..., None], rank: int, world: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    os.environ.update(ENVIRONMENT)
    torch.set_num_threads(1)
    (folder / f"errors{rank}").write_text("it ended without a word")
    try:
        work(rank, world, folder, *arguments)
    except BaseException:
        (folder / f"errors{rank}").write_text(traceback.format_exc())
        raise


def check(case: Case, found: list[Mapping[str, Any]], tolerance: float) -> None:
    """What ranks found is what one process finds, and the same bits on all of them where it is not a part.

    Raises:
        AssertionError: it is not.
    """
    wanted = case(Share())
    assert all(result.keys() == wanted.keys() for result in found)
    for name, want in wanted.items():
        got = [result[name] for result in found]
        if isinstance(want, Part):
            got, want = [torch.cat([part.tensor for part in got], want.dim)], want.tensor
        assert isinstance(want, Tensor)
        torch.testing.assert_close(
            got[0], want, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
        )
        assert all(torch.equal(other.nan_to_num(0.0), got[0].nan_to_num(0.0)) for other in got), f"{name}: ranks differ"


def _work(rank: int, world: int, folder: Path, module: str) -> None:
    from tests.conftest import poison_empty

    poison_empty()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    share, results = Share(rank, world), {}
    for name, case in importlib.import_module(module).cases(world).items():
        torch.manual_seed(0)
        try:
            results[name] = case(share)
        except Exception as error:
            raise RuntimeError(f"rank {rank}, case {name}") from error
    torch.save(results, folder / f"results{rank}")
    dist.destroy_process_group()
