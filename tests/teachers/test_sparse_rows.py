"""Sparse teachers: nothing of the distribution is lost, and both objectives equal those of dense targets."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradgradcheck

from fenchel import divergence, fenchel_young, softargmax
from fenchel.teachers import sparse
from fenchel.teachers.buckets import bucketed_divergence
from fenchel.teachers.linear_buckets import linear_bucketed_divergence
from fenchel.teachers.sparse import (
    SparseRows,
    linear_sparse_fenchel_young,
    linear_sparse_rows,
    sparse_fenchel_young,
    sparse_rows,
)

N, D, V = 7, 4, 11
SPARSE = ("alpha:1.5", "alpha:2", "alpha:3", "le_cam")
float64 = torch.float64


def logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=float64)


def head(seed: int = 1, dtype: torch.dtype = float64, n: int = N, d: int = D, v: int = V) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=made, dtype=float64).to(dtype).requires_grad_() for s in ((n, d), (v, d), (v,))]


def dense(rows: SparseRows) -> Tensor:
    """[N, V], entry by entry."""
    out = torch.zeros(len(rows), rows.vocabulary, dtype=rows.probs.dtype)
    for i in range(len(rows)):
        for e in range(int(rows.row_ptr[i]), int(rows.row_ptr[i + 1])):
            out[i, rows.cols[e]] += rows.probs[e]
    return out


@pytest.mark.parametrize("name", SPARSE)
def test_the_rows_are_the_whole_distribution(name):
    z = logits(N, V)
    rows = sparse_rows(z, name, temperature=1.3)
    p = softargmax(z, name, temperature=1.3)
    assert torch.equal(dense(rows), p)
    assert torch.equal(rows.support, (p > 0).sum(1))
    assert int(rows.support.max()) < V  # zeros there are


@pytest.mark.parametrize("dtype", [float64, torch.float32, torch.bfloat16], ids=str)
def test_from_hidden_states_tile_by_tile(dtype, monkeypatch):
    seen = []
    whole = sparse.sparse_rows
    monkeypatch.setattr(sparse, "sparse_rows", lambda z, *a, **b: seen.append(len(z)) or whole(z, *a, **b))
    hidden, weight, bias = (x.detach() for x in head(dtype=dtype))
    wide = torch.promote_types(dtype, torch.float32)
    got = linear_sparse_rows(
        (hidden, weight, bias), "alpha:1.5", softcap=3.0, scale=0.7, memory=2 * 4 * 2 * wide.itemsize * V
    )
    assert seen == [2, 2, 2, 1]
    z = 3.0 * torch.tanh(0.7 * (hidden.to(wide) @ weight.to(wide).T + bias.to(wide)) / 3.0)
    torch.testing.assert_close(dense(got), softargmax(z, "alpha:1.5"))


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("other", ["kl", "js", "hellinger", "alpha:1.5"])
def test_the_divergence_is_that_of_the_whole_distributions(name, other):
    hidden, weight, bias = head()
    rows = sparse_rows(logits(N, V), name)
    z = hidden @ weight.T + bias
    want = divergence(dense(rows).log(), z, other)
    torch.testing.assert_close(bucketed_divergence(rows.buckets(), z, other), want, rtol=1e-11, atol=1e-12)
    fused = linear_bucketed_divergence(rows.buckets(), (hidden, weight, bias), other, memory=8 * 2 * V)
    torch.testing.assert_close(fused, want, rtol=1e-11, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(x.sum(), (hidden, weight)) for x in (fused, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("other", ["alpha:1.5", "alpha:2", "js", "kl", "hellinger"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("more", [{}, {"temperature": 2.0, "scale": -0.7, "softcap": 2.0}], ids=str)
def test_the_loss_is_that_of_dense_targets(other, reduction, more):
    rows = sparse_rows(logits(N, V), "alpha:1.5")
    tensors = head()
    t, scale, cap = more.get("temperature", 1.0), more.get("scale", 1.0), more.get("softcap")
    upstream = torch.randn(N if reduction == "none" else (), dtype=float64)

    def plain(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        z = scale * (h @ w.T + b)
        return z if cap is None else cap * torch.tanh(z / cap)

    got = linear_sparse_fenchel_young(rows, tensors, other, reduction=reduction, memory=4 * 8 * V, **more)
    want = fenchel_young(plain(*tensors), dense(rows), other, reduction=reduction, temperature=t)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    flat = sparse_fenchel_young(rows, plain(*tensors), other, reduction=reduction, temperature=t)
    torch.testing.assert_close(flat, want, rtol=0, atol=1e-10)
    for a, b in zip(*(torch.autograd.grad((x * upstream).sum(), tensors) for x in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_the_loss_twice_differentiated():
    rows = sparse_rows(logits(3, 5), "alpha:1.5")
    f = lambda *x: linear_sparse_fenchel_young(rows, x, "alpha:1.5", reduction="none", memory=100)
    assert gradgradcheck(f, tuple(head(n=3, d=2, v=5)), fast_mode=True)


@given(seed=st.integers(0, 10**6), name=st.sampled_from(SPARSE), v=st.integers(1, 12))
def test_zero_and_flat_at_the_teacher_and_only_there(seed, name, v):
    z = logits(2, v, seed=seed)
    rows = sparse_rows(z, name)
    shifted = (z + 5.0).requires_grad_()
    loss = sparse_fenchel_young(rows, shifted, name, reduction="none")
    assert float(loss.detach().abs().max()) < 1e-12
    assert float(torch.autograd.grad(loss.sum(), shifted)[0].abs().max()) < 1e-12
    other = logits(2, v, seed=seed + 1)
    gap = (softargmax(other, name) - softargmax(z, name)).abs().amax(1)
    away = sparse_fenchel_young(rows, other, name, reduction="none")
    assert bool((away >= 0).all())
    assert bool((away[gap > 0.05] > 1e-5).all())


def test_a_class_that_the_student_excludes():
    rows = SparseRows(torch.tensor([0, 2, 3]), torch.tensor([0, 1, 1]), torch.tensor([0.5, 0.5, 1.0]), 3)
    z = torch.tensor([[-torch.inf, 0.0, 1.0], [-torch.inf, 0.0, 1.0]], requires_grad=True)
    loss = sparse_fenchel_young(rows, z, "alpha:1.5", reduction="none")
    assert float(loss[0].detach()) == math.inf
    want = fenchel_young(z[1:, 1:], torch.tensor([0]), "alpha:1.5")
    torch.testing.assert_close(loss[1], want)
    grad = torch.autograd.grad(loss[1], z)[0]
    assert bool(grad[1].isfinite().all())
    assert float(grad[1, 0]) == 0


def test_rows_that_are_not_finite_stay_so():
    rows = sparse_rows(torch.tensor([[torch.nan, 1.0], [0.0, 9.0]]), "alpha:2")
    assert bool(rows.probs[: int(rows.row_ptr[1])].isnan().all())
    with pytest.raises(ValueError, match="target: got a row that sums to nan"):
        sparse_fenchel_young(rows, torch.zeros(2, 2), "alpha:2")


def test_empty_batches_and_single_classes():
    hidden, weight, _ = head()
    none = linear_sparse_rows((hidden[:0], weight), "alpha:2")
    assert len(none) == 0
    loss = linear_sparse_fenchel_young(none, (hidden[:0], weight), "alpha:2")
    assert float(loss.detach()) == 0
    assert float(torch.autograd.grad(loss, weight)[0].abs().max()) == 0
    assert bucketed_divergence(none.buckets(), torch.zeros(0, V)).shape == (0,)
    one = sparse_rows(torch.randn(3, 1), "alpha:2")
    assert sparse_fenchel_young(one, torch.randn(3, 1), "alpha:2", reduction="none").tolist() == [0.0] * 3


def test_huge_logits():
    z = torch.tensor([[1e9, 0.0, -1e9]], requires_grad=True)
    rows = sparse_rows(torch.tensor([[1.0, 0.9, -1e9]]), "alpha:1.5")
    loss = sparse_fenchel_young(rows, z, "alpha:1.5")
    assert math.isfinite(float(loss.detach()))
    assert bool(torch.autograd.grad(loss, z)[0].isfinite().all())


@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=6), cut=st.integers(0, 6))
def test_slices_joined_are_the_rows(sizes, cut):
    z = logits(sum(sizes) + 1, 6, seed=sum(sizes))
    rows = sparse_rows(z, "alpha:1.5")
    again = SparseRows.cat([rows[:cut], rows[cut:]])
    for name in ("row_ptr", "cols", "probs"):
        assert torch.equal(getattr(again, name), getattr(rows, name))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, z: sparse_rows(z, "js"), "generator 'js': every probability is positive"),
        (lambda r, z: sparse_rows(z, "tv"), "generator 'tv' has no operator"),
        (lambda r, z: sparse_rows(z[0], "alpha:2"), r"logits: got shape \(11,\); pass \[N, V\]"),
        (
            lambda r, z: sparse_fenchel_young(r, z, "reverse_kl"),
            "generator 'reverse_kl': D_f of a distribution with zeros",
        ),
        (lambda r, z: sparse_fenchel_young(r, z[:3], "alpha:2"), "target: got 7 rows, the student has 3"),
        (
            lambda r, z: sparse_fenchel_young(r, z[:, :4], "alpha:2"),
            "target: got rows over 11 classes, the student has V = 4",
        ),
        (lambda r, z: sparse_fenchel_young(r, z, "alpha:2", reduction="avg"), "reduction: got 'avg'"),
        (lambda r, z: sparse_fenchel_young(r, z, "alpha:2", temperature=-1.0), "temperature: got -1.0"),
        (lambda r, z: linear_sparse_fenchel_young(r, (z, z[:3]), "alpha:2"), "target: got rows over 11 classes"),
        (lambda r, z: r[::2], "SparseRows: got a step of 2; pass consecutive rows"),
        (lambda r, z: SparseRows(r.row_ptr.int(), r.cols, r.probs, V), "SparseRows: got row_ptr torch.int32"),
        (lambda r, z: SparseRows(r.row_ptr, r.cols[1:], r.probs, V), r"SparseRows: got row_ptr \[8\], cols"),
        (
            lambda r, z: sparse_fenchel_young(SparseRows(r.row_ptr, r.cols, r.probs / 2, V), z, "kl"),
            "target: got a row that sums to 0.5; pass positive entries",
        ),
    ],
)
def test_bad_inputs(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(sparse_rows(logits(N, V), "alpha:2"), logits(N, V))
