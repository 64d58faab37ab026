"""`backend` and `accumulator` reach the heads from every front door, and are refused where there is no kernel."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fenchel import linear_distillation, linear_supervised
from fenchel.integrations.distillation import DistillationTrainer, LiveTeacher, TeacherLoss
from fenchel.integrations.lightning import FenchelModule
from fenchel.integrations.losses import LabelLoss
from fenchel.integrations.trainer import FenchelTrainer

from .models import model, padded
from .steps import arguments

H, W, Y = torch.randn(4, 3), torch.randn(6, 3), torch.tensor([1, 2, -100, 0])
PAIR = ((torch.randn(4, 2), torch.randn(6, 2)), (H, W))
BATCH = padded([5, 3], 6)


def teacher() -> Any:
    return model(seed=7, hidden_size=24)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the heads were asked for; they run torch's operations."""
    found: list[str] = []

    def chosen(backend: str, *_: Any) -> bool:
        found.append(backend)
        return False

    for head in ("young", "divergence", "logp"):
        monkeypatch.setattr(f"fenchel.head.{head}.chosen", chosen)
    return found


def test_functions_pass_it_on(asked: list[str]) -> None:
    for backend in ("auto", "torch", "triton"):
        linear_supervised(H, W, Y, "kl", backend=backend)
        linear_distillation("kl + 0.5*js", *PAIR, backend=backend)
    assert asked == [b for b in ("auto", "torch", "triton") for _ in range(3)]
    linear_supervised(H, W, Y, "kl + 0.5*gce", backend="torch")
    assert asked[9:] == ["torch"]


def test_no_accumulator_reaches_the_head() -> None:
    half = [x.bfloat16().requires_grad_() for x in (H, W)]
    grads = [
        torch.autograd.grad(linear_supervised(*half, Y, "js", accumulator=kept), half, allow_unused=True)[1]
        for kept in (True, False)
    ]
    torch.testing.assert_close(*grads, rtol=2**-7, atol=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fenchel.head.young.sweep", None)
        linear_supervised(*half, Y, "js", accumulator=False)
        with pytest.raises(TypeError, match="not callable"):
            linear_supervised(*half, Y, "js")


def test_trainers_pass_it_on(tmp_path: Path, asked: list[str]) -> None:
    taught = {"teacher": teacher(), "objective": "js", "hard_weight": 0.5}
    for kind, more, heads in ((FenchelTrainer, {}, 1), (DistillationTrainer, taught, 2)):
        trainer = kind(model(), arguments(tmp_path), backend="torch", **more)
        asked.clear()
        trainer.compute_loss(trainer.model, BATCH)
        assert asked == ["torch"] * heads


def test_modules_pass_it_on(asked: list[str]) -> None:
    sgd = lambda p: torch.optim.SGD(p, 0.1)
    for more in ({}, {"teacher": teacher()}):
        module = FenchelModule(model(), "js", sgd, backend="torch", **more)
        asked.clear()
        module.loss(BATCH)
        assert asked == ["torch"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
def test_a_triton_kernel_gives_the_same_number(tmp_path: Path) -> None:
    """Run by the interpreter."""
    losses = []
    for backend in ("torch", "triton"):
        trainer = FenchelTrainer(model(spread=20.0), arguments(tmp_path), objective="alpha:1.5", backend=backend)
        losses.append(trainer.compute_loss(trainer.model, BATCH).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


NO_KERNEL = r"backend: got 'triton', which only the losses of generators have, not \w+; pass backend='auto'"
NO_PAIR = r"backend: got 'triton', which only divergences and their mixtures have, not \w+; pass backend='auto'"


def test_what_has_no_kernel_is_refused(tmp_path: Path) -> None:
    for objective in ("gce:0.7", "kl + 0.5*gce"):
        with pytest.raises(ValueError, match=NO_KERNEL):
            linear_supervised(H, W, Y, objective, backend="triton")
        with pytest.raises(ValueError, match="accumulator: got False, which only the losses of generators"):
            linear_supervised(H, W, Y, objective, accumulator=False)
        with pytest.raises(ValueError, match=NO_KERNEL):
            LabelLoss(objective, backend="triton")
    with pytest.raises(ValueError, match=NO_PAIR):
        linear_distillation("dkd:alpha=1,beta=8", *PAIR, torch.tensor([0, 1, 2, 3]), backend="triton")
    with pytest.raises(ValueError, match=NO_PAIR):
        TeacherLoss(LiveTeacher(None, backend="triton"), "dkd:alpha=1,beta=8")
    with pytest.raises(ValueError, match=NO_PAIR):
        TeacherLoss(LiveTeacher(None, "alpha:1.5", "triton"), "js")
    live = LiveTeacher(teacher())
    with pytest.raises(ValueError, match="backend: got 'torch' with a teacher that is no model; pass LiveTeacher"):
        DistillationTrainer(model(), arguments(tmp_path), teacher=live, objective="js", backend="torch")
    for call in (
        lambda: linear_supervised(H, W, Y, "gce", backend="cuda"),
        lambda: linear_distillation("dkd", *PAIR, backend="cuda"),
        lambda: LabelLoss(backend="cuda"),
        lambda: DistillationTrainer(model(), arguments(tmp_path), teacher=teacher(), objective="js", backend="cuda"),
    ):
        with pytest.raises(ValueError, match="backend: got 'cuda'; pass one of 'auto', 'torch', 'triton'"):
            call()
