"""The metrics against float64 numpy oracles that know nothing of the package."""

import math

import numpy as np
import pytest
import torch

from fenchel.study import metrics
from fenchel.study.definitions import METRICS

LAMBDA = 0.01


def softmax(theta):
    e = np.exp(theta - theta.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sparsemax(theta):
    p = np.zeros_like(theta)
    for i, row in enumerate(theta):
        z = np.sort(row)[::-1]
        k = max(k for k in range(1, len(z) + 1) if 1 + k * z[k - 1] > z[:k].sum())
        p[i] = np.maximum(row - (z[:k].sum() - 1) / k, 0)
    return p


def oracle(theta, p, target, document):
    """`theta` ranks the classes."""
    n, vocab = theta.shape
    each = {"accuracy_1": [], "accuracy_5": [], "brier": [], "js_target": [], "log_eps_perplexity": []}
    hits, confidence = [], []
    for row, prob, y in zip(theta, p, target, strict=True):
        order = sorted(range(vocab), key=lambda j: (-row[j], j))
        one_hot = np.eye(vocab)[y]
        middle = (prob + one_hot) / 2
        kl = lambda a, b: sum(s * math.log(s / t) for s, t in zip(a, b, strict=True) if s > 0)
        eps = LAMBDA / ((1 - LAMBDA) * vocab)
        each["accuracy_1"].append(float(y == order[0]))
        each["accuracy_5"].append(float(y in order[:5]))
        each["brier"].append(((prob - one_hot) ** 2).sum())
        each["js_target"].append((kl(prob, middle) + kl(one_hot, middle)) / 2)
        each["log_eps_perplexity"].append(-math.log((prob[y] + eps) / (1 + eps * vocab)))
        hits.append(float(y == order[0]))
        confidence.append(prob.max())
    each["zero_target_share"] = [float(p[i, y] == 0) for i, y in enumerate(target)]
    each["support"] = [int((row > 0).sum()) for row in p]
    hits, confidence = np.array(hits), np.array(confidence)
    ece = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            ece += inside.sum() / n * abs(hits[inside].mean() - confidence[inside].mean())
    means = {name: float(np.mean(values)) for name, values in each.items()}
    by_document = {
        name: [float(np.mean(np.array(values)[document == d])) for d in range(document.max() + 1)]
        for name, values in each.items()
    }
    return means, by_document, ece


def problem(rows=200, width=6, vocab=23, seed=0, loud=2.0):
    draw = np.random.default_rng(seed)
    hidden, weight = draw.normal(size=(rows, width)), draw.normal(size=(vocab, width)) * loud
    target, document = draw.integers(0, vocab, rows), draw.integers(0, 4, rows)
    target[: rows // 3] = (hidden @ weight.T).argmax(-1)[: rows // 3]
    return hidden, weight, target, document


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(a)) for a in arrays]


def spherical(theta):
    s = theta**2 + 0.5
    return s / s.sum(-1, keepdims=True)


OPERATORS = [("kl", softmax), ("alpha:2", sparsemax), ("gce:0.7", softmax), ("focal + 0.1*log_partition", softmax)]


@pytest.mark.parametrize(("name", "operator"), [*OPERATORS, ("spherical:0.5", spherical)])
@pytest.mark.parametrize(("softcap", "scale"), [(None, 1.0), (3.0, 0.5)])
def test_equals_the_oracle(name, operator, softcap, scale):
    hidden, weight, target, document = problem()
    theta = scale * hidden @ weight.T
    theta = theta if softcap is None else softcap * np.tanh(theta / softcap)
    p = operator(theta)
    means, by_document, ece = oracle(p if operator is spherical else theta, p, target, document)
    got = metrics.evaluate(*tensors(hidden, weight, target, document), name, softcap=softcap, scale=scale)
    for key in ("accuracy_1", "accuracy_5", "brier", "js_target", "zero_target_share"):
        assert got.summary[key] == pytest.approx(means[key], rel=1e-9, abs=1e-12), key
    assert got.summary["eps_perplexity"] == pytest.approx(math.exp(means["log_eps_perplexity"]), rel=1e-9)
    assert got.summary["support_mean"] == pytest.approx(means["support"], rel=1e-12)
    assert got.summary["ece"] == pytest.approx(ece, rel=1e-9)
    for key, values in by_document.items():
        assert got.per_document[key] == pytest.approx(values, rel=1e-9, abs=1e-12), key
    assert got.per_document["tokens"] == np.bincount(document).tolist()
    assert sum(row["count"] for row in got.reliability) == len(target)
    if name == "alpha:2":
        assert 0 < got.summary["zero_target_share"] < 1
        assert 1 < got.summary["support_mean"] < weight.shape[0]


