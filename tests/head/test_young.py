"""The fused Fenchel-Young loss equals the dense one for all its arguments; gradients made in the forward pass are right for any use of them."""

from typing import Any

import pytest
import torch
from heads import D, N, V, derivatives, logits, no_worse, parts, same
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fenchel import fenchel_young, linear_fenchel_young

ROW = 8 * V
NAMES = ("kl", "js", "alpha:1.5", "alpha:2", "reverse_kl", "le_cam")


def labels(n: int = N, v: int = V) -> Tensor:
    """Every fourth row is ignored."""
    y = (torch.arange(n) * 7) % v
    return torch.where(torch.arange(n) % 4 == 3, -100, y)


def prior(v: int = V) -> Tensor:
    return 1 / torch.arange(1, v + 1, dtype=torch.float64)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "smoothing": {"label_smoothing": 0.1},
    "class weights": {"class_weight": prior() + 0.5},
    "class weights and smoothing": {"class_weight": prior(), "label_smoothing": 0.2},
    "a number q": {"q": 0.3},
    "a prior q": {"q": prior()},
    "a prior q and smoothing": {"q": prior(), "label_smoothing": 0.1, "temperature": 2.0},
    "another ignored class": {"ignore_index": 7},
}


def pair(name: str, y: Tensor, **arguments: Any) -> tuple[Any, Any]:
    """The fused loss by small tiles and the dense one."""
    small = dict(arguments)
    weight = small.pop("class_weight", None)
    head = {k: small.pop(k) for k in ("softcap", "scale") if k in small}

    def fused(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return linear_fenchel_young(h, w, y, name, bias=b, memory=20 * ROW, **arguments)

    def dense(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return fenchel_young(logits(h, w, b, **head), y, name, weight=weight, **small)

    return fused, dense


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_equals_the_dense_loss(name, arguments):
    y = labels()
    if "ignore_index" in arguments:
        y = torch.where(y == -100, 7, y)
    tensors = parts()
    for reduction in ("mean", "sum"):
        fused, dense = pair(name, y, **arguments, reduction=reduction)
        same(fused, dense, tensors, torch.tensor(0.3))
    fused, dense = pair(name, y, **arguments, reduction="none")
    upstream = torch.randn(N, dtype=torch.float64)
    same(fused, dense, tensors, upstream)
    assert bool((fused(*tensors)[y == arguments.get("ignore_index", -100)] == 0).all())


@pytest.mark.parametrize("name", ["kl", "js", "alpha:1.5"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_targets_that_are_probabilities(name, reduction):
    y = torch.softmax(2 * torch.randn(N, V, dtype=torch.float64), -1)
    for arguments in ({}, {"label_smoothing": 0.1, "q": prior()}, {"class_weight": prior(), "softcap": 3.0}):
        fused, dense = pair(name, y, reduction=reduction, **arguments)
        same(fused, dense, parts())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["kl", "js", "alpha:1.5", "alpha:2"])
def test_a_mean_rounds_no_worse_than_torch(name, dtype):
    y = labels(24, 61)
    fused, dense = pair(name, y, softcap=20.0, scale=1.5)
    no_worse(fused, dense, parts(dtype, n=24, d=33, v=61), torch.tensor(1.0))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_rows_ignored_is_a_differentiable_zero(reduction):
    fused, _ = pair("alpha:1.5", torch.full((N,), -100), reduction=reduction)
    out, *grads = derivatives(fused, parts())
    assert bool((out == 0).all())
    assert all(bool((g == 0).all()) for g in grads)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_empty_batch(reduction):
    fused, _ = pair("js", torch.zeros(0, dtype=torch.long), reduction=reduction)
    out, *grads = derivatives(fused, parts(n=0))
    assert float(out) == 0
    assert [g.shape for g in grads] == [(0, D), (V, D), (V,)]
    assert all(bool((g == 0).all()) for g in grads)


def test_ignored_rows_do_not_enter():
    """They may hold anything: they are dropped before the first product."""
    hidden, weight, bias = parts()
    y = labels()
    with torch.no_grad():
        hidden[y == -100] = torch.nan
    clean = hidden.detach().nan_to_num(0.0).requires_grad_()
    for reduction in ("mean", "none"):
        fused, _ = pair("js", y, reduction=reduction)
        for a, b in zip(
            derivatives(fused, [hidden, weight, bias]), derivatives(fused, [clean, weight, bias]), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_upstream_of_each_row_is_its_own():
    """Scaling all gradients by the first row's upstream is a bug that fused losses have had."""
    hidden, weight, bias = parts()
    fused, _ = pair("kl", torch.arange(N), reduction="none")
    for i in (0, 5):
        upstream = torch.zeros(N, dtype=torch.float64).index_fill(0, torch.tensor(i), 2.0)
        d_hidden = derivatives(fused, [hidden, weight, bias], upstream)[1]
        assert bool((d_hidden[torch.arange(N) != i] == 0).all())
        assert bool((d_hidden[i] != 0).all())


@pytest.mark.parametrize("name", ["alpha:1.5", "reverse_kl"])
def test_derivatives_of_a_mean(name):
    tensors = parts(n=4, d=2, v=5)
    y = torch.tensor([1, -100, 4, 0])
    f = lambda *x: linear_fenchel_young(*x[:2], y, name, bias=x[2], label_smoothing=0.1, memory=90)
    assert gradcheck(f, tensors)
    assert gradgradcheck(f, tensors, fast_mode=True)


def test_gradients_made_in_the_forward_pass_survive_every_use():
    tensors = parts()
    fused, dense = pair("alpha:1.5", labels())
    want = derivatives(dense, tensors)[1:]
    loss = fused(*tensors)
    close = lambda got, factor: [
        torch.testing.assert_close(a, factor * b, rtol=0, atol=1e-10) for a, b in zip(got, want, strict=True)
    ]
    # a retained graph, upstreams of each kind, a part of the gradients
    close(torch.autograd.grad(loss, tensors, retain_graph=True), 1)
    close(torch.autograd.grad(loss, tensors, retain_graph=True), 1)
    close(torch.autograd.grad(3 * loss, tensors, retain_graph=True), 3)
    close(torch.autograd.grad(loss, tensors, create_graph=True), 1)
    close([*torch.autograd.grad(loss, tensors[:1], retain_graph=True), *want[1:]], 1)
    # accumulation into .grad, which must not be the same memory twice
    for factor in (1, 2):
        fused(*tensors).backward()
        close([t.grad for t in tensors], factor)
    # two losses at once
    (fused(*tensors) + 0.5 * fused(*tensors)).backward()
    close([t.grad for t in tensors], 3.5)


def test_frozen_tensors_get_no_gradient():
    hidden, weight, bias = parts()
    fused, dense = pair("kl", labels())
    for frozen in (0, 1, 2):
        tensors = [t.detach().requires_grad_(i != frozen) for i, t in enumerate((hidden, weight, bias))]
        free = [t for t in tensors if t.requires_grad]
        got, want = (torch.autograd.grad(f(*tensors), free) for f in (fused, dense))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert not fused(hidden.detach(), weight.detach(), bias.detach()).requires_grad


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_transforms_of_a_mean(reduction):
    hidden, weight, bias = (t.detach() for t in parts())
    fused, dense = ((lambda *x, f=f: f(*x).square().sum()) for f in pair("js", labels(), reduction=reduction))
    hiddens = torch.stack((hidden, hidden.flip(0), -hidden))
    for got, want in zip(
        (
            torch.func.vmap(torch.func.grad(fused), (0, None, None))(hiddens, weight, bias),
            torch.func.vmap(fused, (0, None, None))(hiddens, weight, bias),
        ),
        (
            torch.stack([torch.func.grad(dense)(h, weight, bias) for h in hiddens]),
            torch.stack([dense(h, weight, bias) for h in hiddens]),
        ),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    # a batch, differentiated afterwards
    weight = weight.clone().requires_grad_()
    (got,) = torch.autograd.grad(torch.func.vmap(fused, (0, None, None))(hiddens, weight, bias).sum(), weight)
    (want,) = torch.autograd.grad(sum(dense(h, weight, bias) for h in hiddens), weight)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_mean_compiled_whole():
    torch._dynamo.reset()
    fused, _ = pair("alpha:1.5", labels(), label_smoothing=0.1)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    same(compiled, fused, parts(), torch.tensor(2.0), 1e-12)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*parts()), fused(*parts()), rtol=0, atol=1e-12)


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_compiled_tiles_equal_the_others(monkeypatch):
    tensors = parts(torch.float32, n=40, v=130)
    y = labels(40, 130)
    f = lambda *x: linear_fenchel_young(*x[:2], y, "js", bias=x[2])
    monkeypatch.setenv("FENCHEL_COMPILE", "0")
    want = derivatives(f, tensors)
    monkeypatch.setenv("FENCHEL_COMPILE", "1")
    for got, plain in zip(derivatives(f, tensors), want, strict=True):
        torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.tensor([0, 5])}, r"target: got class 5; pass classes in \[0, 5\)"),
        ({"target": torch.tensor([0, -1])}, "target: got class -1"),
        ({"target": torch.zeros(3, dtype=torch.long)}, r"target: got class indices of shape \(3,\); pass \[2\]"),
        ({"target": torch.zeros(2, 5)}, "target: got a row that sums to 0; pass probabilities"),
        ({"target": torch.tensor([0, 5]), "q": torch.ones(5), "label_smoothing": 0.1}, "target: got class 5"),
        ({"target": torch.zeros(2, dtype=torch.bool)}, "target: got dtype torch.bool"),
        ({"generator": "kk"}, "unknown generator 'kk'; known: kl"),
        ({"generator": "tv"}, "generator 'tv' has no operator or loss"),
        ({"reduction": "avg"}, "reduction: got 'avg'"),
        ({"temperature": 0.0}, "temperature: got 0.0; pass a positive finite number"),
        ({"label_smoothing": 1.5}, "label_smoothing: got 1.5"),
        ({"class_weight": torch.ones(4)}, r"class_weight: got shape \(4,\); pass \[V\] = \[5\]"),
        ({"q": torch.ones(2, 5)}, r"q: got shape \(2, 5\)"),
        ({"q": -1.0}, "q: got -1.0; pass a positive finite number"),
        ({"weight": torch.zeros(5, 2)}, r"hidden: got shape \(2, 3\)"),
        ({"memory": -1}, "memory: got -1"),
    ],
)
def test_bad_inputs(change, message):
    arguments = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(5, 3), "target": torch.tensor([0, 1])} | change
    with pytest.raises((TypeError, ValueError), match=message):
        linear_fenchel_young(arguments.pop("hidden"), arguments.pop("weight"), arguments.pop("target"), **arguments)


def test_probability_targets_keep_the_dtype():
    hidden, weight = torch.randn(3, 4), torch.randn(5, 4)
    for reduction in ("none", "mean", "sum"):
        loss = linear_fenchel_young(hidden, weight, torch.full((3, 5), 0.2), "alpha:1.5", reduction=reduction)
        assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    "name", ["reverse_kl", "jeffreys", "neyman", "alpha:-0.5", "alpha:-3", "alpha:0.1", "hellinger"]
)
@pytest.mark.parametrize("gradient", [True, False])
def test_the_value_in_a_large_vocabulary_is_right_to_the_digits_of_float32(name, gradient):
    """Where f(0) is infinite it is what is left of terms that are V^(1 - alpha) times as large."""
    made = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(8, 16, generator=made), torch.randn(30_000, 16, generator=made) * 0.1
    y = torch.arange(8) * 3000
    got = linear_fenchel_young(hidden.requires_grad_(gradient), weight, y, name, reduction="none").detach()
    want = fenchel_young(hidden.detach().double() @ weight.double().T, y, name, reduction="none")
    # of the size of the losses: a row's own may be what is left of its largest and its label's logit
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-6 * float(want.abs().max()))
