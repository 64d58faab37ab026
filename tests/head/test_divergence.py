"""The divergence of two heads: what is special to it beside the laws of all heads."""

from typing import Any

import pytest
import torch
from heads import N, V, derivatives, logits, no_worse, parts, same
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fenchel import Generator, divergence, skew_divergence
from fenchel.head.divergence import linear_divergence

ROW = 8 * V
NAMES = (
    "kl",
    "reverse_kl",
    "js",
    "js:0.1",
    "jeffreys",
    "hellinger",
    "chi2",
    "neyman",
    "le_cam",
    "alpha:1.5",
    "alpha:-0.5",
    "tv",
)


def six(dtype: torch.dtype = torch.float64, **shape: int) -> list[Tensor]:
    """Teacher and student of different widths, each with a bias."""
    return [*parts(dtype, **shape | {"d": shape.get("d", 6) - 1}, seed=3), *parts(dtype, **shape)]


def pair(
    name: str | Generator, reduction: str = "none", mask: Tensor | None = None, **arguments: Any
) -> tuple[Any, Any]:
    """Fused by small tiles, and dense."""

    def fused(*x: Tensor) -> Tensor:
        return linear_divergence(x[:3], x[3:], name, reduction=reduction, mask=mask, memory=80 * ROW, **arguments)

    def dense(*x: Tensor) -> Tensor:
        more = {k: v for k, v in arguments.items() if k in ("temperature", "skew")}
        caps, scales = arguments.get("softcap", (None, None)), arguments.get("scale", (1.0, 1.0))
        z = [logits(*h, cap, s) for h, cap, s in zip((x[:3], x[3:]), caps, scales, strict=True)]
        rows = skew_divergence(*z, name, **more) if "skew" in more else divergence(*z, name, **more)
        rows = rows if mask is None else torch.where(mask, rows, 0.0)
        count = N if mask is None else int(mask.sum())
        return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.sum() / count

    return fused, dense


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_equals_the_dense_divergence(name, reduction):
    upstream = torch.randn(N if reduction == "none" else (), dtype=torch.float64)
    same(*pair(name, reduction), six(), upstream)


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": 2.0},
        {"softcap": (2.0, None), "scale": (1.0, 0.5)},
        {"softcap": (None, 3.0), "scale": (-0.7, 1.0), "temperature": 0.8},
        {"skew": 0.1},
        {"skew": 0.9, "temperature": 1.5, "mask": torch.arange(N) % 3 > 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["js", "reverse_kl", "alpha:1.5"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_arguments(name, reduction, arguments):
    upstream = torch.randn(N if reduction == "none" else (), dtype=torch.float64)
    same(*pair(name, reduction, **arguments), six(), upstream)


def test_one_softcap_and_scale_serve_both_heads():
    x = [t.detach() for t in six()]
    one = linear_divergence(x[:3], x[3:], "js", softcap=2.0, scale=0.5)
    torch.testing.assert_close(
        one, linear_divergence(x[:3], x[3:], "js", softcap=(2.0, 2.0), scale=(0.5, 0.5)), rtol=0, atol=0
    )
    assert float((one - linear_divergence(x[:3], x[3:], "js")).abs().max()) > 1e-3


def test_an_f_of_ones_own():
    mine = Generator.from_f(lambda u: u * u.log(), name="mine")
    tensors = six()
    same(pair(mine)[0], pair("kl")[0], tensors, torch.randn(N, dtype=torch.float64), 1e-9)


@pytest.mark.parametrize("frozen", [(0, 1, 2), (3, 4, 5), (0, 2, 5), (1, 3, 4)])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_only_what_requires_a_gradient_gets_one(frozen, reduction):
    tensors = [t.detach().requires_grad_(i not in frozen) for i, t in enumerate(six())]
    free = [t for t in tensors if t.requires_grad]
    fused, dense = pair("js", reduction)
    for got, want in zip(*(torch.autograd.grad(f(*tensors).sum(), free) for f in (fused, dense)), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["kl", "js", "hellinger", "alpha:1.5"])
def test_a_mean_rounds_no_worse_than_torch(name, dtype):
    fused = lambda *x: linear_divergence(x[:3], x[3:], name, reduction="mean", memory=2**14)
    dense = lambda *x: divergence(logits(*x[:3]), logits(*x[3:]), name).mean()
    no_worse(fused, dense, six(dtype, n=24, d=33, v=61), torch.tensor(1.0))


def test_teacher_in_half_precision_and_student_in_full():
    tensors = six()
    mixed = [*(t.detach().bfloat16() for t in tensors[:3]), *(t.detach().float().requires_grad_() for t in tensors[3:])]
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in mixed]
    fused, dense = pair("js", "mean")
    assert fused(*mixed).dtype == torch.float32
    got = torch.autograd.grad(fused(*mixed), mixed[3:])
    want = torch.autograd.grad(dense(*exact), exact[3:])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("name", "reduction"), [*((name, "none") for name in NAMES), ("js", "mean")])
