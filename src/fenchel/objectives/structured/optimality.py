"""Maximum optimality margin: learning the costs of a linear program from its optimal solutions.

    min <c, x>  with A x = b, x >= 0;      a vertex with basis B is optimal if and only if the reduced costs  r = c - A' (A_B')^-1 c_B  are >= 0

    loss(c) = sum_{j not in B} max(0, margin - r_j)

convex and piecewise linear in the predicted cost c, with no program solved in training. Only the optimal solution is observed, not the cost.

Laws (tested): zero if and only if the observed vertex is optimal by the margin; r does not change when a combination of the constraints is added to c, which
moves no solution; at zero loss a linear program solver returns the observed solution.

Source: Sun, Liu & Li, arXiv 2301.11260. The abstract says that the loss is made of the optimality condition; the hinge on reduced costs is derived.
"""

import torch
from torch import Tensor

from ...checks import check_floating, check_positive

__all__ = ["basis_of", "optimality_margin", "reduced_costs"]


def basis_of(solution: Tensor, constraints: Tensor, *, tolerance: float = 1e-9) -> Tensor:
    """The basis of a vertex: the m places where a solution is positive, [..., m] int64, rising.

    Args:
        solution: [..., n], a vertex of {A x = b, x >= 0}.
        constraints: A [m, n].
        tolerance: > 0; entries above it are positive.

    Raises:
        ValueError: shapes that do not fit; a solution that is not positive at exactly m places: it is degenerate (its basis is not unique) or no vertex.
        TypeError: not floating.

    Example:
        >>> basis_of(torch.tensor([0.0, 1.0, 0.0]), torch.ones(1, 3))
        tensor([1])
    """
    a = _check_constraints(constraints, solution, "solution")
    positive = solution > check_positive("tolerance", tolerance)
    count = positive.sum(-1)
    if not bool((count == len(a)).all()):
        raise ValueError(
            f"solution: got {int(count.min())} to {int(count.max())} positive entries for {len(a)} constraints; pass vertices that are not degenerate"
        )
    return positive.nonzero()[:, -1].view(*solution.shape[:-1], len(a))


def reduced_costs(cost: Tensor, constraints: Tensor, basis: Tensor) -> Tensor:
    """r = c - A' (A_B')^-1 c_B, zero on the basis.

    Args:
        cost: c [..., n].
        constraints: A [m, n], of full row rank.
        basis: [..., m] int64, as `basis_of` returns.

    Returns:
        [..., n].

    Raises:
        ValueError: shapes that do not fit, a place outside [0, n).
        TypeError: cost or constraints not floating, basis not int64.

    Example:
        >>> reduced_costs(torch.tensor([3.0, 1.0, 2.5]), torch.ones(1, 3), torch.tensor([1]))  # the cheapest of three
        tensor([2.0000, 0.0000, 1.5000])

    Source: Dantzig's simplex method.
    """
    a = _check_constraints(constraints, cost, "cost")
    m, n = a.shape
    if basis.dtype != torch.int64:
        raise TypeError(f"basis: got dtype {basis.dtype}; pass int64")
    if basis.shape != (*cost.shape[:-1], m) or not bool(((basis >= 0) & (basis < n)).all()):
        raise ValueError(
            f"basis: got shape {list(basis.shape)} for costs {list(cost.shape)}; pass [..., {m}] in [0, {n})"
        )
    inside = a.T[basis]  # rows of A' that are in the basis: [..., m, m], A_B'
    duals = torch.linalg.solve(inside, cost.gather(-1, basis).unsqueeze(-1)).squeeze(-1)
    # what rounding leaves on the basis is zero by definition
    return (cost - duals @ a).scatter(-1, basis, 0.0)


def optimality_margin(cost: Tensor, constraints: Tensor, basis: Tensor, *, margin: float = 1.0) -> Tensor:
    """The loss of predicted costs, sum over the places off the basis of max(0, margin - r_j): [...].

    Args and errors: as `reduced_costs`; margin > 0. Costs have no scale of their own: c and 2 c have the same solutions, and the margin sets the unit.

    Example:
        >>> cost = torch.tensor([[3.0, 1.0, 1.5], [1.0, 3.0, 3.0]])
        >>> optimality_margin(cost, torch.ones(1, 3), torch.tensor([[1], [1]]))  # the third is 0.5 short of the margin; not even optimal
        tensor([0.5000, 4.0000])

    Source: arXiv 2301.11260.
    """
    r = reduced_costs(cost, constraints, basis)
    off = torch.ones_like(r).scatter(-1, basis, 0.0)
    return (off * (check_positive("margin", margin) - r).clamp_min(0)).sum(-1)


def _check_constraints(constraints: Tensor, x: Tensor, name: str) -> Tensor:
    check_floating("constraints", constraints, "[m, n]")
    check_floating(name, x, "[..., n]")
    if constraints.dim() != 2 or not 1 <= len(constraints) <= constraints.shape[1]:
        raise ValueError(f"constraints: got shape {list(constraints.shape)}; pass [m, n] with 1 <= m <= n")
    if x.dim() == 0 or x.shape[-1] != constraints.shape[1]:
        raise ValueError(f"{name}: got shape {list(x.shape)} for constraints {list(constraints.shape)}; pass [..., n]")
    return constraints
