"""Distillation by Trainer: equal to the dense loss for every pair of heads, and refused where it would be something else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fenchel.integrations.distillation import DistillationTrainer, LiveTeacher, check_tokenizers
from fenchel.objectives.distillation import distillation
from fenchel.study.data import fit_tokenizer

from .models import HEADS, model, padded
from .steps import LENGTHS, arguments, assert_same, flattened, gradients, rows, step

OBJECTIVES = ("reverse_kl", "js:0.3", "tv", "kl:temperature=2,factor=4", "dkd:alpha=1,beta=2")


def teacher_of(kind: str = "llama", **more: Any) -> Any:
    return model(kind, seed=7, spread=20.0 / HEADS[kind][2], **{"hidden_size": 24, "num_hidden_layers": 2, **more})


def student_of(kind: str = "llama", **more: Any) -> Any:
    return model(kind, spread=20.0 / HEADS[kind][2], **more)


def dense(teacher: Any, student: Any, batch: dict[str, Tensor], objective: str, v: int | None = None) -> Tensor:
    """The loss from both models' own logits."""
    passed = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        t = teacher.eval()(**passed).logits[:, :-1, :v]
    s, y = student(**passed).logits[:, :-1, :v], batch["labels"][:, 1:]
    target = y.clamp_min(0) if objective.startswith("dkd") else None
    return distillation(objective, t, s, target, mask=y != -100)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_is_that_of_the_dense_loss(tmp_path: Path, objective: str) -> None:
    batch, teacher = padded(LENGTHS), teacher_of()
    trainer = DistillationTrainer(
        student_of(), arguments(tmp_path), teacher=teacher, objective=objective, train_dataset=rows(batch)
    )
    moved, loss = step(trainer)
    other = student_of()
    expected, value = gradients(other, dense(teacher, other, batch, objective))
    assert_same(moved, expected, 2e-6)
    assert loss == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(("theirs", "ours"), [("gemma2", "cohere"), ("granite", "gemma2"), ("phi", "llama")])
def test_heads_of_both_models_are_computed_as_the_models_do(tmp_path: Path, theirs: str, ours: str) -> None:
    batch, teacher, student = padded(LENGTHS[:4]), teacher_of(theirs), student_of(ours)
    trainer = DistillationTrainer(student, arguments(tmp_path), teacher=teacher, objective="js")
    value = dense(teacher, student, batch, "js").item()
    assert value > 0.01
    assert trainer.compute_loss(student, batch).item() == pytest.approx(value, abs=1e-5)


def test_accumulated_gradients_are_those_of_one_big_batch(tmp_path: Path) -> None:
    batch, teacher = padded(LENGTHS), teacher_of()

    def moved(**more: Any) -> dict[str, Tensor]:
        args = arguments(tmp_path, **more)
        data = rows(batch)
        return step(DistillationTrainer(student_of(), args, teacher=teacher, objective="kl", train_dataset=data))[0]

    assert_same(moved(per_device_train_batch_size=1, gradient_accumulation_steps=8), moved())


def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient(tmp_path: Path) -> None:
    batch, student = padded(LENGTHS), student_of()
    trainer = DistillationTrainer(student, arguments(tmp_path), teacher=student_of(), objective="kl")
    loss = trainer.compute_loss(student, batch)
    loss.backward()
    assert loss.item() == 0
    assert all(float(p.grad.abs().max()) == 0 for p in student.parameters())


def test_batches_without_padding_or_without_a_token(tmp_path: Path) -> None:
    batch, student = padded([12, 5, 9, 3]), student_of()
    trainer = DistillationTrainer(student, arguments(tmp_path), teacher=teacher_of(), objective="js")
    whole = trainer.compute_loss(student, batch).item()
    assert trainer.compute_loss(student, flattened(batch)).item() == pytest.approx(whole, abs=1e-6)
    nothing = trainer.compute_loss(student, padded([1, 1]))
    nothing.backward()
    assert nothing.item() == 0


