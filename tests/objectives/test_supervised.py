"""Every supervised objective under the laws that hold for all: one definition behind both doors, oracles in float64, masks, limits, second derivatives."""

import math

import pytest
import torch
from supervised_inputs import ALL, OWN, SETS, SOFT, UNBOUNDED, N, V, both, classes, head, logits, sets, soft, takes
from supervised_oracles import TABLE
from torch.autograd import gradcheck
from two_models import derivatives, same

from fenchel.head import labelled, programs
from fenchel.objectives.names import makers
from fenchel.objectives.supervised import CostObjective, linear_supervised, supervised, supervised_objective
from fenchel.objectives.supervised.objective import DISTRIBUTION, SET


def test_every_objective_of_the_folder_is_here():
    known = {name.partition(":")[0] for name in ALL}
    assert set(makers("fenchel.objectives.supervised")) <= known | {"normalised"}


@pytest.mark.parametrize("name", ALL)
def test_the_formula(name):
    z = logits()
    got = supervised(z, classes(), name, reduction="none")
    want = [TABLE[name](row, [int(y)]) for row, y in zip(z.detach().numpy(), classes(), strict=True)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", SETS)
def test_the_formula_for_sets_of_classes(name):
    z, y = logits(), sets()
    got = supervised(z, y, name, reduction="none")
    want = [TABLE[name](row, list(s.nonzero()[0])) for row, s in zip(z.detach().numpy(), y.numpy(), strict=True)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in SOFT if isinstance(supervised_objective(name), CostObjective)])
def test_the_cost_of_a_distribution_is_the_expected_cost_of_its_label(name):
    z, y = logits(), soft()
    each = torch.stack([supervised(z, torch.full((N,), k), name, reduction="none") for k in range(V)], 1)
    torch.testing.assert_close(supervised(z, y, name, reduction="none"), (y * each).sum(1), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", OWN)
def test_two_copies_of_the_math_cannot_drift(name):
    """Fused and plain are one definition: values and gradients agree, with all that stands between a product and a loss."""
    y = classes().clone()
    y[3] = -100
    options = {"reduction": "none", "softcap": 4.0, "scale": 1.5, "q": torch.rand(V, dtype=torch.float64) + 0.1}
    if takes[name] >= DISTRIBUTION:
        options["label_smoothing"] = 0.1
    same(*both(name, y, **options), head(), torch.randn(N, dtype=torch.float64))
    same(*both(name, y, reduction="mean", class_weight=torch.rand(V, dtype=torch.float64)), head(), 0.7)


@pytest.mark.parametrize("name", [n for n in ALL if takes[n] >= SET or takes[n] >= DISTRIBUTION])
def test_tables_of_targets_fused(name):
    for kind, y in ((SET, sets()), (DISTRIBUTION, soft())):
        if takes[name] >= kind:
            same(*both(name, y, reduction="mean"), head())


@pytest.mark.parametrize("name", OWN)
def test_value_and_gradient_have_a_row_program(name):
    """What a compiler is given is the function itself; no objective falls back to slower code."""
    of = labelled.Labelled(supervised_objective(name), 0.1 if takes[name] >= DISTRIBUTION else 0.0)
    rows = [torch.zeros(5, 7), torch.zeros(7), torch.zeros(5, 1)]
    written = programs._written(lambda *x: labelled.gradient_(*x, of), [*rows, torch.zeros(5, 1)], "row")
    assert written.stores == (0,)
    assert written.outputs == ("row",)
    assert programs._written(lambda *x: labelled.values(*x, of), rows, "row").stores == ()


@pytest.mark.parametrize("name", ["gce:0.7", "nce + 0.5*rce:4", "z_loss:2,0.5", "margin:1.5", "f_divergence:hellinger"])
def test_compiled(name, monkeypatch):
    monkeypatch.setenv("FENCHEL_COMPILE", "1")
    h, w, b = (x.detach().float().requires_grad_() for x in head(40, 130))
    fused, plain = both(name, classes(40, 130), reduction="mean")
    for got, want in zip(derivatives(fused, [h, w, b]), derivatives(plain, [h, w, b]), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", [n for n in OWN if n not in ("dft", "probability:1,0.05", "probability:0,high=0.05")])
def test_gradients(name):
    """Of those whose weights are not constants by definition."""
    z = logits(2, 4)
    assert gradcheck(lambda z: supervised(z, classes(2, 4), name, reduction="none"), (z,))


# all but those that are 0 there, are no float32 (p^10), or turn where two probabilities are equal
@pytest.mark.parametrize(
    "name", [n for n in OWN if n not in ("probability:1,0.05", "probability:10", "f_divergence:tv")]
)
def test_gradients_in_float32_keep_their_digits_in_a_large_vocabulary(name):
    # logits as a model's are when it begins: the label's probability is near 1/V, and what is small beside 1 must not be taken from it
    z = logits(4, 20_000, scale=0.45)
    y = torch.tensor([3, 70, 11_000, 19_999])
    want, got = (
        torch.autograd.grad(supervised(x, y, name), x)[0]
        for x in (z.double().requires_grad_(), z.float().requires_grad_())
    )
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", ["gce:0.7", "3*nce + 1.5*agce", "z_loss", "ldr:0.7,2", "decoupled", "binary:1,2.5"])
def test_second_derivatives_fused(name):
    results = []
    for f in both(name, classes(3, 6), reduction="mean"):
        x = head(3, 6)
        first = torch.autograd.grad(f(*x).square(), x, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), x))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_a_class_outside_the_vocabulary_is_one_that_is_not_there(name):
    h, w, b = head()
    y = classes(v=V - 4)
    out = b.detach().clone()
    out[-4:] = -math.inf
    out.requires_grad_()
    smoothing = 0.1 if takes[name] >= DISTRIBUTION else 0.0
    for door in both(name, y, reduction="mean", label_smoothing=smoothing):
        _, want = both(name, y, reduction="mean", label_smoothing=smoothing)
        wanted = derivatives(want, [h, w[:-4].detach().requires_grad_(), b[:-4].detach().requires_grad_()])
        value, dh, dw, db = derivatives(door, [h, w, out])
        for got, wants in zip((value, dh, dw[:-4], db[:-4]), wanted, strict=True):
            torch.testing.assert_close(got, wants, rtol=1e-10, atol=1e-10)
        assert bool((dw[-4:] == 0).all())
        assert bool((db[-4:] == 0).all())


