"""What a model predicts with: the probabilities that a loss is -log p_y of, or those of an operator, in a vocabulary of any size."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import fenchel
from fenchel.objectives.supervised import (
    ShareObjective,
    Sum,
    predictions,
    supervised,
    supervised_names,
    supervised_objective,
)
from fenchel.objectives.supervised.objective import DISTRIBUTION
from fenchel.objectives.supervised.predictions import predictor, ranking, said_of
from fenchel.objectives.supervised.shares import share_loss

SHARES = ("spherical:0.1", "taylor", "stablemax")


def logits(n: int = 6, v: int = 7, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, v, generator=made, dtype=torch.float64)


def of_the_loss(z: Tensor, name: str) -> Tensor:
    """exp(-L(z, e_j)) for every class j: what L is the negative logarithm of."""
    n, v = z.shape
    each = [supervised(z, torch.full((n,), j), name, reduction="none") for j in range(v)]
    return torch.stack(each, 1).neg().exp()


@pytest.mark.parametrize("name", [*SHARES, "2*stablemax", "kl", "cross_entropy"])
def test_the_loss_is_the_logarithm_of_the_predictions(name):
    z = logits()
    z[1, 2:4] = -math.inf
    z[2, 1:] = -math.inf
    p = predictions(z, name)
    torch.testing.assert_close(p, of_the_loss(z, name.removeprefix("2*")), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(p.sum(1), torch.ones(len(z), dtype=p.dtype))
    assert (p[1, 2:4] == 0).all()
    assert p[2].tolist() == [1.0] + [0.0] * 6


@pytest.mark.parametrize("name", SHARES)
def test_the_reference_measure_moves_the_logits(name):
    z, q = logits(), torch.rand(7, dtype=torch.float64) + 0.1
    torch.testing.assert_close(predictions(z, name, q=q), of_the_loss(z + q.log(), name), rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="q: got a class that is not positive"):
        predictions(z, name, q=torch.tensor([0.0] + [1.0] * 6, dtype=torch.float64))


@pytest.mark.parametrize("name", SHARES)
def test_a_large_vocabulary_is_a_few_tensors_of_the_size_of_the_logits(name):
    # one row of [V, V] would be 4 GiB
    z = logits(3, 32_768).float()
    p = predictions(z, name)
    torch.testing.assert_close(p.sum(1), torch.ones(3), rtol=1e-5, atol=0)
    y = torch.tensor([0, 5, 32_767])
    want = supervised(z.double(), y, name, reduction="none").neg().exp()
    torch.testing.assert_close(p[range(3), y].double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [*SHARES, "alpha:1.5", "gce:0.7"])
def test_extreme_logits(name):
    z = torch.tensor([[1e9, 0.0, -1e9], [0.0, 0.0, 0.0], [-1e9, -math.inf, 2.0]])
    p = predictions(z, name)
    torch.testing.assert_close(p.sum(1), torch.ones(3))
    assert p[2, 1] == 0
    assert predictions(torch.full((2, 3), math.nan), name).isnan().all()
    assert predictions(torch.zeros(2, 1), name).tolist() == [[1.0], [1.0]]
    assert predictions(torch.zeros(0, 4), name).shape == (0, 4)


@pytest.mark.parametrize("name", SHARES)
def test_half_precision_is_computed_in_float32(name):
    z = logits().bfloat16()
    p = predictions(z, name)
    assert p.dtype == torch.bfloat16
    assert torch.equal(p, predictions(z.float(), name).bfloat16())


@pytest.mark.parametrize("name", [*SHARES, "alpha:1.5", "mae"])
def test_ranks_follow_the_probabilities_and_have_no_ties_at_zero(name):
    z = logits()
    order = ranking(z, predictor(supervised_objective(name)))
    p = predictions(z, name)
    higher = p.unsqueeze(2) > p.unsqueeze(1)
    assert (order.unsqueeze(2) > order.unsqueeze(1))[higher].all()
    assert all(len(set(row.tolist())) == 7 for row in order)


def test_every_objective_states_what_it_predicts_with():
    operators = {
        name: said_of(predictor(supervised_objective(name))) for name in supervised_names() if name not in NONE
    }
    own = {name for name, said in operators.items() if said.startswith("the shares of")}
    assert own == {name for name in operators if isinstance(supervised_objective(name), ShareObjective)}
    assert own == {"spherical", "taylor", "stablemax"}
    assert {name for name, said in operators.items() if said.startswith("softargmax")} == GENERATORS
    assert operators["dft"] == operators["kl"] == "softmax"


# families are named by a member; a divergence without an operator trains nothing
NONE = {"alpha:A", "js:BETA", "tv"}
GENERATORS = set(fenchel.generator_names()) - NONE - {"kl"}


@dataclass(frozen=True)
class Softplus:
    """Shares of softplus(z)."""

    takes = DISTRIBUTION

    def score(self, logits: Tensor) -> Tensor:
        return torch.nn.functional.softplus(logits)

    def rows(self, logits: Tensor, target: Tensor) -> Tensor:
        return share_loss(self.score, logits, target)


def test_an_objective_of_ones_own_predicts_with_its_shares():
    z = logits()
    s = (1 + z.exp()).log()
    torch.testing.assert_close(predictions(z, Softplus()), s / s.sum(1, keepdim=True))
    y = torch.arange(6)
    want = -(s[range(6), y] / s.sum(1)).log()
    torch.testing.assert_close(supervised(z, y, Softplus(), reduction="none"), want)
    with pytest.raises(ValueError, match=r"predict with the shares of Softplus\(\) and softmax"):
        predictions(z, Sum(((1.0, Softplus()), (1.0, supervised_objective("mae")))))
