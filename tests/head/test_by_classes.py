"""The Fenchel-Young head without an accumulator of the weight's gradient: exact in float64, and in half precision no worse than with one."""

from typing import Any

import pytest
import torch
from heads import D, N, V, derivatives, logits, no_worse, parts, same
from test_young import ARGUMENTS, labels, prior
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fenchel import fenchel_young, linear_fenchel_young
from fenchel.study.memory import peak_bytes
from tests.table import DISTINCT, MINE, over

# four blocks of classes, of which the last is narrower, and three tiles of rows
MEMORY = 16 * N * 4
REFUSED = ("class weights and smoothing", "a prior q and smoothing")
TAKEN = {name: arguments for name, arguments in ARGUMENTS.items() if name not in REFUSED}
TAKEN["soft-cap, scale and smoothing"] = {"softcap": 3.0, "scale": 1.5, "label_smoothing": 0.1}


@pytest.fixture
def in_any_dtype(monkeypatch):
    """The way of half precision, for dtypes whose rounding hides nothing."""
    monkeypatch.setattr("fenchel.head.young.accumulates", lambda head: head.want[1])


def pair(name: Any, y: Tensor, **arguments: Any) -> tuple[Any, Any]:
    """The loss without an accumulator, and the dense one."""
    rest = {("weight" if k == "class_weight" else k): x for k, x in arguments.items()}
    head = {k: rest.pop(k) for k in ("softcap", "scale") if k in rest}

    def fused(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return linear_fenchel_young(h, w, y, name, bias=b, memory=MEMORY, accumulator=False, **arguments)

    def dense(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return fenchel_young(logits(h, w, b, **head), y, name, **rest)

    return fused, dense


def with_one(name: Any, y: Tensor, **arguments: Any) -> Any:
    return lambda h, w, b: linear_fenchel_young(h, w, y, name, bias=b, memory=MEMORY, **arguments)


@over((*DISTINCT, *MINE[:1]))
def test_equals_the_dense_loss_for_every_generator(case, in_any_dtype):
    same(*pair(case.g, labels(), reduction="none"), parts(), torch.randn(N, dtype=torch.float64))


@pytest.mark.parametrize("name", ["kl", "alpha:1.5", "reverse_kl"])
@pytest.mark.parametrize("arguments", TAKEN.values(), ids=TAKEN.keys())
def test_equals_the_dense_loss_for_every_argument(name, arguments, in_any_dtype):
    y = labels()
    if "ignore_index" in arguments:
        y = torch.where(y == -100, 7, y)
    same(*pair(name, y, **arguments), parts())


@pytest.mark.parametrize("memory", [1, 2**9, 2**30])
def test_blocks_change_nothing(memory, in_any_dtype):
    fused = lambda h, w, b: linear_fenchel_young(h, w, labels(), "kl", bias=b, memory=memory, accumulator=False)
    same(fused, pair("kl", labels())[1], parts(), torch.tensor(0.3))


@pytest.mark.parametrize(
    ("name", "dtype"), [("kl", torch.bfloat16), ("alpha:1.5", torch.bfloat16), ("jeffreys", torch.float16)]
)
def test_rounds_no_worse_than_with_an_accumulator(name, dtype):
    y, tensors = labels(24, 61), parts(dtype, n=24, d=33, v=61)
    for arguments in ({"label_smoothing": 0.1, "softcap": 20.0}, {"q": prior(61), "class_weight": prior(61)}):
        fused, dense = pair(name, y, **arguments)
        no_worse(fused, dense, tensors, torch.tensor(1.0), usual=with_one(name, y, **arguments))


def test_a_row_is_rounded_once():
    """bfloat16 sums over rows would lose what each row adds: a row repeated 4,096 times has a gradient 4,096 times as large."""
    hidden, weight, bias = parts(torch.bfloat16, n=1)
    many = hidden.detach().repeat(4096, 1).requires_grad_()

    def total(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y = torch.zeros(len(h), dtype=torch.long)
        return linear_fenchel_young(h, w, y, bias=b, reduction="sum", memory=2**18, accumulator=False)

    for once, often in zip(*(derivatives(total, [h, weight, bias])[2:] for h in (hidden, many)), strict=True):
        torch.testing.assert_close(often.float(), 4096 * once.float(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("name", ["alpha:1.5", "reverse_kl"])
def test_rows_and_classes_that_are_out_of_the_ordinary(name, in_any_dtype):
    """Classes at -inf, logits of a billion, a row of NaN, one of nothing but -inf: what the head with an accumulator does."""
    hidden, weight, bias = (t.detach() for t in parts())
    hidden[1], hidden[4, 0] = hidden[1] * 1e9, torch.nan
    bias[::5] = -torch.inf
    y = torch.where(labels() % 5 == 0, 1, labels())
    # by rows: a gradient that all rows share would be NaN in both
    each = torch.eye(N, dtype=torch.float64)
    tensors = [t.requires_grad_() for t in (hidden, weight, bias)]
    for smoothing in (0.0, 0.1):
        more = {"reduction": "none", "label_smoothing": smoothing}
        for row in (0, 1, 4):
            got, want = (
                derivatives(f, tensors, each[row]) for f in (pair(name, y, **more)[0], with_one(name, y, **more))
            )
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_to_learn_from(reduction, dtype, in_any_dtype):
    for y in (torch.full((N,), -100), torch.zeros(0, dtype=torch.long)):
        out, *grads = derivatives(pair("alpha:1.5", y, reduction=reduction)[0], parts(dtype, n=len(y)))
        assert bool((out == 0).all())
        assert [g.shape for g in grads] == [(len(y), D), (V, D), (V,)]
        assert all(bool((g == 0).all()) for g in grads)


def test_one_class(in_any_dtype):
    same(*pair("js", torch.tensor([0, -100, 0])), parts(n=3, v=1))


def test_gradients_that_are_not_wanted(in_any_dtype):
    fused, dense = pair("kl", labels())
    for frozen in (0, 1, 2):
        tensors = [t.detach().requires_grad_(i != frozen) for i, t in enumerate(parts())]
        free = [t for t in tensors if t.requires_grad]
        got, want = (torch.autograd.grad(f(*tensors), free) for f in (fused, dense))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_transforms(in_any_dtype):
    """vmap, torch.func.grad, a checkpoint, a retained graph and second derivatives, as with an accumulator."""
    fused, _ = pair("alpha:1.5", labels(), reduction="none")
    usual = with_one("alpha:1.5", labels(), reduction="none")
    h, w, b = (t.detach() for t in parts())
    squares = lambda f: lambda *x: f(*x).square().sum()
    several = torch.stack((h, h.flip(0)))
    for transform in (
        lambda f: torch.func.vmap(torch.func.grad(squares(f)), (0, None, None))(several, w, b),
        lambda f: torch.func.grad(squares(f), 1)(h, w, b),
    ):
        torch.testing.assert_close(transform(fused), transform(usual), rtol=0, atol=1e-10)
    again = lambda *x: checkpoint(fused, *x, use_reentrant=False)
    same(again, usual, parts(), torch.randn(N, dtype=torch.float64))
    tensors = parts()
    second = []
    for f in (fused, usual):
        loss = squares(f)(*tensors)
        torch.autograd.grad(loss, tensors, retain_graph=True)
        first = torch.autograd.grad(loss, tensors, create_graph=True)
        second.append(torch.autograd.grad(torch.stack([x.square().sum() for x in first]).sum(), tensors))
    torch.testing.assert_close(*second, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_whole():
    torch._dynamo.reset()
    fused, _ = pair("alpha:1.5", labels(), label_smoothing=0.1)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    same(compiled, fused, parts(torch.bfloat16), torch.tensor(2.0), 1e-12)


@pytest.mark.parametrize(
    ("name", "arguments"), [("jeffreys", {"label_smoothing": 0.1}), ("alpha:1.5", {"q": prior(130)})]
)
def test_compiled_blocks_equal_the_others(name, arguments, monkeypatch, in_any_dtype):
    tensors = parts(torch.float32, n=40, v=130)
    fused, _ = pair(name, labels(40, 130), **arguments)
    monkeypatch.setenv("FENCHEL_COMPILE", "0")
    want = derivatives(fused, tensors)
    monkeypatch.setenv("FENCHEL_COMPILE", "1")
    for got, plain in zip(derivatives(fused, tensors), want, strict=True):
        torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-6)


def test_memory_beyond_gradients_is_less_than_an_accumulator():
    n, d, v = 64, 256, 16_384
    accumulator = v * d * 4
    made = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(x, d, generator=made).bfloat16() for x in (n, v))
    y = torch.arange(n)

    def peak(accumulated: bool) -> int:
        loss = lambda h, w: linear_fenchel_young(h, w, y, "js", memory=2**20, accumulator=accumulated)
        return peak_bytes(loss, hidden, weight)[0]

    assert peak(True) >= accumulator
    assert peak(False) < accumulator / 2


def test_a_float32_gradient_is_its_own_accumulator(monkeypatch):
    monkeypatch.setattr("fenchel.head.young.sweep_by_classes", None)
    fused, _ = pair("js", labels())
    for got, want in zip(
        *(derivatives(f, parts(torch.float32)) for f in (fused, with_one("js", labels()))), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target": torch.full((2, 5), 0.2)},
            "accumulator: got False with probability targets, .* no kernel; pass acc",
        ),
        (
            {"q": torch.ones(5), "label_smoothing": 0.1},
            "accumulator: got False with probability targets, or with label",
        ),
        ({"accumulator": "none"}, "accumulator: got 'none'; pass True or False"),
    ],
)
def test_bad_inputs(change, message):
    arguments = {"target": torch.tensor([0, 1]), "accumulator": False} | change
    with pytest.raises((TypeError, ValueError), match=message):
        linear_fenchel_young(torch.zeros(2, 3), torch.zeros(5, 3), arguments.pop("target"), "kl", **arguments)
