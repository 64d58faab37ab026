"""The heads' Triton kernels, interpreted: every generator against oracles in float64, and the heads against dense torch."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from heads import N, V, derivatives, log_rows, logits, no_worse, parts, same
from interpreted import NUMPY_WARNS, quick_calls  # noqa: F401
from test_young import labels, prior
from torch import Tensor

from fenchel import divergence, fenchel_young, generator, linear_fenchel_young, skew_divergence
from fenchel.head import gathered
from fenchel.head.divergence import linear_divergence
from fenchel.head.kernels import Rows
from fenchel.head.logp import linear_logp
from fenchel.head.triton import launch, sparse, threshold
from fenchel.head.triton import young as triton_young
from fenchel.head.triton.divergence import divergence_
from fenchel.head.triton.softmax import softmax_rows
from fenchel.operators import working_dtype
from tests.oracle import large
from tests.table import DISTINCT, MINE, Case, over

pytestmark = NUMPY_WARNS

KERNELS = tuple(case for case in DISTINCT if case.g.name != "alpha:3")
TRITON: dict[str, Any] = {"backend": "triton"}


@pytest.fixture
def small_blocks(monkeypatch):
    """Rows of a few dozen logits then take several blocks."""
    monkeypatch.setattr(launch, "ENTRIES", 32)
    monkeypatch.setattr(launch, "FEWEST", 16)


def scores(n: int, v: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows from flat to peaked."""
    made = torch.Generator().manual_seed(n * 1000 + v)
    spread = torch.logspace(-2, 1, n, dtype=torch.float64).unsqueeze(1)
    return (torch.randn(n, v, generator=made, dtype=torch.float64) * spread).to(dtype)


@over(KERNELS)
def test_probabilities_and_values_of_every_generator(case):
    # a generator that computes in float64 does the same whatever is stored
    for dtype in (torch.float64,) if case.g.double else (torch.float64, torch.float32):
        check_probabilities(case, dtype)


def check_probabilities(case: Case, dtype: torch.dtype) -> None:
    z = scores(5, 150, dtype)
    inside = working_dtype(case.g, dtype)
    q = torch.linspace(0.5, 2.0, 150, dtype=torch.float64)
    want = large(z.double().numpy() / case.scale, case.book, q.numpy())
    p, ones = z.clone(), torch.ones(5, dtype=inside)
    found = threshold.solve(z, q.to(inside), case.g)
    gain, _ = threshold.finish(p, found, q.to(inside), case.g, ones)
    bar = 1e-6 if dtype == torch.float32 else 1e-11
    np.testing.assert_allclose(p.double().numpy(), want.p, rtol=0, atol=bar)
    np.testing.assert_allclose(found.best.double().numpy(), z.double().amax(1).numpy(), rtol=0, atol=0)
    assert found.count.tolist() == [150] * 5
    value = triton_young.excess(case.g, gain, found)
    # float32 rounds the logits' distances, by which the value moves as much
    np.testing.assert_allclose(value.double().numpy(), case.scale * want.excess, rtol=20 * bar, atol=20 * bar)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "temperature and class weights": {"temperature": 0.7, "class_weight": prior() + 0.5},
    "smoothing": {"label_smoothing": 0.1, "q": 0.3},
    "a prior q": {"q": prior()},
    "another ignored class, a cap": {"ignore_index": 7, "softcap": 3.0, "scale": 1.5},
}


def young(h: Tensor, w: Tensor, *, y: Tensor, name: str, **options: Any) -> Tensor:
    return linear_fenchel_young(h, w, y, name, **options)


def dense_young(
    h: Tensor, w: Tensor, *, y: Tensor, name: str, bias: Tensor, head: dict[str, Any], **options: Any
) -> Tensor:
    return fenchel_young(logits(h, w, bias, **head), y, name, **options)


