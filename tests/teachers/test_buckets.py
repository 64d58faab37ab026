"""Buckets of a teacher's k largest probabilities: a true divergence, the same dense and fused, exact where tails are tiny."""

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import textbook
from table import BUILT_IN, MINE, Case
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fenchel import divergence
from fenchel.teachers import linear_buckets
from fenchel.teachers.buckets import TopK, bucketed_divergence, linear_top_k, top_k
from fenchel.teachers.complement import log_complement
from fenchel.teachers.linear_buckets import linear_bucketed_divergence

N, D, V = 7, 4, 11
NAMES = ("kl", "reverse_kl", "js", "hellinger", "alpha:1.5", "chi2", "tv")
ORDERS = ("teacher", "student")
float64 = torch.float64


def logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=made, dtype=float64)


def head(seed: int = 1, dtype: torch.dtype = float64, n: int = N, d: int = D, v: int = V) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=made, dtype=float64).to(dtype).requires_grad_() for s in ((n, d), (v, d), (v,))]


def merged(p: np.ndarray[Any, Any], indices: list[int]) -> np.ndarray[Any, Any]:
    """k probabilities and the sum of the others."""
    others = [j for j in range(len(p)) if j not in indices]
    return np.array([*(p[j] for j in indices), sum(p[j] for j in others)])


# The definition


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js", "jeffreys", "hellinger", "chi2", "le_cam", "alpha:1.5"])
@pytest.mark.parametrize("first", ORDERS)
def test_equals_the_textbook_on_merged_classes(name, first):
    zt, zs = logits(N, V, seed=1), logits(N, V, seed=2)
    p, q = torch.softmax(zt, 1).numpy(), torch.softmax(zs, 1).numpy()
    for k in (1, 3, V - 1):
        teacher = top_k(zt, k)
        got = bucketed_divergence(teacher, zs, name, first=first)
        for i in range(N):
            indices = np.argsort(-p[i])[:k].tolist()
            assert teacher.indices[i].tolist() == indices
            a, b = merged(p[i], indices), merged(q[i], indices)
            a, b = (a, b) if first == "teacher" else (b, a)
            assert float(got[i]) == pytest.approx(float((b * textbook(name).f(a / b, np)).sum()), rel=1e-9, abs=1e-12)


def test_a_sum_over_the_top_k_alone_would_be_negative_here():
    # q = (.6, .4), p = (.9, .1), k = 1: 0.6 log 0.6/0.9 = -0.243, which peers clip to 0 and lose the gradient of
    teacher = top_k(torch.tensor([[0.6, 0.4]], dtype=float64).log(), 1)
    z = torch.tensor([[0.9, 0.1]], dtype=float64).log().requires_grad_()
    value = bucketed_divergence(teacher, z)
    assert float(value.detach()) == pytest.approx(0.6 * math.log(0.6 / 0.9) + 0.4 * math.log(0.4 / 0.1), abs=1e-12)
    (grad,) = torch.autograd.grad(value.sum(), z)
    torch.testing.assert_close(grad, torch.tensor([[0.3, -0.3]], dtype=float64))  # student - teacher
    hidden, weight = z.detach(), torch.eye(2, dtype=float64).requires_grad_()
    fused = linear_bucketed_divergence(teacher, (hidden, weight), reduction="mean")
    assert float(fused.detach()) == pytest.approx(float(value.detach()))
    assert float(torch.autograd.grad(fused, weight)[0].abs().max()) > 0.5


# Laws, for every generator


def rows(draw: st.DrawFn, v: int, seed: int) -> Tensor:
    spread = draw(st.sampled_from([0.1, 1.0, 6.0]))
    return logits(1, v, seed=seed, scale=spread)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    v = draw(st.integers(1, 9))
    seed = draw(st.integers(0, 10**6))
    zt, zs = rows(draw, v, seed), rows(draw, v, seed + 1)
    for z in (zt, zs):
        if draw(st.booleans()) and v > 2:
            z[0, draw(st.integers(0, v - 1))] = -torch.inf
    return zt, zs, draw(st.integers(1, v))


