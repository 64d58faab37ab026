"""Operators, losses and divergences of logits whose vocabulary several ranks share."""

import math
from functools import partial

import torch
from torch import Tensor

import fenchel
from tests.parallel.ranks import Case, Part, Share
from tests.table import DISTINCT, MINE

N, V = 6, 23
DENSE = (*(case.g for case in DISTINCT), next(case.g for case in MINE if case.book == "chi2"))


def made(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def logits(dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows of every kind: flat, peaked, padded at -inf, and rows whose best token or all of whose live tokens one rank holds."""
    z = made(0, N, V) * torch.tensor([[0.01], [1.0], [3.0], [30.0], [1.0], [1.0]], dtype=torch.float64)
    z[4, :15] = -math.inf
    z[5, [0, 2, 22]] = -math.inf
    return z.to(dtype)


TARGET = torch.tensor([0, 22, 3, -100, 16, 12])
Q = made(1, V).exp()
WEIGHT = made(2, V).abs()


def double_backward(out: Tensor, upstream: Tensor, x: Tensor, group) -> dict[str, Part]:
    """The gradient, and that of the gradient's square, whose parts ranks add up."""
    (first,) = torch.autograd.grad(out, x, upstream, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return {"gradient": Part(first.detach(), -1), "second": Part(second, -1)}


def operators(share: Share, g, q: Tensor | None, dtype: torch.dtype) -> dict:
    found = {}
    measure = None if q is None else share.cut(q.to(dtype))
    for name in ("softargmax", "softmax_value", "entropy"):
        z = share.leaf(logits(dtype))
        out = getattr(fenchel, name)(z, g, q=measure, temperature=1.3, group=share.group)
        if name == "softargmax":
            upstream = share.cut(made(3, N, V, dtype=dtype))
            found[name] = Part(out.detach(), -1)
        else:
            upstream = made(3, N, dtype=dtype)
            found[name] = out.detach()
        found |= {f"{name} {k}": v for k, v in double_backward(out, upstream, z, share.group).items()}
    return found


def young(share: Share, g, dtype: torch.dtype, **arguments) -> dict:
    z = share.leaf(logits(dtype))
    for name, dim in (("q", -1), ("weight", 0)):
        if isinstance(arguments.get(name), Tensor):
            arguments[name] = share.cut(arguments[name].to(dtype), dim)
    target = arguments.pop("target", TARGET)
    if target.is_floating_point():
        target = share.cut(target.to(dtype))
    out = fenchel.fenchel_young(z, target, g, group=share.group, **arguments)
    upstream = made(4, N, dtype=dtype) if out.dim() else torch.tensor(0.7, dtype=dtype)
    return {"loss": out.detach(), **double_backward(out, upstream, z, share.group)}


def divergences(share: Share, call, dtype: torch.dtype) -> dict:
    p, q = share.leaf(logits(dtype)[:4]), share.leaf(logits(dtype)[[1, 2, 0, 3]] * 0.5)
    out = call(p, q, group=share.group)
    first = torch.autograd.grad(out, (p, q), made(5, 4, dtype=dtype), create_graph=True)
    second = torch.autograd.grad(sum(x.square().sum() for x in first), (p, q))
    found: dict = {"divergence": out.detach()}
    for name, pair in (("gradient", first), ("second", second)):
        found |= {f"{name} of {of}": Part(x.detach(), -1) for of, x in zip("pq", pair, strict=True)}
    return found


def broken(share: Share, g: str) -> dict:
    """A row with NaN, one with +inf and one without a class are not finite on any rank; the others are untouched."""
    z = logits()
    z[0, 3], z[1, 22], z[2] = math.nan, math.inf, -math.inf
    mine = share.cut(z)
    p = fenchel.softargmax(mine, g, group=share.group)
    value = fenchel.softmax_value(mine, g, group=share.group)
    loss = fenchel.fenchel_young(mine, TARGET, g, group=share.group, reduction="none")
    return {
        "p": Part(p.nan_to_num(-1.0), -1),
        "p is finite": Part(p.isfinite(), -1),
        "finite": torch.stack((value, loss)).isfinite(),
        "others": torch.stack((value, loss))[:, 3:],
    }


def probabilities() -> Tensor:
    y = torch.softmax(made(6, N, V), -1) * (made(7, N, V) > 0)
    return y / y.sum(-1, keepdim=True)


CASES: dict[str, Case] = {}
for g in DENSE:
    CASES |= {
        f"operators {g.name}": partial(operators, g=g, q=None, dtype=torch.float64),
        f"young {g.name} none": partial(young, g=g, dtype=torch.float64, reduction="none"),
    }
for name in ("kl", "js", "reverse_kl", "alpha:1.5", "alpha:3"):
    F64 = torch.float64
    CASES |= {
        f"broken {name}": partial(broken, g=name),
        f"operators {name} q": partial(operators, g=name, q=Q, dtype=F64),
        f"operators {name} float32": partial(operators, g=name, q=Q, dtype=torch.float32),
        f"young {name} mean float32": partial(young, g=name, dtype=torch.float32),
        f"young {name} smoothing": partial(young, g=name, dtype=F64, label_smoothing=0.2),
        f"young {name} everything": partial(
            young, g=name, dtype=F64, q=Q, weight=WEIGHT, label_smoothing=0.1, temperature=0.7, reduction="sum"
        ),
        f"young {name} weights": partial(young, g=name, dtype=F64, weight=WEIGHT),
        f"young {name} one rank's targets": partial(young, g=name, dtype=F64, q=Q, target=torch.full((N,), 22)),
        f"young {name} all ignored": partial(young, g=name, dtype=F64, target=torch.full((N,), -100)),
        f"young {name} probabilities": partial(young, g=name, dtype=F64, target=probabilities(), q=Q),
    }
for g in (*(case.g for case in DISTINCT), fenchel.generator("tv")):
    CASES[f"divergence {g.name}"] = partial(
        divergences, call=partial(fenchel.divergence, generator=g, temperature=1.5), dtype=torch.float64
    )
CASES |= {
    "divergence kl float32": partial(divergences, call=fenchel.divergence, dtype=torch.float32),
    "skew_divergence": partial(divergences, call=partial(fenchel.skew_divergence, skew=0.3), dtype=torch.float64),
    "renyi": partial(divergences, call=partial(fenchel.renyi, order=0.7), dtype=torch.float64),
    "bhattacharyya": partial(divergences, call=fenchel.bhattacharyya, dtype=torch.float64),
    "cauchy_schwarz": partial(divergences, call=fenchel.cauchy_schwarz, dtype=torch.float64),
}
