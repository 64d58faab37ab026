"""What is compiled for a tile: the graph of elementary operations equals the functions that it was traced from, where rounding is hardest."""

import pytest
import torch

from fenchel import solve
from fenchel.generators import generator
from fenchel.head import tiles, trace
from tests.table import DISTINCT, over


@over(DISTINCT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_traced_tile_equals_the_functions_it_is_made_of(case, dtype):
    g = case.g
    torch.manual_seed(1)
    z = torch.randn(6, 300, dtype=torch.float64) * 3
    z[0, 5:] = -torch.inf
    d = z.amax(1, keepdim=True) - z
    for q in (torch.tensor(1.0, dtype=torch.float64), 1 / torch.arange(1, 301, dtype=torch.float64)):
        top = solve.threshold(d, q, g).top
        want = solve.sums(d, top, q, g)
        given = [x.to(dtype) for x in (d, top, q)]
        plain = solve.sums(*given, g)
        got = tiles._traced(lambda *x: solve.sums(*x, g), tuple(given))(*given)
        for g_, p_, w in zip(got[:2], plain[:2], want[:2], strict=True):
            # no worse than the same functions in the same dtype, but for rounding
            error = (g_.double() - w).abs() / w.abs()
            allowed = 2 * ((p_.double() - w).abs() / w.abs()) + 32 * torch.finfo(dtype).eps
            assert (error <= allowed).all(), (error / allowed).max()


@pytest.mark.parametrize("k", [-2.0, -0.75, 0.1, 0.25, 0.5, 0.7, 1.0, 1.25, 2.0, 10 / 3, 4.0, 7.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_by_roots_are_as_exact_as_pow(k, dtype):
    x = torch.logspace(-12, 3, 4001, dtype=torch.float64).to(dtype)
    want = x.double().pow(k) if dtype == torch.float32 else x.pow(k)
    normal = (want > 1e-37) & (want < 1e37)  # no denormal numbers
    error = ((trace.power(x, k).double() - want) / want)[normal].abs().max()
    assert error <= 12 * torch.finfo(dtype).eps
    edge = torch.tensor([0.0, torch.inf, torch.nan], dtype=dtype)
    torch.testing.assert_close(trace.power(edge, k), edge.pow(k), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_expm1_keeps_its_digits_near_zero(dtype):
    t = torch.cat([sign * torch.logspace(-30, 1.7, 4001, dtype=torch.float64) for sign in (-1, 1)]).to(dtype)
    want = torch.expm1(t.double())
    assert (((trace.expm1(t).double() - want) / want).abs() <= 8 * torch.finfo(dtype).eps).all()
    assert trace.expm1(torch.tensor([0.0, -torch.inf], dtype=dtype)).tolist() == [0.0, -1.0]


def test_a_large_power_is_left_to_pow():
    assert trace.power(torch.ones(2), 9.5) is NotImplemented
    x = torch.rand(3, 4)
    graph = tiles._traced(lambda x: x.pow(9.5), (x,))
    assert torch.equal(graph(x), x.pow(9.5))


def test_a_trace_serves_any_size_and_its_own_layout():
    g = generator("alpha:1.5")
    sums = lambda *x: solve.sums(*x, g)
    square = (torch.rand(5, 5), torch.ones(5, 1), torch.tensor(1.0))
    graph = tiles._traced(sums, square)
    other = (torch.rand(3, 11), torch.ones(3, 1), torch.tensor(0.5))
    for got, want in zip(graph(*other), sums(*other), strict=True):
        torch.testing.assert_close(got, want)
    assert tiles._pattern(torch.ones(5, 1), (torch.rand(5, 7),)) == (0, -1)
    assert tiles._pattern(torch.ones(7), (torch.rand(5, 7),)) == (1,)
    assert tiles._pattern(torch.ones(5, 3), (torch.rand(5, 7),)) == (0, -3)
