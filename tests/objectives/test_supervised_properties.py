"""What single supervised objectives are known for: limits, bounds, sums over labels, invariances."""

import math

import pytest
import torch
from supervised_inputs import N, V, classes, logits, sets, soft
from two_models import same

from fenchel.objectives.supervised import supervised
from fenchel.objectives.supervised.soft_top_k import soft_top_k_shift


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("comp_sum:1.0000001", "cross_entropy"),
        ("comp_sum:2", "mae"),
        ("gce:1e-7", "cross_entropy"),
        ("gce:0.4", "comp_sum:1.4"),
        ("gce:0.4", "probability:0.4"),
        ("probability:0", "cross_entropy"),
        ("focal:0", "cross_entropy"),
        ("poly:0", "cross_entropy"),
        ("agce:0,0.7", "gce:0.7"),
        ("decoupled", "cross_entropy"),
        ("candidates", "cross_entropy"),
        ("cross_entropy", "kl"),
        ("f_divergence:kl", "kl"),
        ("f_divergence:tv", "mae"),
        ("fenchel_young:alpha:1.5,temperature=2", "alpha:1.5,temperature=2"),
        ("0.5*fenchel_young:kl", "0.5*cross_entropy"),
        ("2*fenchel_young:alpha:1.5 + gce", "alpha:1.5 + gce + alpha:1.5"),
        ("2*alpha:1.5", "alpha:1.5,temperature=2"),
    ],
)
def test_limits(name, limit):
    same(lambda z: supervised(z, classes(), name), lambda z: supervised(z, classes(), limit), [logits()], tol=1e-6)


def test_ldr_between_cross_entropy_and_the_hinge():
    z, y = logits().detach(), classes()
    ce = supervised(z, y, "cross_entropy", reduction="none") - math.log(V)
    torch.testing.assert_close(supervised(z, y, "ldr:1,0", reduction="none"), ce)
    for c in (0.0, 2.0):
        hinge, near = (
            supervised(z, y, f"{name},{c}".replace("margin,", "margin:"), reduction="none")
            for name in ("margin", "ldr:1e-3")
        )
        assert bool(((hinge - near) >= -1e-12).all())
        assert float((hinge - near).max()) <= 1e-3 * math.log(V) + 1e-12
        # lam log mean exp of margins is the worst case over p less lam KL(p||uniform): no p does worse
        p = soft()
        margins = c * (1 - torch.nn.functional.one_hot(y, V)) + z - z.gather(1, y[:, None])
        at = (p * margins).sum(1) - 0.7 * ((p * p.log()).sum(1) + math.log(V))
        assert bool((at <= supervised(z, y, f"ldr:0.7,{c}", reduction="none") + 1e-12).all())


@pytest.mark.parametrize(
    ("name", "total"), [("mae", V - 1.0), ("rce:3", 3.0 * (V - 1)), ("nce", 1.0), ("normalised:gce:0.7", 1.0)]
)
def test_symmetric_losses_add_up_to_a_constant_over_labels(name, total):
    z = logits()
    each = sum(supervised(z, torch.full((N,), k), name, reduction="none") for k in range(V))
    torch.testing.assert_close(each, torch.full((N,), total, dtype=torch.float64))


def test_the_mean_absolute_error_is_not_zero():
    """A published implementation sums the differences without their absolute values, which is 0 for any prediction."""
    z = logits()
    loss = supervised(z, classes(), "mae")
    assert 0.1 < float(loss.detach()) < 1
    assert float(torch.autograd.grad(loss, z)[0].abs().max()) > 1e-3


@pytest.mark.parametrize(
    "name", ["cross_entropy", "comp_sum:0.5", "ldr:0.7,2", "margin:1", "log_partition", "binary", "decoupled"]
)
def test_convex_in_the_logits(name):
    a, b = logits(seed=5), logits(seed=6)
    f = lambda z: supervised(z, classes(), name, reduction="none")
    assert bool((f((a + b) / 2) <= (f(a) + f(b)) / 2 + 1e-12).all())


@pytest.mark.parametrize(
    ("name", "bound"), [("gce:0.7", 1 / 0.7), ("mae", 1.0), ("nce", 1.0), ("rce:4", 4.0), ("aul:1.5,0.9", 1.5**0.9)]
)
def test_bounded(name, bound):
    z = logits(scale=30.0)
    out = supervised(z, classes(), name, reduction="none")
    assert 0 <= float(out.detach().min()) <= float(out.detach().max()) <= bound * (1 + 1e-12)


def test_the_z_loss_knows_neither_shift_nor_scale():
    z = logits().detach()
    for a, b in ((3.0, 5.0), (0.1, -2.0)):
        torch.testing.assert_close(supervised(a * z + b, classes(), "z_loss"), supervised(z, classes(), "z_loss"))


def test_comp_sum_gradients_are_reweighted_cross_entropy():
    """p_y^(tau - 1) times that of cross-entropy; dynamic fine-tuning has that of 1 - p_y."""
    gradient = lambda name: torch.autograd.grad(supervised(z, classes(), name, reduction="sum"), z)[0]
    z = logits()
    p = z.softmax(1).gather(1, classes()[:, None])
    for tau in (0.5, 1.7, 2.0):
        torch.testing.assert_close(gradient(f"comp_sum:{tau}"), p ** (tau - 1) * gradient("cross_entropy"))
    torch.testing.assert_close(gradient("dft"), gradient("mae"))


def test_a_prior_in_q_is_logit_adjustment_for_every_objective():
    """And balanced softmax: the same cross-entropy, whose model predicts without it."""
    z, prior = logits(), torch.softmax(logits(1, seed=9).detach()[0], 0)
    adjusted = torch.nn.functional.cross_entropy(z + prior.log(), classes())
    for name in ("kl", "cross_entropy"):
        torch.testing.assert_close(supervised(z, classes(), name, q=prior), adjusted)
    for name in ("gce:0.7", "focal:2", "nce"):
        torch.testing.assert_close(
            supervised(z, classes(), name, q=prior), supervised(z + prior.log(), classes(), name)
        )
    # at zero logits a model says the prior, whatever its generator
    for name in ("alpha:1.5", "js"):
        flat = torch.zeros(1, V, dtype=torch.float64, requires_grad=True)
        [grad] = torch.autograd.grad(supervised(flat, prior[None], name, q=prior), flat)
        torch.testing.assert_close(grad, torch.zeros_like(grad))


def test_positives_do_not_compete_with_each_other():
    z = logits()
    [grad] = torch.autograd.grad(supervised(z, sets(), "decoupled", reduction="sum"), z)
    one = torch.nn.functional.one_hot(classes(), V).bool()
    moved = torch.where(sets() & ~one, z + 1, z)
    other = torch.autograd.grad(supervised(moved, sets(), "decoupled", reduction="sum"), z)[0]
    torch.testing.assert_close(grad[one], other[one])
    assert bool((grad[sets()] < 0).all())


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("k", [0.5, 1.0, 5.0, 18.5])
def test_soft_top_k_has_k_in_all(k, scale):
    x = torch.cat((scale * logits(40), scale * logits(40, seed=4).sign())).detach()
    total = torch.sigmoid(x + soft_top_k_shift(x, k)).sum(1)
    torch.testing.assert_close(total, torch.full_like(total, k), rtol=1e-6, atol=1e-6)
    sure = torch.sigmoid(1e4 * logits() + soft_top_k_shift(1e4 * logits(), 5.0)) > 0.5
    assert torch.equal(sure, logits() >= logits().sort(1, descending=True).values[:, 4:5])
