"""`make gpu`, as far as it goes without one: its checks, interpreted at a tiny size, and what it says where there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from interpreted import NUMPY_WARNS, quick_calls  # noqa: F401

from benchmarks import gpu

pytestmark = NUMPY_WARNS
ROOT = Path(gpu.__file__).parents[1]


def test_the_checks_pass_interpreted(monkeypatch):
    monkeypatch.setattr(gpu, "YOUNG", ("kl", "alpha:1.5"))
    monkeypatch.setattr(gpu, "PAIRS", ("js",))
    monkeypatch.setattr(gpu, "WITHOUT", ("kl",))
    found = gpu.checks(torch.device("cpu"), 5, 8, 33, (torch.float32, torch.bfloat16))
    assert len(found) == 20
    assert [c for c in found if not c.passed] == []
    text = gpu.markdown({"gpu": "none"}, found, [gpu.Time("one product", 2.0, 1.0, 3.0, 2**20)])
    assert text.count("| yes |") == 20
    assert "| one product | 2.00 (1.00–3.00) | 1.00 | 1 |" in text


def test_an_error_fails_its_check():
    assert gpu.Check("h", "float32", 1e-6, 1e-6).passed
    assert not gpu.Check("h", "float32", 1e-3, 1e-4).passed
    assert not gpu.Check("h", "float32", gpu._error([torch.tensor(float("nan"))], [torch.ones(())]), 1.0).passed


def test_without_a_gpu_it_says_so_in_one_line():
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, gpu.__file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr == "gpu.py: torch finds no GPU here; run it on a machine that has one\n"