@pytest.mark.parametrize("name", ALL)
def test_extreme_logits(name):
    z = torch.tensor([[1e9, 0.0, -1e9], [-1e9, 0.0, 1e9], [300.0, -300.0, 0.0], [0.0, 0.0, 0.0], [0.0, -1e9, -1e9]])
    for dtype in (torch.float32, torch.float64):
        x = z.to(dtype).requires_grad_()
        out = supervised(x, torch.zeros(5, dtype=torch.long), name, reduction="none")
        assert not bool(out.isnan().any())
        grad = torch.autograd.grad(out.sum(), x)[0]
        if name not in UNBOUNDED:
            assert bool(out.isfinite().all())
            assert bool(grad.isfinite().all())


@pytest.mark.parametrize("name", ALL)
def test_no_row_left(name):
    """A zero with a gradient of zero, whatever the rows hold."""
    x = head()
    with torch.no_grad():
        x[0][:] = torch.nan
    for reduction in ("none", "mean", "sum"):
        y = torch.full((N,), -100)
        nothing = torch.full((N, V), torch.nan, dtype=torch.float64, requires_grad=True)
        fused = linear_supervised(*x[:2], y, name, bias=x[2], reduction=reduction)
        for out, free in ((fused, x), (supervised(nothing, y, name, reduction=reduction), [nothing])):
            if "fenchel_young" in name and free is not x:
                continue
            assert out.shape == ((N,) if reduction == "none" else ())
            assert all(bool((g == 0).all()) for g in (out, *torch.autograd.grad(out.sum(), free)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("n", "v"), [(0, 5), (1, 1)])
def test_tiny(name, n, v):
    x, y = head(n, v), classes(n, v)
    for f in both(name, y, reduction="mean"):
        assert all(bool(g.isfinite().all()) for g in derivatives(f, x))


@pytest.mark.parametrize("name", ALL)
def test_a_nan_stays_where_it_is(name):
    z = logits().detach().clone()
    z[2, 4] = torch.nan
    out = supervised(z, classes(), name, reduction="none")
    there = torch.arange(N) == 2
    assert bool(out[~there].isfinite().all())
    if not name.startswith("probability:"):  # NaN is within no threshold
        assert bool(out[there].isnan().all())
