"""The products of a head in C: equal to torch's in float64, of every shape, whatever lies between rows, on any number of threads."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fenchel
from fenchel.head import native, products

pytestmark = pytest.mark.skipif(not native.available(), reason="needs a C compiler")

TYPES = [torch.float32, torch.float64, torch.bfloat16]
# around the sizes of registers (6, 14, 16, 32), of a depth (128, 256) and of a block (256)
SIZES = [1, 2, 6, 7, 15, 33, 129, 257]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FENCHEL_PRODUCTS", "native")


def matrix(rows: int, columns: int, dtype: torch.dtype, between: int = 0) -> Tensor:
    """A matrix with something else between its rows."""
    return torch.randn(rows, columns + between, dtype=dtype)[:, :columns]


def far(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


def check(n: int, d: int, v: int, dtype: torch.dtype, between: int) -> None:
    most = 1e-14 if dtype == torch.float64 else 1e-6  # of a norm; rounding grows with the root of the terms
    real = torch.float32 if dtype == torch.bfloat16 else dtype
    hidden, weight = matrix(n, d, dtype, between), matrix(v, d, dtype, between)
    z = matrix(n, v, real, between)
    assert products.handles(n, weight, hidden, z)
    products.logits(z, hidden, weight)
    assert far(z, hidden.double() @ weight.double().T) < most
    # where a CPU multiplies pairs of bfloat16, a gradient is rounded to that; nothing else ever is
    roundings = [z.double()] + ([z.bfloat16().double()] if dtype == torch.bfloat16 else [])
    d_hidden, d_weight = matrix(n, d, real, between), matrix(v, d, real, between)
    before = d_weight.double().clone()
    products.gradients(z, hidden, weight, d_hidden, d_weight, False)
    assert min(far(d_hidden, grad @ weight.double()) for grad in roundings) < most
    assert min(far(d_weight, before + grad.T @ hidden.double()) for grad in roundings) < most
    products.gradients(z, hidden, weight, None, d_weight, True)
    assert min(far(d_weight, grad.T @ hidden.double()) for grad in roundings) < most
    alone = torch.empty_like(d_hidden)
    products.gradients(z, hidden, weight, alone, None, False)
    assert torch.equal(alone, d_hidden)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@given(st.sampled_from(SIZES), st.sampled_from(SIZES), st.sampled_from(SIZES), st.integers(0, 3))
def test_products_equal_those_of_float64(dtype, n, d, v, between):
    check(n, d, v, dtype, between)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(30, 2100, 700), (400, 6000, 300), (700, 65, 5000)], ids=str)
def test_products_of_many_blocks_and_of_features_in_shares(dtype, shape):
    check(*shape, dtype, 1)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_number_of_threads_changes_nothing(dtype):
    real = torch.float32 if dtype == torch.bfloat16 else dtype
    hidden, weight, grad = matrix(50, 300, dtype), matrix(3000, 300, dtype), matrix(50, 3000, real)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 40):
            torch.set_num_threads(threads)
            z, d_hidden, d_weight = (torch.empty_like(x, dtype=real) for x in (grad, hidden, weight))
            products.logits(z, hidden, weight)
            products.gradients(grad, hidden, weight, d_hidden, d_weight, True)
            found.append((z, d_hidden, d_weight))
    finally:
        torch.set_num_threads(before)
    for one, three, forty in zip(*found, strict=True):
        assert torch.equal(one, three)
        assert torch.equal(one, forty)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("columns", [20, 21])
def test_infinite_and_missing_numbers_go_where_they_belong(dtype, columns):
    real = torch.float32 if dtype == torch.bfloat16 else dtype
    hidden, weight = torch.ones(8, columns, dtype=dtype), torch.ones(40, columns, dtype=dtype)
    hidden[3, 5], weight[17, 2] = torch.nan, -torch.inf
    z = torch.empty(8, 40, dtype=real)
    products.logits(z, hidden, weight)
    torch.testing.assert_close(z, hidden.to(real) @ weight.to(real).T, equal_nan=True)
    grad = torch.ones(8, 40, dtype=real)
    grad[2, 7], grad[4, 39] = torch.nan, torch.inf
    d_hidden, d_weight = torch.empty(8, columns, dtype=real), torch.empty(40, columns, dtype=real)
    products.gradients(grad, hidden, weight, d_hidden, d_weight, True)
    torch.testing.assert_close(d_hidden, grad @ weight.to(real), equal_nan=True)
    torch.testing.assert_close(d_weight, grad.T @ hidden.to(real), equal_nan=True)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a compiler for another CPU does not know the option")
def test_a_cpu_without_units_for_bfloat16_widens(tmp_path):
    """The compiler is told that this one has none: then gradients are not rounded either."""
    compiler = os.environ.get("CC") or "cc"
    program = """
