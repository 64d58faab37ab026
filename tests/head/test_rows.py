"""Any row-wise function of logits, by tiles: arguments by row, results of any shape, messages."""

import pytest
import torch
from heads import D, N, V, derivatives, logits, parts, same
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fenchel import linear_rows


def scaled(z: Tensor, by: Tensor, shift: Tensor, y: Tensor) -> Tensor:
    """[n, 2], with a number, a vector and a label by row."""
    first = by * (torch.softmax(z, -1) * torch.cat((shift, -shift), -1).sum(-1, keepdim=True) * z.cos()).sum(-1)
    return torch.stack((first, z.gather(-1, y.unsqueeze(-1)).squeeze(-1) ** 2), -1)


def test_arguments_by_row_receive_gradients():
    tensors = [
        *parts(),
        torch.randn(N, dtype=torch.float64, requires_grad=True),
        torch.randn(N, 3, dtype=torch.float64, requires_grad=True),
    ]
    y = torch.arange(N) % V
    fused = lambda h, w, b, by, shift: linear_rows(
        lambda z, *more: scaled(z, more[0], more[1] + 1, more[2]),
        h,
        w,
        by,
        shift,
        y,
        bias=b,
        softcap=4.0,
        scale=0.5,
        memory=100 * V,
    )
    dense = lambda h, w, b, by, shift: scaled(logits(h, w, b, 4.0, 0.5), by, shift + 1, y)
    same(fused, dense, tensors, torch.randn(N, 2, dtype=torch.float64))


def test_second_derivatives_with_arguments_by_row():
    hidden, weight, bias = parts(n=3, d=2, v=4)
    by, y = torch.randn(3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, 1])
    f = lambda h, w, b, a: linear_rows(lambda z, a, y: scaled(z, a, a.unsqueeze(1), y), h, w, a, y, bias=b, memory=40)
    assert gradcheck(f, (hidden, weight, bias, by))
    assert gradgradcheck(f, (hidden, weight, bias, by), fast_mode=True)


def test_leading_dimensions_and_shapes_of_results():
    hidden, weight, _ = parts(n=12)
    out = linear_rows(lambda z: z.topk(3, -1).values, hidden.view(3, 4, D), weight, memory=5 * 4 * V)
    torch.testing.assert_close(out, (hidden @ weight.T).topk(3, -1).values.view(3, 4, 3))


def test_the_function_sees_a_few_rows_at_a_time():
    seen = []
    hidden, weight, _ = parts(torch.float32)
    linear_rows(lambda z: seen.append(len(z)) or z.sum(-1), hidden, weight, memory=5 * 4 * V)
    assert seen == [5, 5, 3]


def test_a_gradient_only_where_it_is_asked_for():
    hidden, weight, bias = parts()
    out = linear_rows(lambda z: z.exp().sum(-1), hidden.detach(), weight.detach(), bias=bias)
    (grad,) = torch.autograd.grad(out.sum(), bias)
    torch.testing.assert_close(
        grad, derivatives(lambda b: logits(hidden.detach(), weight.detach(), b).exp(), [bias])[1]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": [1.0]}, r"hidden: got list; pass a floating tensor \[..., D\]"),
        ({"hidden": torch.zeros(2, 3, dtype=torch.long)}, r"hidden: got dtype torch.int64"),
        ({"hidden": torch.zeros(2, 4)}, r"hidden: got shape \(2, 4\); pass \[..., D\] with D = 3"),
        ({"hidden": torch.zeros(2, 3).double()}, r"hidden: got dtype torch.float64, weight is torch.float32"),
        ({"hidden": torch.zeros(())}, r"hidden: got shape \(\)"),
        ({"weight": torch.zeros(3)}, r"weight: got shape \(3,\); pass \[V, D\]"),
        ({"weight": torch.zeros(0, 3)}, r"weight: got shape \(0, 3\)"),
        ({"bias": torch.zeros(4)}, r"bias: got shape \(4,\) on cpu; pass \[V\] = \[5\]"),
        ({"softcap": 0.0}, "softcap: got 0.0; pass a positive finite number"),
        ({"softcap": "30"}, "softcap: got str"),
        ({"scale": 0}, "scale: got 0; pass a finite number other than 0"),
        ({"scale": torch.nan}, "scale: got nan"),
        ({"memory": 0}, "memory: got 0; pass a positive number of bytes"),
        ({"memory": 1.5}, "memory: got 1.5"),
    ],
)
def test_bad_inputs(change, message):
    arguments = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(5, 3)} | change
    with pytest.raises((TypeError, ValueError), match=message):
        linear_rows(lambda z: z.sum(-1), arguments.pop("hidden"), arguments.pop("weight"), **arguments)


def test_arguments_that_are_not_by_row():
    hidden, weight = torch.zeros(2, 3), torch.zeros(5, 3)
    with pytest.raises(ValueError, match=r"row_args\[1\]: got shape \(3,\); pass a tensor whose leading shape"):
        linear_rows(lambda z, a, b: a, hidden, weight, torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"row_args\[0\]: got float"):
        linear_rows(lambda z, a: z.sum(-1), hidden, weight, 1.0)