@pytest.mark.parametrize("name", ["kl", "alpha:1.5", "reverse_kl"])
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_the_loss_equals_the_dense_one(name, arguments):
    y = labels()
    if "ignore_index" in arguments:
        y = torch.where(y == -100, 7, y)
    head = {k: x for k, x in arguments.items() if k in ("softcap", "scale")}
    rest = {("weight" if k == "class_weight" else k): x for k, x in arguments.items() if k not in head}
    hidden, weight, bias = parts()
    bias = bias.detach().index_fill(0, torch.tensor(5), -torch.inf)
    for reduction, upstream in (("mean", torch.tensor(0.3)), ("none", torch.randn(N, dtype=torch.float64))):
        options = {"reduction": reduction, "memory": 300 * V, **arguments, **TRITON}
        fused = partial(young, y=y, name=name, bias=bias, **options)
        dense = partial(dense_young, y=y, name=name, bias=bias, head=head, reduction=reduction, **rest)
        same(fused, dense, [hidden, weight], upstream, 1e-10)


@pytest.mark.parametrize("name", ["kl", "alpha:1.5", "reverse_kl"])
def test_without_an_accumulator(name, monkeypatch):
    """By blocks of classes, which labels lie before, in and behind."""
    monkeypatch.setattr("fenchel.head.young.accumulates", lambda head: head.want[1])
    for arguments in (
        {"temperature": 0.7, "class_weight": prior()},
        {"label_smoothing": 0.1, "softcap": 3.0},
        {"q": prior()},
    ):
        head = {"softcap": arguments["softcap"]} if "softcap" in arguments else {}
        rest = {("weight" if k == "class_weight" else k): x for k, x in arguments.items() if k not in head}
        bias = parts()[2].detach().index_fill(0, torch.tensor(5), -torch.inf)
        fused = partial(
            young, y=labels(), name=name, bias=bias, memory=16 * N * 4, accumulator=False, **arguments, **TRITON
        )
        dense = partial(dense_young, y=labels(), name=name, bias=bias, head=head, **rest)
        same(fused, dense, parts()[:2], torch.tensor(0.3), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["kl", "js", "alpha:1.5"])
def test_losses_round_no_worse_than_torch(name, dtype):
    y = labels(24, 61)
    fused = lambda h, w, b: linear_fenchel_young(h, w, y, name, bias=b, **TRITON)
    dense = lambda h, w, b: fenchel_young(logits(h, w, b), y, name)
    no_worse(fused, dense, parts(dtype, n=24, d=33, v=61), torch.tensor(1.0))