import torch
from fenchel.head import products
hidden, weight, grad = torch.randn(33, 129).bfloat16(), torch.randn(257, 129).bfloat16(), torch.randn(33, 257)
z, d_hidden, d_weight = torch.empty(33, 257), torch.empty(33, 129), torch.empty(257, 129)
products.logits(z, hidden, weight)
products.gradients(grad, hidden, weight, d_hidden, d_weight, True)
for got, want in ((z, hidden.double() @ weight.double().T), (d_hidden, grad.double() @ weight.double()), (d_weight, grad.double().T @ hidden.double())):
    assert (got.double() - want).norm() < 1e-6 * want.norm()
"""
    source = str(Path(fenchel.__file__).parents[1])
    env = os.environ | {"CC": f"{compiler} -mno-avx512bf16", "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": source}
    subprocess.run([sys.executable, "-c", program], env=env, check=True, timeout=120)


@pytest.mark.parametrize("generator", ["kl", "alpha:1.5", "js"])
@pytest.mark.parametrize("accumulator", [True, False])
def test_heads_in_bfloat16_are_no_further_off_than_dense_ones(generator, accumulator):
    torch.manual_seed(1)
    target = torch.randint(900, (70,))
    inputs = [torch.randn(s).bfloat16() for s in ((70, 24), (900, 24))]

    def run(loss, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        value = loss(*leaves)
        return [x.detach().double() for x in (value, *torch.autograd.grad(value, leaves))]

    def fused(hidden, weight):
        return fenchel.linear_fenchel_young(
            hidden, weight, target, generator, memory=2**17, accumulator=accumulator, reduction="mean"
        )

    def dense(hidden, weight):
        return fenchel.fenchel_young(hidden @ weight.T, target, generator, reduction="mean")

    want = run(dense, torch.float64)
    for got, theirs, true in zip(run(fused, torch.bfloat16), run(dense, torch.bfloat16), want, strict=True):
        # a rounding to bfloat16 is what the output itself may have
        assert (got - true).norm() <= max(2 * float((theirs - true).norm()), 2**-8 * float(true.norm()))


@pytest.mark.parametrize("generator", ["kl", "alpha:1.5", "js"])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 5.0, "scale": 0.5}, {"reduction": "sum", "label_smoothing": 0.1}], ids=str
)
def test_heads_are_the_same_with_either(generator, options, monkeypatch):
    torch.manual_seed(0)
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((70, 24), (900, 24), (900,))]
    target = torch.randint(900, (70,))
    target[4] = -100
    found = []
    for wanted in ("native", "torch"):
        monkeypatch.setenv("FENCHEL_PRODUCTS", wanted)
        loss = fenchel.linear_fenchel_young(
            leaves[0], leaves[1], target, generator, bias=leaves[2], memory=2**17, **options
        )
        found.append((loss, *torch.autograd.grad(loss, leaves)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_what_is_left_to_torch(monkeypatch):
    hidden, weight = torch.randn(6, 4), torch.randn(50, 4)
    assert products.handles(6, weight, hidden)
    assert not products.handles(6, weight.half(), hidden.half())
    assert products.handles(6, weight.bfloat16(), hidden.bfloat16(), hidden)
    assert not products.handles(6, weight.bfloat16(), hidden.bfloat16(), hidden.bfloat16())
    assert not products.handles(6, weight.bfloat16(), hidden)
    assert not products.handles(6, weight, hidden.double())
    assert not products.handles(6, torch.randn(4, 50).T, hidden)
    assert not products.handles(6, weight[:1].expand(50, 4), hidden)
    assert not products.handles(0, weight, hidden[:0])
    monkeypatch.setenv("FENCHEL_PRODUCTS", "torch")
    assert not products.handles(6, weight, hidden)
    monkeypatch.delenv("FENCHEL_PRODUCTS")
    assert not products.handles(6, weight, hidden)  # too small
    monkeypatch.setenv("FENCHEL_PRODUCTS", "mkl")
    with pytest.raises(ValueError, match="FENCHEL_PRODUCTS='mkl'; set it to native or torch"):
        products.handles(6, weight, hidden)