def test_a_student_that_is_the_teacher(name, reduction):
    for dtype, tolerance in ((torch.float32, 1e-7), (torch.float64, 1e-15)):
        teacher = parts(dtype, n=20, v=101)
        student = [t.detach().clone().requires_grad_() for t in teacher]
        out = linear_divergence(tuple(t.detach() for t in teacher), tuple(student), name, reduction=reduction)
        assert bool((out == 0).all())
        if name != "tv":  # whose f has a kink there
            assert max(float(g.abs().max()) for g in torch.autograd.grad(out.sum(), student)) <= tolerance


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js"])
def test_never_negative(name):
    """Near the teacher, where sums of signed terms round below zero."""
    hidden, weight, _ = (20 * t.detach() for t in parts(torch.float32, n=200, v=500))
    for step in (1e-7, 1e-6, 1e-5, 1e-4):
        student = hidden * (1 + step * torch.randn_like(hidden))
        out = linear_divergence((hidden, weight), (student, weight), name)
        assert bool((out >= 0).all())
        exact = divergence(hidden.double() @ weight.double().T, student.double() @ weight.double().T, name)
        assert float((out.double() - exact).abs().max()) <= 1e-6 + 0.02 * float(exact.max())


def test_padded_vocabularies():
    """Identical models, one padded: 0 if told, an error if not, never a number in between."""
    hidden, weight, bias = parts()
    padded = torch.cat((weight.detach(), torch.randn(5, 6).double())).requires_grad_()
    student = (hidden.detach(), padded)
    with pytest.raises(ValueError, match=r"q: got a weight with V = 42, p has 37; .* pass vocabulary = "):
        linear_divergence((hidden, weight), student)
    out = linear_divergence((hidden.detach(), weight.detach()), student, "reverse_kl", vocabulary=V)
    assert bool((out == 0).all())
    other = torch.randn(N, 6, dtype=torch.float64)
    rows = linear_divergence((other, weight.detach()), student, "js", vocabulary=30)
    dense = divergence(other @ weight.detach()[:30].T, hidden.detach() @ padded[:30].T, "js")
    torch.testing.assert_close(rows, dense, rtol=0, atol=1e-10)
    (got,), (want,) = (torch.autograd.grad(x.sum(), padded) for x in (rows, dense))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert bool((got[30:] == 0).all())


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js", "chi2"])
def test_padding_by_a_bias_of_minus_infinity(name):
    tensors = six()
    with torch.no_grad():
        tensors[2][-4:] = tensors[5][-4:] = -torch.inf
    out, *grads = derivatives(pair(name)[0], tensors)
    want = linear_divergence(tuple(tensors[:3]), tuple(tensors[3:]), name, vocabulary=V - 4)
    torch.testing.assert_close(out, want.detach(), rtol=0, atol=1e-12)
    assert all(bool(g.isfinite().all()) for g in grads)


