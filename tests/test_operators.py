"""The operators: closed forms, laws, conventions, and what they refuse."""

import math
import re

import entmax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fenchel import entropy, generator, sigmoid, softargmax, softmax_value, softplus
from tests import oracle
from tests.table import BUILT_IN, DISTINCT, Case, over

INF = math.inf
# user-made generators are slow: they equal their twins in test_generators
CASES = DISTINCT
# alpha > 2 is ill-conditioned at the edge of its support
RTOL = {"alpha:3": 1e-6}


def rows(*shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64)


def close(got: Tensor, want, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    np.testing.assert_allclose(got.detach().numpy(), np.asarray(want), rtol=rtol, atol=atol)


def laws(examples: int = 8):
    return settings(max_examples=examples, deadline=None, derandomize=True)


def scores(size: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-8, 8).map(lambda x: round(x, 3)), min_size=size, max_size=size)


@over(CASES)
@given(theta=scores(6), q=st.none() | st.lists(st.floats(1e-4, 10), min_size=6, max_size=6))
@laws()
def test_all_three_equal_bisection_in_fifty_digits(case, theta, q):
    z = torch.tensor([theta], dtype=torch.float64)
    measure = None if q is None else torch.tensor(q, dtype=torch.float64)
    want = oracle.solution(theta, case.book, 1.0 if q is None else q, case.scale)
    rtol = RTOL.get(case.book, 1e-9)
    close(softargmax(z, case.g, q=measure)[0], want.p, rtol, 1e-11 + rtol * 1e-3)
    size = 1 + max(map(abs, theta)) + abs(want.excess)
    close(softmax_value(z, case.g, q=measure)[0], want.excess + max(theta), 1e-9, 1e-11 * size)
    close(entropy(z, case.g, q=measure)[0], want.entropy, 1e-9, 1e-10 * size)


@given(theta=st.integers(1, 40).flatmap(scores))
@laws(40)
def test_closed_forms(theta):
    z = torch.tensor(theta, dtype=torch.float64)
    close(softargmax(z, "kl"), torch.softmax(z, 0), 1e-13)
    close(softmax_value(z, "kl"), torch.logsumexp(z, 0), 1e-13, 1e-13)
    close(softargmax(z, "alpha:2"), oracle.sparsemax(z.numpy()), 1e-10)
    close(softargmax(z, "alpha:1.5"), oracle.entmax15(z.numpy()), 1e-8, 1e-10)


def test_the_entmax_package_agrees():
    z = rows(20, 50)
    close(softargmax(z, "alpha:2"), entmax.sparsemax(z), 1e-9)
    close(softargmax(z, "alpha:1.5"), entmax.entmax15(z), 1e-8, 1e-10)
    close(softargmax(z, "alpha:1.3"), entmax.entmax_bisect(z, alpha=1.3, n_iter=80), 1e-7, 1e-9)


@over(CASES)
def test_adding_a_constant_to_a_row_changes_nothing_but_the_value(case):
    z, shift = rows(3, 8), torch.tensor([[0.0], [5.5], [-1024.0]], dtype=torch.float64)
    rtol = RTOL.get(case.book, 1e-9)
    close(softargmax(z + shift, case.g), softargmax(z, case.g), rtol, 1e-10)
    close(softmax_value(z + shift, case.g), softmax_value(z, case.g) + shift[:, 0], 1e-11)
    close(entropy(z + shift, case.g), entropy(z, case.g), 1e-9, 1e-9)


@over(CASES)
def test_permuting_tokens_permutes_probabilities(case):
    z, q, order = rows(3, 8), torch.rand(8, dtype=torch.float64) + 0.1, torch.randperm(8)
    close(softargmax(z[:, order], case.g, q=q[order]), softargmax(z, case.g, q=q)[:, order], RTOL.get(case.book, 1e-10))
    close(softmax_value(z[:, order], case.g, q=q[order]), softmax_value(z, case.g, q=q))


