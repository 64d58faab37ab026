"""A teacher read from disk trains as the live one does, as far as its classes go."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fenchel.integrations.cached import CachedTeacher, block_rows, cache_of, check_cacheable, model_mark, write_cache
from fenchel.integrations.distillation import DistillationTrainer, LiveTeacher
from fenchel.objectives.distillation import distillation_objective
from fenchel.study.data import fit_tokenizer
from fenchel.teachers.cache import Cache, open_cache

from .models import HEADS, model, padded
from .steps import arguments, assert_same, gradients, rows, step

BLOCKS = torch.randint(90, (5, 12), generator=torch.Generator().manual_seed(1))


def teacher_of(kind: str = "llama", **more: Any) -> Any:
    return model(kind, seed=7, spread=20.0 / HEADS[kind][2], **{"hidden_size": 24, **more})


def cached(directory: Path, teacher: Any, k: int | None = 90, temperature: float = 1.0, generator: str = "kl") -> Cache:
    tokenizer = fit_tokenizer([], 257)
    spec = cache_of(teacher, tokenizer, BLOCKS, k, temperature=temperature, vocabulary=90, generator=generator)
    write_cache(directory / "cache", spec, teacher, BLOCKS, batch_size=2)
    return open_cache(directory / "cache", teacher=spec.teacher, data=spec.data, tokenizer=spec.tokenizer)


def batch(order: list[int], ignored: int = 0) -> dict[str, torch.Tensor]:
    labels = BLOCKS[order].clone()
    labels[0, :ignored] = -100
    return {
        "input_ids": BLOCKS[order],
        "labels": labels,
        "teacher_rows": torch.stack([block_rows(b, 12) for b in order]),
    }


@pytest.mark.parametrize(
    ("kind", "objective"),
    [("llama", "js + 0.5*reverse_kl"), ("llama", "skew_kl:0.1"), ("gemma2", "kl:temperature=2,factor=4")],
)
def test_with_all_classes_a_step_is_that_of_the_live_teacher(tmp_path: Path, kind: str, objective: str) -> None:
    teacher = teacher_of(kind)
    source = CachedTeacher(cached(tmp_path, teacher, temperature=2.0 if "temperature" in objective else 1.0))
    examples = batch([3, 0, 4], ignored=6)
    live = {name: tensor for name, tensor in examples.items() if name != "teacher_rows"}

    def moved(teacher: Any, data: Any) -> Any:
        args = arguments(tmp_path, per_device_train_batch_size=3)
        student = model("cohere", spread=200.0)
        return step(DistillationTrainer(student, args, teacher=teacher, objective=objective, train_dataset=rows(data)))

    (ours, loss), (theirs, value) = moved(source, examples), moved(teacher, live)
    # log-probabilities are kept in half precision
    assert loss == pytest.approx(value, rel=3e-3)
    assert_same(ours, theirs, 1e-2)


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("llama", "fenchel_young:alpha:1.5"),
        ("gemma2", "fenchel_young:alpha:2,factor=3"),
        ("llama", "kl + 0.5*kl:skew=0.1,first=student"),
    ],
)
def test_a_sparse_teachers_cache_is_the_teacher(tmp_path: Path, kind: str, objective: str) -> None:
    teacher, student = teacher_of(kind), model("cohere", spread=200.0)
    cache = cached(tmp_path, teacher, None, generator="alpha:1.5")
    assert cache.spec.k is None
    examples = batch([3, 0, 4], ignored=6)
    values, moved = [], []
    for source in (CachedTeacher(cache), LiveTeacher(teacher, "alpha:1.5")):
        trainer = DistillationTrainer(student, arguments(tmp_path), teacher=source, objective=objective)
        grads, value = gradients(student, trainer.compute_loss(student, examples))
        values.append(value)
        moved.append({name: g.clone() for name, g in grads.items()})
        student.zero_grad()
    # the positive probabilities are kept in half precision
    assert values[0] == pytest.approx(values[1], rel=3e-3)
    assert_same(moved[0], moved[1], 1e-2)
    # and not those of the softmax of the same logits
    plain = DistillationTrainer(student, arguments(tmp_path), teacher=teacher, objective=objective)
    assert abs(plain.compute_loss(student, examples).item() - values[1]) > 5e-3 * values[1]


def test_a_batch_without_a_token_has_no_loss_from_a_sparse_cache(tmp_path: Path) -> None:
    student, source = model(spread=20.0), CachedTeacher(cached(tmp_path, teacher_of(), None, generator="alpha:2"))
    for objective in ("fenchel_young:alpha:2", "js"):
        trainer = DistillationTrainer(student, arguments(tmp_path), teacher=source, objective=objective)
        nothing = trainer.compute_loss(student, batch([2], ignored=12))
        nothing.backward()
        assert nothing.item() == 0


def test_few_classes_give_a_smaller_loss_and_one_of_nothing_is_zero(tmp_path: Path) -> None:
    student, args = model(spread=20.0), arguments(tmp_path)
    values = []
    for k in (4, 30, 90):
        (tmp_path / str(k)).mkdir()
        source = CachedTeacher(cached(tmp_path / str(k), teacher_of(), k))
        trainer = DistillationTrainer(student, args, teacher=source, objective="kl")
        values.append(trainer.compute_loss(student, batch([0, 1, 2, 3, 4])).item())
        nothing = trainer.compute_loss(student, batch([2], ignored=12))
        nothing.backward()
        assert nothing.item() == 0
    assert 0 < values[0] < values[1] < values[2]


def test_objectives_that_a_cache_does_not_determine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="objective: DKD needs the teacher's whole distribution"):
        check_cacheable(distillation_objective("dkd"), 1.0)
    with pytest.raises(ValueError, match="objective: got temperature 1, the cache was made at 2"):
        check_cacheable(distillation_objective("js"), 2.0)
    young = distillation_objective("fenchel_young:alpha:2")
    with pytest.raises(ValueError, match="objective: FenchelYoung needs the teacher's whole distribution"):
        check_cacheable(young, 1.0)
    with pytest.raises(ValueError, match="objective: got temperature 1, the cache was made at 2"):
        check_cacheable(young, 2.0, sparse=True)
    with pytest.raises(ValueError, match="objective: Renyi is not evaluated on sparse rows"):
        check_cacheable(distillation_objective("renyi:2"), 1.0, sparse=True)
    for k, generator in ((4, "alpha:2"), (None, "kl")):
        with pytest.raises(ValueError, match=f"generator: got '{generator}' with k = {k}"):
            cached(tmp_path, teacher_of(), k, generator=generator)
    source = CachedTeacher(cached(tmp_path, teacher_of(), 4))
    with pytest.raises(ValueError, match="objective: DKD needs the teacher's whole"):
        DistillationTrainer(model(), arguments(tmp_path), teacher=source, objective="dkd")
    trainer = DistillationTrainer(model(), arguments(tmp_path), teacher=source, objective="kl")
    with pytest.raises(ValueError, match="the batch has no teacher_rows, only input_ids, attention_mask, labels"):
        trainer.compute_loss(trainer.model, padded([12, 4]))


def test_teachers_are_told_apart_by_what_they_say(tmp_path: Path) -> None:
    one = teacher_of()
    one.save_pretrained(tmp_path)
    assert model_mark(type(one).from_pretrained(tmp_path)) == model_mark(one)
    assert model_mark(teacher_of("gemma2")) != model_mark(teacher_of("gemma2", final_logit_softcapping=6.0))
    with torch.no_grad():
        one.lm_head.weight[0, 0] += 1e-3
    assert model_mark(type(one).from_pretrained(tmp_path)) != model_mark(one)


def test_a_killed_build_goes_on(tmp_path: Path) -> None:
    teacher, tokenizer = teacher_of(), fit_tokenizer([], 257)
    blocks = torch.randint(90, (3200, 12), generator=torch.Generator().manual_seed(2))
    spec = cache_of(teacher, tokenizer, blocks, 2, temperature=1.0, vocabulary=90)

    class Killed(Exception):
        pass

    def die(done: int) -> None:
        if done > 20000:
            raise Killed

    heard: list[int] = []
    with pytest.raises(Killed):
        write_cache(tmp_path / "cache", spec, teacher, blocks, batch_size=400, progress=die)
    write_cache(tmp_path / "cache", spec, teacher, blocks, batch_size=400, progress=heard.append)
    assert 16000 < heard[0] < 25000
    again = open_cache(tmp_path / "cache", teacher=spec.teacher, data=spec.data, tokenizer=spec.tokenizer)
    write_cache(tmp_path / "whole", spec, teacher, blocks, batch_size=400)
    whole = open_cache(tmp_path / "whole", teacher=None, data=None, tokenizer=None)
    assert torch.equal(again.buckets(slice(None)).indices, whole.buckets(slice(None)).indices)
