"""The Lightning module: the same losses as elsewhere, trained by Lightning's own loop."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

import fenchel
from fenchel.integrations.lightning import FenchelModule
from fenchel.integrations.losses import LabelLoss
from fenchel.objectives.distillation import DKD, distillation
from fenchel.objectives.supervised import CompSum

from .models import model, padded
from .steps import LENGTHS, assert_same, gradients, rows

# packages that Lightning loads, and a hint about data loaders of tiny sets
pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|pkg_resources|isinstance|torchmetrics).*")


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, 1.0)


def moved(directory: Path, module: FenchelModule, batch: dict[str, torch.Tensor], size: int) -> Any:
    before = {name: p.detach().clone() for name, p in module.model.named_parameters()}
    trainer = lightning.Trainer(
        max_epochs=1,
        accumulate_grad_batches=len(batch["input_ids"]) // size,
        accelerator="cpu",
        default_root_dir=directory,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(rows(batch), batch_size=size)
    trainer.fit(module, data, data)
    return {name: before[name] - p.detach() for name, p in module.model.named_parameters()}, trainer


def test_a_step_is_that_of_the_dense_loss_whole_or_accumulated(tmp_path: Path) -> None:
    batch, other = padded([12] * 8), model(spread=20.0)
    logits = other(input_ids=batch["input_ids"]).logits[:, :-1]
    expected, _ = gradients(other, fenchel.fenchel_young(logits, batch["labels"][:, 1:], "alpha:1.5"))
    for size in (8, 2):
        got, _ = moved(tmp_path, FenchelModule(model(spread=20.0), "alpha:1.5", sgd), batch, size)
        assert_same(got, expected)


def test_distillation_leaves_the_teacher_out_of_the_module(tmp_path: Path) -> None:
    batch, teacher, student = padded(LENGTHS), model("gemma2", 7, 20.0), model(spread=20.0)
    module = FenchelModule(student, "js", sgd, teacher=teacher)
    assert {name.partition(".")[0] for name in module.state_dict()} == {"model"}
    passed = {name: batch[name] for name in ("input_ids", "attention_mask")}
    other = model(spread=20.0)
    with torch.no_grad():
        t = teacher(**passed).logits[:, :-1]
    loss = distillation("js", t, other(**passed).logits[:, :-1], mask=batch["labels"][:, 1:] != -100)
    expected, value = gradients(other, loss)
    got, trainer = moved(tmp_path, module, batch, 8)
    assert_same(got, expected)
    assert trainer.callback_metrics["loss"].item() == pytest.approx(value, abs=1e-5)
    assert 0 < trainer.callback_metrics["val_loss"].item() < value
    student.save_pretrained(tmp_path / "saved")
    assert torch.equal(type(student).from_pretrained(tmp_path / "saved").lm_head.weight, student.lm_head.weight)


def test_what_would_be_ignored_is_refused() -> None:
    with pytest.raises(ValueError, match="got one without a teacher"):
        FenchelModule(model(), "kl", sgd, hard_weight=0.5)
    with pytest.raises(ValueError, match="has no operator or loss"):
        FenchelModule(model(), "tv", sgd)
    with pytest.raises(ValueError, match="vocabulary of 128, the student's has 90"):
        FenchelModule(model(), "kl", sgd, teacher=model(seed=7, vocab_size=128))


def test_objectives_of_labels_and_of_teachers_are_told_apart() -> None:
    assert FenchelModule(model(), CompSum(1.5), sgd).token_loss == LabelLoss(CompSum(1.5))
    with pytest.raises(ValueError, match="objective: got CompSum with a teacher; pass one of distillation"):
        FenchelModule(model(), CompSum(1.5), sgd, teacher=model())
    with pytest.raises(ValueError, match="objective: got DKD without a teacher; pass one, or a supervised objective"):
        FenchelModule(model(), DKD(), sgd)
