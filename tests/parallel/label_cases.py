"""Supervised objectives whose vocabulary several ranks share."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fenchel.objectives.names import makers
from fenchel.objectives.supervised import linear_supervised, supervised, supervised_objective
from fenchel.objectives.supervised.objective import DISTRIBUTION, SET
from tests.parallel.dense_cases import TARGET, WEIGHT, N, Q, V, logits, made, probabilities
from tests.parallel.head_cases import MEMORY, compiled, parts
from tests.parallel.ranks import Case, Part, Share

F32, F64 = torch.float32, torch.float64
NAMES = (
    *(
        "comp_sum:0.5",
        "cross_entropy",
        "gce:0.7",
        "mae",
        "probability:1,0.05",
        "agce:1,2",
        "aul:1.5,0.9",
        "rce:3",
        "sce:0.3,0.7,4",
    ),
    *(
        "nce",
        "normalised:focal:2",
        "3*nce + 1.5*agce",
        "focal:2",
        "poly:2",
        "dft",
        "f_divergence:hellinger",
        "f_divergence:js:0.3",
    ),
    *("z_loss:2,0.5", "spherical:0.1", "taylor", "stablemax", "ldr:0.7,2", "margin:1.5", "kl_dro:0.5,0.2", "decoupled"),
    *("soft_top_k:3,1.5", "candidates", "binary:1,2.5", "log_partition", "entropy_penalty", "confidence_penalty"),
    *("logit_penalty", "cross_entropy + -0.1*entropy_penalty", "gce:0.7 + 0.5*fenchel_young:alpha:1.5"),
)
assert set(makers("fenchel.objectives.supervised")) <= {n.partition(":")[0] for n in NAMES} | {"fenchel_young"}
takes = {name: supervised_objective(name).takes for name in NAMES}
# two classes of the whole vocabulary in each row, on different ranks
SETS = (
    torch.zeros(N, V).index_fill(1, torch.tensor([16, 19]), 1).bool()
    | torch.nn.functional.one_hot(torch.tensor([3, 4, 5, 6, 17, 7]), V).bool()
)


def upstream(out: Tensor) -> Tensor:
    return made(4, N, dtype=out.dtype) if out.dim() else torch.tensor(0.7, dtype=out.dtype)


def arguments(share: Share, dtype: torch.dtype, given: dict[str, Any]) -> dict[str, Any]:
    """Options, and this rank's shard of those that are by class."""
    return {k: share.cut(x.to(dtype)) if isinstance(x, Tensor) else x for k, x in given.items()}


def cut(share: Share, target: Tensor, dtype: torch.dtype) -> Tensor:
    """This rank's shard of a table; class indices as they are."""
    if target.dim() == 1:
        return target
    return share.cut(target) if target.dtype == torch.bool else share.cut(target.to(dtype))


def dense(share: Share, name: str, dtype: torch.dtype, target: Tensor = TARGET, **given: Any) -> dict[str, Any]:
    z = share.leaf(logits(dtype))
    out = supervised(z, cut(share, target, dtype), name, group=share.group, **arguments(share, dtype, given))
    [gradient] = torch.autograd.grad(out, z, upstream(out))
    return {"loss": out.detach(), "gradient": Part(gradient, -1)}


def head(share: Share, name: str, dtype: torch.dtype, target: Tensor | None = None, **given: Any) -> dict[str, Any]:
    hidden, weight, bias = tensors = parts(share, dtype)
    y = torch.where(TARGET == 0, 5, TARGET) if target is None else cut(share, target, dtype)
    given = arguments(share, dtype, given)
    out = linear_supervised(hidden, weight, y, name, bias=bias, group=share.group, memory=MEMORY, **given)
    grads = torch.autograd.grad(out, tensors, upstream(out))
    return {"loss": out.detach(), "h": grads[0], "w": Part(grads[1], 0), "b": Part(grads[2], 0)}


def nothing_counts(share: Share) -> dict[str, Any]:
    """No row does, whatever the rows hold."""
    z = share.leaf(torch.full((N, V), math.nan, dtype=F64))
    out = supervised(z, torch.full((N,), -100), "gce:0.7", group=share.group)
    return {"loss": out.detach(), "gradient": Part(torch.autograd.grad(out, z)[0], -1)}


CASES: dict[str, Case] = {"none counts": nothing_counts}
for name in NAMES:
    smoothing = {"label_smoothing": 0.1} if takes[name] >= DISTRIBUTION else {}
    CASES |= {
        f"dense {name} none": partial(dense, name=name, dtype=F64, reduction="none", q=Q, **smoothing),
        f"head {name} none": partial(head, name=name, dtype=F64, reduction="none", softcap=3.0, scale=1.5, **smoothing),
        f"head {name}": partial(head, name=name, dtype=F64, q=Q, class_weight=WEIGHT),
        f"head {name} float32": partial(head, name=name, dtype=F32, reduction="sum"),
    }
for name in ("gce:0.7", "spherical:0.1", "f_divergence:js:0.3", "sce:0.3,0.7,4"):
    CASES |= {
        f"dense {name} weights": partial(dense, name=name, dtype=F64, weight=WEIGHT, label_smoothing=0.1),
        f"dense {name} probabilities": partial(dense, name=name, dtype=F64, target=probabilities()),
        f"head {name} probabilities": partial(head, name=name, dtype=F64, target=probabilities()),
    }
for name in [name for name in NAMES if takes[name] >= SET]:
    CASES |= {
        f"dense {name} sets": partial(dense, name=name, dtype=F64, target=SETS),
        f"head {name} sets": partial(head, name=name, dtype=F64, target=SETS),
    }
CASES |= {
    f"head {name} float32, compiled": partial(compiled, case=CASES[f"head {name} float32"])
    for name in ("gce:0.7", "margin:1.5")
}


def cases(world: int) -> dict[str, Case]:
    """All of them."""
    return CASES
