"""The derivatives and transforms that the operators are tested under: a literal table, also docs/transforms.md."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Transform:
    """One row of the table.

    Attributes:
        name, code: as the page shows them; f is a scalar function of one row of scores that calls the operators, z the
            row, Z rows, v a direction.
        apply: what is tested, as a function of f.
        want: the key of the right answer among `references`.
        compiled: the generator and the backend that the compiler itself is tested with, for what takes seconds a time.
        slow: run for a few generators only.
        refused: what the RuntimeError through a compiled graph says, as a pattern; "" where it works.
    """

    name: str
    code: str
    apply: Callable[[Function, Tensor, Tensor], Tensor]
    want: str
    compiled: tuple[str, str] | None = None
    refused: str = ""
    slow: bool = False


def _backward(f: Function, z: Tensor, v: Tensor) -> Tensor:
    leaf = z.clone().requires_grad_()
    f(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def _double_backward(f: Function, z: Tensor, v: Tensor) -> Tensor:
    leaf = z.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    return torch.autograd.grad(first @ v, leaf)[0]


def batch(z: Tensor) -> Tensor:
    """The rows Z made from z."""
    return torch.stack((z, z.flip(0), 0.5 * z))


TRANSFORMS: tuple[Transform, ...] = (
    Transform("backward", "f(z).backward()", _backward, "gradient", ("alpha:1.5", "inductor")),
    Transform(
        "double backward",
        "grad(grad(f(z), z, create_graph=True)[0] @ v, z)",
        _double_backward,
        "hessian @ v",
        # which of the two depends on the backend
        refused="does not currently support double backward|requires create_graph=False",
    ),
    Transform(
        "forward mode", "jvp(f, (z,), (v,))", lambda f, z, v: jvp(f, (z,), (v,))[1], "gradient @ v", ("js", "aot_eager")
    ),
    Transform("functional gradient", "grad(f)(z)", lambda f, z, v: grad(f)(z), "gradient", ("js", "aot_eager")),
    Transform(
        "gradient of gradient",
        "grad(lambda z: grad(f)(z) @ v)(z)",
        lambda f, z, v: grad(lambda x: grad(f)(x) @ v)(z),
        "hessian @ v",
    ),
    Transform("batch", "vmap(f)(Z)", lambda f, z, v: vmap(f)(batch(z)), "values"),
    Transform(
        "gradients of a batch",
        "vmap(grad(f))(Z)",
        lambda f, z, v: vmap(grad(f))(batch(z)),
        "gradients",
        ("js", "aot_eager"),
    ),
    Transform(
        "forward mode of a batch",
        "vmap(lambda z: jvp(f, (z,), (v,))[1])(Z)",
        lambda f, z, v: vmap(lambda x: jvp(f, (x,), (v,))[1])(batch(z)),
        "gradients @ v",
    ),
    Transform(
        "Hessian (forward over reverse)",
        "hessian(f)(z)",
        lambda f, z, v: hessian(f)(z),
        "hessian",
        ("alpha:1.5", "aot_eager"),
    ),
    Transform(
        "Hessian (reverse over reverse)", "jacrev(jacrev(f))(z)", lambda f, z, v: jacrev(jacrev(f))(z), "hessian"
    ),
    Transform(
        "Hessian (forward over forward)", "jacfwd(jacfwd(f))(z)", lambda f, z, v: jacfwd(jacfwd(f))(z), "hessian"
    ),
    Transform(
        "third derivative",
        "jacfwd(hessian(f))(z) @ v",
        lambda f, z, v: jacfwd(hessian(f))(z) @ v,
        "third @ v",
        slow=True,
    ),
)


HEAD = """\
# Derivatives and transforms

Made by `docs/build_transforms.py` from the tables that the tests run over.

## Derivatives of the operators

Made from `tests/transforms.py`. `f` is a scalar
function of one row of scores `z` that calls `softargmax`, `softmax_value` and `entropy`; `Z` are rows and `v` is a
direction; `grad`, `jvp`, `vmap`, `hessian`, `jacrev` and `jacfwd` are those of `torch.func` (in the second row, `grad`
is `torch.autograd.grad`). Every answer is compared with central differences in float64.

*Eager* is tested for every built-in generator and a user-made one, the third derivative for a few. *Compiled* means
`torch.compile(..., fullgraph=True)` of the whole expression; of `f` alone in the first two rows. The formulas that the
compiler sees are tested for every row and every generator, without the compiler; the compiler itself where it says so,
with one generator each."""
TAIL = """\
Double backward *through* a compiled graph is refused by the compiler, whatever the function: compile the expression
that contains both derivatives (`torch.compile(torch.func.hessian(f))` works), or run it eagerly.

Sparse generators (alpha > 1, chi-square, Le Cam) are piecewise smooth: at scores where a token enters the support, the
derivatives are those of one side."""


STEP = 2e-3


def around(z: Tensor, directions: Tensor) -> Tensor:
    """The points at which `differences` needs a function: [6, directions, V]."""
    offsets = STEP * torch.tensor([3.0, 2.0, 1.0, -1.0, -2.0, -3.0], dtype=z.dtype)
    return z + offsets[:, None, None] * directions


def differences(values: Tensor) -> Tensor:
    """The derivatives along the directions of `around`, by central differences of the sixth order."""
    weights = torch.tensor([1.0, -9.0, 45.0, -45.0, 9.0, -1.0], dtype=values.dtype) / (60 * STEP)
    return torch.tensordot(weights, values, 1)


def references(f: Function, z: Tensor, v: Tensor) -> dict[str, Tensor]:
    """The right answers, each by differences of the level below; f takes rows of any number here."""
    basis, many = torch.eye(len(z), dtype=z.dtype), batch(z)
    # the gradient by autograd is itself compared with differences of f
    first = _backward(lambda x: f(x).sum(), around(z, basis), v)
    second = vmap(hessian(f))(around(z, v[None]).flatten(0, 1))
    gradients = torch.stack([differences(f(around(x, basis))) for x in many])
    return {
        "values": f(many),
        "gradient": gradients[0],
        "gradient @ v": gradients[0] @ v,
        "gradients": gradients,
        "gradients @ v": gradients @ v,
        "hessian": differences(first),
        "hessian @ v": differences(first) @ v,
        "third @ v": differences(second),
    }


def section() -> str:
    """The part of docs/transforms.md."""
    shown = [HEAD, "", "| transform | code | eager | compiled |", "|---|---|---|---|"]
    for row in TRANSFORMS:
        state = "raises RuntimeError" if row.refused else "formulas tested"
        if row.compiled is not None:
            state = f"works, tested with `{row.compiled[0]}`"
        shown.append(f"| {row.name} | `{row.code}` | works | {state} |")
    return "\n".join([*shown, "", TAIL]) + "\n"