def test_masked_rows_do_not_enter():
    tensors, mask = six(), torch.arange(N) % 3 > 0
    want = {r: derivatives(pair("js", r, mask)[0], tensors) for r in ("none", "mean")}
    with torch.no_grad():
        tensors[0][~mask] = torch.nan
        tensors[3][~mask] = torch.nan
    for reduction, wanted in want.items():
        for a, b in zip(derivatives(pair("js", reduction, mask)[0], tensors), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert bool((want["none"][0][~mask] == 0).all())
    first = torch.autograd.grad(pair("js", "mean", mask)[0](*tensors), tensors, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
    assert not any(bool(g.isnan().any()) for g in second)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_no_row_left(reduction):
    fused, _ = pair("kl", reduction, torch.zeros(N, dtype=torch.bool))
    out, *grads = derivatives(fused, six())
    assert all(bool((x == 0).all()) for x in (out, *grads))
    empty, _ = pair("kl", reduction)
    out, *grads = derivatives(empty, six(n=0))
    assert float(out.sum()) == 0
    assert all(bool((g == 0).all()) for g in grads)


@pytest.mark.parametrize("v", [1, 2, 3])
def test_tiny_vocabularies(v):
    same(*pair("js"), six(v=v))


def test_tied_and_shared_weights():
    hidden, weight, _ = parts()
    mix = torch.randn(6, 6, dtype=torch.float64)
    tie = lambda f: lambda h, w: f(w[torch.arange(N)].sin(), w, h)
    fused = tie(lambda a, w, h: linear_divergence((a @ mix, w), (h, w), "js", reduction="mean"))
    dense = tie(lambda a, w, h: divergence(a @ mix @ w.T, h @ w.T, "js").mean())
    same(fused, dense, [hidden, weight])


@pytest.mark.parametrize(("name", "reduction"), [("kl", "mean"), ("alpha:1.5", "mean"), ("js", "none")])
def test_derivatives(name, reduction):
    tensors = six(n=2, d=2, v=4)
    mask = torch.tensor([False, True])
    f = lambda *x: linear_divergence(x[:3], x[3:], name, reduction=reduction, skew=0.1, mask=mask, memory=300)
    assert gradcheck(f, tensors)
    assert gradgradcheck(f, tensors, fast_mode=True)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_transforms(reduction):
    x = [t.detach() for t in six()]
    f, g = ((lambda h, f=f: f(*x[:3], h, *x[4:]).square().sum()) for f in pair("js", reduction))
    batch = torch.stack((x[3], -x[3], x[3].flip(0)))
    torch.testing.assert_close(torch.func.grad(f)(x[3]), torch.func.grad(g)(x[3]), rtol=0, atol=1e-10)
    want = torch.stack([torch.func.grad(g)(h) for h in batch])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(f))(batch), want, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.func.vmap(f)(batch), torch.stack([g(h) for h in batch]), rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_mean_compiled_whole():
    torch._dynamo.reset()
    fused, _ = pair("js", "mean", torch.arange(N) % 3 > 0, skew=0.1)
    same(torch.compile(fused, fullgraph=True, backend="aot_eager"), fused, six(), torch.tensor(2.0), 1e-12)


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_compiled_tiles_equal_the_others_and_stay_accurate(monkeypatch):
    """Near the teacher exp(t) - 1, which a compiler makes of expm1, would be all rounding."""
    teacher = [t.detach() for t in parts(torch.float32, n=40, v=130)]
    near = [t + 1e-3 * torch.randn_like(t) for t in teacher]
    student = [t.requires_grad_() for t in near]
    f = lambda *x: linear_divergence(tuple(teacher), x, "js", reduction="none")
    monkeypatch.setenv("FENCHEL_COMPILE", "0")
    want = derivatives(f, student)
    monkeypatch.setenv("FENCHEL_COMPILE", "1")
    got = derivatives(f, student)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    exact = divergence(logits(*(t.double() for t in teacher)), logits(*(t.detach().double() for t in student)), "js")
    # logits of size 5 carry 5e-7, their difference of 1e-3 as much: 1e-3 of the divergence
    torch.testing.assert_close(got[0].double(), exact, rtol=5e-3, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": (torch.zeros(2, 3),)}, r"p: got 1 entries; pass \(hidden, weight\) or \(hidden, weight, bias\)"),
        ({"q": torch.zeros(2, 3)}, "q: got Tensor; pass"),
        ({"q": (torch.zeros(3, 3), torch.zeros(5, 3))}, r"q: got hidden states \[3\], p has \[2\]"),
        ({"q": (torch.zeros(2, 4), torch.zeros(5, 3))}, r"q: hidden: got shape \(2, 4\)"),
        ({"p": (torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(4))}, r"p: bias: got shape \(4,\)"),
        ({"p": (torch.zeros(2, 3).int(), torch.zeros(5, 3))}, "p: hidden: got dtype torch.int32"),
        ({"vocabulary": 6}, "vocabulary: got 6 for heads of V = 5 and 5; pass 1 to 5"),
        ({"vocabulary": 0}, "vocabulary: got 0"),
        ({"vocabulary": 2.0}, "vocabulary: got 2.0"),
        ({"mask": torch.ones(2)}, r"mask: got torch.float32; pass bool \[2\]"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask: got shape \[3\]"),
        ({"skew": 1.0}, r"skew: got 1.0; pass a number in \[0, 1\)"),
        ({"softcap": (1.0, 2.0, 3.0)}, "softcap: got 3 values; pass one for both heads, or a pair"),
        ({"softcap": (None, -1.0)}, "q: softcap: got -1.0"),
        ({"scale": 0.0}, "p: scale: got 0.0"),
        ({"temperature": torch.nan}, "temperature: got nan"),
        ({"reduction": "batchmean"}, "reduction: got 'batchmean'"),
        ({"generator": "jsd"}, "unknown generator 'jsd'"),
        ({"memory": 0}, "memory: got 0"),
    ],
)
def test_bad_inputs(change, message):
    head = (torch.zeros(2, 3), torch.zeros(5, 3))
    arguments = {"p": head, "q": head} | change
    with pytest.raises((TypeError, ValueError), match=message):
        linear_divergence(arguments.pop("p"), arguments.pop("q"), **arguments)
