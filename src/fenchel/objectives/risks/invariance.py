"""Invariance penalties: how far one linear classifier is from being optimal in an environment, given the features.

With g = the gradient of the environment's risk in the classifier W [D, C], and the Gram matrix G = E[phi phi'] of its features

    IRMv1          |g|^2
    conditioned    tr(g' G^+ g) / 4

The first depends on the scale of the features: phi -> c phi, W -> W/c multiplies it by c^2, so that a representation that is not invariant can make it
as small as it likes. The second does not change under any invertible phi -> A phi, W -> A'^-1 W. For squared error it is the excess risk of W over the
environment's own best classifier, exactly: zero if and only if W is optimal there.

Laws (tested): all of that; both are zero at the environment's optimum; the conditioned penalty stays as it is when a feature is repeated.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...checks import check_floating, check_positive

__all__ = ["classifier_gradient", "conditioned_penalty", "irm_penalty"]


def classifier_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], features: Tensor, classifier: Tensor, target: Tensor
) -> Tensor:
    """The gradient [D, C] of loss(features @ classifier, target) in the classifier; it has a graph, through features and classifier.

    Args:
        loss: from scores [N, C] and a target to the risk of the environment, a scalar: `fenchel.fenchel_young` of any generator, a squared error.
        features: [N, D].
        classifier: [D, C], the same in all environments.
        target: what the loss takes.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: not floating.

    Example:
        >>> squared = lambda score, y: (score - y).square().mean()
        >>> classifier_gradient(squared, torch.eye(2), torch.zeros(2, 1), torch.tensor([[1.0], [2.0]])).detach()
        tensor([[-1.],
                [-2.]])
    """
    _check(features, classifier)
    with torch.enable_grad():
        w = classifier if classifier.requires_grad else classifier.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(features @ w, target), w, create_graph=True)
    return gradient


def irm_penalty(gradient: Tensor) -> Tensor:
    """|g|^2 of the gradient of an environment's risk, a scalar.

    With features that are one number, the score itself, and a classifier of 1 this is IRMv1 as it was published.

    Example:
        >>> irm_penalty(torch.tensor([[3.0], [4.0]]))
        tensor(25.)

    Source: Arjovsky et al., arXiv 1907.02893.
    """
    return check_floating("gradient", gradient, "[D, C]").square().sum()


def conditioned_penalty(gradient: Tensor, features: Tensor, *, rtol: float = 1e-6) -> Tensor:
    """tr(g' G^+ g) / 4 with G the Gram matrix of the environment's features, a scalar.

    Args:
        gradient: [D, C], of the environment's risk.
        features: [N, D], the environment's.
        rtol: > 0; directions with an eigenvalue of G below rtol times the largest are none: no sample has a part there, nor has a gradient.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: not floating.

    Example:
        >>> squared = lambda score, y: (score - y).square().mean()
        >>> phi, w, y = torch.tensor([[1.0], [1.0]]), torch.tensor([[3.0]]), torch.tensor([[0.0], [2.0]])
        >>> conditioned_penalty(classifier_gradient(squared, phi, w, y).detach(), phi)  # 5, less 1 at the best w = 1
        tensor(4.)

    Source: Khezeli et al., arXiv 2106.09777. The abstract names the Gramian of the representation; the form and the factor, by which it is an excess
    risk, are derived.
    """
    _check(features, gradient)
    inside = torch.promote_types(features.dtype, torch.float32)
    phi, g = features.to(inside), gradient.to(inside)
    values, basis = torch.linalg.eigh(phi.T @ phi / len(phi))
    alive = values.detach() > check_positive("rtol", rtol) * values.detach().amax()
    along = (basis.T @ g).square().sum(-1)
    return torch.where(alive, along / torch.where(alive, values, 1.0), 0.0).sum() / 4


def _check(features: Tensor, classifier: Tensor) -> None:
    check_floating("features", features, "[N, D]")
    check_floating("classifier", classifier, "[D, C]")
    if features.dim() != 2 or classifier.dim() != 2 or 0 in features.shape or features.shape[1] != len(classifier):
        raise ValueError(
            f"features, classifier: got {list(features.shape)} and {list(classifier.shape)}; pass [N, D] and [D, C], N, D >= 1"
        )
