"""Derivatives of every order, under every transform, eager and compiled: each row of `tests/transforms.py`."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fenchel
from fenchel import Generator, generator, operators
from tests.table import DISTINCT, MINE, Case, over
from tests.transforms import TRANSFORMS, Function, Transform, around, differences, references

# torch's own decompositions for forward mode, loaded on first use
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

MY_KL = next(case for case in MINE if case.book == "kl")
# user-made generators are slow: one stands for them
CASES = (*DISTINCT, MY_KL)
CHECKED = ("jeffreys", "js:0.1", "chi2", "le_cam", "alpha:1.5", "alpha:3", "alpha:-2")
THIRD = ("kl", "jeffreys", "alpha:1.5")

Z = torch.tensor([0.31, -0.42, 0.05, -0.83], dtype=torch.float64)
Q = torch.tensor([0.4, 1.3, 0.8, 0.6], dtype=torch.float64)
V = torch.tensor([0.7, -0.2, 0.5, 0.3], dtype=torch.float64)
WEIGHT = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)


def scalar(g: Generator) -> Function:
    """All three operators in one number."""

    def f(z: Tensor) -> Tensor:
        return two(g)(z) + 0.3 * fenchel.entropy(z, g, q=Q, temperature=1.1)

    return f


def two(g: Generator) -> Function:
    """Two operators, for the compiler: it takes its time, and entropy is made of the same."""

    def f(z: Tensor) -> Tensor:
        p, value = (call(z, g, q=Q, temperature=1.1) for call in (fenchel.softargmax, fenchel.softmax_value))
        return (p * WEIGHT).sum(-1) + value.square()

    return f


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def rows_for(case: Case) -> list[Transform]:
    return [row for row in TRANSFORMS if not row.slow or case.label in THIRD]


@over(CASES)
def test_every_transform_works_eagerly(case):
    f = scalar(case.g)
    want = references(f, Z, V)
    assert want["third @ v"].abs().max() > 1e-3, "the function is too straight to show anything"
    for row in rows_for(case):
        close(row.apply(f, Z, V), want[row.want])


@over(CASES[:-1])
def test_the_formulas_that_a_compiler_sees_have_the_same_derivatives(case, monkeypatch):
    f = scalar(case.g)
    want = references(f, Z, V)
    monkeypatch.setattr(operators, "solve_rows", operators._by_newton)
    for row in rows_for(case):
        close(row.apply(f, Z, V), want[row.want])


@over(DISTINCT)
def test_improbable_and_masked_tokens_have_finite_derivatives(case, monkeypatch):
    z = torch.tensor([[4.0, 2.0, -900.0, -1e9, -torch.inf], [0.0, 0.0, -30.0, -60.0, 1.0]], dtype=torch.float64)

    def gradients() -> tuple[Tensor, Tensor]:
        leaf = z.clone().requires_grad_()
        p, value = fenchel.softargmax(leaf, case.g), fenchel.softmax_value(leaf, case.g)
        (first,) = torch.autograd.grad((p * torch.arange(5)).sum() + value.sum(), leaf, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), leaf)[0]

    eager = gradients()
    monkeypatch.setattr(operators, "solve_rows", operators._by_newton)
    for mine, theirs in zip(gradients(), eager, strict=True):
        assert theirs.isfinite().all()
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


@over(tuple(case for case in DISTINCT if case.g.name in CHECKED))
def test_gradcheck_and_gradgradcheck(case):
    z = torch.stack((Z, 0.5 * Z.flip(0))).requires_grad_()
    for call in (fenchel.softargmax, fenchel.softmax_value, fenchel.entropy):
        assert gradcheck(lambda x, call=call: call(x, case.g, q=Q), z, check_forward_ad=True)
    assert gradgradcheck(lambda x: fenchel.softargmax(x, case.g, q=Q), z, check_fwd_over_rev=True)


@over(DISTINCT)
def test_a_reference_measure_per_row_under_vmap(case):
    """q may be mapped, shared or [N, V] inside."""
    z, q = torch.randn(3, 2, 4, dtype=torch.float64), torch.rand(3, 2, 4, dtype=torch.float64) + 0.5
    want = fenchel.softargmax(z, case.g, q=q)
    both = torch.func.vmap(lambda x, m: fenchel.softargmax(x, case.g, q=m))(z, q)
    torch.testing.assert_close(both, want, rtol=1e-11, atol=1e-13)
    shared = torch.func.vmap(lambda x: fenchel.softargmax(x, case.g, q=q[0]))(z)
    torch.testing.assert_close(shared, fenchel.softargmax(z, case.g, q=q[:1].expand_as(z)), rtol=1e-11, atol=1e-13)
    inner = torch.func.vmap(lambda m: fenchel.softargmax(z[0], case.g, q=m), in_dims=1)(q[0].T)
    torch.testing.assert_close(inner[1], fenchel.softargmax(z[0], case.g, q=q[0, 1]), rtol=1e-11, atol=1e-13)


# Compiled: the compiler takes seconds a time, so each transform runs on one generator

ROWS = {row.name: row for row in TRANSFORMS}


def compiled(function: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.parametrize("row", [row for row in TRANSFORMS if row.compiled], ids=lambda row: row.name)
def test_the_compiler_takes(row):
    name, backend = row.compiled
    f = two(generator(name))
    want = references(f, Z, V)
    if row.name != "backward":
        close(compiled(lambda z, v: row.apply(f, z, v), backend)(Z, V), want[row.want])
        return
    check_forward_and_backward(f, backend)


def test_the_compiler_takes_a_generator_of_ones_own():
    check_forward_and_backward(lambda z: fenchel.softargmax(z, MY_KL.g) @ WEIGHT, "aot_eager")


def check_forward_and_backward(f: Function, backend: str) -> None:
    fast = compiled(f, backend)
    close(fast(Z), f(Z))
    gradient = differences(f(around(Z, torch.eye(4, dtype=Z.dtype))))
    close(ROWS["backward"].apply(fast, Z, V), gradient)
    with pytest.raises(RuntimeError, match=ROWS["double backward"].refused):
        ROWS["double backward"].apply(fast, Z, V)
