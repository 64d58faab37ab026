"""Log-probabilities, entropies and logsumexps: what is special to them beside the laws of all heads."""

import pytest
import torch
from heads import N, V, derivatives, log_rows, logits, parts, same
from torch import Tensor

from fenchel.head.logp import LogProbabilities, linear_logp


def stacked(out: LogProbabilities) -> Tensor:
    return torch.stack((out.logp, out.entropy, out.logsumexp), -1)


def labels() -> Tensor:
    return torch.where(torch.arange(N) % 3 == 1, -100, (torch.arange(N) * 5) % V)


@pytest.mark.parametrize("which", ["logp", "entropy", "logsumexp"])
def test_each_result_alone(which):
    """The other two receive no gradient at all."""
    y, place = torch.arange(N), ("logp", "entropy", "logsumexp").index(which)
    upstream = torch.randn(N, dtype=torch.float64)
    fused = lambda h, w, b: getattr(linear_logp(h, w, y, bias=b, memory=50 * V), which)
    same(fused, lambda h, w, b: log_rows(logits(h, w, b), y)[:, place], parts(), upstream)


def test_temperature_is_that_of_all_three():
    y = torch.arange(N)
    fused = lambda h, w, b: stacked(linear_logp(h, w, y, bias=b, temperature=0.6, softcap=4.0))
    same(
        fused, lambda h, w, b: log_rows(logits(h, w, b, 4.0) / 0.6, y), parts(), torch.randn(N, 3, dtype=torch.float64)
    )


def test_ignored_positions_are_zero_and_do_not_enter():
    hidden, weight, bias = parts()
    y, upstream = labels(), torch.randn(N, 3, dtype=torch.float64)
    with torch.no_grad():
        hidden[y == -100] = torch.nan
    out, d_hidden, d_weight, d_bias = derivatives(
        lambda h, w, b: stacked(linear_logp(h, w, y, bias=b)), [hidden, weight, bias], upstream
    )
    kept = y != -100
    assert bool((out[~kept] == 0).all())
    assert bool((d_hidden[~kept] == 0).all())
    few = hidden[kept].detach().requires_grad_()
    want = derivatives(lambda h, w, b: log_rows(logits(h, w, b), y[kept]), [few, weight, bias], upstream[kept])
    for got, wanted in zip((out[kept], d_hidden[kept], d_weight, d_bias), want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_all_ignored():
    out, *grads = derivatives(
        lambda *x: stacked(linear_logp(*x[:2], torch.full((N,), -1), bias=x[2], ignore_index=-1)), parts()
    )
    assert all(bool((x == 0).all()) for x in (out, *grads))


def test_second_derivatives_do_not_see_ignored_positions():
    hidden, weight, _ = parts(n=4, d=2, v=5)
    y = torch.tensor([1, -100, 0, 4])
    with torch.no_grad():
        hidden[1] = torch.nan
    first = torch.autograd.grad(
        stacked(linear_logp(hidden, weight, y)).square().sum(), (hidden, weight), create_graph=True
    )
    second = torch.autograd.grad((first[1] ** 2).sum() + (first[0] ** 2)[y >= 0].sum(), (hidden, weight))
    assert not bool(second[1].isnan().any())
    assert bool((second[0][1] == 0).all())


def test_excluded_target():
    """A target that a -inf bias excludes has log-probability -inf; entropy and gradients of the others stay finite."""
    hidden, weight, bias = parts()
    with torch.no_grad():
        bias[4] = -torch.inf
    y = torch.arange(N)
    upstream = torch.randn(N, 3, dtype=torch.float64)
    out, *grads = derivatives(lambda *x: stacked(linear_logp(*x[:2], y, bias=x[2])), [hidden, weight, bias], upstream)
    assert float(out[4, 0]) == -torch.inf
    assert bool(out[torch.arange(N) != 4].isfinite().all())
    assert all(bool(g.isfinite().all()) for g in grads)


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_compiled_tiles_equal_the_others(monkeypatch):
    hidden, weight, bias = parts(torch.float32, n=40, v=130)
    with torch.no_grad():
        bias[7] = -torch.inf
    f = lambda *x: stacked(linear_logp(*x[:2], torch.arange(40), bias=x[2]))
    upstream = torch.randn(40, 3)
    upstream[7] = 0
    monkeypatch.setenv("FENCHEL_COMPILE", "0")
    want = derivatives(f, [hidden, weight, bias], upstream)
    monkeypatch.setenv("FENCHEL_COMPILE", "1")
    for got, plain in zip(derivatives(f, [hidden, weight, bias], upstream), want, strict=True):
        torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.tensor([0, 5])}, r"target: got class 5; pass classes in \[0, 5\)"),
        ({"target": torch.full((2, 5), 0.2)}, r"target: got dtype torch.float32; pass class indices \[2\]"),
        ({"target": torch.zeros(1, dtype=torch.long)}, r"target: got class indices of shape \(1,\)"),
        ({"target": [0, 1]}, "target: got list"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"bias": torch.zeros(3)}, r"bias: got shape \(3,\)"),
        ({"memory": 0}, "memory: got 0"),
    ],
)
def test_bad_inputs(change, message):
    arguments = {"target": torch.tensor([0, 1])} | change
    with pytest.raises((TypeError, ValueError), match=message):
        linear_logp(torch.zeros(2, 3), torch.zeros(5, 3), arguments.pop("target"), **arguments)
