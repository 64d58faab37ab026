"""Intermediate layers: what teacher and student features share, as bounds on their mutual information.

    I_alpha = 1 + E_joint[log(e^f / a)] - E_product[e^f / a],    a = alpha m + (1 - alpha) q

f is a critic, m the mean of e^f over a batch of student features and q a baseline that no batch is needed for. All
values are lower bounds of the mutual information in expectation. alpha = 1 is InfoNCE, which cannot exceed log K: low
variance, high bias. alpha = 0 with q = e is NWJ, which is tight at the right critic: low bias, and a variance that
grows like e^I. In between, the bound is at most 1 + log(K/alpha).

The mean squared error and the cosine of features are such bounds as well: Barber and Agakov's E log q(t|s) + H(t), with
a Gaussian and a von Mises-Fisher q, less what does not depend on the student. Distiller's observation is that all of
them are one objective with different estimators.

Features are [N, D], row i of teacher and student belonging to one input. Layers of different widths need a projection,
which is the caller's to train. Laws (tested): alpha = 1 is InfoNCE and alpha = 0 NWJ; no batch exceeds 1 + log((N-1)/alpha);
its expectation is below the mutual information of correlated Gaussians, and bias and variance move in opposite
directions with alpha; rotating both features together changes nothing.

Source: Poole et al., On Variational Bounds of Mutual Information, arXiv 1905.06922 (section 2.3); He et al., Distiller,
arXiv 2109.11105. Distiller's critic and its value of alpha are not in its abstract: both are arguments here.
"""

import math

import torch
from torch import Tensor

from ...checks import check_floating, check_positive

__all__ = ["cosine_scores", "dot_scores", "feature_cosine", "feature_mse", "mi_alpha"]