@over(CASES)
def test_a_column_of_minus_infinity_is_a_dropped_column(case):
    z, q = rows(4, 9), torch.rand(4, 9, dtype=torch.float64) + 0.1
    gone = torch.tensor([1, 4, 8])
    kept = torch.tensor([0, 2, 3, 5, 6, 7])
    masked = z.index_fill(1, gone, -INF).requires_grad_()
    p = softargmax(masked, case.g, q=q)
    assert p[:, gone].eq(0).all()
    close(p[:, kept], softargmax(z[:, kept], case.g, q=q[:, kept]), 1e-11)
    value, h = softmax_value(masked, case.g, q=q), entropy(masked, case.g, q=q)
    close(value, softmax_value(z[:, kept], case.g, q=q[:, kept]), 1e-11, 1e-11)
    close(h, entropy(z[:, kept], case.g, q=q[:, kept]), 1e-10, 1e-11)
    (gradient,) = torch.autograd.grad((p * torch.arange(9)).sum() + value.sum() + h.sum(), masked)
    assert gradient.isfinite().all()
    assert gradient[:, gone].eq(0).all()


@over(CASES)
def test_temperature_divides_the_scores(case):
    z, q = rows(4, 9), torch.rand(9, dtype=torch.float64) + 0.1
    close(softargmax(z, case.g, q=q, temperature=0.7), softargmax(z / 0.7, case.g, q=q))
    close(softmax_value(z, case.g, q=q, temperature=0.7), 0.7 * softmax_value(z / 0.7, case.g, q=q))
    close(entropy(z, case.g, q=q, temperature=0.7), entropy(z / 0.7, case.g, q=q))


@over(CASES)
def test_scaling_f_is_a_temperature(case):
    z, q, scaled = rows(4, 9), torch.rand(9, dtype=torch.float64) + 0.1, case.g.scaled(2.5)
    close(softargmax(z, scaled, q=q), softargmax(z, case.g, q=q, temperature=2.5), RTOL.get(case.book, 1e-10))
    close(softmax_value(z, scaled, q=q), softmax_value(z, case.g, q=q, temperature=2.5))
    close(entropy(z, scaled, q=q), 2.5 * entropy(z, case.g, q=q, temperature=2.5))


