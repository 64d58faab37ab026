"""The regimes: what a head sees at initialisation, early and late in a real run, after fitting a text, and with flat logits."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fenchel
from fenchel.bench.sizes import Size
from fenchel.bench.trained import SNAPSHOTS, read, run_name

STD = 0.02
FLAT = 0.01
# Share of V in the support of alpha:1.5 in the wide regime.
WIDE = 0.08
# Regimes that have a second model.
WITH_TEACHER = ("initial", "early", "wide", "late")
# Regimes that need the real run, and the snapshot that each is made of.
TRAINED = {name: name for name in SNAPSHOTS} | {"wide": "early"}
# Rows that the support and the accuracy of a regime are measured on.
MEASURED = 256

# fmt: off
REGIMES = {
    "initial": "Hugging Face initialisation: normalised states times a weight of standard deviation 0.02",
    "early": "a real run, early: states, weight and labels of text that it has not seen",
    "wide": "early, its logits shrunk until alpha:1.5 has a support of 8 % of V, as runs with a small V have",
    "late": "the same run at its end, on the same text",
    "fitted": "the same run, then trained on four batches over and over: states, weight and labels of those",
    "flat": "logits of standard deviation 0.01, the worst case of a sparse head",
}
# fmt: on


@dataclass(frozen=True)
class Inputs:
    """What a path gets: a head, labels, and the head of a teacher (hidden `[N, D]`, weight `[V, D]`) where there is one."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    teacher: tuple[Tensor, Tensor] | None

    @property
    def taught(self) -> tuple[Tensor, Tensor]:
        """The teacher's head, in a regime that has one."""
        assert self.teacher is not None
        return self.teacher

    @cached_property
    def logits(self) -> Tensor:
        """The logits `[N, V]`, for functions of them."""
        return _leaf(self.hidden.detach() @ self.weight.detach().T)

    @cached_property
    def teacher_logits(self) -> Tensor:
        """The teacher's logits `[N, V]`, for functions of them."""
        return self.taught[0] @ self.taught[1].T

    def rows(self, n: int) -> "Inputs":
        """The first n rows."""
        teacher = None if self.teacher is None else (self.teacher[0][:n].clone(), self.teacher[1])
        return Inputs(_leaf(self.hidden[:n]), self.weight, self.labels[:n].clone(), teacher)

    def to(self, dtype: torch.dtype) -> "Inputs":
        """The same numbers in another dtype."""
        teacher = None if self.teacher is None else (self.teacher[0].to(dtype), self.teacher[1].to(dtype))
        return Inputs(_leaf(self.hidden.to(dtype)), _leaf(self.weight.to(dtype)), self.labels, teacher)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def inputs(name: str, size: Size, objective: str, cache: Path) -> Inputs:
    """The inputs of a regime in the dtype of the size, the same in every process; trained ones from the cache."""
    made = _inputs(name, size, objective, cache)
    return made if size.torch_dtype == made.hidden.dtype else made.to(size.torch_dtype)


def _inputs(name: str, size: Size, objective: str, cache: Path) -> Inputs:
    if name == "wide":
        early = _inputs("early", size, objective, cache)
        return replace(early, hidden=_leaf(early.hidden * _shrinking(early)))
    if name in SNAPSHOTS:
        directory = cache / run_name(size, objective)
        taken = read(directory / f"{name}.safetensors")
        # early and late saw the same text, so each is a teacher for the other
        other = {"early": "late", "late": "early"}.get(name)
        teacher = None
        if other is not None:
            head = read(directory / f"{other}.safetensors")
            teacher = (head.hidden.clone(), head.weight.clone())
        return Inputs(_leaf(taken.hidden), _leaf(taken.weight), taken.labels.clone(), teacher)
    made = torch.Generator().manual_seed(0)
    head, teacher = _made(size, made), _made(size, made)
    labels = torch.randint(size.v, (size.n,), generator=made)
    if name == "initial":
        return Inputs(_leaf(head[0]), _leaf(head[1]), labels, teacher)
    # normalised states times a weight of standard deviation s have logits of standard deviation s sqrt(D)
    return Inputs(_leaf(head[0]), _leaf(head[1] * (FLAT / STD / size.d**0.5)), labels, None)


def _shrinking(given: Inputs) -> float:
    """The factor on logits at which the support has the share WIDE, by bisection."""
    with torch.no_grad():
        logits = given.hidden[_some(given)] @ given.weight.T
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            share = float((fenchel.softargmax(middle * logits, "alpha:1.5") > 0).float().mean())
            low, high = (middle, high) if share > WIDE else (low, middle)
    return (low + high) / 2


def _some(given: Inputs) -> Tensor:
    """Rows, evenly spaced, that are measured."""
    return torch.linspace(0, len(given.hidden) - 1, min(MEASURED, len(given.hidden))).long()


def _made(size: Size, made: torch.Generator) -> tuple[Tensor, Tensor]:
    hidden = torch.randn(size.n, size.d, generator=made)
    hidden *= hidden.square().mean(-1, keepdim=True).rsqrt()
    return hidden, torch.randn(size.v, size.d, generator=made) * STD


def facts(name: str, size: Size, objective: str, cache: Path, generators: tuple[str, ...]) -> dict[str, Any]:
    """What a regime measures: classes, spread of the logits, accuracy, and each generator's mean share of V in the support."""
    given = inputs(name, size, objective, cache)
    rows = _some(given)
    with torch.no_grad():
        logits = given.hidden[rows].float() @ given.weight.float().T
        support = {g: float((fenchel.softargmax(logits, g) > 0).float().mean()) for g in generators}
        hit = (logits.argmax(-1) == given.labels[rows]).float().mean()
    of = TRAINED.get(name)
    run = None if of is None else read(cache / run_name(size, objective) / f"{of}.safetensors").facts
    return {
        "regime": name,
        "what": REGIMES[name],
        "n": len(given.hidden),
        "d": given.hidden.shape[1],
        "v": logits.shape[1],
        "dtype": size.dtype,
        "logit_std": float(logits.std(-1).mean()),
        "accuracy": float(hit),
        "support": support,
        "run": run,
    }