def test_every_compared_column_is_there_and_its_weighted_mean_is_the_summary():
    hidden, weight, target, document = problem()
    got = metrics.evaluate(*tensors(hidden, weight, target, document), "alpha:1.5")
    tokens = np.array(got.per_document["tokens"])
    for metric in METRICS:
        if not metric.columns:
            continue
        means = [float(np.average(got.per_document[c], weights=tokens)) for c in metric.columns]
        value = sum(map(abs, means)) if metric.link == "abs_sum" else means[0]
        value = math.exp(value) if metric.key == "eps_perplexity" else value
        assert got.summary[metric.key] == pytest.approx(value, rel=1e-9), metric.key


def test_impossible_target_costs_log_v_over_lambda():
    vocab = 8
    weight, hidden = torch.eye(vocab), torch.zeros(1, vocab)
    hidden[0, 3] = 50.0
    got = metrics.evaluate(hidden, weight, torch.tensor([0]), torch.tensor([0]), "alpha:2")
    assert got.summary["zero_target_share"] == 1.0
    assert got.summary["eps_perplexity"] == pytest.approx(vocab / LAMBDA, rel=1e-6)
    assert got.summary["eps_perplexity_mass_0.1"] == pytest.approx(vocab / 0.1, rel=1e-6)
    assert got.summary["brier"] == pytest.approx(2.0, rel=1e-6)
    assert got.summary["js_target"] == pytest.approx(math.log(2), rel=1e-6)


def test_perfect_prediction():
    got = metrics.evaluate(
        torch.eye(4) * 90, torch.eye(4), torch.arange(4), torch.zeros(4, dtype=torch.long), "alpha:1.5"
    )
    assert got.summary["eps_perplexity"] == pytest.approx(1 / (1 - LAMBDA + LAMBDA / 4), rel=1e-6)
    for key, value in {"accuracy_1": 1.0, "brier": 0.0, "ece": 0.0, "js_target": 0.0, "support_mean": 1.0}.items():
        assert got.summary[key] == pytest.approx(value, abs=1e-7), key


@pytest.mark.parametrize("name", ["kl", "alpha:1.5", "js"])
def test_tiles_change_nothing(name, monkeypatch):
    arrays = tensors(*problem(rows=57))
    whole = metrics.evaluate(*arrays, name)
    for rows in (1, 7, 56):
        monkeypatch.setattr(metrics, "TILE_BYTES", rows * arrays[1].shape[0] * 8)
        tiled = metrics.evaluate(*arrays, name)
        for key, value in whole.summary.items():
            assert tiled.summary[key] == pytest.approx(value, rel=1e-12, abs=1e-14), (key, rows)
        for key, values in whole.per_document.items():
            assert tiled.per_document[key] == pytest.approx(values, rel=1e-10, abs=1e-13), (key, rows)


def test_no_tile_is_larger_than_the_limit(monkeypatch):
    seen = []
    real = metrics.predictions
    monkeypatch.setattr(metrics, "TILE_BYTES", 1000)
    monkeypatch.setattr(
        metrics, "predictions", lambda z, *a, **k: seen.append(z.numel() * z.element_size()) or real(z, *a, **k)
    )
    metrics.evaluate(*tensors(*problem()), "kl")
    assert len(seen) > 1
    assert max(seen) <= 1000