def mi_alpha(scores: Tensor, alpha: float = 0.5, *, log_baseline: float | Tensor = 1.0) -> Tensor:
    """The interpolated lower bound of the mutual information, in nats. Train on its negative.

    With K = N - 1 and m_{-l}(j) the mean of e^{f(i, j)} over i != l:

        I = 1 + mean_{l != j} [f(j, j) - log a_l(j)] - mean_j m_{-j}(j) / a_j(j),    a_l(j) = alpha m_{-l}(j) + (1 - alpha) q(j)

    Every batch that a mean runs over has K members, with the partner of j or without it, so that this is an unbiased
    estimate of a bound that holds for K.

    Args:
        scores: [N, N], N >= 2; scores[i, j] = f(s_i, t_j), the critic of student i and teacher j, true pairs on the diagonal.
        alpha: in [0, 1].
        log_baseline: log q, a number or [N], a function of the teacher's features alone. The default, 1, makes
            alpha = 0 the NWJ bound, which wants the critic 1 + log p(s,t)/(p(s) p(t)). For a critic log p(s,t)/(p(s) p(t)) pass 0.

    Returns:
        A scalar in the dtype of scores; gradients to scores and log_baseline. float16 and bfloat16 are computed in float32.

    Raises:
        ValueError: scores not square or fewer than two rows, alpha outside [0, 1], a baseline that does not fit.
        TypeError: scores not floating.

    Example:
        >>> f = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
        >>> mi_alpha(f, 1.0), mi_alpha(f, 0.0, log_baseline=0.0)       # at most log 2, and 1 + 2 - 1
        (tensor(0.5662), tensor(2.))

    Source: Poole et al., arXiv 1905.06922, equation 11.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: got {alpha}; pass a number in [0, 1]")
    check_floating("scores", scores, "[N, N]")
    n = scores.shape[0] if scores.dim() == 2 else 0
    if scores.dim() != 2 or scores.shape[1] != n or n < 2:
        raise ValueError(f"scores: got shape {tuple(scores.shape)}; pass [N, N] with N >= 2")
    f = scores.to(torch.promote_types(scores.dtype, torch.float32))
    log_q = torch.as_tensor(log_baseline, dtype=f.dtype, device=f.device)
    if log_q.dim() and log_q.shape != (n,):
        raise ValueError(f"log_baseline: got shape {tuple(log_q.shape)}; pass a number or [N] = [{n}]")
    log_m = _log_mean_without(f)  # [l, j]
    log_a = log_m if alpha == 1 else log_q.expand_as(log_m)
    if 0 < alpha < 1:
        log_a = torch.logaddexp(log_m + math.log(alpha), log_a + math.log1p(-alpha))
    own = torch.eye(n, dtype=torch.bool, device=f.device)
    joint = (f.diagonal() - log_a).masked_fill(own, 0.0).sum() / (n * (n - 1))
    product = (log_m - log_a).diagonal().exp().mean()
    return (1 + joint - product).to(scores.dtype)


def _log_mean_without(f: Tensor) -> Tensor:
    """[l, j]: log of the mean of e^{f[i, j]} over i != l.

    log(S - e^f) cancels where one score makes up most of S: that row of each column is summed again without it.
    """
    n = len(f)
    best = f.argmax(0, keepdim=True)
    is_best = torch.zeros_like(f, dtype=torch.bool).scatter(0, best, True)
    share = (f - f.logsumexp(0)).exp().masked_fill(is_best, 0.0)
    others = f.logsumexp(0) + torch.log1p(-share)
    without_best = f.masked_fill(is_best, -math.inf).logsumexp(0)
    return torch.where(is_best, without_best, others) - math.log(n - 1)


def dot_scores(teacher: Tensor, student: Tensor) -> Tensor:
    """The critic <s_i, t_j> / sqrt(D) of features [N, D], as [N, N].

    Raises:
        ValueError: shapes that differ or are not [N, D].

    Example:
        >>> dot_scores(torch.eye(2) * 2, torch.eye(2)).diagonal()
        tensor([1.4142, 1.4142])
    """
    _check_features(teacher, student)
    return student @ teacher.T / math.sqrt(teacher.shape[1])


def cosine_scores(teacher: Tensor, student: Tensor, *, temperature: float = 0.1) -> Tensor:
    """The critic cos(s_i, t_j) / T of features [N, D], as [N, N]. A zero vector has the cosine 0 with everything.

    Raises:
        ValueError: shapes that differ or are not [N, D], a temperature that is not positive.

    Example:
        >>> cosine_scores(torch.eye(2) * 7, torch.eye(2), temperature=0.5)
        tensor([[2., 0.],
                [0., 2.]])

    Source: van den Oord et al., arXiv 1807.03748 (InfoNCE); Tian et al., arXiv 1910.10699, for distillation.
    """
    _check_features(teacher, student)
    check_positive("temperature", temperature)
    unit = torch.nn.functional.normalize
    return unit(student, dim=1) @ unit(teacher, dim=1).T / temperature


def feature_mse(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over D of (t - s)^2, one number per row of features [N, D], as [N].

    With q(t|s) = Normal(s, sigma^2) the mutual information is at least H(t) - D/2 log(2 pi sigma^2) - D mse / (2 sigma^2).

    Example:
        >>> feature_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([2.5000])
    """
    _check_features(teacher, student)
    return (teacher - student).square().mean(1)


def feature_cosine(teacher: Tensor, student: Tensor) -> Tensor:
    """1 - cos(t, s), one number per row of features [N, D], as [N]: half the squared distance of the unit vectors.

    The bound of q(t|s) = von Mises-Fisher with direction s/|s| on the sphere, less its constants.

    Example:
        >>> feature_cosine(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        tensor([0., 1.])
    """
    _check_features(teacher, student)
    return 1 - torch.nn.functional.cosine_similarity(teacher, student, dim=1)


def _check_features(teacher: Tensor, student: Tensor) -> None:
    check_floating("teacher", teacher, "[N, D]")
    check_floating("student", student, "[N, D]")
    if teacher.dim() != 2 or teacher.shape != student.shape:
        raise ValueError(
            f"features: got {tuple(teacher.shape)} and {tuple(student.shape)}; pass [N, D] twice, project one of them if the widths differ"
        )
