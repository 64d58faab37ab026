"""The solver's promises: accuracy at large vocabularies, a bounded amount of work, frozen rows, broken rows."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

import fenchel
from fenchel import generator
from fenchel.operators import reference, solve_rows, working_dtype
from fenchel.solve import threshold
from tests.oracle import Solution, large, solution
from tests.table import DISTINCT, MINE, over

V = 131_072
ALPHA_ABOVE_TWO = ("alpha:3",)
# "alpha <= 2 and every named generator": the ones with bars on accuracy and on the entries read
WELL_POSED = tuple(case for case in DISTINCT if case.g.name not in ALPHA_ABOVE_TWO and case.scale == 1)
# user-made generators are slow: one with full support and one sparse
CASES = DISTINCT + tuple(case for case in MINE if case.book in ("kl", "chi2"))
INF = math.inf


def zipf() -> Tensor:
    """A prior that is Zipf's law, 1.6e6 times less for the last token than 1: f' is near its pole."""
    q = 1 / torch.arange(1, V + 1, dtype=torch.float64)
    return (q / q.sum()).to(torch.float32)


@cache
def rows(kind: str) -> Tensor:
    """Two rows of V logits, exact in float32: the same numbers test both dtypes."""
    made = torch.Generator().manual_seed(1)
    z = torch.randn(2, V, generator=made)
    if kind == "zipf":
        return z * torch.tensor([[0.01], [3.0]])
    # one row flat; one with |theta| to 1e9, where neighbouring floats are 64 apart
    far = torch.where(z[1] > -1, 1e9 - 64 * torch.randint(0, 3, (V,), generator=made), 1e9 * z[1] / 5)
    return torch.stack((0.01 * z[0], far))


@cache
def truth(book: str, kind: str) -> Solution:
    q = zipf().double().numpy() if kind == "zipf" else 1.0
    return large(rows(kind).double().numpy(), book, q)


@pytest.mark.parametrize("kind", ["flat and 1e9", "zipf"])
@over(WELL_POSED)
def test_accuracy_at_a_large_vocabulary(case, kind):
    want = truth(case.book, kind)
    q = zipf() if kind == "zipf" else None
    for dtype in (torch.float64, torch.float32):
        z = rows(kind).to(dtype)
        inside = working_dtype(case.g, dtype)
        measure = torch.ones((), dtype=inside) if q is None else q.to(inside)
        p, excess, best = solve_rows(z.to(inside), measure, case.g)
        got = p.to(dtype).double().numpy()
        error = np.abs(got - want.p)
        assert best.tolist() == z.double().amax(1).tolist()
        value_error = np.abs(excess.to(dtype).double().numpy() - want.excess) / (1 + np.abs(want.excess))
        if dtype == torch.float64:
            assert (error <= 1e-12 + 1e-10 * want.p).all(), f"p is off by {error.max():.2g}"
            assert (value_error <= 1e-9).all(), value_error
        else:
            assert error.max() <= 5e-7
            assert error.sum(1).max() / 2 <= 1e-5, "total variation"
            assert np.abs(got.sum(1) - 1).max() <= 1e-5
            assert (value_error <= 2e-6).all(), value_error


def test_the_public_operator_is_as_accurate():
    want, z = truth("alpha:1.5", "zipf"), rows("zipf")
    p = fenchel.softargmax(z, "alpha:1.5", q=zipf())
    assert np.abs(p.double().numpy() - want.p).max() <= 5e-7
    value = fenchel.softmax_value(z.double(), "alpha:1.5", q=zipf()).numpy()
    np.testing.assert_allclose(value, want.excess + z.double().amax(1).numpy(), rtol=1e-11)
    np.testing.assert_allclose(fenchel.entropy(z.double(), "alpha:1.5", q=zipf()).numpy(), want.entropy, rtol=1e-9)


@pytest.mark.parametrize(
    "book", ["kl", "reverse_kl", "jeffreys", "js:0.1", "neyman", "le_cam", "alpha:1.05", "alpha:1.5"]
)
def test_the_oracle_for_large_vocabularies_is_right(book):
    """Against bisection in 50 digits where there are few tokens, and in extended precision where many."""
    few = np.random.default_rng(0).normal(size=7) * 4
    q = [1e-6, 0.3, 1e-3, 0.1, 0.2, 0.01, 2.0]
    exact, fast = solution(few.tolist(), book, q), large(few[None], book, np.array(q))
    np.testing.assert_allclose(fast.p[0], exact.p, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose([fast.excess[0], fast.entropy[0]], [exact.excess, exact.entropy], rtol=1e-11)
    part = rows("zipf").double().numpy()[:, ::16]
    prior = zipf().double().numpy()[::16]
    wide, narrow = large(part, book, prior, np.longdouble), large(part, book, prior)
    assert (np.abs(wide.p - narrow.p) <= 1e-14 + 1e-12 * wide.p).all()
    np.testing.assert_allclose(narrow.excess, wide.excess.astype(float), rtol=1e-11)


@pytest.mark.parametrize("alpha", [2.5, 3, 5, 10])
def test_large_alpha_is_exact_for_logits_within_a_few_ulp(alpha):
    """p is ill-conditioned above alpha = 2, so it is judged by the logits that it is exact for."""
    z = rows("flat and 1e9")[:1].double() * torch.tensor([[1.0], [30.0], [500.0]], dtype=torch.float64)
    p = fenchel.softargmax(z, f"alpha:{alpha}")
    np.testing.assert_allclose(p.sum(1).numpy(), 1, rtol=0, atol=1e-12)
    # theta = f'(p) + tau on the support, theta <= f'(0) + tau off it
    slope = (p ** (alpha - 1) - 1) / (alpha - 1)
    best = z.argmax(1, keepdim=True)
    tau = (z - slope).gather(1, best)
    off = z - tau - slope
    allowed = 8 * torch.finfo(torch.float64).eps * (1 + z.abs().amax(1, keepdim=True))
    assert (torch.where(p > 0, off.abs(), off) <= allowed).all()


SCALES = (0.01, 0.3, 5.0)


def distances(scales: tuple[float, ...], case_dtype: torch.dtype) -> Tensor:
    z = torch.randn(len(scales), V, generator=torch.Generator().manual_seed(2)) * torch.tensor(scales)[:, None]
    return (z.amax(1, keepdim=True) - z).to(case_dtype)


@over(WELL_POSED)
def test_entries_read(case):
    dtype = working_dtype(case.g, torch.float32)
    one, d = torch.ones((), dtype=dtype), distances(SCALES, dtype)
    for row, scale in zip(d, SCALES, strict=True):
        reads = threshold(row[None], one, case.g).reads
        assert V <= reads <= 8 * V, f"{reads / V:.1f} V entries read at scale {scale}"
    assert threshold(d, one, case.g).reads <= 8 * V * len(SCALES)


@pytest.mark.parametrize("alpha", [2.5, 3, 5, 10])
def test_evaluations_above_two(alpha):
    d = distances(SCALES, torch.float64)
    one = torch.ones((), dtype=torch.float64)
    for row, scale in zip(d, SCALES, strict=True):
        used = threshold(row[None], one, generator(f"alpha:{alpha}")).evaluations
        assert used <= 40, f"{used} evaluations at scale {scale}"


@pytest.mark.parametrize("name", ["js", "jeffreys", "alpha:0.5", "alpha:-2", "alpha:1.5", "le_cam"])
def test_converged_rows_are_frozen(name):
    """A row's threshold is the same alone and among slower rows, and no more of it is read."""
    g, one = generator(name), torch.ones((), dtype=torch.float64)
    z = torch.randn(4, 999, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z *= torch.tensor([[1e-3], [0.4], [3.0], [1e4]], dtype=torch.float64)
    d = z.amax(1, keepdim=True) - z
    batch = threshold(d, one, g)
    alone = [threshold(row[None], one, g) for row in d]
    np.testing.assert_allclose(batch.top.numpy(), torch.cat([a.top for a in alone]).numpy(), rtol=1e-15, atol=0)
    assert len({a.evaluations for a in alone}) > 1, "the rows do not differ in speed: the test shows nothing"
    assert batch.evaluations == max(a.evaluations for a in alone)
    # rows leave when a quarter of them is done, so the batch may read a little more
    assert batch.reads < 0.95 * batch.evaluations * d.numel()


@over(CASES)
def test_a_broken_row_is_nan_and_the_others_are_untouched(case):
    z = torch.tensor([[0.3, -1.0, 2.0, 0.0]], dtype=torch.float64).repeat(5, 1)
    z[1, 2], z[2], z[3, 0] = math.nan, -INF, INF
    z[4, 1:3] = -INF
    good = fenchel.softargmax(z[:1], case.g)
    p, value, h = (call(z, case.g) for call in (fenchel.softargmax, fenchel.softmax_value, fenchel.entropy))
    assert p[1:4].isnan().all()
    assert not value[1:4].isfinite().any()
    assert not h[1:4].isfinite().any()
    np.testing.assert_allclose(p[0].numpy(), good[0].numpy(), rtol=1e-13)
    np.testing.assert_allclose(p[4, [0, 3]].numpy(), fenchel.softargmax(z[4, [0, 3]], case.g).numpy(), rtol=1e-13)
    assert p[4, 1:3].tolist() == [0, 0]
    assert value[[0, 4]].isfinite().all()


@over(CASES)
def test_small_vocabularies(case):
    one = fenchel.softargmax(torch.tensor([[-3.0], [1e9]], dtype=torch.float64), case.g, q=0.3)
    assert one.tolist() == [[1], [1]]
    two = torch.tensor([[0.0, 1.0], [5.0, 5.0], [0.0, -1e9]], dtype=torch.float64)
    p = fenchel.softargmax(two, case.g)
    for row, scores in zip(p.numpy(), two.tolist(), strict=True):
        np.testing.assert_allclose(row, solution(scores, case.book, c=case.scale).p, rtol=1e-9, atol=1e-13)
    empty = torch.zeros(0, 5, dtype=torch.float64, requires_grad=True)
    nothing = fenchel.softargmax(empty, case.g)
    assert nothing.shape == (0, 5)
    assert fenchel.softmax_value(empty, case.g).shape == fenchel.entropy(empty, case.g).shape == (0,)
    nothing.sum().backward()
    assert empty.grad is not None
    assert fenchel.softargmax(torch.zeros(2, 0, 3), case.g).shape == (2, 0, 3)


@pytest.mark.parametrize("name", ["js", "chi2", "alpha:3", "neyman", "le_cam", "alpha:-5", "alpha:20"])
def test_it_never_fails(name):
    """Extreme rows: ties, one winner, subnormal differences, |theta| = 1e300, a single live token, steep priors."""
    z = torch.zeros(6, 64, dtype=torch.float64)
    z[1, 7] = 1e300
    z[2] = torch.linspace(-1e300, 1e300, 64, dtype=torch.float64)
    z[3] = torch.arange(64) * 5e-324
    z[4, 1:] = -INF
    z[5] = torch.linspace(0, 1e-9, 64, dtype=torch.float64)
    for q in (1.0, 1e-8, 1e8, torch.logspace(-12, 3, 64, dtype=torch.float64)):
        p = fenchel.softargmax(z, name, q=q)
        assert (p >= 0).all()
        np.testing.assert_allclose(p.sum(1).numpy(), 1, rtol=0, atol=1e-9)
        measure = reference(q, z, torch.float64).expand(64)
        assert p[4].tolist() == [1.0] + [0.0] * 63
        if name not in ("alpha:3", "alpha:20"):
            np.testing.assert_allclose(p[3].numpy(), (measure / measure.sum()).numpy(), rtol=1e-9)
