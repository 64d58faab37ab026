"""Products of half precision with float32 results: when they are asked of torch, how, and what a head makes of them. torch's own run on a GPU alone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from heads import derivatives, logits, parts
from test_young import labels
from torch import Tensor

from benchmarks import gpu
from fenchel import fenchel_young, linear_fenchel_young
from fenchel.head import half

MM = torch.mm
BOTH = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def on_a_gpu(a: Tensor, b: Tensor, *, out_dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
    """torch.mm, with what it refuses on a GPU: dtypes that differ, of the factors, or of the result and what was asked for."""
    if out_dtype is None:
        return MM(a, b) if out is None else MM(a, b, out=out)
    assert a.dtype == b.dtype
    assert a.dtype in (torch.float16, torch.bfloat16)
    assert out_dtype == torch.float32
    out = torch.empty(len(a), b.shape[1]) if out is None else out
    assert out.dtype == out_dtype
    assert out.shape == (len(a), b.shape[1])
    return MM(a.float(), b.float(), out=out)


@pytest.fixture
def taken(monkeypatch) -> list[torch.dtype]:
    """As on a GPU; the dtypes of the products that were asked for there."""
    asked: list[torch.dtype] = []

    def mm(a: Tensor, b: Tensor, **more: Any) -> Tensor:
        if "out_dtype" in more:
            asked.append(a.dtype)
        return on_a_gpu(a, b, **more)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(half, "handles", lambda x: x.dtype in (torch.float16, torch.bfloat16))
    monkeypatch.setattr(half, "ROWS", 7)
    return asked


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float32}, False),
        ({"is_cuda": False}, False),
        ({"hip": "6.0"}, False),
        ({"tuned": True}, False),
    ],
)
def test_what_decides(change, wanted, monkeypatch):
    x = SimpleNamespace(**{"is_cuda": True, "dtype": torch.bfloat16, "hip": None, "tuned": False} | change)
    monkeypatch.setattr(torch.version, "hip", x.hip)
    monkeypatch.setattr(torch.cuda.tunable, "is_enabled", lambda: x.tuned)
    assert half.handles(x) is wanted  # pyright: ignore[reportArgumentType]


def test_torch_has_the_product_that_is_asked_for():
    """Its schema; a CPU has no kernel for it."""
    assert "ScalarType out_dtype, *, Tensor(a!) out" in str(torch.ops.aten.mm.dtype_out._schema)
    a = torch.ones(2, 2, dtype=torch.bfloat16)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.mm(a, a, out_dtype=torch.float32, out=torch.empty(2, 2))


@BOTH
def test_products_are_written_or_added_and_not_rounded(dtype, taken):
    a, b, before = torch.randn(20, 5).to(dtype), torch.randn(5, 3).to(dtype), torch.randn(20, 3)
    want = a.double() @ b.double()
    for new in (True, False):
        out = before.clone()
        half.add_product(out, a, b, new)
        torch.testing.assert_close(out.double(), want if new else before.double() + want, rtol=1e-6, atol=1e-6)
    assert len(taken) == 1 + 3


@BOTH
@pytest.mark.parametrize("accumulator", [True, False])
def test_a_head_is_no_further_from_float64_than_torch(dtype, accumulator, taken):
    """By norms: the gradient of logits is rounded to bfloat16, as torch's own is, but not from the same number."""
    y, tensors = labels(24, 61), parts(dtype, n=24, d=33, v=61)
    fused = lambda h, w, b: linear_fenchel_young(h, w, y, "js", bias=b, memory=2000, accumulator=accumulator)
    dense = lambda h, w, b: fenchel_young(logits(h, w, b), y, "js")
    exact = derivatives(dense, [t.detach().double().requires_grad_() for t in tensors])
    for got, usual, want in zip(derivatives(fused, tensors), derivatives(dense, tensors), exact, strict=True):
        far, allowed = ((x.double() - want).norm() for x in (got, usual))
        assert far <= allowed + 1e-6 * want.norm()
    assert set(taken) == {dtype}


def test_what_make_gpu_checks_of_them(taken):
    sizes = (torch.device("cpu"), 20, 8, 30)
    found = [c for dtype in (torch.bfloat16, torch.float16) for c in gpu._products(*sizes, dtype)]
    assert len(found) == 8
    assert all(c.passed for c in found)
    assert gpu._products(*sizes, torch.float32) == []


def test_gradients_of_float16_are_not_narrowed(taken):
    """Each of 1,024 rows has a gradient of half the smallest float16; what they add up to is far from it."""
    hidden, weight, bias = parts(torch.float16, n=1)
    many = hidden.detach().repeat(1024, 1).requires_grad_()
    fused = lambda h, w, b: linear_fenchel_young(h, w, torch.full((1024,), 3), bias=b, reduction="none")
    dense = lambda h, w, b: fenchel_young(logits(h, w, b), torch.full((1024,), 3), reduction="none")
    upstream = torch.full((1024,), 1e-6)
    got = derivatives(fused, [many, weight, bias], upstream)[2]
    want = derivatives(dense, [x.detach().double().requires_grad_() for x in (many, weight, bias)], upstream)[2]
    torch.testing.assert_close(got.double(), want, rtol=2**-10, atol=2**-24)