def test_one_class():
    got = metrics.evaluate(torch.randn(5, 3), torch.randn(1, 3), torch.zeros(5).long(), torch.zeros(5).long(), "kl")
    expected = {
        "accuracy_1": 1.0,
        "accuracy_5": 1.0,
        "eps_perplexity": 1.0,
        "brier": 0.0,
        "ece": 0.0,
        "support_mean": 1.0,
    }
    for key, value in expected.items():
        assert got.summary[key] == pytest.approx(value, abs=1e-7), key


@pytest.mark.parametrize("name", ["kl", "alpha:1.5"])
def test_column_at_minus_infinity_is_never_predicted(name):
    draw = np.random.default_rng(3)
    hidden = np.abs(draw.normal(size=(40, 1))) + 0.1
    weight = draw.normal(size=(6, 1))
    target, document = draw.integers(0, 6, 40), np.zeros(40, dtype=int)
    kept = metrics.evaluate(*tensors(hidden, weight, target, document), name)
    widened = np.concatenate([weight, [[-math.inf]]])
    got = metrics.evaluate(*tensors(hidden, widened, target, document), name)
    for key in ("accuracy_1", "accuracy_5", "brier", "ece", "js_target", "support_mean"):
        assert got.summary[key] == pytest.approx(kept.summary[key], rel=1e-10, abs=1e-12), key
    outside = metrics.evaluate(*tensors(hidden[:, :1], widened[[0, 6]], np.ones(40, dtype=int), document), name)
    assert outside.summary["accuracy_5"] == 0.0
    assert outside.summary["zero_target_share"] == 1.0


def test_equal_logits_are_no_hit_for_everybody():
    target = torch.arange(20)
    got = metrics.evaluate(torch.zeros(20, 2), torch.randn(20, 2), target, torch.zeros(20).long(), "kl")
    assert got.summary["accuracy_1"] == 1 / 20
    assert got.summary["accuracy_5"] == 5 / 20


def test_nan_row_is_nan_in_its_document_only():
    hidden, weight, target, document = tensors(*problem(rows=30))
    document = torch.arange(30) // 10
    hidden[12] = math.nan
    got = metrics.evaluate(hidden, weight, target, document, "alpha:1.5")
    assert math.isnan(got.summary["accuracy_1"])
    assert math.isnan(got.summary["ece"])
    nans = [math.isnan(v) for v in got.per_document["accuracy_1"]]
    assert nans == [False, True, False]


def test_half_precision_is_measured_in_float32():
    hidden, weight, target, document = tensors(*problem())
    half = metrics.evaluate(hidden.bfloat16(), weight.bfloat16(), target, document, "alpha:1.5")
    same = metrics.evaluate(hidden.bfloat16().float(), weight.bfloat16().float(), target, document, "alpha:1.5")
    assert half == same


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.zeros(3, 9)}, ValueError, r"hidden \(4, 2\) and weight \(3, 9\)"),
        ({"target": torch.tensor([0, 1, 2])}, ValueError, r"target \(3,\)"),
        ({"target": torch.tensor([0, 1, 2, 3])}, ValueError, "targets from 0 to 3 for a vocabulary of 3"),
        ({"target": torch.tensor([0, 1, 2, -100])}, ValueError, "drop ignored rows first"),
        ({"target": torch.zeros(4)}, TypeError, "target of torch.float32"),
        ({"document": torch.tensor([0, 0, 0, -1])}, ValueError, "document id -1"),
        ({"objective": "no such"}, ValueError, "no such"),
        ({"objective": "alpha:1.5 + mae"}, ValueError, "predict with"),
        ({"softcap": 0.0}, ValueError, "softcap=0.0"),
        ({"scale": math.nan}, ValueError, "scale=nan"),
    ],
)
def test_bad_input_is_named(change, error, message):
    given = {
        "hidden": torch.zeros(4, 2),
        "weight": torch.zeros(3, 2),
        "target": torch.zeros(4).long(),
        "document": torch.zeros(4).long(),
        "objective": "kl",
    }
    with pytest.raises(error, match=message):
        metrics.evaluate(**(given | change))


def test_no_tokens_is_an_error():
    empty = torch.zeros(0).long()
    with pytest.raises(ValueError, match="no tokens"):
        metrics.evaluate(torch.zeros(0, 2), torch.zeros(3, 2), empty, empty, "kl")
