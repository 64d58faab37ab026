"""The example of tensor parallelism: its losses on two processes are those of one."""

import importlib.util
import json
import os
import socket
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest

from fenchel.study.presets import preset
from tests.parallel.ranks import ROOT, together


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tensor_parallel", ROOT / "examples" / "tensor_parallel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_torchrun(rank: int, world: int, folder: Path, port: int, arguments: list[str]) -> None:
    """The example's command line, in the environment that torchrun gives it."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    with mock.patch.object(sys, "argv", ["tensor_parallel.py", *arguments]):
        example().main()


@pytest.mark.timeout(300)
def test_two_processes_train_as_one_does(tmp_path):
    out = tmp_path / "losses.json"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--steps", "5", "--documents", "12", "--out", str(out)]
    together(as_torchrun, 2, tmp_path, 250, port, arguments)
    module, size = example(), preset("nano")
    alone = module.train(size, module.batches(size, 5, 12), "alpha:1.5")
    assert json.loads(out.read_text()) == pytest.approx(alone, rel=1e-5)
    assert alone[-1] < 0.98 * alone[0], "nothing was learnt: the test shows nothing"
