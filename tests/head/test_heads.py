"""Laws that all fused heads obey: they equal their dense twins, whatever the tiles, the transform and the dtype."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from heads import FEW, HEADS, D, Head, N, V, derivatives, no_worse, over, parts, same
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

INF = torch.inf
ROW = 8 * V


def upstream_of(head: Head, tensors: list[Tensor]) -> Tensor:
    """Random, with a row of zeros: what arrives at rows that are masked later on."""
    out = torch.randn_like(head.dense(*tensors).detach())
    out[2] = 0
    return out


@over(HEADS)
@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_equals_the_dense_twin(head, softcap, scale):
    tensors, more = parts(), {"softcap": softcap, "scale": scale}
    fused = lambda *x: head.fused(*x, memory=3 * 4 * ROW, **more)
    dense = lambda *x: head.dense(*x, **more)
    same(fused, dense, tensors, upstream_of(head, tensors))
    same(fused, dense, tensors)


@over(HEADS)
def test_without_a_bias_and_with_leading_dimensions(head):
    hidden, weight, _ = parts()
    fused = lambda h, w: head.fused(h.view(N, 1, D).expand(N, 2, D), w, None, memory=ROW * 30)
    dense = lambda h, w: head.dense(h, w, None).unsqueeze(1).expand(N, 2, *head.dense(h, w, None).shape[1:])
    same(fused, dense, [hidden, weight])


@over(HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounds_no_worse_than_torch(head, dtype):
    tensors = parts(dtype, n=24, d=33, v=61)
    with torch.no_grad():
        tensors[0] /= 6
    upstream = upstream_of(head, tensors)
    no_worse(lambda *x: head.fused(*x, memory=2**14), head.dense, tensors, upstream)


@over(HEADS)
def test_half_precision_gives_float32(head):
    tensors = parts(torch.bfloat16)
    out, *grads = derivatives(head.fused, tensors)
    assert out.dtype == torch.float32
    assert [g.dtype for g in grads] == [torch.bfloat16] * 3


@over(FEW)
def test_weight_gradients_of_many_tiles_are_summed_in_float32(head):
    """bfloat16 sums over tiles lose what small tiles add: rows repeated 32 times have a gradient 32 times as large."""
    hidden, weight, bias = parts(torch.bfloat16, n=2)
    many = hidden.detach().repeat(32, 1).requires_grad_()
    once = derivatives(head.fused, [hidden, weight, bias])
    tiles = derivatives(lambda *x: head.fused(*x, memory=1), [many, weight, bias])
    for got, want in zip(tiles[2:], once[2:], strict=True):
        # both are rounded to bfloat16 once
        torch.testing.assert_close(got.float(), 32 * want.float(), rtol=2**-7, atol=1e-6)


@over(HEADS)
def test_tiles_batches_and_the_order_of_rows_change_nothing(head):
    tensors = parts()
    upstream, order = upstream_of(head, tensors), torch.randperm(N)
    want = lambda *x: head.fused(*x)
    for memory in (1, 5 * ROW, 50 * ROW, 2**30):
        same(lambda *x, m=memory: head.fused(*x, memory=m), want, tensors, upstream, 1e-12)
    same(lambda h, w, b: torch.cat([head.fused(h[:4], w, b), head.fused(h[4:], w, b)]), want, tensors, upstream, 1e-12)
    same(lambda h, w, b: head.fused(h[order], w, b)[order.argsort()], want, tensors, upstream, 1e-12)


@over(HEADS)
def test_tied_weights(head):
    _, weight, bias = parts()
    tokens = torch.arange(N) * 2
    tie = lambda f: lambda w, b: f(w[tokens].sin(), w, b)
    same(tie(head.fused), tie(head.dense), [weight, bias])


@over(HEADS)
@pytest.mark.parametrize("v", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 5])
def test_tiny_vocabularies(head, v, n):
    tensors = parts(n=n, v=v, d=1)
    same(head.fused, head.dense, tensors)


@over(HEADS)
def test_an_empty_batch(head):
    hidden, weight, bias = parts(n=0)
    out = head.fused(hidden, weight, bias)
    assert out.numel() == 0
    grads = torch.autograd.grad(out.sum(), (hidden, weight, bias))
    assert [g.shape for g in grads] == [(0, D), (V, D), (V,)]
    assert all(bool((g == 0).all()) for g in grads)


@over([head for head in HEADS if head.name != "rows"])
def test_a_bias_of_minus_infinity_drops_the_column(head, monkeypatch):
    tensors = parts()
    hidden, weight, bias = (t.detach() for t in tensors)
    gone = [i for i in range(V) if i % 5 == 4]
    kept = [i for i in range(V) if i % 5 != 4]
    # targets among the kept columns, by their places in either vocabulary
    rows = torch.arange(N) % len(kept)
    monkeypatch.setattr("heads.targets", lambda h, v: torch.tensor(kept)[rows] if v == V else rows)
    if "divergence" in head.name:
        teacher = parts(seed=7)
        short = (teacher[0].detach(), teacher[1].detach()[kept])
        # the teacher gives the dropped columns nothing either: both heads exclude them
        dropped = torch.zeros(V, dtype=torch.float64).index_fill(0, torch.tensor(gone), -INF)
        long = (teacher[0].detach(), teacher[1].detach(), dropped)
        monkeypatch.setattr("heads.other", lambda h, v: long if v == V else short)
    masked = bias.index_fill(0, torch.tensor(gone), -INF)
    few = [hidden.clone().requires_grad_(), weight[kept].requires_grad_(), bias[kept].requires_grad_()]
    all_of = [hidden.requires_grad_(), weight.requires_grad_(), masked.requires_grad_()]
    want, got = derivatives(head.fused, few), derivatives(head.fused, all_of)
    for a, b in zip(got, (want[0], want[1]), strict=False):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    for a, b in zip(got[2:], want[2:], strict=True):
        torch.testing.assert_close(a[kept], b, rtol=0, atol=1e-12)
        assert bool((a[gone] == 0).all())


@over(HEADS)
def test_a_nan_row_stays_alone(head):
    hidden, weight, bias = parts()
    clean = derivatives(head.fused, [hidden, weight, bias])
    with torch.no_grad():
        hidden[3, 1] = torch.nan
    out, d_hidden, *_ = derivatives(lambda *x: head.fused(*x, memory=60 * ROW), [hidden, weight, bias])
    bad = torch.arange(N) == 3
    columns = out[bad].isnan()
    assert bool(columns.all())
    assert bool(d_hidden[bad].isnan().all())
    torch.testing.assert_close(out[~bad], clean[0][~bad], rtol=0, atol=1e-12)
    torch.testing.assert_close(d_hidden[~bad], clean[1][~bad], rtol=0, atol=1e-12)


@over(HEADS)
def test_large_logits_are_finite(head):
    hidden, weight, bias = parts(torch.float32)
    with torch.no_grad():
        hidden *= 1e9
    out, *grads = derivatives(head.fused, [hidden, weight, bias])
    if "kl" not in head.name:  # its divergences and losses are infinite, or as large as the logits
        assert bool(out.isfinite().all())
    assert not any(bool(x.isnan().any()) for x in (out, *grads))


# Derivatives and transforms


def fixed(monkeypatch: pytest.MonkeyPatch, n: int = N, v: int = V) -> None:
    """Targets and a teacher that do not depend on the hidden states."""
    labels, teacher = torch.arange(n) % v, (torch.randn(n, 4), torch.randn(v, 4))
    monkeypatch.setattr("heads.targets", lambda h, v: labels)
    monkeypatch.setattr("heads.other", lambda h, v: tuple(x.to(h.dtype) for x in teacher))


@over(HEADS)
def test_first_and_second_derivatives(head, monkeypatch):
    tensors = parts(n=3, d=2, v=5)
    fixed(monkeypatch, 3, 5)
    f = lambda *x: head.fused(*x, memory=5 * 8 * 8 * 2, softcap=3.0, scale=1.1)
    assert gradcheck(f, tensors)
    assert gradgradcheck(f, tensors, fast_mode=True)


@over(FEW)
def test_functional_gradients_and_batches(head):
    hidden, weight, bias = (t.detach() for t in parts())
    f = lambda h, w, b: (head.fused(h, w, b, memory=20 * ROW) ** 2).sum()
    g = lambda h, w, b: (head.dense(h, w, b) ** 2).sum()
    for got, want in zip(
        torch.func.grad(f, (0, 1, 2))(hidden, weight, bias),
        torch.func.grad(g, (0, 1, 2))(hidden, weight, bias),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@over(FEW)
def test_gradients_of_a_batch_of_weights(head, monkeypatch):
    hidden, weight, bias = (t.detach() for t in parts())
    fixed(monkeypatch)
    weights = torch.stack((weight, -weight, weight * 0.3))
    f = lambda w: (head.fused(hidden, w, bias) ** 2).sum()
    g = lambda w: (head.dense(hidden, w, bias) ** 2).sum()
    got = torch.func.vmap(torch.func.grad(f))(weights)
    want = torch.stack([torch.func.grad(g)(w) for w in weights])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.func.vmap(f)(weights), torch.stack([g(w) for w in weights]), rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@over(FEW[1:])
def test_compiled_whole(head, monkeypatch):
    tensors = parts()
    fixed(monkeypatch)
    torch._dynamo.reset()  # which counts compilations of one lambda
    f = lambda *x: head.fused(*x, memory=20 * ROW)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    same(compiled, f, tensors, upstream_of(head, tensors), 1e-12)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*tensors), f(*tensors), rtol=0, atol=1e-12)
    slope = lambda *x: torch.func.grad(lambda *y: f(*y).square().sum(), (0, 1, 2))(*x)
    plain = [t.detach() for t in tensors]
    for got, want in zip(torch.compile(slope, fullgraph=True, backend="aot_eager")(*plain), slope(*plain), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@over(FEW)
def test_autocast_is_a_cast_of_the_head(head, monkeypatch):
    fixed(monkeypatch)
    tensors = parts(torch.float32)
    half = [t.detach().bfloat16().requires_grad_() for t in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        out = head.fused(*tensors)
    got = [out.detach(), *torch.autograd.grad(out.sum(), tensors)]
    want = derivatives(head.fused, half)
    assert [g.dtype for g in got] == [torch.float32] * 4
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=0, atol=0)


# Memory


BODIES = (
    "linear_fenchel_young(hidden, weight, y, memory=MEMORY)",
    "linear_fenchel_young(hidden, weight, y, 'alpha:1.5', memory=MEMORY, reduction='none')",
    "linear_logp(hidden, weight, y, memory=MEMORY).logp",
    "linear_divergence((hidden.detach(), weight.detach()), (hidden, weight), 'js', memory=MEMORY, reduction='mean')",
)


def test_logits_are_never_stored():
    """Dense logits and their gradient are 128 MiB; a quarter is 32. Tiles of 4 MiB, weights and gradients of 3, and
    what the allocator keeps are well below; a head that stored half of the logits would not be. One process: the peak
    is that of the worst head."""
    code = f"""
    import resource, torch
    from fenchel import linear_fenchel_young
    from fenchel.head.divergence import linear_divergence
    from fenchel.head.logp import linear_logp
    torch.set_num_threads(1)
    MEMORY = {4 * 2**20}
    def peak(head, n, v):
        hidden, weight = torch.randn(n, 32, requires_grad=True), torch.randn(v, 32, requires_grad=True)
        head(hidden, weight, torch.arange(n) % v).sum().backward()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    heads = [{", ".join(f"lambda hidden, weight, y: {body}" for body in BODIES)}]
    before = max(peak(head, 64, 64) for head in heads)
    print(*(peak(head, 2048, 8192) - before for head in heads))
    """
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "FENCHEL_COMPILE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, check=True, capture_output=True, text=True, timeout=100
    )
    grown = dict(zip(BODIES, map(float, done.stdout.split()), strict=True))
    assert max(grown.values()) < 32, grown