@over(BUILT_IN)
def test_forms_of_q(case):
    z, q = rows(2, 3, 5), torch.rand(5, dtype=torch.float64) + 0.1
    want = softargmax(z, case.g, q=q)
    close(softargmax(z, case.g, q=q.expand(2, 3, 5)), want, 1e-13)
    close(softargmax(z.movedim(-1, 0), case.g, q=q.expand(2, 3, 5).movedim(-1, 0), dim=0), want.movedim(-1, 0), 1e-13)
    close(softargmax(z.movedim(-1, 1), case.g, q=q, dim=1), want.movedim(-1, 1), 1e-13)
    each = torch.rand(2, 3, 5, dtype=torch.float64) + 0.1
    got = softargmax(z, case.g, q=each)
    for i in range(2):
        for j in range(3):
            close(got[i, j], softargmax(z[i, j], case.g, q=each[i, j]), 1e-11)
    number = softargmax(z, case.g, q=0.3)
    close(softargmax(z, case.g, q=torch.tensor(0.3, dtype=torch.float64)), number, 1e-13)
    close(softargmax(z, case.g, q=torch.full((5,), 0.3, dtype=torch.float64)), number, 1e-12)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_dim(dim):
    z = rows(3, 4, 5)
    moved = z.movedim(dim, -1)
    close(softargmax(z, "alpha:1.5", dim=dim).movedim(dim, -1), softargmax(moved, "alpha:1.5"), 1e-14)
    close(softmax_value(z, "js", dim=dim), softmax_value(moved, "js"), 1e-14)
    close(entropy(z, "js", dim=dim), entropy(moved, "js"), 1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@over(CASES)
def test_dtypes_are_kept_and_half_precision_is_computed_in_single(case, dtype):
    z = rows(5, 33).to(dtype)
    exact = softargmax(z.double(), case.g)
    p, value, h = (call(z, case.g) for call in (softargmax, softmax_value, entropy))
    assert (p.dtype, value.dtype, h.dtype) == (dtype,) * 3
    # rounding the result, and (float32) the arithmetic, whose bar is 5e-7
    eps = torch.finfo(dtype).eps
    slack = 1e-13 if dtype == torch.float64 else 5e-7
    smallest = torch.finfo(dtype).tiny if dtype == torch.float16 else 0.0
    assert (p.double() - exact).abs().le(eps * exact + slack + smallest).all()
    want = softmax_value(z.double(), case.g)
    assert (value.double() - want).abs().le(eps * want.abs() + 2e-6 * (1 + want.abs())).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kl_is_no_worse_than_torch(dtype):
    z = rows(50, 1000, scale=4.0).to(dtype)
    exact = torch.softmax(z.double(), -1)
    ours = (softargmax(z, "kl").double() - exact).abs()
    theirs = (torch.softmax(z, -1).double() - exact).abs()
    # ours is exp(z - logsumexp), theirs exp(z - max) / sum: log p is rounded once more
    assert (ours <= theirs + torch.finfo(torch.float32).eps * (4 - exact.log()) * exact).all()


@over(CASES)
def test_the_gradient_of_the_value_is_p(case):
    z = rows(4, 9).requires_grad_()
    q = torch.rand(9, dtype=torch.float64) + 0.1
    (gradient,) = torch.autograd.grad(softmax_value(z, case.g, q=q, temperature=1.7).sum(), z)
    close(gradient, softargmax(z, case.g, q=q, temperature=1.7).detach(), 1e-12)


@over(CASES)
def test_entropy_is_the_value_less_the_expected_score(case):
    z, q = rows(4, 9), torch.rand(9, dtype=torch.float64) + 0.1
    p, value, h = (call(z, case.g, q=q) for call in (softargmax, softmax_value, entropy))
    close(h, value - (p * z).sum(-1), 1e-10, 1e-11)


@over(CASES)
def test_entropy_is_largest_at_flat_scores_and_zero_for_one_token(case):
    flat, z = torch.zeros(9, dtype=torch.float64), rows(20, 9)
    most = entropy(flat, case.g)
    assert (entropy(z, case.g) <= most + 1e-12).all()
    if case.g.f0 < INF:
        certain = torch.where(torch.arange(9) == 3, 0.0, -INF).double()
        assert abs(float(entropy(certain, case.g))) <= 1e-12
        assert (entropy(z, case.g) >= -1e-12).all()
    else:
        # reported relative to flat scores
        assert abs(float(most)) <= 1e-12


def test_entropies_by_name():
    p = torch.softmax(rows(6), 0)
    close(entropy(p.log(), "kl"), -(p * p.log()).sum(), 1e-12)
    # Tsallis: (1 - sum p^a) / (a (a - 1)), at the p that these scores give
    z = rows(6, scale=0.5)
    for a in (0.5, 1.5, 2.0):
        p = softargmax(z, f"alpha:{a}")
        close(entropy(z, f"alpha:{a}"), (1 - (p**a).sum()) / (a * (a - 1)), 1e-10)


@over(CASES)
def test_two_classes(case):
    s = torch.tensor([-30.0, -2.0, -0.1, 0.0, 0.7, 4.0, 100.0], dtype=torch.float64)
    pair = torch.stack((torch.zeros_like(s), s), -1)
    q = torch.tensor([0.3, 1.2], dtype=torch.float64)
    close(sigmoid(s, case.g), softargmax(pair, case.g)[:, 1], 1e-13)
    close(softplus(s, case.g), softmax_value(pair, case.g), 1e-13)
    close(
        sigmoid(s, case.g, q=(0.3, 1.2), temperature=0.5), softargmax(pair, case.g, q=q, temperature=0.5)[:, 1], 1e-13
    )
    close(softplus(s, case.g, q=(0.3, 1.2), temperature=0.5), softmax_value(pair, case.g, q=q, temperature=0.5), 1e-13)
    for score, p in zip(s.tolist(), sigmoid(s, case.g).tolist(), strict=True):
        want = oracle.solution([0.0, score], case.book, c=case.scale).p[1]
        assert p == pytest.approx(want, rel=RTOL.get(case.book, 1e-9), abs=1e-12)


def test_the_usual_sigmoid_and_softplus():
    s = torch.linspace(-40, 40, 81, dtype=torch.float64).view(9, 9)
    close(sigmoid(s, "kl"), torch.sigmoid(s), 1e-13, 0)
    close(softplus(s, "kl"), torch.logaddexp(s, torch.zeros(())), 1e-13, 1e-15)
    assert softplus(s.float()).dtype == torch.float32


@pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-8, -1e-3, -1e-5, -1e-8])
@pytest.mark.parametrize(("limit", "name"), [(1, "kl"), (0, "reverse_kl")])
def test_alpha_tends_to_its_limits(limit, name, step):
    z, near = rows(4, 9, scale=1.5), f"alpha:{limit + step!r}"
    close(softargmax(z, near), softargmax(z, name), 60 * abs(step), 1e-11)
    # less the value at flat scores: f(0) = 1/alpha is part of the others' convention, and tends to infinity
    for call in (softmax_value, entropy):
        got, want = (call(z, g) - call(torch.zeros_like(z), g) for g in (near, name))
        close(got, want, 0, 60 * abs(step) + 1e-14 * generator(near).f0 if step > 0 else 60 * abs(step))


