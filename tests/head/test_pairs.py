"""Any row-wise function of two heads, by tiles: what is special to two beside the laws of one."""

from typing import Any

import pytest
import torch
from heads import N, V, derivatives, logits, parts, same
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fenchel.head.pairs import linear_pair_rows

SMALL = 5 * 8 * V


def six(dtype: torch.dtype = torch.float64, **shape: int) -> list[Tensor]:
    """Teacher and student of different widths, each with a bias."""
    return [*parts(dtype, **shape | {"d": shape.get("d", 6) - 1}, seed=3), *parts(dtype, **shape)]


def gap(t: Tensor, s: Tensor, by: Tensor, shift: Tensor, y: Tensor) -> Tensor:
    """[n, 2], not symmetric in the two, with a number, a vector and a label by row."""
    first = by * (torch.softmax(t, -1) * s.cos() * (1 + shift.sum(-1, keepdim=True))).sum(-1)
    return torch.stack((first, (t.sin() * s).gather(-1, y.unsqueeze(-1)).squeeze(-1)), -1)


def both(x: tuple[Tensor, ...], softcap: Any = (None, None), scale: Any = (1.0, 1.0), v: int = V) -> list[Tensor]:
    heads = ((h, w[:v], b[:v]) for h, w, b in (x[:3], x[3:]))
    return [logits(*head, cap, s) for head, cap, s in zip(heads, softcap, scale, strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"softcap": (2.0, None), "scale": (1.0, 0.5)},
        {"softcap": (None, 3.0), "scale": (-0.7, 1.0)},
    ],
    ids=str,
)
def test_equals_the_function_of_stored_logits(options):
    by = torch.randn(N, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(N, 3, dtype=torch.float64, requires_grad=True)
    y = torch.arange(N) % V
    fused = lambda *x: linear_pair_rows(gap, x[:3], x[3:6], *x[6:], y, memory=SMALL, **options)
    dense = lambda *x: gap(*both(x[:6], **options), *x[6:], y)
    same(fused, dense, [*six(), by, shift], torch.randn(N, 2, dtype=torch.float64))


def spread(t: Tensor, s: Tensor) -> Tensor:
    return (t - 2 * s).square().mean(-1).sqrt()


@pytest.mark.parametrize("kept", [N, 7, 1, 0])
def test_rows_that_do_not_count_are_never_seen(kept):
    """spread has no gradient where all logits are 0: rows set to zero, rather than left out, would be NaN."""
    tensors, mask = six(), torch.randperm(N) < kept
    upstream, seen = torch.randn(N, dtype=torch.float64), []
    dense = lambda *x: torch.zeros(N).double().index_copy(0, mask.nonzero()[:, 0], spread(*(z[mask] for z in both(x))))
    want = derivatives(dense, tensors, upstream)
    with torch.no_grad():
        tensors[0][~mask] = torch.nan
        tensors[3][~mask] = torch.inf

    def counting(t: Tensor, s: Tensor) -> Tensor:
        seen.append(len(t))
        return spread(t, s)

    out = linear_pair_rows(counting, tuple(tensors[:3]), tuple(tensors[3:]), mask=mask, memory=SMALL)
    assert sum(seen) == kept
    assert max(seen) <= 5
    assert bool((out[~mask] == 0).all())
    for got, wanted in zip((out, *torch.autograd.grad((out * upstream).sum(), tensors)), want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_leading_dimensions():
    x = [t.detach() for t in six(n=12)]
    mask, by = torch.arange(12).view(3, 4) % 3 > 0, torch.randn(3, 4, dtype=torch.float64)
    fold = lambda h: h.view(3, 4, -1)
    top = lambda t, s, by: (t * by.unsqueeze(-1) + s).topk(3, -1).values
    out = linear_pair_rows(top, (fold(x[0]), *x[1:3]), (fold(x[3]), *x[4:]), by, mask=mask)
    want = top(*both(tuple(x)), by.view(-1)).view(3, 4, 3) * mask.unsqueeze(-1)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)


def test_padded_vocabularies():
    x = six()
    longer = torch.cat((x[4].detach(), torch.randn(5, 6).double())).requires_grad_()
    teacher, student = tuple(t.detach() for t in x[:3]), (x[3].detach(), longer)
    with pytest.raises(ValueError, match=r"student: got a weight with V = 42, teacher has 37; .* pass vocabulary = "):
        linear_pair_rows(spread, teacher, student)
    out = linear_pair_rows(spread, teacher, student, vocabulary=30, memory=SMALL)
    want = spread(logits(teacher[0], teacher[1][:30], teacher[2][:30]), student[0] @ longer[:30].T)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-10)
    (got,), (wanted,) = (torch.autograd.grad(o.sum(), longer) for o in (out, want))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    assert bool((got[30:] == 0).all())