@given(case=st.sampled_from(BUILT_IN + MINE), pair=pairs(), first=st.sampled_from(ORDERS))
def test_never_negative_and_never_more_than_the_whole(case: Case, pair: tuple[Tensor, Tensor, int], first: str):
    zt, zs, k = pair
    value = bucketed_divergence(top_k(zt, k), zs, case.g, first=first)
    whole = divergence(zt, zs, case.g) if first == "teacher" else divergence(zs, zt, case.g)
    assert bool((value >= 0).all())
    assert bool((value <= whole * (1 + 1e-9) + 1e-9).all())
    if k == zt.shape[1]:
        torch.testing.assert_close(value, whole, rtol=1e-9, atol=1e-12)


@given(case=st.sampled_from(BUILT_IN), pair=pairs())
def test_zero_and_flat_where_the_buckets_agree(case: Case, pair: tuple[Tensor, Tensor, int]):
    zt, _, k = pair
    teacher = top_k(zt, k)
    # the same buckets, the rest of the mass elsewhere in the tail
    others = torch.ones_like(zt, dtype=torch.bool).scatter(1, teacher.indices, False)
    z = zt.clone()
    z[others] = zt[others].flip(0)
    z.requires_grad_()
    value = bucketed_divergence(teacher, z, case.g)
    assert float(value.detach()) == pytest.approx(0, abs=1e-14)
    if bool(z.isfinite().all()):
        (grad,) = torch.autograd.grad(value.sum(), z)
        assert float(grad.abs().max()) < 1e-7


@given(case=st.sampled_from(BUILT_IN), seed=st.integers(0, 10**6))
def test_positive_where_they_differ(case: Case, seed: int):
    zt, zs = logits(1, 5, seed=seed), logits(1, 5, seed=seed + 1)
    teacher = top_k(zt, 2)
    gap = (torch.softmax(zt, 1) - torch.softmax(zs, 1))[0, teacher.indices[0]].abs().max()
    assert float(bucketed_divergence(teacher, zs, case.g)) > 1e-3 * float(gap) ** 2 * case.scale


@pytest.mark.parametrize("name", NAMES)
def test_masked_classes_of_the_student_count_as_dropped(name):
    zt, zs = logits(N, V, seed=1), logits(N, V, seed=2)
    wide = torch.cat((torch.full((N, 3), -torch.inf, dtype=float64), zs), 1)
    teacher = top_k(zt, 3)
    moved = TopK(teacher.indices + 3, teacher.logp, teacher.tail, V + 3)
    torch.testing.assert_close(
        bucketed_divergence(moved, wide, name), bucketed_divergence(teacher, zs, name), rtol=0, atol=1e-12
    )


# Accuracy


def test_tiny_tails_keep_their_digits():
    zt = torch.tensor([[0.0, 40.0, 1.0], [0.0, 60.0, -3.0]])
    teacher = top_k(zt, 1)
    want = [mpmath.log(mpmath.e**a + mpmath.e**b) - c for a, b, c in ((0, 1, 40), (0, -3, 60))]
    assert teacher.tail.tolist() == pytest.approx([float(x) for x in want], rel=1e-6)
    # the student's tail too: reverse KL of tails e^-38 and e^-20 is all that is left
    zs = torch.tensor([[0.0, 20.0, 1.0], [0.0, 30.0, -3.0]])
    for name in ("kl", "reverse_kl", "js"):
        single = bucketed_divergence(teacher, zs, name, first="student")
        double = bucketed_divergence(top_k(zt.double(), 1), zs.double(), name, first="student")
        torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=0)


def test_log_complement_at_both_ends():
    x = torch.tensor([-1e-300, -1e-12, -0.3, -0.693, -0.7, -5.0, -40.0, -700.0], dtype=float64, requires_grad=True)
    with mpmath.workdps(50):
        want = [float(mpmath.log(-mpmath.expm1(v))) for v in x.tolist()]
        slope = [float(-1 / mpmath.expm1(-mpmath.mpf(v))) for v in x.tolist()]
    out = log_complement(x)
    assert out.tolist() == pytest.approx(want, rel=1e-14)
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == pytest.approx(slope, rel=1e-13)
    edge = torch.tensor([0.0, -math.inf], requires_grad=True)
    assert log_complement(edge).tolist() == [-math.inf, 0.0]
    assert torch.autograd.grad(log_complement(edge)[1], edge)[0].tolist() == [0.0, 0.0]
    assert math.isnan(float(log_complement(torch.tensor(math.nan))))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("first", ORDERS)