@pytest.mark.parametrize("name", ["kl", "alpha:1.5", "neyman"])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 2), (2, 3), (5, 1025)])
def test_odd_sizes(name, shape):
    n, v = shape
    z = scores(n, v, torch.float32) if n else torch.zeros(0, v)
    y = torch.arange(n) % v
    hidden, weight = z.clone().requires_grad_(), torch.eye(v)
    loss = linear_fenchel_young(hidden, weight, y, name, reduction="sum", **TRITON)
    loss.backward()
    dense = z.double().requires_grad_()
    want = fenchel_young(dense, y, name, reduction="sum")
    want.backward()
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), dense.grad, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["kl", "alpha:1.5", "reverse_kl"])
def test_rows_that_are_out_of_the_ordinary(name, small_blocks):
    """Masked classes in the first block, one class, a million times larger logits; NaN, +inf and nothing but -inf give NaN and touch no other row."""
    z = scores(9, 50)
    z[1, :20] = -torch.inf
    z[2, 1:] = -torch.inf
    z[3] *= 1e9
    z[4, 0], z[5, 49], z[6] = torch.nan, torch.inf, -torch.inf
    y = torch.full((9,), 45)
    y[2] = 0
    given = z.clone()
    found = threshold.solve(given, torch.ones((), dtype=z.dtype), generator(name))
    gain, _ = threshold.finish(given, found, torch.ones((), dtype=z.dtype), generator(name), torch.ones(9).double(), y)
    losses = found.best - z.gather(1, y.unsqueeze(1)).squeeze(1) + triton_young.excess(generator(name), gain, found)
    broken = torch.tensor([4, 5, 6])
    assert bool(losses[broken].isnan().all())
    assert bool(given[broken].isnan().any(1).all())
    good = torch.tensor([0, 1, 2, 3, 7, 8])
    dense = z[good].requires_grad_()
    want = fenchel_young(dense, y[good], name, reduction="none")
    want.sum().backward()
    torch.testing.assert_close(losses[good], want, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(given[good], dense.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["window", "solver"])
def test_sparse_gradients(way, dtype, monkeypatch):
    """Either way to the entries that are left, and products of them, equals the dense loss; half-precision weights included."""
    n, d, v = 9, 20, 120
    q = prior(v)
    made = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=made, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(v, d, generator=made, dtype=torch.float64).to(dtype).requires_grad_()
    y = torch.arange(n)
    seen: list[str] = []
    above = sparse.above
    monkeypatch.setattr(triton_young, "GATHERED", 1.1)
    monkeypatch.setattr(sparse, "above", lambda z, limit: seen.append(way) or above(z, limit))
    monkeypatch.setattr("fenchel.head.young_kernel.YoungKernel.few_inside", lambda *args: way == "window")
    fused = lambda h, w: linear_fenchel_young(h, w, y, "alpha:1.5", q=q, reduction="sum", **TRITON)
    dense = lambda h, w: fenchel_young(h @ w.T, y, "alpha:1.5", q=q, reduction="sum")
    if dtype == torch.float64:
        same(fused, dense, [hidden, weight], tolerance=1e-10)
    else:
        no_worse(fused, dense, [hidden, weight], torch.tensor(1.0))
    assert seen
    once, again = (derivatives(fused, [hidden, weight]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_entries_and_their_products_equal_the_plain_ones(small_blocks):
    z = scores(7, 90)
    z[2, 4], z[3] = torch.nan, -torch.inf
    limit = torch.tensor([0.0, -1.0, 2.0, -torch.inf, torch.nan, torch.inf, 1.5], dtype=z.dtype)
    got, want = sparse.above(z, limit), gathered.above(z, limit)
    for a, b in ((got.row_ptr, want.row_ptr), (got.cols, want.cols), (got.vals, want.vals)):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    rows = got.with_vals(got.vals.nan_to_num(0.5))
    dense = torch.zeros(7, 90, dtype=z.dtype)
    dense[rows.row_index(), rows.cols.long()] = rows.vals
    for x, product in ((torch.randn(90, 5), dense), (torch.randn(7, 300), dense.T)):
        x = x.double()
        out = torch.randn(len(product), x.shape[1], dtype=x.dtype)
        want = out + product @ x
        times = sparse.rows_times if product is dense else sparse.transpose_times
        assert times(rows, x, out=out) is out
        torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(sparse.rows_times(rows, torch.eye(90).double()), dense, rtol=0, atol=0)
    none = Rows(torch.zeros(8, dtype=torch.int64), got.cols[:0], got.vals[:0], 90)
    assert bool((sparse.rows_times(none, torch.ones(90, 3)) == 0).all())
    assert bool((sparse.transpose_times(none, torch.ones(7, 3), out=torch.zeros(90, 3)) == 0).all())


def test_log_probabilities_for_any_upstream(small_blocks):
    y = labels()
    stacked = lambda out: torch.stack((out.logp, out.entropy, out.logsumexp), -1)
    fused = lambda h, w, b: stacked(linear_logp(h, w, y, bias=b, temperature=0.6, memory=300 * V, **TRITON))
    dense = lambda h, w, b: torch.where((y == -100).unsqueeze(1), 0.0, log_rows(logits(h, w, b) / 0.6, y.clamp_min(0)))
    upstream = torch.randn(N, 3, dtype=torch.float64)
    same(fused, dense, parts(), upstream)
    masked = parts()
    with torch.no_grad():
        masked[2][3] = -torch.inf
    bias = masked[2].detach()
    same(lambda h, w: fused(h, w, bias), lambda h, w: dense(h, w, bias), masked[:2], upstream)
    no_worse(fused, dense, parts(torch.bfloat16), upstream)


def test_softmax_rows_that_are_out_of_the_ordinary(small_blocks):
    z = scores(6, 50, torch.float32)
    z[0, :40] = -torch.inf
    z[1, 1:] = -torch.inf
    z[2] *= 1e9
    z[3, 7], z[4, 7], z[5] = torch.nan, torch.inf, -torch.inf
    best, spread, entropy = softmax_rows(z)
    want = log_rows(z[:3].double(), torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close((best.double() + spread)[:3], want[:, 2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropy[:3].double(), want[:, 1], rtol=1e-6, atol=1e-6)
    assert bool(entropy[3:].isnan().all())


@over((*DISTINCT, *MINE[:1]))
def test_the_divergence_of_every_generator(case, small_blocks):
    p, q = scores(5, 40), scores(5, 40).flip(0)
    p[0, 3], q[0, 3] = -torch.inf, -torch.inf
    c = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    dense = [p.clone().requires_grad_(), q.clone().requires_grad_()]
    want = divergence(*dense, case.g)
    (want * c).sum().backward()
    given = [p.clone(), q.clone()]
    got = divergence_(*given, c, (True, True), case.g, 0.0, torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    for a, b in zip(given, dense, strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-10, atol=1e-11 * float(1 + b.grad.abs().max()))


@pytest.mark.parametrize("name", ["kl", "js"])
@pytest.mark.parametrize("skew", [0.0, 0.1])
def test_the_divergence_of_two_heads(name, skew):
    teacher, student = parts(d=4, seed=1), parts()
    mask = torch.arange(N) % 5 != 2
    fused = lambda *x: linear_divergence(
        tuple(x[:3]), tuple(x[3:]), name, skew=skew, temperature=1.7, mask=mask, memory=700 * V, **TRITON
    )
    dense = lambda *x: torch.where(
        mask, skew_divergence(logits(*x[:3]), logits(*x[3:]), name, skew=skew, temperature=1.7), 0.0
    )
    same(fused, dense, teacher + student, torch.randn(N, dtype=torch.float64))
    # one head's gradients alone
    frozen = [t.detach() for t in teacher]
    same(lambda *x: fused(*frozen, *x), lambda *x: dense(*frozen, *x), student)


@pytest.mark.parametrize("name", ["kl", "js"])
def test_two_heads_round_no_worse_than_torch(name):
    teacher = [t.detach() for t in parts(torch.bfloat16, d=4, seed=1)]
    fused = lambda *x: linear_divergence(tuple(teacher), tuple(x), name, reduction="mean", **TRITON)
    dense = lambda *x: divergence(logits(*(t.to(x[0].dtype) for t in teacher)), logits(*x), name).mean()
    no_worse(fused, dense, parts(torch.bfloat16), torch.tensor(1.0))


def test_second_derivatives_are_those_of_torch():
    tensors = parts(n=4, d=2, v=5)
    y = torch.tensor([1, -100, 4, 0])
    found = []
    for backend in ("torch", "triton"):
        loss = linear_fenchel_young(*tensors[:2], y, "js", bias=tensors[2], backend=backend)
        first = torch.autograd.grad(loss, tensors, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), tensors))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_blocks_cover_the_rows_they_are_for():
    for n, v in ((1, 1), (3, 64), (1000, 37), (7, 100_000), (0, 5)):
        shape = launch.row_shape(n, v)
        assert shape.rows * shape.over(n)[0] >= n
        assert shape.rows * shape.columns <= launch.ENTRIES
        assert math.log2(shape.rows) % 1 == math.log2(shape.columns) % 1 == 0