def test_padded_vocabularies_are_compared_where_they_agree(tmp_path: Path) -> None:
    batch, teacher, student = padded(LENGTHS), teacher_of(vocab_size=128), student_of()
    with pytest.raises(
        ValueError, match=r"teacher: got a vocabulary of 128, the student's has 90; .* pass vocabulary ="
    ):
        DistillationTrainer(student, arguments(tmp_path), teacher=teacher, objective="kl")
    trainer = DistillationTrainer(student, arguments(tmp_path), teacher=teacher, objective="kl", vocabulary=90)
    value = dense(teacher, student, batch, "kl", 90).item()
    assert trainer.compute_loss(student, batch).item() == pytest.approx(value, abs=1e-5)
    with pytest.raises(ValueError, match="vocabulary: got 91; pass 1 to 90"):
        DistillationTrainer(student, arguments(tmp_path), teacher=teacher, objective="kl", vocabulary=91)


def test_labels_have_the_weight_they_are_given(tmp_path: Path) -> None:
    batch, teacher, student = padded(LENGTHS), teacher_of(), student_of()

    def loss(**more: Any) -> float:
        args = arguments(tmp_path, label_smoothing_factor=more.pop("smoothing", 0.0))
        return (
            DistillationTrainer(student, args, teacher=teacher, objective="kl", **more)
            .compute_loss(student, batch)
            .item()
        )

    logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].flatten(0, 1)
    hard = F.cross_entropy(logits, batch["labels"][:, 1:].flatten()).item()
    assert loss(hard_weight=0.3) == pytest.approx(loss() + 0.3 * hard, abs=1e-5)
    smooth = F.cross_entropy(logits, batch["labels"][:, 1:].flatten(), label_smoothing=0.1).item()
    # a Fenchel-Young loss is zero at its target: the entropy of smoothed labels is taken off
    target = torch.tensor([0.9 + 0.1 / 90, *[0.1 / 90] * 89])
    smooth += float((target * target.log()).sum())
    assert loss(hard_weight=0.3, smoothing=0.1) == pytest.approx(loss() + 0.3 * smooth, abs=1e-5)
    with pytest.raises(ValueError, match="label_smoothing: got 0.1, but no label has a weight"):
        loss(smoothing=0.1)
    with pytest.raises(ValueError, match="hard_weight: got -1"):
        loss(hard_weight=-1.0)


def test_the_teacher_is_a_constant_and_stays_out_of_checkpoints(tmp_path: Path) -> None:
    batch, student = padded(LENGTHS), student_of()
    teacher = teacher_of(attention_dropout=0.9).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    trainer = DistillationTrainer(
        student, arguments(tmp_path), teacher=teacher, objective="kl", train_dataset=rows(batch)
    )
    assert trainer.compute_loss(student, batch).item() == trainer.compute_loss(student, batch).item()  # no dropout
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    again, info = type(student).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert torch.equal(again.lm_head.weight, student.lm_head.weight)
    assert not any(info.values())


def test_tokenisers_that_differ_are_refused(tmp_path: Path) -> None:
    one, other = fit_tokenizer(["some text " * 9], 270), fit_tokenizer(["other words " * 9], 270)
    check_tokenizers(one, one)
    with pytest.raises(ValueError, match=r"differ \(265 and 267 entries; 'ds' is absent and 257\)"):
        check_tokenizers(one, other)
    with pytest.raises(ValueError, match="the tokenisers of teacher and student differ"):
        DistillationTrainer(
            student_of(vocab_size=300),
            arguments(tmp_path),
            teacher=teacher_of(vocab_size=300),
            objective="kl",
            processing_class=one,
            teacher_tokenizer=other,
        )
    with pytest.raises(ValueError, match=r"vocabulary: got 100, but the tokeniser has \d+ entries"):
        DistillationTrainer(
            student_of(vocab_size=300),
            arguments(tmp_path),
            teacher=teacher_of(vocab_size=320),
            objective="kl",
            vocabulary=100,
            processing_class=one,
        )


def test_what_cannot_teach_is_refused(tmp_path: Path) -> None:
    student, args = student_of(), arguments(tmp_path)
    with pytest.raises(ValueError, match="teacher: got the student itself"):
        DistillationTrainer(student, args, teacher=student, objective="kl")
    with pytest.raises(ValueError, match="teacher: got the student itself"):
        DistillationTrainer(student, args, teacher=LiveTeacher(student), objective="kl")
    with pytest.raises(ValueError, match=r"objective: got 'none'; known: kl"):
        DistillationTrainer(student, args, teacher=teacher_of(), objective="none")
    damaged = teacher_of()
    with torch.no_grad():
        damaged.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="teacher: model of type llama has hidden states that are not finite"):
        DistillationTrainer(student, args, teacher=damaged, objective="kl")