def test_derivatives(k, first):
    teacher = top_k(logits(2, 5, seed=1), k)
    z = logits(2, 5, seed=2).requires_grad_()
    f = lambda z: bucketed_divergence(teacher, z, "js", first=first, temperature=1.5)
    assert gradcheck(f, (z,))
    assert gradgradcheck(f, (z,), fast_mode=True)


def test_huge_logits_nan_and_single_classes():
    z = torch.tensor([[1e9, 0.0, -1e9], [0.0, torch.nan, 1.0]], requires_grad=True)
    teacher = top_k(torch.tensor([[0.0, 0.0, -1e9], [1.0, 2.0, 3.0]]), 2)
    value = bucketed_divergence(teacher, z, "js")
    assert float(value[0].detach()) == pytest.approx(
        float(divergence(torch.zeros(2), torch.tensor([0.0, -torch.inf]), "js"))
    )
    assert math.isnan(float(value[1].detach()))
    assert bool(torch.autograd.grad(value[0], z)[0][0].isfinite().all())
    assert bool(top_k(torch.tensor([[torch.nan, 1.0]]), 1).logp.isnan().all())
    one = bucketed_divergence(top_k(torch.randn(4, 1), 1), torch.randn(4, 1), "kl")
    assert one.tolist() == [0.0] * 4
    assert bucketed_divergence(top_k(torch.zeros(0, 5), 2), torch.zeros(0, 5)).shape == (0,)


def test_a_teacher_with_fewer_classes_than_k():
    zt = torch.tensor([[1.0, 0.0, -torch.inf, -torch.inf]], dtype=float64)
    zs = torch.randn(1, 4, dtype=float64, requires_grad=True)
    value = bucketed_divergence(top_k(zt, 3), zs, "js")
    torch.testing.assert_close(value, divergence(zt, zs, "js"))
    assert bool(torch.autograd.grad(value.sum(), zs)[0].isfinite().all())


# Fused


