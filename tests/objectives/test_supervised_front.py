"""The two doors of supervised objectives: generators, half precision, an objective that one file adds, and what is refused."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from supervised_inputs import N, V, both, classes, head, logits, sets, soft
from two_models import same

from fenchel import fenchel_young, linear_fenchel_young
from fenchel.objectives.names import makers
from fenchel.objectives.supervised import CompSum, linear_supervised, supervised, supervised_names


def test_generators_go_the_way_of_fenchel_young():
    h, w, b = head()
    for name in ("kl", "alpha:1.5", "js:0.3"):
        torch.testing.assert_close(
            linear_supervised(h, w, classes(), name, bias=b, label_smoothing=0.1),
            linear_fenchel_young(h, w, classes(), name, bias=b, label_smoothing=0.1),
            rtol=0,
            atol=0,
        )
        torch.testing.assert_close(
            supervised(logits(), soft(), name), fenchel_young(logits(), soft(), name), rtol=0, atol=0
        )
    fused, plain = both("alpha:1.5 + 0.1*logit_penalty + 2*fenchel_young:kl", classes(), reduction="none")
    same(fused, plain, head(), torch.randn(N, dtype=torch.float64))


def test_half_precision_is_computed_in_single():
    h, w, _ = (x.detach().bfloat16() for x in head())
    got = linear_supervised(h, w, classes(), "gce:0.7")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, supervised(h.float() @ w.float().T, classes(), "gce:0.7"))
    assert supervised(logits().bfloat16(), classes(), "gce:0.7").dtype == torch.bfloat16


def test_one_file_adds_an_objective(tmp_path, monkeypatch):
    """A name, both doors and a row of the page; and the laws ask for it, in `test_every_objective_of_the_folder_is_here`."""
    (tmp_path / "brier.py").write_text(BRIER)
    folder = importlib.import_module("fenchel.objectives.supervised")
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    makers.cache_clear()
    try:
        assert "brier" in supervised_names()
        h, w, b = head()
        p = torch.softmax(h @ w.T + b, -1)
        want = (p - torch.eye(V).double()[classes()]).square().sum(1).mean()
        torch.testing.assert_close(supervised(h @ w.T + b, classes(), "brier"), want)
        torch.testing.assert_close(linear_supervised(h, w, classes(), "brier + 0.5*brier:2", bias=b), 2 * want)
        docs = importlib.util.spec_from_file_location("build_api", Path(__file__).parents[2] / "docs" / "build_api.py")
        build_api = importlib.util.module_from_spec(docs)
        sys.modules["build_api"] = build_api
        docs.loader.exec_module(build_api)
        row = next(line for line in build_api.supervised_names_page() if line.startswith("| `brier"))
        assert "sum_j (p_j - y_j)^2" in row
        assert "Brier 1950" in row
    finally:
        del sys.modules["fenchel.objectives.supervised.brier"]
        sys.modules.pop("build_api", None)
        makers.cache_clear()


BRIER = '''
from dataclasses import dataclass

import torch

from fenchel.objectives.supervised.objective import DISTRIBUTION


@dataclass(frozen=True)
class Brier:
    """factor sum_j (p_j - y_j)^2.

    Source: Brier 1950.
    """

    factor: float = 1.0
    takes = DISTRIBUTION

    def rows(self, logits, target):
        return self.factor * (torch.softmax(logits, -1) - target).square().sum(-1)


OBJECTIVES = {"brier": Brier}
'''


# What is refused.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", r"objective: got 'nosuch'; known: .*gce"),
        ("gce:2", r"q: got 2; pass a number in \(0, 1\]"),
        ("gce:0", "q: got 0; pass a positive finite number"),
        ("comp_sum:-1", "tau: got -1; pass a finite number >= 0"),
        ("focal:gama=2", "objective 'focal:gama=2': .*parameters: gamma"),
        ("gce + nosuch", "objective: got 'nosuch'"),
        ("normalised:z_loss", "normalised: got ZLoss; pass a loss of the label's probability alone"),
        ("aul:1", "a: got 1; pass a number > 1"),
        ("f_divergence:reverse_kl", "infinite; pass one with finite f"),
        ("probability:1,0.5,0.5", "low: got 0.5 with high = 0.5"),
        ("tv", "has no operator or loss"),
    ],
)
def test_bad_names(name, message):
    with pytest.raises(ValueError, match=message):
        supervised(logits(), classes(), name)


def test_bad_targets():
    z = logits()
    with pytest.raises(ValueError, match=r"target: got class 19; pass classes in \[0, 19\)"):
        supervised(z, classes() + 1 + (classes() == classes().max()) * (V - 1 - classes().max()), "gce")
    with pytest.raises(ValueError, match="target: got probabilities, but LDR does not take them"):
        supervised(z, soft(), "ldr")
    with pytest.raises(ValueError, match="target: got sets of classes .bool., but CompSum does not take them"):
        supervised(z, sets(), "gce")
    with pytest.raises(ValueError, match="target: got a row without any class"):
        supervised(z, sets() & (torch.arange(N) != 2)[:, None], "candidates")
    assert bool(supervised(z, sets() & (torch.arange(N) != 2)[:, None], "binary").isfinite())
    with pytest.raises(ValueError, match="label_smoothing: got 0.1, but Margin takes no probabilities"):
        supervised(z, classes(), "margin", label_smoothing=0.1)
    with pytest.raises(ValueError, match="a row that sums to 2"):
        supervised(z, 2 * soft(), "gce")
    with pytest.raises(ValueError, match="q: got a class that is not positive"):
        supervised(z, classes(), "gce", q=torch.arange(V).double())
    with pytest.raises(ValueError, match="q: got shape"):
        supervised(z, classes(), "gce", q=torch.ones(3))
    with pytest.raises(ValueError, match="target: got sets of classes with class weights"):
        supervised(z, sets(), "candidates", weight=torch.ones(V, dtype=torch.float64))
    with pytest.raises(TypeError, match="objective: got .*; pass a name"):
        supervised(z, classes(), 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="objective: got .*; pass a name"):
        supervised(z, classes(), CompSum)  # pyright: ignore[reportArgumentType]
