"""The supervised objectives by what they take, and what their tests put into them."""

import torch
from supervised_oracles import TABLE
from torch import Tensor

from fenchel.objectives.supervised import linear_supervised, supervised, supervised_objective
from fenchel.objectives.supervised.objective import DISTRIBUTION, SET

N, V, D = 13, 19, 5
ALL = tuple(TABLE)
OWN = tuple(name for name in ALL if "fenchel_young" not in name)  # with the head of this page
takes = {name: supervised_objective(name).takes for name in ALL}
SETS = tuple(name for name in ALL if takes[name] >= SET)
SOFT = tuple(name for name in ALL if takes[name] >= DISTRIBUTION)
# without bound on what a label may cost, faster than its logit's distance: inf at logits of 1e9, whose gradient is none
UNBOUNDED = ("comp_sum:0.5", "comp_sum:0")


def logits(n: int = N, v: int = V, seed: int = 0, scale: float = 1.5) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(n, v, generator=made, dtype=torch.float64)).requires_grad_()


def head(n: int = N, v: int = V, seed: int = 1) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    shapes = ((n, D), (v, D), (v,))
    return [(0.7 * torch.randn(s, generator=made, dtype=torch.float64)).requires_grad_() for s in shapes]


def classes(n: int = N, v: int = V) -> Tensor:
    return (torch.arange(n) * 3 + 1) % v


def sets(n: int = N, v: int = V) -> Tensor:
    return (
        torch.nn.functional.one_hot(classes(n, v), v) + torch.nn.functional.one_hot((classes(n, v) * 5 + 2) % v, v)
    ) > 0


def soft(n: int = N, v: int = V) -> Tensor:
    return torch.softmax(2 * logits(n, v, seed=3).detach(), -1)


def both(name: str, target: Tensor, **options):
    """The two doors as functions of a head's tensors."""

    def fused(h, w, b):
        return linear_supervised(h, w, target, name, bias=b, memory=4 * 8 * V, **options)

    def plain(h, w, b):
        given = {k: v for k, v in options.items() if k not in ("softcap", "scale", "class_weight")}
        z = options.get("scale", 1.0) * (h @ w.T + b)
        cap = options.get("softcap")
        z = z if cap is None else cap * torch.tanh(z / cap)
        return supervised(z, target, name, weight=options.get("class_weight"), **given)

    return fused, plain
