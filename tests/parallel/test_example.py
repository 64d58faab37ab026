"""The example of tensor parallelism: its losses on two processes are those of one."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from fenchel.study.presets import preset
from tests.parallel.ranks import ROOT

EXAMPLE = ROOT / "examples" / "tensor_parallel.py"


@pytest.mark.timeout(300)
def test_two_processes_train_as_one_does(tmp_path):
    out = tmp_path / "losses.json"
    arguments = ["--steps", "6", "--documents", "20", "--out", str(out)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLE)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*launcher, *arguments], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    spec = importlib.util.spec_from_file_location("tensor_parallel", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    size = preset("nano")
    alone = example.train(size, example.batches(size, 6, 20), "alpha:1.5")
    assert json.loads(out.read_text()) == pytest.approx(alone, rel=1e-5)
    assert alone[-1] < 0.95 * alone[0], "nothing was learnt: the test shows nothing"