@pytest.mark.parametrize("k", [0.1, 4.0])
def test_the_scale_of_q_is_a_temperature_for_the_alpha_family(k):
    z = rows(4, 9)
    close(softargmax(z, "alpha:2", q=1 / k), softargmax(z / k, "alpha:2"))
    for a in (0.5, 1.5, -1.0):
        # f'(u / k) = k^(1 - a) f'(u) + constant
        close(softargmax(z, f"alpha:{a}", q=k), softargmax(z, f"alpha:{a}", temperature=k ** (1 - a)), 1e-9)
    close(softargmax(z, "kl", q=k), softargmax(z, "kl"))


# What is refused

Z = torch.zeros(2, 3)
REFUSED = [
    ((Z.tolist(),), {}, TypeError, "logits: got list; pass a floating tensor [..., V]"),
    ((Z.long(),), {}, TypeError, "logits: got dtype torch.int64; pass a floating tensor [..., V]"),
    ((torch.zeros(2, 0),), {}, ValueError, "logits: got shape (2, 0); pass [..., V] with at least one class"),
    ((torch.tensor(1.0),), {}, ValueError, "logits: got shape (); pass [..., V] with at least one class"),
    ((Z,), {"dim": 2}, ValueError, "dim: got 2 for logits of shape (2, 3); pass -2 to 1"),
    ((Z,), {"dim": -3}, ValueError, "dim: got -3 for logits of shape (2, 3); pass -2 to 1"),
    ((Z,), {"temperature": 0}, ValueError, "temperature: got 0; pass a positive finite number"),
    ((Z,), {"temperature": -1.0}, ValueError, "temperature: got -1.0; pass a positive finite number"),
    ((Z,), {"temperature": math.nan}, ValueError, "temperature: got nan; pass a positive finite number"),
    ((Z,), {"temperature": INF}, ValueError, "temperature: got inf; pass a positive finite number"),
    ((Z,), {"temperature": "1"}, TypeError, "temperature: got str; pass a positive number"),
    ((Z,), {"temperature": True}, TypeError, "temperature: got bool; pass a positive number"),
    ((Z,), {"temperature": torch.ones(2, 1)}, TypeError, "temperature: got Tensor; pass a positive number"),
    ((Z, "nope"), {}, ValueError, "unknown generator 'nope'; known: kl, "),
    ((Z, "tv"), {}, ValueError, "generator 'tv' has no operator or loss: "),
    ((Z, 3), {}, TypeError, "generator: got int; pass a name (kl, "),
    ((Z,), {"q": 0.0}, ValueError, "q: got 0.0; pass a positive finite number"),
    ((Z,), {"q": -2}, ValueError, "q: got -2; pass a positive finite number"),
    ((Z,), {"q": INF}, ValueError, "q: got inf; pass a positive finite number"),
    ((Z,), {"q": "1"}, TypeError, "q: got str; pass a positive number"),
    ((Z,), {"q": [1.0, 1.0, 1.0]}, TypeError, "q: got list; pass a positive number"),
    (
        (Z,),
        {"q": torch.ones(3).long()},
        TypeError,
        "q: got dtype torch.int64; pass a floating tensor [], [V] or the shape",
    ),
    ((Z,), {"q": torch.ones(4)}, ValueError, "q: got shape (4,); pass a number, [V] = [3] or [2, 3]"),
    ((Z,), {"q": torch.ones(2, 1)}, ValueError, "q: got shape (2, 1); pass a number, [V] = [3] or [2, 3]"),
    ((Z,), {"q": torch.ones(3, requires_grad=True)}, ValueError, "q: got a tensor that requires a gradient; "),
    (
        (Z,),
        {"q": torch.ones(3, device="meta")},
        ValueError,
        "q: got device meta, the logits are on cpu; pass q.to('cpu')",
    ),
    (
        (Z,),
        {"q": torch.tensor([1.0, 0.0, 1.0])},
        ValueError,
        "q: got an entry 0; pass positive finite numbers (mask a token",
    ),
    ((Z,), {"q": torch.tensor([1.0, -2.5, 1.0])}, ValueError, "q: got an entry -2.5; pass positive finite numbers"),
    ((Z,), {"q": torch.tensor([1.0, math.nan, 1.0])}, ValueError, "q: got an entry nan; pass positive finite numbers"),
    ((Z,), {"q": torch.tensor([1.0, INF, 1.0])}, ValueError, "q: got an entry inf; pass positive finite numbers"),
]