@pytest.mark.parametrize("n", [0, 1])
def test_tiny(n):
    x = six(n=n, v=1)
    out, *grads = derivatives(lambda *x: linear_pair_rows(lambda t, s: (t * s).sum(-1), x[:3], x[3:]), x)
    assert out.shape == (n,)
    assert all(g.shape == t.shape for g, t in zip(grads, x, strict=True))


def test_derivatives_of_both_orders():
    x, y = six(n=3, d=2, v=4), torch.tensor([0, 3, 1])
    by = torch.randn(3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False, True])
    f = lambda *x: linear_pair_rows(gap, x[:3], x[3:6], x[6], x[6].unsqueeze(1), y, mask=mask, memory=64)
    assert gradcheck(f, (*x, by))
    assert gradgradcheck(f, (*x, by), fast_mode=True)


def test_transforms():
    x = [t.detach() for t in six()]
    f = lambda h: linear_pair_rows(spread, x[:3], (h, *x[4:]), memory=SMALL).square().sum()
    g = lambda h: spread(*both((*x[:3], h, *x[4:]))).square().sum()
    batch = torch.stack((x[3], -x[3]))
    want = torch.stack([torch.func.grad(g)(h) for h in batch])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(f))(batch), want, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.func.vmap(f)(batch), torch.stack([g(h) for h in batch]), rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_whole():
    torch._dynamo.reset()
    f = lambda *x: linear_pair_rows(spread, x[:3], x[3:], memory=SMALL)
    same(torch.compile(f, fullgraph=True, backend="aot_eager"), f, six(), torch.randn(N, dtype=torch.float64), 1e-12)


def test_dtypes():
    wide = six()
    mixed = [*(t.detach().bfloat16() for t in wide[:3]), *(t.detach().float().requires_grad_() for t in wide[3:])]
    f = lambda *x: linear_pair_rows(spread, x[:3], x[3:])
    out = f(*mixed)
    assert out.dtype == torch.float32
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in mixed]
    for got, want in zip(
        torch.autograd.grad(out.sum(), mixed[3:]), torch.autograd.grad(f(*exact).sum(), exact[3:]), strict=True
    ):
        torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = f(*(t.detach().float() for t in wide))
    assert narrow.dtype == torch.float32
    halves = f(*(t.detach().bfloat16() for t in wide))
    torch.testing.assert_close(narrow, halves, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, s: (t, s, torch.zeros(3)), r"row_args\[0\]: got shape \(3,\); .* \[13\]"),
        (lambda t, s: (t, s, 1.0), r"row_args\[0\]: got float"),
        (lambda t, s: (t[:1], s), r"teacher: got 1 entries; pass \(hidden, weight\)"),
        (lambda t, s: (t, s[0]), r"student: got Tensor; pass \(hidden, weight\)"),
        (lambda t, s: (t, (s[0][:4], s[1])), r"student: got hidden states \[4\], teacher has \[13\]"),
        (lambda t, s: ((t[0].float(), t[1]), s), r"teacher: hidden: got dtype torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    x = [t.detach() for t in six()]
    with pytest.raises((TypeError, ValueError), match=message):
        linear_pair_rows(lambda t, s, *a: (t * s).sum(-1), *change(tuple(x[:3]), tuple(x[3:])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"softcap": (1.0, 2.0, 3.0)}, r"softcap: got 3 values; pass one for both heads, or a pair"),
        ({"scale": (1.0, 0.0)}, r"student: scale: got 0.0"),
        ({"vocabulary": 38}, r"vocabulary: got 38 for heads of V = 37 and 37; pass 1 to 37"),
        ({"mask": torch.ones(N)}, r"mask: got torch.float32; pass bool \[13\]"),
        ({"mask": torch.ones(2, dtype=torch.bool)}, r"mask: got shape \[2\] on cpu; pass \[13\]"),
        ({"memory": 0}, r"memory: got 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    x = [t.detach() for t in six()]
    with pytest.raises((TypeError, ValueError), match=message):
        linear_pair_rows(spread, tuple(x[:3]), tuple(x[3:]), **options)
