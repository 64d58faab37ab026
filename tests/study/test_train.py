"""One run: its loss, its checkpoints, what stops it, and the memory and text that are measured at its end."""

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, PreTrainedModel, Trainer, TrainingArguments

from fenchel.integrations.losses import LabelLoss, batch_loss
from fenchel.study.data import IGNORED, TrainBlocks, fit_tokenizer
from fenchel.study.errors import StudyError, full_disk
from fenchel.study.memory import peak_bytes
from fenchel.study.model import ModelSource, build
from fenchel.study.sample import continuation
from fenchel.study.train import COMPLETE, HeadClock, Recipe, Step, StudyTrainer, Timed, last_checkpoint, train

RECIPE = Recipe(steps=8, batch_size=4, context=16, lr=3e-3)


def model(seed: int = 0) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=None,
    )
    return build(ModelSource(config), seed)


@pytest.fixture
def blocks() -> TrainBlocks:
    ids = np.random.default_rng(0).integers(0, 300, 2000).astype(np.int32)
    return TrainBlocks(ids, RECIPE.context, 0, RECIPE.steps * RECIPE.batch_size)


class Padded(torch.utils.data.Dataset):
    """Sequences whose ends are ignored, a different number of tokens in each."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(16) * (index + 3)) % 300
        labels = ids.clone()
        labels[16 - 3 * index :] = IGNORED
        return {"input_ids": ids, "labels": labels}


def one_step(directory: Path, make: Any, **more: Any) -> tuple[Any, PreTrainedModel]:
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
    )
    trained = model()
    trainer = make(model=trained, args=arguments, train_dataset=Padded(), **more)
    trainer.train()
    return trainer, trained


def test_fused_cross_entropy_is_the_stock_trainers_loss(tmp_path: Path) -> None:
    stock, stock_model = one_step(tmp_path, Trainer)
    ours, our_model = one_step(tmp_path, StudyTrainer, token_loss=LabelLoss(), clock=HeadClock())
    assert ours.state.log_history[0]["loss"] == pytest.approx(stock.state.log_history[0]["loss"], rel=1e-5)
    assert ours.state.log_history[0]["grad_norm"] == pytest.approx(stock.state.log_history[0]["grad_norm"], rel=1e-4)
    before = model().state_dict()
    for name, tensor in our_model.state_dict().items():
        moved, expected = tensor - before[name], stock_model.state_dict()[name] - before[name]
        # Adam's first step has the gradient's sign: only entries whose gradient is rounding may differ
        assert float((moved - expected).abs().gt(1e-4).double().mean()) < 0.01, name
        assert float(expected.abs().max()) > 5e-3


def test_head_clock_times_forward_and_backward(blocks: TrainBlocks) -> None:
    batch = {name: torch.stack([blocks[i][name] for i in range(4)]) for name in ("input_ids", "labels")}
    clock, net = HeadClock(), model()
    loss = batch_loss(Timed(LabelLoss(), clock), net, net, batch)
    forward = clock.seconds
    loss.backward()
    assert forward is not None
    assert clock.seconds is not None
    assert 0 < forward < clock.seconds < 30


def run(directory: Path, blocks: TrainBlocks, objective: str = "alpha:1.5", **more: Any) -> list[Step]:
    steps: list[Step] = []
    train(model(), blocks, RECIPE, LabelLoss(objective), 0, directory, steps.append, **more)
    return steps


def test_training_is_repeatable_and_resumes_with_the_same_losses(tmp_path: Path, blocks: TrainBlocks) -> None:
    whole = run(tmp_path / "a", blocks)
    assert [step.step for step in whole] == list(range(1, 9))
    assert whole[-1].loss < whole[0].loss
    assert all(step.seconds > (step.head_seconds or 0) > 0 for step in whole)
    assert last_checkpoint(tmp_path / "a") == (8, tmp_path / "a" / "checkpoint-8")
    earlier = tmp_path / "a" / "checkpoint-7"
    resumed = run(tmp_path / "a", blocks, resume=earlier)
    assert [(step.step, step.loss, step.lr) for step in resumed] == [(s.step, s.loss, s.lr) for s in whole[7:]]


def test_only_whole_checkpoints_count(tmp_path: Path, blocks: TrainBlocks) -> None:
    assert last_checkpoint(tmp_path) is None
    run(tmp_path, blocks)
    (tmp_path / "checkpoint-8" / COMPLETE).unlink()
    assert last_checkpoint(tmp_path) == (7, tmp_path / "checkpoint-7")


def test_objectives_see_the_same_batches_and_start_alike(tmp_path: Path, blocks: TrainBlocks) -> None:
    cross, sparse = (run(tmp_path / name.replace(":", "_"), blocks, name) for name in ("kl", "alpha:1.5"))
    assert cross[0].loss != sparse[0].loss
    assert [step.lr for step in cross] == [step.lr for step in sparse]
    assert cross[0].lr == 3e-3
    assert cross[-1].lr < 3e-4


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, blocks: TrainBlocks) -> None:
    net = model()
    # after the model was checked: the first step spoils the weights
    net.lm_head.weight.register_hook(lambda g: g * float("nan"))
    with pytest.raises(StudyError, match="the loss of kl became nan at step 2: pass a smaller --lr"):
        train(net, blocks, RECIPE, LabelLoss(), 0, tmp_path, lambda step: None, name="kl")
    assert last_checkpoint(tmp_path) == (1, tmp_path / "checkpoint-1")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("iostream error")])
def test_a_full_disk_is_said_in_one_line(
    tmp_path: Path, blocks: TrainBlocks, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", fail)
    total = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: total._replace(free=0))
    with pytest.raises(StudyError, match="no space left on the disk of"):
        run(tmp_path, blocks)
    assert last_checkpoint(tmp_path) is None


def test_other_failures_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="something else"), full_disk(tmp_path):
        raise RuntimeError("something else")
    with pytest.raises(PermissionError), full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "denied")


def test_peak_memory_of_a_dense_loss_is_logits_and_their_gradient() -> None:
    hidden, weight, target = torch.randn(64, 8), torch.randn(500, 8), torch.arange(64)
    logits = 64 * 500 * 4
    peak, method = peak_bytes(lambda h, w: F.cross_entropy(h @ w.T, target), hidden, weight)
    assert 2 * logits <= peak <= 4.2 * logits
    assert "torch profiler" in method
    small, _ = peak_bytes(lambda h, w: h.sum() + w.sum(), hidden, weight)
    assert small < 0.2 * logits


def test_continuation_is_drawn_from_the_sparse_distribution() -> None:
    net, tokenizer = model(), fit_tokenizer(["some text to read " * 9], 300)
    prompt = torch.tensor(tokenizer("some text")["input_ids"])
    favourite = tokenizer("x")["input_ids"][0]
    first = continuation(net, tokenizer, prompt, "kl", tokens=12)
    assert first == continuation(net, tokenizer, prompt, "kl", tokens=12)
    assert first["prompt"] == "some text"
    # a head whose input is constant gives the same logits everywhere: 3 for one token and 0 for the others
    with torch.no_grad():
        net.lm_head.weight.zero_()
    bias = torch.nn.Parameter(F.one_hot(torch.tensor(favourite), 300).float() * 3)
    net.lm_head.bias = bias
    assert continuation(net, tokenizer, prompt, "alpha:2", tokens=12)["text"] == "x" * 12
    assert continuation(net, tokenizer, prompt, "kl", tokens=12)["text"] != "x" * 12
