"""P019 learning to reject with a fixed predictor: a rejector of its own against a threshold on the predictor's confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fenchel.gallery.checks import Check, mean, paired, worst
from fenchel.gallery.figures import column, dots
from fenchel.gallery.paper import Measurements, Paper
from fenchel.gallery.students import fit, mlp, scaled, split
from fenchel.objectives.supervised import rejection_loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEARNT, REJECTOR, STEPS, COST = 200, 800, 400, 0.1
NAMES = ("answer always", "confidence above 1 - cost", "confidence, best threshold", "surrogate loss")


def run(seed: int, scale: float) -> Measurements:
    """A predictor of few digits, a rejector trained on others, and what each way to reject costs on the rest."""
    data, steps = split("digits", seed, train=LEARNT + REJECTOR), scaled(STEPS, scale)
    net = mlp((data.x.shape[1], 16, data.classes), seed)
    x, y = data.x[:LEARNT], data.y[:LEARNT]
    fit(net.parameters(), lambda i: nn.functional.cross_entropy(net(x[i]), y[i]), LEARNT, steps=steps, seed=seed)
    net.requires_grad_(False)

    def seen(x: Tensor) -> Tensor:
        """What the rejector sees: the sorted log-probabilities of the predictor, and its hidden layer."""
        return torch.cat((net(x).log_softmax(-1).sort(-1).values[:, -4:], net[:2](x)), 1)

    own, wrong = data.x[LEARNT:], net(data.x[LEARNT:]).argmax(-1) != data.y[LEARNT:]
    rejector = mlp((4 + 16, 16, 1), seed + 500)
    features = seen(own)
    centre, width = features.mean(0), features.std(0).clamp_min(1e-6)

    def score(features: Tensor) -> Tensor:
        return rejector((features - centre) / width).squeeze(-1)

    fit(
        rejector.parameters(),
        lambda i: rejection_loss(score(features[i]), wrong[i], COST).mean(),
        REJECTOR,
        steps=steps,
        seed=seed,
    )
    rejector.requires_grad_(False)
    sure, sure_test = (net(x).softmax(-1).amax(-1) for x in (own, data.x_test))
    wrong_test = net(data.x_test).argmax(-1) != data.y_test
    # the threshold that would have cost least where the rejector was trained
    tried = torch.cat((torch.zeros(1), sure.sort().values))
    best = min(tried.tolist(), key=lambda t: cost(sure > t, wrong)["cost"])
    answers = {
        "answer always": torch.ones_like(wrong_test),
        "confidence above 1 - cost": sure_test > 1 - COST,
        "confidence, best threshold": sure_test > best,
        "surrogate loss": score(seen(data.x_test)) > 0,
    }
    return {"methods": {name: cost(answers[name], wrong_test) for name in NAMES}, **theory()}


def cost(answer: Tensor, wrong: Tensor) -> dict[str, float]:
    """Mean of 1 for a wrong answer and COST for none; the share that is answered, and the share of these that is wrong."""
    return {
        "cost": float((answer & wrong).double().mean() + COST * (~answer).double().mean()),
        "coverage": float(answer.double().mean()),
        "error": float((answer & wrong).sum() / answer.sum().clamp_min(1)),
    }


def theory() -> dict[str, float]:
    """On a grid of error rates: rejections of the minimiser that are not Bayes's, and the excess of regret over its bound."""
    eta = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    eta = eta[(eta - COST).abs() > 1e-9]
    yes, no = torch.ones(len(eta), dtype=torch.bool), torch.zeros(len(eta), dtype=torch.bool)

    def risk(s: Tensor) -> Tensor:
        return eta * rejection_loss(s, yes, COST) + (1 - eta) * rejection_loss(s, no, COST)

    s = torch.zeros_like(eta).requires_grad_()
    for _ in range(50):
        (slope,) = torch.autograd.grad(risk(s).sum(), s, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), s)
        s = (s - slope / curve).detach().requires_grad_()
    s = s.detach()
    excess = []
    for score in torch.linspace(-3, 3, 61, dtype=torch.float64):
        at = score.expand_as(eta)
        regret = torch.where(at > 0, eta, COST) - eta.clamp_max(COST)
        excess.append(float((regret - 2 * (risk(at) - risk(s)).clamp_min(0).sqrt()).max()))
    return {"wrong side": float(((s > 0) != (eta < COST)).double().mean()), "excess": max(0.0, *excess)}


def judge(measured: Sequence[Measurements]) -> list[Check]:
    """The guarantee, then what it is worth."""

    def of(name: str, key: str = "cost") -> list[float]:
        return column(measured, "methods", name, key)

    ours = NAMES[-1]
    return [
        worst(
            "share of error rates at which the minimiser rejects where Bayes answers, or the other way",
            column(measured, "wrong side"),
            less_than=1e-9,
        ),
        worst(
            "regret of rejecting above twice the root of the surrogate's regret, any score",
            column(measured, "excess"),
            less_than=1e-9,
        ),
        paired("mean cost: surrogate loss less answering always", of(ours), of("answer always"), less_than=0.0),
        paired(
            "mean cost: surrogate loss less confidence above 1 - cost",
            of(ours),
            of("confidence above 1 - cost"),
            less_than=0.0,
        ),
        paired(
            "mean cost: surrogate loss less the best threshold on confidence",
            of(ours),
            of("confidence, best threshold"),
            less_than=0.0,
        ),
        mean(
            "error of what is answered, over the predictor's",
            [a / b for a, b in zip(of(ours, "error"), of("answer always", "error"), strict=True)],
            less_than=0.5,
        ),
        mean("share that is answered", of(ours, "coverage"), more_than=0.5),
    ]


def draw(figure: Figure, measured: Sequence[Measurements]) -> None:
    """Cost, and what it is made of."""
    panels = {"cost": "mean cost", "coverage": "answered", "error": "wrong, of those answered"}
    for axes, (key, label) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        groups = {name: column(measured, "methods", name, key) for name in NAMES}
        dots(axes, groups, label=label, percent=key != "cost")


PAPER = Paper(
    id="P019",
    title="Learning to Reject with a Fixed Predictor: Application to Decontextualization",
    source="arXiv 2301.09044",
    claim="For a predictor that is fixed, a rejector trained on a surrogate loss with a consistency guarantee answers more at half the "
    "error than thresholds on confidence do.",
    setup="Digits. A predictor with 16 hidden units trained on 200; a rejector with 16 hidden units, trained on where the predictor errs on "
    "800 others, sees its four largest log-probabilities and its hidden layer. A wrong answer costs 1, none 0.1. Against: the "
    "predictor's confidence above 0.9, and above the threshold that costs least on the rejector's training digits. The guarantee on a "
    "grid of error rates and scores.",
    objectives=("rejection_loss",),
    run=run,
    judge=judge,
    draw=draw,
    seeds=10,
    notes="The exponential surrogate is derived from the abstract, and so is the bound: |eta - cost| <= 2 sqrt(regret of the surrogate). "
    "The paper's task is text. Nothing was tuned.",
    size=(9.0, 2.4),
)

if __name__ == "__main__":
    from fenchel.gallery.command import main

    main(PAPER)