@pytest.mark.parametrize("call", [softargmax, softmax_value, entropy], ids=lambda call: call.__name__)
@pytest.mark.parametrize(("arguments", "options", "error", "message"), REFUSED, ids=[row[3][:40] for row in REFUSED])
def test_bad_input_is_refused_in_one_line(call, arguments, options, error, message):
    with pytest.raises(error, match="^" + re.escape(message)) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", [sigmoid, softplus], ids=lambda call: call.__name__)
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((1.0,), {}, TypeError, "logits: got float; pass a floating tensor of any shape"),
        ((Z.long(),), {}, TypeError, "logits: got dtype torch.int64; pass a floating tensor of any shape"),
        ((Z,), {"q": (1.0, 2.0, 3.0)}, ValueError, "q: got (1.0, 2.0, 3.0); pass a positive number or a pair (q0, q1)"),
        ((Z,), {"q": (1.0, 0.0)}, ValueError, "q: got 0.0; pass a positive finite number"),
        ((Z,), {"q": "1"}, TypeError, "q: got str; pass a positive number"),
        ((Z,), {"temperature": 0.0}, ValueError, "temperature: got 0.0; pass a positive finite number"),
        ((Z, "tv"), {}, ValueError, "generator 'tv' has no operator or loss: "),
    ],
)
def test_bad_input_of_two_classes_is_refused(call, arguments, options, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        call(*arguments, **options)


@pytest.mark.parametrize("name", ["kl", "alpha:1.5"])
def test_a_bad_entry_of_q_is_refused_under_vmap_and_compile(name):
    bad, g = torch.tensor([1.0, -2.5, 1.0]), generator(name)
    with pytest.raises(ValueError, match="q: got an entry -2.5"):
        torch.func.vmap(lambda z: softargmax(z, g, q=bad))(Z)
    with pytest.raises(ValueError, match="q: got an entry -2.5"):
        torch.func.vmap(lambda z, q: softargmax(z, g, q=q))(Z, bad.expand(2, 3))
    with pytest.raises(ValueError, match="q: got an entry -2.5"):
        torch.func.grad(lambda z: softmax_value(z, g, q=bad).sum())(Z)
    compiled = torch.compile(lambda z, q: softargmax(z, g, q=q), fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="q: got an entry -2.5"):
        compiled(Z, bad)


def test_the_default_is_softmax():
    z = rows(3, 4)
    close(softargmax(z), torch.softmax(z, -1), 1e-13)


def test_logits_are_not_changed():
    z = rows(3, 4)
    before = z.clone()
    for case in BUILT_IN:
        softargmax(z, case.g)
        entropy(z, case.g, temperature=0.3)
    assert torch.equal(z, before)


def same(a: Case, b: Case) -> bool:
    return a.book == b.book and a.scale == b.scale


def test_names_for_the_same_divergence_give_the_same_operator():
    z = rows(4, 9)
    pairs = [(a, b) for a in BUILT_IN for b in BUILT_IN if a is not b and same(a, b)]
    assert len(pairs) >= 6
    for a, b in pairs:
        close(softargmax(z, a.g), softargmax(z, b.g))
        close(softmax_value(z, a.g), softmax_value(z, b.g))