def both(k: int, name: str, reduction: str, mask: Tensor | None, **more: Any):
    teacher = top_k(logits(N, V, seed=3), k)
    first, t = more.get("first", "teacher"), more.get("temperature")
    cap, scale = more.get("softcap"), more.get("scale", 1.0)

    def fused(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return linear_bucketed_divergence(
            teacher, (h, w, b), name, reduction=reduction, mask=mask, memory=2 * 8 * V, **more
        )

    def dense(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        z = scale * (h @ w.T + b)
        z = z if cap is None else cap * torch.tanh(z / cap)
        out = bucketed_divergence(teacher, z, name, first=first, temperature=t)
        out = out if mask is None else torch.where(mask, out, 0.0)
        count = N if mask is None else int(mask.sum())
        return out if reduction == "none" else out.sum() if reduction == "sum" else out.sum() / count

    return fused, dense


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(
    ("k", "mask", "more"),
    [
        (3, None, {}),
        (V, None, {"first": "student"}),
        (2, torch.arange(N) % 3 > 0, {"temperature": 2.0, "softcap": 2.0, "scale": -0.7}),
        (1, torch.arange(N) > 2, {"first": "student", "temperature": 0.7}),
    ],
)
def test_fused_equals_dense(name, reduction, k, mask, more):
    fused, dense = both(k, name, reduction, mask, **more)
    tensors = head()
    upstream = torch.randn(N if reduction == "none" else (), dtype=float64)
    got, want = fused(*tensors), dense(*tensors)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad((got * upstream).sum(), tensors),
        torch.autograd.grad((want * upstream).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-10)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_fused_twice_differentiable(reduction):
    teacher = top_k(logits(3, 5, seed=3), 2)
    f = lambda *x: linear_bucketed_divergence(teacher, x, "hellinger", reduction=reduction, memory=100)
    assert gradgradcheck(f, tuple(head(n=3, d=2, v=5)), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_rounds_no_worse_than_torch(dtype):
    teacher = top_k(logits(24, 61, seed=3).float(), 8)
    tensors = head(dtype=dtype, n=24, d=33, v=61)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    dense = lambda h, w, b: bucketed_divergence(teacher, h @ w.T + b, "js").mean()
    results = []
    for f, points in (
        (lambda *x: linear_bucketed_divergence(teacher, x, "js", reduction="mean", memory=2**13), tensors),
        (dense, tensors),
        (dense, wide),
    ):
        value = f(*points)
        results.append([value.detach(), *torch.autograd.grad(value, points)])
    for got, usual, want in zip(*results, strict=True):
        own = torch.finfo(got.dtype).eps * want.abs() + 16 * 2**-24 * (1 + want.abs().max())
        assert bool(((got.double() - want).abs() <= (usual.double() - want).abs() + own).all())


def test_tiles_hold_a_few_rows_of_logits(monkeypatch):
    seen = []
    kernel = linear_buckets.BucketKernel.__call__
    monkeypatch.setattr(
        linear_buckets.BucketKernel, "__call__", lambda self, z, *more: seen.append(len(z[0])) or kernel(self, z, *more)
    )
    fused, _ = both(2, "kl", "mean", None)
    fused(*head())
    assert max(seen) == 2
    assert sum(seen) == N


# torch's own compiler warns about its own use of autograd functions
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_under_torch_func_vmap_and_compile(reduction):
    fused, dense = both(3, "js", reduction, None)
    hidden, weight, bias = (x.detach() for x in head())
    f, g = ((lambda w, h=h: h(hidden, w, bias).sum()) for h in (fused, dense))
    many = torch.stack((weight, 2 * weight))
    torch.testing.assert_close(torch.vmap(torch.func.grad(f))(many), torch.vmap(torch.func.grad(g))(many))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    weight.requires_grad_()
    value, want = compiled(weight), g(weight)
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(torch.autograd.grad(value, weight), torch.autograd.grad(want, weight))


def test_rows_that_do_not_count_may_hold_anything():
    teacher = top_k(logits(N, V, seed=3), 2)
    hidden, weight, bias = head()
    broken = hidden.detach().clone()
    broken[1::2] = torch.nan
    broken.requires_grad_()
    mask = torch.arange(N) % 2 == 0
    for reduction in ("none", "mean"):
        value = linear_bucketed_divergence(teacher, (broken, weight, bias), "kl", mask=mask, reduction=reduction).sum()
        grads = torch.autograd.grad(value, (broken, weight, bias), create_graph=True)
        assert all(bool(g.isfinite().all()) for g in grads)
        assert float(grads[0].detach()[1::2].abs().max()) == 0
        # the generic head, which differentiates twice, agrees
        assert bool(torch.autograd.grad(grads[1].square().sum(), weight)[0].isfinite().all())
    none = linear_bucketed_divergence(
        teacher, (broken, weight), mask=torch.zeros(N, dtype=torch.bool), reduction="mean"
    )
    assert float(none.detach()) == 0
    assert float(torch.autograd.grad(none, weight)[0].abs().max()) == 0


def test_empty_batches_leading_dimensions_and_padded_vocabularies():
    hidden, weight, _ = head(n=6)
    teacher = linear_top_k((hidden.detach().view(2, 3, D) + 1, weight.detach()), 3, vocabulary=V - 2, memory=200)
    assert teacher.indices.shape == (2, 3, 3)
    assert teacher.vocabulary == V - 2
    fused = linear_bucketed_divergence(teacher, (hidden.view(2, 3, D), weight), "js", vocabulary=V - 2)
    dense = bucketed_divergence(teacher.reshape(-1), hidden @ weight.T, "js", vocabulary=V - 2)
    torch.testing.assert_close(fused.view(-1), dense)
    torch.testing.assert_close(
        dense, bucketed_divergence(teacher.reshape(-1), hidden @ weight[: V - 2].T, "js"), rtol=0, atol=0
    )
    empty = linear_bucketed_divergence(top_k(torch.zeros(0, V), 2), (hidden[:0], weight), reduction="mean")
    assert float(empty.detach()) == 0
    assert float(torch.autograd.grad(empty, weight)[0].abs().max()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_top_k_of_hidden_states_is_that_of_logits(dtype):
    hidden, weight, bias = (x.detach() for x in head(dtype=dtype, n=30))
    got = linear_top_k((hidden, weight, bias), 4, temperature=2.0, softcap=3.0, scale=0.5, memory=4 * V * 4)
    z = 3.0 * torch.tanh(0.5 * (hidden.float() @ weight.float().T + bias.float()) / 3.0)
    want = top_k(z, 4, temperature=2.0)
    assert torch.equal(got.indices, want.indices)
    torch.testing.assert_close(got.buckets(), want.buckets())
    torch.testing.assert_close(got.buckets().exp().sum(-1), torch.ones(30))
    assert got.temperature == 2.0


# What is given


def test_the_students_temperature_is_the_teachers():
    zt, zs = logits(N, V, seed=1), logits(N, V, seed=2)
    want = bucketed_divergence(top_k(zt / 3, 2), zs / 3, "js")
    torch.testing.assert_close(bucketed_divergence(top_k(zt, 2, temperature=3.0), zs, "js"), want)


def test_log_probabilities_of_a_server():
    zt = logits(N, V, seed=1)
    want = top_k(zt, 4)
    got = TopK.of_log_probabilities(want.indices, want.logp, V)
    torch.testing.assert_close(got.tail, want.tail)
    rounded = TopK.of_log_probabilities(torch.tensor([[1, 2]]), torch.tensor([[0.6, 0.4002]]).log(), V)
    assert rounded.tail.tolist() == [-math.inf]
    with pytest.raises(ValueError, match=r"logp: got a row whose probabilities sum to 1\.2"):
        TopK.of_log_probabilities(torch.tensor([[1, 2]]), torch.tensor([[0.6, 0.6]]).log(), V)


def test_rows_are_picked_joined_and_shaped():
    teacher = top_k(logits(6, V), 2, temperature=2.0)
    again = TopK.cat([teacher[:2], teacher[torch.tensor([2, 3])], teacher[4:]])
    for a, b in ((again, teacher), (teacher.reshape(2, 3).reshape(6), teacher), (teacher.to("cpu"), teacher)):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.buckets(), b.buckets())
        assert a.temperature == 2.0
    with pytest.raises(ValueError, match=r"TopK.cat: got \(k, vocabulary, temperature\)"):
        TopK.cat([teacher, top_k(logits(6, V), 3)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, z: bucketed_divergence(t, z, first="p"), r"first: got 'p'; pass 'teacher' for D\(teacher"),
        (lambda t, z: bucketed_divergence(t, z[:, :5]), "student: got V = 5, the teacher's rows are over 11 classes"),
        (lambda t, z: bucketed_divergence(t, z, vocabulary=5), "student: got V = 5"),
        (lambda t, z: bucketed_divergence(t, z, vocabulary=12), "vocabulary: got 12 for V = 11; pass 1 to 11"),
        (lambda t, z: bucketed_divergence(t, z[:3]), r"student_logits: got rows \[3\], the teacher has \[7\]"),
        (lambda t, z: bucketed_divergence(t, z.long()), "student_logits: got dtype torch.int64"),
        (lambda t, z: bucketed_divergence(t, z, temperature=0.0), "temperature: got 0.0"),
        (lambda t, z: bucketed_divergence(t, z, "kld"), "unknown generator 'kld'"),
        (lambda t, z: linear_bucketed_divergence(t, z), "student: got Tensor; pass"),
        (lambda t, z: linear_bucketed_divergence(t, (z, z[:5])), "student: got V = 5"),
        (lambda t, z: linear_bucketed_divergence(t, (z, z[:, :5])), r"student: hidden: got shape"),
        (
            lambda t, z: linear_bucketed_divergence(t, (z, z.new_zeros(V, V)), mask=z),
            "mask: got torch.float64; pass bool",
        ),
        (lambda t, z: linear_bucketed_divergence(t, (z, z.new_zeros(V, V)), reduction="avg"), "reduction: got 'avg'"),
        (lambda t, z: top_k(z, 12), "k: got 12; pass 1 to V = 11"),
        (lambda t, z: top_k(z, 0), "k: got 0"),
        (lambda t, z: linear_top_k((z, z), 12, vocabulary=3), "k: got 12; pass 1 to V = 3"),
        (lambda t, z: TopK(t.indices.int(), t.logp, t.tail, V), "indices: got dtype torch.int32; pass int64"),
        (
            lambda t, z: TopK(t.indices, t.logp, t.logp, V),
            r"TopK: got indices \[7, 2\], logp \[7, 2\] and tail \[7, 2\]",
        ),
    ],
)
def test_bad_inputs(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(top_k(logits(N, V), 2), logits(N, V))
