"""Objectives of representations: loops in float64 as oracles, geometry as laws, and the limits that each of them names."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import fenchel
from fenchel.objectives.representation import (
    TCM,
    UNPG,
    angles,
    balanced_contrast,
    class_prototypes,
    cosine_logits,
    discovery_risk,
    dual_view_divergence,
    equiangular_basis,
    likely_known,
    local_entropy,
    lower_target,
    needs_update,
    odd_k_out_rows,
    odd_k_out_sets,
    opis,
    reliable,
    synthesis_risk,
    unit,
    utilities,
    welch_bound,
    within_fences,
)

DOUBLE = torch.float64


def batch(n=9, d=4, classes=3):
    return torch.randn(n, d, dtype=DOUBLE), torch.arange(n) % classes


def cosines(x, w):
    x, w = x.detach().numpy(), w.detach().numpy()
    return (x @ w.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(w, axis=1)


# hyperspherical


def test_cosines():
    x, w = torch.randn(6, 4, dtype=DOUBLE), torch.randn(3, 4, dtype=DOUBLE)
    z = cosine_logits(x, w, scale=8.0)
    np.testing.assert_allclose(z.numpy(), 8 * cosines(x, w))
    torch.testing.assert_close(cosine_logits(1e-30 * x, 1e30 * w, scale=8.0), z)
    assert float(cosine_logits(1e25 * x.float(), w.float(), scale=1.0).abs().max()) <= 1 + 1e-6
    assert gradcheck(lambda x, w: cosine_logits(x, w, scale=2.0), (x.requires_grad_(), w.requires_grad_()))


def test_the_gradient_leaves_lengths_alone():
    x, y = batch()
    w = torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)
    loss = fenchel.fenchel_young(cosine_logits(x.requires_grad_(), w, scale=16.0), y, "alpha:1.5")
    for leaf, g in zip((x, w), torch.autograd.grad(loss, (x, w)), strict=True):
        assert float((leaf.detach() * g).sum(1).abs().max()) < 1e-12
        assert float(g.abs().max()) > 1e-3


def test_the_fused_head_is_the_same_loss():
    x, y = batch()
    w = torch.randn(3, 4, dtype=DOUBLE)
    fused = fenchel.linear_fenchel_young(unit(x), unit(w), y, scale=16.0)
    torch.testing.assert_close(fused, fenchel.fenchel_young(cosine_logits(x, w, scale=16.0), y))


def test_a_zero_has_no_direction():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    z = cosine_logits(x, torch.eye(2), scale=4.0)
    assert z.tolist() == [[0.0, 0.0], [4.0, 0.0]]
    (g,) = torch.autograd.grad(z.sum(), x)
    assert bool(g.isfinite().all())
    assert g[0].tolist() == [0.0, 0.0]


def test_margins():
    x, y = batch()
    z = cosine_logits(x, torch.randn(3, 4, dtype=DOUBLE), scale=8.0)
    torch.testing.assert_close(lower_target(z, y, 0.0), z)
    losses = [float(fenchel.fenchel_young(lower_target(z, y, m), y)) for m in (0.0, 0.5, 2.0)]
    assert losses == sorted(losses)
    masked = torch.cat((z, torch.full((9, 1), -math.inf, dtype=DOUBLE)), 1)
    torch.testing.assert_close(
        fenchel.fenchel_young(lower_target(masked, y, 1.0), y), fenchel.fenchel_young(lower_target(z, y, 1.0), y)
    )


def test_prototypes_are_mean_directions():
    x, y = batch()
    got = class_prototypes(x, y, 4)
    for k in range(3):
        mean = np.mean([row / np.linalg.norm(row) for row in x[y == k].numpy()], 0)
        np.testing.assert_allclose(got[k].numpy(), mean / np.linalg.norm(mean))
    assert got[3].tolist() == [0.0] * 4


# equiangular


@pytest.mark.parametrize(("k", "d"), [(1, 1), (3, 8), (8, 8), (5, 4), (12, 4), (40, 16)])
def test_a_basis_keeps_its_bound(k, d):
    basis = equiangular_basis(k, d).double()
    gram = basis @ basis.T
    torch.testing.assert_close(gram.diagonal(), torch.ones(k, dtype=DOUBLE), rtol=0, atol=1e-6)
    worst = float((gram - torch.eye(k, dtype=DOUBLE)).abs().max())
    assert worst <= (1e-6 if k <= d else 1.2 * welch_bound(k, d) + 0.02)
    assert worst >= welch_bound(k, d) - 1e-6
    assert torch.equal(equiangular_basis(k, d), equiangular_basis(k, d))


def test_welch_is_met_by_a_simplex():
    assert welch_bound(5, 4) == pytest.approx(1 / 4)
    basis = equiangular_basis(4, 3, bound=1 / 3 + 1e-3).double()
    assert float((basis @ basis.T).fill_diagonal_(0).abs().max()) == pytest.approx(1 / 3, abs=2e-3)
    with pytest.raises(RuntimeError, match=r"was missed by"):
        equiangular_basis(7, 3, bound=welch_bound(7, 3) + 1e-6)


def test_angles():
    x, w = torch.randn(6, 4, dtype=DOUBLE), torch.randn(3, 4, dtype=DOUBLE)
    np.testing.assert_allclose(angles(x, w).numpy(), np.arccos(cosines(x, w)))
    assert gradcheck(angles, (x.requires_grad_(), w.requires_grad_()))
    # where arccos has lost half of the digits, and where its gradient is infinite
    tiny = torch.tensor([[1.0, 1e-9], [-1.0, 1e-9]], dtype=DOUBLE)
    got = angles(tiny, torch.tensor([[1.0, 0.0]], dtype=DOUBLE))
    torch.testing.assert_close(got, torch.tensor([[1e-9], [math.pi - 1e-9]], dtype=DOUBLE), rtol=1e-12, atol=0)
    same = torch.tensor([[2.0, 0.0], [-3.0, 0.0], [0.0, 0.0]], dtype=DOUBLE, requires_grad=True)
    out = angles(same, torch.tensor([[1.0, 0.0]], dtype=DOUBLE))
    assert out.tolist() == [[0.0], [math.pi], [math.pi / 2]]
    assert bool(torch.autograd.grad(out.sum(), same)[0].isfinite().all())


# thresholds


def test_tcm_by_pairs():
    x, y = batch(12)
    loss = TCM(positive=0.6, negative=-0.1, positive_weight=0.7, negative_weight=1.3)
    s = cosines(x, x)
    below = [0.6 - s[i, j] for i in range(12) for j in range(12) if i != j and y[i] == y[j] and s[i, j] <= 0.6]
    above = [s[i, j] + 0.1 for i in range(12) for j in range(12) if y[i] != y[j] and s[i, j] >= -0.1]
    assert float(loss(x, y)) == pytest.approx(0.7 * np.mean(below) + 1.3 * np.mean(above))
    assert gradcheck(lambda x: loss(x, y), (x.requires_grad_(),))


def test_tcm_is_silent_where_margins_are_kept():
    x = torch.eye(3).repeat(2, 1).requires_grad_()
    loss = TCM(positive=0.9, negative=0.5)(x, torch.tensor([0, 1, 2, 0, 1, 2]))
    assert float(loss.detach()) == 0
    assert float(torch.autograd.grad(loss, x)[0].abs().max()) == 0
    alone = torch.randn(1, 3, requires_grad=True)
    assert float(torch.autograd.grad(TCM()(alone, torch.tensor([0])), alone)[0].abs().max()) == 0


def test_opis():
    x, y = batch(12)
    thresholds = torch.linspace(-0.5, 0.9, 5, dtype=DOUBLE)
    s, rows = cosines(x, x), []
    for c in range(3):
        mine = [i for i in range(12) if y[i] == c]
        own = [s[i, j] for i in mine for j in mine if i != j]
        cross = [s[i, j] for i in mine for j in range(12) if y[j] != c]
        accept = np.array([np.mean(np.array(own) >= t) for t in thresholds.numpy()])
        reject = np.array([np.mean(np.array(cross) < t) for t in thresholds.numpy()])
        rows.append([0.0 if a + r == 0 else 2 * a * r / (a + r) for a, r in zip(accept, reject, strict=True)])
    np.testing.assert_allclose(utilities(x, y, thresholds).numpy(), rows)
    assert float(opis(x, y, thresholds)) == pytest.approx(np.mean(np.var(rows, 0)))
    torch.testing.assert_close(opis(x, 7 - 2 * y, thresholds), opis(x, y, thresholds))


def test_classes_that_are_alike_are_consistent():
    """Rotations of one another: every class has the same similarities."""
    turn = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    first = torch.tensor([[1.0, 0.1, 0.2], [1.0, 0.3, 0.0]])
    x = torch.cat((first, first @ turn, first @ turn @ turn))
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    assert float(opis(x, y, torch.linspace(-1, 1, 41))) == pytest.approx(0, abs=1e-12)
    # one class spread more than the others
    x[0] += torch.tensor([0.0, 1.0, 0.0])
    assert float(opis(x, y, torch.linspace(-1, 1, 41))) > 0.01


# negatives


def test_unpg_by_hand():
    x, y = batch(7, classes=3)
    w = torch.randn(3, 4, dtype=DOUBLE)
    got = UNPG(scale=4.0, margin=0.3, whiskers=0.1).rows(x, w, y)
    z, s = cosines(x, w), cosines(x, x)
    pairs = np.array([s[i, j] for i in range(7) for j in range(i + 1, 7) if y[i] != y[j]])
    q1, q3 = np.quantile(pairs, [0.25, 0.75])
    kept = pairs[(pairs >= q1 - 0.1 * (q3 - q1)) & (pairs <= q3 + 0.1 * (q3 - q1))]
    assert 0 < len(kept) < len(pairs)
    for i in range(7):
        row = 4 * z[i]
        row[y[i]] -= 4 * 0.3
        want = np.log(np.exp(row).sum() + np.exp(4 * kept).sum()) - row[y[i]]
        assert float(got[i]) == pytest.approx(want)


def test_unpg_limits():
    x, _ = batch(6)
    w, one = torch.randn(3, 4, dtype=DOUBLE), torch.ones(6, dtype=torch.long)
    base = fenchel.fenchel_young(lower_target(cosine_logits(x, w, scale=8.0), one, 0.8), one, reduction="none")
    torch.testing.assert_close(UNPG(8.0, 0.1).rows(x, w, one), base)
    y = torch.arange(6) % 3
    more = UNPG(8.0, 0.1, whiskers=math.inf).rows(x, w, y)
    some = UNPG(8.0, 0.1, whiskers=0.0).rows(x, w, y)
    assert bool((more > some).all())
    assert gradcheck(lambda x, w: UNPG(2.0, 0.1).rows(x, w, y), (x.requires_grad_(), w.requires_grad_()))


def test_a_mislabelled_pair_is_fenced_off():
    """Two of one person under two names: a negative pair of cosine 1, far from all others."""
    torch.manual_seed(3)
    x = torch.cat(
        (torch.eye(8, dtype=DOUBLE) + 0.05 * torch.randn(8, 8, dtype=DOUBLE), torch.zeros(1, 8, dtype=DOUBLE))
    )
    x[8] = x[0]
    s = (unit(x) @ unit(x).T)[torch.triu(torch.ones(9, 9), 1).bool()]
    kept = within_fences(s, 1.5)
    assert not bool(kept[s > 0.999].any())
    assert int(kept.sum()) >= 30


# odd-k-out


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(0, 3), st.integers(0, 999))
def test_sets_are_a_pair_and_odd_ones(labels, k, seed):
    y = torch.tensor(labels) * 7 - 3
    made = torch.Generator().manual_seed(seed)
    able = (y.unique(return_counts=True)[1] >= 2).any() and len(y.unique()) >= k + 1
    if not able:
        with pytest.raises(ValueError, match=r"target: got \d+ classes"):
            odd_k_out_sets(y, k, 5, generator=made)
        return
    index, target = odd_k_out_sets(y, k, 40, generator=made)
    assert index.shape == (40, k + 2)
    assert bool((y[index[:, :2]] == target[:, None]).all())
    assert bool((index[:, 0] != index[:, 1]).all())
    odd = y[index[:, 2:]]
    assert all(len({int(t), *row}) == k + 1 for t, row in zip(target, odd.tolist(), strict=True))
    again, _ = odd_k_out_sets(y, k, 40, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(again, index)


def test_sets_are_drawn_uniformly():
    y = torch.tensor([0] * 50 + [1] * 3 + [2])
    index, target = odd_k_out_sets(y, 1, 40_000, generator=torch.Generator().manual_seed(0))
    # of the two classes with two samples, whatever their sizes; class 2 is odd half of the time
    assert float((target == 0).double().mean()) == pytest.approx(0.5, abs=0.01)
    assert float((y[index[:, 2]] == 2).double().mean()) == pytest.approx(0.5, abs=0.01)
    pairs = (index[target == 1][:, :2] - 50).tolist()
    counts = np.array([pairs.count([a, b]) for a in range(3) for b in range(3) if a != b])
    assert counts.min() / counts.sum() == pytest.approx(1 / 6, abs=0.01)


def test_the_loss_of_a_set():
    z, y = torch.randn(5, 4, 3, dtype=DOUBLE), torch.tensor([0, 1, 2, 0, 1])
    summed = z.numpy().sum(1)
    want = np.log(np.exp(summed).sum(1)) - summed[np.arange(5), y.numpy()]
    np.testing.assert_allclose(odd_k_out_rows(z, y).numpy(), want)
    torch.testing.assert_close(odd_k_out_rows(z[:, torch.tensor([2, 0, 3, 1])], y), odd_k_out_rows(z, y))
    assert gradcheck(lambda z: odd_k_out_rows(z, y, "alpha:1.5"), (z.requires_grad_(),))
    assert bool(odd_k_out_rows(torch.full((1, 3, 2), 1e9), torch.tensor([1])).isfinite().all())


# rich features


def test_discovery():
    l = torch.randn(8, dtype=DOUBLE, requires_grad=True)
    right = torch.rand(3, 8) < 0.6
    want = max(float(l.detach()[m].mean()) for r in right for m in (r, ~r) if m.any())
    assert float(discovery_risk(l, right).detach()) == pytest.approx(want)
    assert float(discovery_risk(l, right[:0]).detach()) == pytest.approx(float(l.detach().mean()))
    # a network that has everything right leaves one group
    assert float(discovery_risk(l, torch.ones(1, 8, dtype=torch.bool)).detach()) == pytest.approx(
        float(l.detach().mean())
    )
    assert gradcheck(lambda l: discovery_risk(l, right), (l,))


def test_synthesis():
    t, s = torch.randn(2, 5, 3, dtype=DOUBLE), torch.randn(2, 5, 3, dtype=DOUBLE, requires_grad=True)
    p, q = t.softmax(-1), s.softmax(-1)
    torch.testing.assert_close(synthesis_risk(t, s), (p * (p / q).log()).sum(-1).mean())
    assert synthesis_risk(t.requires_grad_(), s.detach()).requires_grad is False


# category discovery


def test_local_entropy():
    z = 4 * torch.randn(20, 5, dtype=DOUBLE)
    chosen = likely_known(z, 3, 0.6)
    p = z.softmax(-1)
    assert chosen.tolist() == [bool(r.argmax() < 3 and r.max() > 0.6) for r in p]
    assert 0 < int(chosen.sum()) < 20
    q = p[chosen][:, :3]
    mean = (q / q.sum(1, keepdim=True)).mean(0)
    assert float(local_entropy(z, 3, threshold=0.6)) == pytest.approx(float((mean * mean.log()).sum()))
    assert gradcheck(lambda z: local_entropy(z, 3, threshold=0.6), (z.requires_grad_(),))


def test_local_entropy_is_least_where_known_classes_are_used_alike():
    sure = lambda classes: 20 * torch.nn.functional.one_hot(torch.tensor(classes), 4).double()
    assert float(local_entropy(sure([0, 1, 2, 0, 1, 2]), 3)) == pytest.approx(-math.log(3), abs=1e-6)
    assert float(local_entropy(sure([0, 0, 0]), 3)) == pytest.approx(0, abs=1e-6)
    none = torch.zeros(4, 3, requires_grad=True)
    out = local_entropy(none, 2)
    assert float(out.detach()) == 0
    assert float(torch.autograd.grad(out, none)[0].abs().max()) == 0


def test_views_agree_or_not():
    a, b = torch.randn(6, 4, dtype=DOUBLE), torch.randn(6, 4, dtype=DOUBLE)
    p, q = a.softmax(-1), b.softmax(-1)
    torch.testing.assert_close(dual_view_divergence(a, b), ((p - q) * (p / q).log()).sum(-1) / 2)
    torch.testing.assert_close(dual_view_divergence(a, b), dual_view_divergence(b, a))
    assert float(dual_view_divergence(a, a + 3.0).abs().max()) < 1e-15
    assert gradcheck(dual_view_divergence, (a.requires_grad_(), b.requires_grad_()))


# open world


def test_contrast_by_hand():
    x = torch.randn(7, 4, dtype=DOUBLE)
    y = torch.tensor([0, 0, 0, 0, 1, 1, 5])
    s = cosines(x, x) / 0.5
    rows = {}
    for i in range(6):
        others = [a for a in range(7) if a != i]
        log_sum = np.log(np.sum(np.exp(s[i, others])))
        partners = [j for j in others if y[j] == y[i]]
        rows.setdefault(int(y[i]), []).append(-np.mean([s[i, j] - log_sum for j in partners]))
    want = np.mean([np.mean(rows[0]), np.mean(rows[1])])
    assert float(balanced_contrast(x, y, temperature=0.5)) == pytest.approx(want)
    assert gradcheck(lambda x: balanced_contrast(x, y, temperature=0.5), (x.requires_grad_(),))
    assert gradgradcheck(lambda x: balanced_contrast(x, y, temperature=0.5), (x.requires_grad_(),))


@pytest.mark.parametrize("n", [1, 3])
def test_contrast_without_partners_is_zero(n):
    x = torch.randn(n, 4, requires_grad=True)
    out = balanced_contrast(x, torch.arange(n))
    assert float(out.detach()) == 0
    assert float(torch.autograd.grad(out, x)[0].abs().max()) == 0


def test_reliable_takes_of_every_class():
    z = torch.randn(200, 4, dtype=DOUBLE)
    z[:, 0] += 3  # nearly all are class 0, and sure
    chosen, guess = reliable(z, 0.25), z.argmax(1)
    p = z.softmax(-1).amax(1)
    for k in guess.unique():
        mine = guess == k
        assert int(chosen[mine].sum()) == max(1, round(0.25 * int(mine.sum())))
        if int((mine & ~chosen).sum()):
            assert float(p[mine & chosen].min()) >= float(p[mine & ~chosen].max())
    assert bool(reliable(z, 1.0).all())


def test_updates_are_as_rare_as_chance_on_the_source():
    made = torch.Generator().manual_seed(0)
    same = [0.8 + 0.1 * torch.randn(50, generator=made) for _ in range(400)]
    assert sum(needs_update(c, 0.8, 0.1) for c in same) <= 8
    assert all(needs_update(c - 0.1, 0.8, 0.1) for c in same)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cosine_logits(torch.zeros(2, 3), torch.zeros(2, 4), scale=1.0), r"prototypes: got \[2, 4\]"),
        (lambda: cosine_logits(torch.zeros(2, 3), torch.zeros(2, 3), scale=0.0), r"scale: got 0.0"),
        (lambda: cosine_logits(torch.zeros(0, 3), torch.zeros(2, 3), scale=1.0), r"features: got shape \[0, 3\]"),
        (lambda: lower_target(torch.zeros(2, 3), torch.tensor([0, 3]), 1.0), r"target: got a class outside \[0, 3\)"),
        (lambda: lower_target(torch.zeros(2, 3), torch.tensor([0, 1]), -1.0), r"by: got -1.0"),
        (lambda: class_prototypes(torch.zeros(2, 3), torch.tensor([0]), 2), r"target: got shape \[1\] for 2 rows"),
        (lambda: equiangular_basis(9, 3, bound=0.3), r"bound: got 0.3 for 9 vectors in 3 dimensions"),
        (lambda: equiangular_basis(9, 3, bound=1.0), r"bound: got 1"),
        (lambda: welch_bound(0, 3), r"got classes = 0"),
        (lambda: angles(torch.zeros(2, 3), torch.zeros(2, 4)), r"basis: got \[2, 4\]"),
        (lambda: TCM(positive=1.5), r"positive: got 1.5"),
        (lambda: TCM(negative_weight=-1.0), r"negative_weight: got -1.0"),
        (lambda: opis(torch.zeros(3, 2), torch.tensor([0, 0, 1]), torch.zeros(2)), r"got 1 classes with two samples"),
        (lambda: opis(torch.zeros(3, 2), torch.tensor([0, 0, 1]), torch.zeros(0)), r"thresholds: got shape \[0\]"),
        (lambda: UNPG(margin=3.0), r"margin: got 3.0"),
        (lambda: UNPG(whiskers=-1.0), r"whiskers: got -1.0"),
        (lambda: odd_k_out_sets(torch.tensor([0, 0]), -1, 3), r"got k = -1"),
        (lambda: odd_k_out_rows(torch.zeros(2, 1, 3), torch.tensor([0, 0])), r"logits: got shape \[2, 1, 3\]"),
        (lambda: discovery_risk(torch.zeros(3), torch.ones(2, 4, dtype=torch.bool)), r"got \[3\] and \[2, 4\]"),
        (lambda: synthesis_risk(torch.zeros(2, 3, 4), torch.zeros(1, 3, 4)), r"heads: got shape \[1, 3, 4\]"),
        (lambda: likely_known(torch.zeros(2, 3), 4, 0.5), r"known: got 4"),
        (lambda: local_entropy(torch.zeros(2, 3), 2, threshold=1.0), r"threshold: got 1.0"),
        (lambda: balanced_contrast(torch.zeros(2, 3), torch.tensor([0, 1]), temperature=0.0), r"temperature: got 0.0"),
        (lambda: reliable(torch.zeros(2, 3), 0.0), r"share: got 0.0"),
        (lambda: needs_update(torch.zeros(0), 0.5, 0.1), r"confidence: got shape \[0\]"),
        (lambda: needs_update(torch.zeros(2), 0.5, 0.0), r"source_deviation: got 0.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_dtypes():
    with pytest.raises(TypeError, match=r"features: got dtype torch.int64"):
        TCM()(torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"target: got dtype torch.float32"):
        TCM()(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(TypeError, match=r"right: got dtype torch.float32"):
        discovery_risk(torch.zeros(2), torch.zeros(1, 2))
