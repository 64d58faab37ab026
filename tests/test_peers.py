"""Bugs that users of other libraries reported: docs/distillation.md says which test would fail if we had them; those without another place are here."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fenchel
from fenchel import fenchel_young, generator_names, linear_fenchel_young, linear_logp, softargmax
from fenchel.objectives.distillation import (
    distillation,
    distillation_names,
    distillation_objective,
    linear_distillation,
)
from fenchel.objectives.supervised import linear_supervised, supervised

ROOT = Path(__file__).resolve().parents[1]
N, D, V, PADDED = 7, 5, 40, 24
# a value for what has no default
GIVEN = {
    "alpha:A": "alpha:1.5",
    "js:BETA": "js:0.3",
    "ferkd": "ferkd:low=0,high=1",
    "gjsd": "gjsd:0.3",
    "renyi": "renyi:0.7",
    "skew_kl": "skew_kl:0.1",
    "skew_reverse_kl": "skew_reverse_kl:0.1",
    "fenchel_young": "fenchel_young:kl",
}
DEFAULTS = tuple(GIVEN.get(name, name) for name in distillation_names())
# what teaches beside the teacher by definition: the label, or the teacher's own ranking
NOT_OF_TWO = ("asft", "nkd", "pld")
SPARSE = ("kl", "alpha:1.5", "alpha:2", "reverse_kl")


def test_every_test_of_the_table_exists():
    table = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8").partition("## Bugs that others had")[2]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", table)
    assert len(named) >= 10
    for path, test in named:
        assert f"\ndef {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_student_that_is_its_teacher_learns_nothing_by_default(name):
    """TRL #5731: half of the loss was cross-entropy by default, and the sampling temperature was the loss's."""
    teacher = torch.randn(N, V, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    y = torch.arange(N) if distillation_objective(name).needs_target else None
    loss = distillation(name, teacher, student, y)
    if name in NOT_OF_TWO:
        assert float(loss.detach()) > 0
        return
    # a Fenchel-Young loss is a difference of values
    assert float(loss.detach()) == pytest.approx(0, abs=1e-15 if name.startswith("fenchel_young") else 0)
    assert float(torch.autograd.grad(loss, student)[0].abs().max()) <= 1e-16


@pytest.mark.parametrize("name", [n for n in DEFAULTS if n not in NOT_OF_TWO])
@pytest.mark.parametrize("smaller", ["teacher", "student"])
def test_identical_models_are_identical_however_they_are_padded(name, smaller):
    """Liger pads the smaller logits with zeros: 24 rows made 142.6 of 0. TRL's kernel makes NaN of rows excluded by a bias."""
    hidden, weight = torch.randn(N, D, dtype=torch.float64) * 3, torch.randn(V, D, dtype=torch.float64)
    more = torch.cat((weight, torch.zeros(PADDED, D, dtype=torch.float64)))
    y = torch.arange(N) if distillation_objective(name).needs_target else None
    teacher, student = (weight, more) if smaller == "teacher" else (more, weight)
    with pytest.raises(ValueError, match="pass vocabulary"):
        linear_distillation(name, (hidden, teacher), (hidden, student), y)
    excluded = torch.where(torch.arange(V + PADDED) < V, 0.0, -torch.inf).double()
    cut = linear_distillation(name, (hidden, teacher), (hidden, student), y, vocabulary=V)
    masked = linear_distillation(name, (hidden, more, excluded), (hidden, more, excluded), y)
    for out in (cut, masked):
        assert float(out) == pytest.approx(0, abs=1e-14 if name.startswith("fenchel_young") else 0)


def doors(name: str) -> dict[str, tuple]:
    """Every loss of labels with its defaults, as (loss, tensors that it has gradients for)."""
    hidden, weight = (torch.randn(s, D, dtype=torch.float64, requires_grad=True) for s in (N, V))
    logits = torch.randn(N, V, dtype=torch.float64, requires_grad=True)
    return {
        "fenchel_young": (lambda y: fenchel_young(logits, y, name, reduction="none"), [logits]),
        "supervised": (lambda y: supervised(logits, y, "gce:0.7", reduction="none"), [logits]),
        "linear_fenchel_young": (
            lambda y: linear_fenchel_young(hidden, weight, y, name, reduction="none"),
            [hidden, weight],
        ),
        "linear_supervised": (
            lambda y: linear_supervised(hidden, weight, y, "gce:0.7", reduction="none"),
            [hidden, weight],
        ),
        "linear_logp": (lambda y: linear_logp(hidden, weight, y).logp, [hidden, weight]),
    }


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize(
    "door", ["fenchel_young", "supervised", "linear_fenchel_young", "linear_supervised", "linear_logp"]
)
def test_minus_one_hundred_is_ignored_by_default(name, door):
    """entmax #21: its losses document ignore_index = -100 and then use it as a class."""
    loss, _ = doors(name)[door]
    y = torch.where(torch.arange(N) % 3 == 0, -100, torch.arange(N))
    rows, whole = loss(y), loss(torch.arange(N))
    assert bool((rows[y == -100] == 0).all())
    torch.testing.assert_close(rows[y != -100], whole[y != -100])


@pytest.mark.parametrize(
    "door", ["fenchel_young", "supervised", "linear_fenchel_young", "linear_supervised", "linear_logp"]
)
def test_every_token_has_its_own_upstream_gradient(door):
    """Liger #968, #678, #488: with reduction="none" every gradient was multiplied by the first token's upstream one."""
    loss, leaves = doors("alpha:1.5")[door]
    y, upstream = torch.arange(N), torch.randn(N, dtype=torch.float64)
    got = torch.autograd.grad(loss(y), leaves, upstream)
    one_by_one = [torch.autograd.grad(loss(y)[i], leaves) for i in range(N)]
    for k, g in enumerate(got):
        want = sum(u * grads[k] for u, grads in zip(upstream, one_by_one, strict=True))
        torch.testing.assert_close(g, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SPARSE)
def test_excluded_classes_make_no_nan(name):
    """entmax15_loss is NaN with a logit of minus infinity."""
    z = torch.randn(N, V, dtype=torch.float64)
    z[:, V // 2 :] = -torch.inf
    z.requires_grad_()
    loss = fenchel_young(z, torch.arange(N), name)
    assert bool(loss.isfinite())
    assert bool(torch.autograd.grad(loss, z)[0].isfinite().all())


def test_alpha_of_one_is_softmax():
    """entmax_bisect(x, alpha=1.0) is the uniform distribution."""
    z = 5 * torch.randn(N, V, dtype=torch.float64)
    for name in ("alpha:1", "alpha:1.0"):
        torch.testing.assert_close(softargmax(z, name), torch.softmax(z, -1), rtol=1e-12, atol=0)
    for step in (1e-4, 1e-8):
        torch.testing.assert_close(softargmax(z, f"alpha:{1 + step!r}"), torch.softmax(z, -1), rtol=0, atol=20 * step)


@pytest.mark.parametrize("name", ["kl", "alpha:1", "alpha:1.5", "alpha:1.3", "alpha:2", "js"])
def test_half_precision_probabilities_sum_to_one_as_well_as_torchs(name):
    """entmax's of bfloat16 add up to 0.97 to 1.006."""
    for v in (V, 5000):
        z = torch.randn(64, v).bfloat16()
        for p in (softargmax(z, name), torch.softmax(z, -1)):
            # each entry is rounded once, by a half of eps of itself at most
            assert float((p.double().sum(-1) - 1).abs().max()) <= torch.finfo(torch.bfloat16).eps / 2


@pytest.mark.parametrize("name", [n for n in generator_names() if ":" not in n])
def test_float64_stays_float64_and_nothing_falls_below_zero(name):
    """TRL's kernel returns float32 for float64, and -7.6e-6 for a KL of 3.4e-8 at logits of size 20."""
    t = 20 * torch.randn(200, 64)
    s = t + 1e-4 * torch.randn_like(t)
    assert bool((fenchel.divergence(t, s, name) >= 0).all())
    assert bool((fenchel.divergence(s, t, name) >= 0).all())
    assert fenchel.divergence(t.double(), s.double(), name).dtype == torch.float64
    eye: Tensor = torch.eye(64)
    rows = fenchel.linear_divergence((t, eye), (s, eye), name)
    assert bool((rows >= 0).all())
    wide = fenchel.linear_divergence((t.double(), eye.double()), (s.double(), eye.double()), name)
    assert wide.dtype == torch.float64
