"""Rows that count: nothing of the size of the hidden states is made where all do, and the others get zeros where some do not."""

import pytest
import torch
from torch import Tensor

from fenchel import linear_divergence, linear_fenchel_young, linear_logp, linear_supervised
from fenchel.head.kept import kept
from fenchel.study.memory import peak_bytes

N, D, V = 4096, 512, 64
HEADS = {
    "young": lambda h, w, y: linear_fenchel_young(h, w, y, reduction="sum", memory=2**18),
    "supervised": lambda h, w, y: linear_supervised(h, w, y, "gce:0.7", reduction="sum", memory=2**18),
    "logp": lambda h, w, y: linear_logp(h, w, y, memory=2**18).logp.sum(),
    "divergence": lambda h, w, y: linear_divergence(
        (h, w), (h.detach(), w.detach() / 2), mask=y >= 0, reduction="sum", memory=2**18
    ),
}


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, D, generator=made) / D**0.5 for n in (N, V))
    return hidden, weight, torch.randint(V, (N,), generator=made)


@pytest.mark.parametrize("name", HEADS)
def test_no_copy_of_the_hidden_states_where_all_rows_count(name):
    hidden, weight, y = tensors()
    peak, _ = peak_bytes(lambda h, w: HEADS[name](h, w, y), hidden, weight)
    assert peak < hidden.nbytes / 8


@pytest.mark.parametrize("name", HEADS)
def test_rows_that_do_not_count_get_no_gradient(name):
    hidden, weight, y = (x.clone() for x in tensors())
    y[::3] = -100
    hidden.requires_grad_()
    (grad,) = torch.autograd.grad(HEADS[name](hidden, weight, y), hidden)
    (want,) = torch.autograd.grad(
        HEADS[name](some := hidden.detach()[y >= 0].requires_grad_(), weight, y[y >= 0]), some
    )
    assert bool((grad[::3] == 0).all())
    torch.testing.assert_close(grad[y >= 0], want)


@pytest.mark.parametrize("counted", [[True, True], [True, False], [False, False], []])
def test_rows_come_back_to_their_places(counted):
    some = kept(torch.tensor(counted, dtype=torch.bool))
    x = torch.arange(1.0, 2 * len(counted) + 1).view(len(counted), 2)
    want = torch.where(torch.tensor(counted, dtype=torch.bool).unsqueeze(1), x, 0.0)
    torch.testing.assert_close(some.back(some.of(x)), want)
