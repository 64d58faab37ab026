"""The exact sparse head of bfloat16 on a CPU: its backward reads the support alone, with and without a compiler, and is as right as the dense one."""

from collections.abc import Callable

import pytest
import torch
from heads import derivatives, logits, parts
from test_young import labels
from torch import Tensor

from fenchel import fenchel_young, linear_fenchel_young
from fenchel.head import kernels, native, sweep
from fenchel.study.memory import peak_bytes

N, D, V = 48, 33, 2000
NAMES = ("alpha:1.5", "alpha:2", "chi2", "le_cam", "alpha:1.25")
INF = torch.inf

each_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(params=["native", "torch"])
def path(request, monkeypatch) -> str:
    """The C kernels, or plain torch as without a compiler."""
    if request.param == "torch":
        monkeypatch.setattr(native, "available", lambda: False)
    elif not native.available():
        pytest.skip("no compiler")
    return request.param


@pytest.fixture
def only_support(monkeypatch) -> None:
    """No dense product may be multiplied back."""
    monkeypatch.setattr(sweep, "add_gradients", None)


def tensors(n: int = N, v: int = V) -> list[Tensor]:
    return parts(torch.bfloat16, n=n, d=D, v=v)


def fused(name: str, y: Tensor) -> Callable[..., Tensor]:
    # the scale leaves a few classes of 2,000 in a support
    return lambda h, w, b: linear_fenchel_young(h, w, y, name, bias=b, scale=4.0, memory=20 * 4 * V)


def dense(name: str, y: Tensor) -> Callable[..., Tensor]:
    return lambda h, w, b: fenchel_young(logits(h, w, b, scale=4.0), y, name)


def exactly(name: str, y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return derivatives(dense(name, y), [x.detach().double().requires_grad_() for x in inputs])


@each_name
def test_errors_are_at_most_twice_those_of_dense_logits(name, path, only_support):
    y, inputs = labels(N, V), tensors()
    got, usual = derivatives(fused(name, y), inputs), derivatives(dense(name, y), inputs)
    assert [g.dtype for g in got] == [torch.float32] + [torch.bfloat16] * 3
    for ours, theirs, want in zip(got, usual, exactly(name, y, inputs), strict=True):
        far, allowed = ((x.double() - want).norm() for x in (ours, theirs))
        assert float(want.norm()) > 0
        assert far <= 2 * allowed


@each_name
def test_equals_the_dense_route(name, path, monkeypatch):
    """Both are rounded to bfloat16 once; a number that lies between two of them may go to either."""
    y, inputs = labels(N, V), tensors()
    sparse = derivatives(fused(name, y), inputs)
    monkeypatch.setattr(kernels, "gathers", lambda x, dtype: False)
    monkeypatch.setattr(sweep.Sparse, "add", None)
    for got, want in zip(sparse, derivatives(fused(name, y), inputs), strict=True):
        torch.testing.assert_close(got.float(), want.float(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("name", ["alpha:1.5", "alpha:2", "le_cam"])
def test_classes_that_are_ruled_out_get_no_gradient(name, path, only_support):
    y, (hidden, weight, bias) = labels(N, V), tensors()
    out = torch.arange(V) % 3 == 0
    y = torch.where((y >= 0) & out[y.clamp_min(0)], y + 1, y)
    with torch.no_grad():
        bias[out] = -INF
    inputs = [hidden, weight, bias]
    got, want = derivatives(fused(name, y), inputs), exactly(name, y, inputs)
    for ours, exact in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=2**-7, atol=1e-4)
    assert bool((got[2][out] == 0).all())
    assert bool((got[3][out] == 0).all())


@each_name
@pytest.mark.parametrize(
    ("n", "v", "label", "error"),
    [(N, V, -100, 0.0), (0, V, 0, 0.0), (5, 1, 0, 2**-22)],
    ids=["ignored", "empty", "one"],
)
def test_where_there_is_nothing_to_learn(name, n, v, label, error, path):
    """Of one class the probability is 1 to the digits of float32."""
    out, *grads = derivatives(fused(name, torch.full((n,), label)), tensors(n, v))
    assert abs(float(out)) <= error
    assert [g.shape for g in grads] == [(n, D), (v, D), (v,)]
    assert all(bool((g.abs() <= 4 * error).all()) for g in grads)


def test_a_matrix_that_is_not_contiguous(path, only_support):
    """Another layout of the same numbers, which plain torch multiplies, gives the same numbers."""
    for dtype in (torch.bfloat16, torch.float32):
        y, (hidden, weight, bias) = labels(N, V), [x.detach().to(dtype).requires_grad_() for x in tensors()]
        turned = weight.detach().T.contiguous().T.requires_grad_()
        for got, want in zip(
            derivatives(fused("alpha:2", y), [hidden, turned, bias]),
            derivatives(fused("alpha:2", y), [hidden, weight, bias]),
            strict=True,
        ):
            torch.testing.assert_close(got, want, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_the_weight_is_not_widened(path, only_support):
    """Beyond gradients there is the float32 accumulator of the weight's. A widened weight is 64 MiB, and what a bfloat16 gradient leaves of it 32."""
    n, d, v = 64, 256, 65_536
    made = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(x, d, generator=made).bfloat16() for x in (n, v))
    y = torch.arange(n)
    accumulator = v * d * 4
    peak, _ = peak_bytes(lambda h, w: linear_fenchel_young(h, w, y, "alpha:1.5", memory=2**20), hidden, weight)
    assert peak < accumulator + 8 * 2**20
