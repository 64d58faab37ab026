"""Trainer with a fused objective: the gradient is that of one big batch, and nothing that is passed is ignored."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

import fenchel
from fenchel.integrations.hooks import Head, NextStates, head_of
from fenchel.integrations.losses import LabelLoss
from fenchel.integrations.trainer import FenchelTrainer
from fenchel.objectives.supervised import CompSum

from .models import HEADS, model, padded
from .steps import LENGTHS, arguments, assert_same, flattened, gradients, rows, step


def gradient(directory: Path, batch: dict[str, Tensor], *, net: Any = None, objective: str = "alpha:1.5", **more: Any):
    net = model(spread=20.0) if net is None else net
    return step(FenchelTrainer(net, arguments(directory, **more), objective=objective, train_dataset=rows(batch)))


def dense_gradient(batch: dict[str, Tensor], objective: str = "alpha:1.5", net: Any = None, **more: Any):
    net = model(spread=20.0) if net is None else net
    logits = net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return gradients(net, fenchel.supervised(logits, batch["labels"][:, 1:], objective, **more))


@pytest.mark.parametrize("objective", ["kl", "alpha:1.5", "gce:0.7"])
def test_a_step_is_that_of_the_dense_loss(tmp_path: Path, objective: str) -> None:
    batch = padded(LENGTHS)
    moved, loss = gradient(tmp_path, batch, objective=objective)
    expected, value = dense_gradient(batch, objective)
    assert_same(moved, expected)
    assert loss == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("size", [1, 4])
def test_accumulated_gradients_are_those_of_one_big_batch(tmp_path: Path, size: int) -> None:
    # micro-batches of different numbers of tokens, one of them with none
    batch = padded(LENGTHS)
    big, loss = gradient(tmp_path, batch)
    parts, total = gradient(
        tmp_path, batch, per_device_train_batch_size=size, gradient_accumulation_steps=len(LENGTHS) // size
    )
    assert_same(parts, big)
    assert total == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "cohere"])
def test_models_whose_own_loss_differs_are_counted_alike(tmp_path: Path, kind: str) -> None:
    batch, spread = padded(LENGTHS[:4]), 20.0 / HEADS[kind][2]
    more = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    tied = {"tie_word_embeddings": False, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    parts, _ = gradient(tmp_path, batch, net=model(kind, spread=spread, **tied), objective="kl", **more)
    expected, _ = dense_gradient(batch, "kl", net=model(kind, spread=spread, **tied))
    assert_same(parts, expected, 2e-6)


def test_a_batch_with_nothing_to_learn_gives_a_differentiable_zero(tmp_path: Path) -> None:
    batch = padded([1, 1, 1, 1])
    moved, loss = gradient(tmp_path, batch, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert loss == 0
    assert all(float(g.abs().max()) == 0 for g in moved.values())


def test_padding_free_batches_have_the_loss_of_padded_ones(tmp_path: Path) -> None:
    batch = padded([12, 5, 9, 3])
    flat = flattened(batch)
    assert flat["input_ids"].shape == (1, 29)
    trainer = FenchelTrainer(model(spread=20.0), arguments(tmp_path), objective="alpha:1.5")
    whole = trainer.compute_loss(trainer.model, batch)
    assert trainer.compute_loss(trainer.model, flat).item() == pytest.approx(whole.item(), abs=1e-6)


def test_checkpointed_activations_change_nothing(tmp_path: Path) -> None:
    batch = padded(LENGTHS)
    plain, _ = gradient(tmp_path, batch, net=model(spread=20.0, num_hidden_layers=2))
    saved, _ = gradient(tmp_path, batch, net=model(spread=20.0, num_hidden_layers=2), activation_checkpointing=True)
    assert_same(saved, plain)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_are_trained_through_their_own_forward(tmp_path: Path) -> None:
    batch, settings = padded(LENGTHS), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")

    def lora() -> Any:
        torch.manual_seed(3)
        return peft.get_peft_model(model(spread=20.0), settings)

    moved, _ = gradient(tmp_path, batch, net=lora())
    expected, _ = dense_gradient(batch, net=lora())
    trained = {name: g for name, g in expected.items() if g is not None}
    assert trained
    assert all("lora" in name for name in trained)
    assert_same({name: moved[name] for name in trained}, trained)
    assert all(float(g.abs().max()) == 0 for name, g in moved.items() if name not in trained)


def test_label_smoothing_of_the_arguments_is_honoured(tmp_path: Path) -> None:
    batch = padded(LENGTHS)
    moved, _ = gradient(tmp_path, batch, objective="kl", label_smoothing_factor=0.2)
    expected, _ = dense_gradient(batch, "kl", label_smoothing=0.2)
    assert_same(moved, expected)


def test_tokens_are_averaged_over_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # two devices with different numbers of tokens, whose gradients are averaged as DDP does
    whole = padded(LENGTHS)
    halves = [{name: tensor[s] for name, tensor in whole.items()} for s in (slice(0, 4), slice(4, 8))]
    items = whole["labels"][:, 1:].ne(-100).sum()
    net = model(spread=20.0)
    trainer = FenchelTrainer(net, arguments(tmp_path), objective="alpha:1.5")
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    for half in halves:
        (trainer.compute_loss(net, half, num_items_in_batch=items) / 2).backward()
    expected, _ = dense_gradient(whole)
    assert_same({name: p.grad for name, p in net.named_parameters()}, expected)
    trainer.args.average_tokens_across_devices = False
    own = halves[0]["labels"][:, 1:].ne(-100).sum()
    alone = trainer.compute_loss(net, halves[0], num_items_in_batch=own)
    assert alone.item() == pytest.approx(dense_gradient(halves[0])[1], abs=1e-5)


def test_autocast_computes_in_its_dtype_and_accumulates_in_float32(tmp_path: Path) -> None:
    batch = padded(LENGTHS)
    half, _ = gradient(tmp_path, batch, bf16=True)
    full, _ = gradient(tmp_path, batch)
    scale = max(float(g.abs().max()) for g in full.values())
    assert max(float((half[name] - g).abs().max()) for name, g in full.items()) < 0.05 * scale
    assert any(float((half[name] - g).abs().max()) > 0 for name, g in full.items())


def test_evaluation_gives_the_loss(tmp_path: Path) -> None:
    batch = padded(LENGTHS)
    trainer = FenchelTrainer(
        model(spread=20.0), arguments(tmp_path, per_device_eval_batch_size=8), objective="js", eval_dataset=rows(batch)
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(dense_gradient(batch, "js")[1], abs=1e-5)
    with pytest.raises(ValueError, match="makes no logits to predict with"):
        trainer.predict(rows(batch))


def test_a_checkpoint_opens_with_plain_transformers(tmp_path: Path) -> None:
    net = model()
    FenchelTrainer(net, arguments(tmp_path), objective="kl").save_model(str(tmp_path / "saved"))
    again = type(net).from_pretrained(tmp_path / "saved")
    assert torch.equal(again.lm_head.weight, head_of(net).weight)


@pytest.mark.parametrize(
    ("made", "set_up", "message"),
    [
        ({"objective": "none"}, {}, "objective: got 'none'; known: kl"),
        ({"objective": "tv"}, {}, "has no operator or loss"),
        ({"compute_metrics": lambda _: {}}, {}, "compute_metrics: FenchelTrainer makes no logits"),
        ({"compute_loss_func": lambda *_: 0}, {}, "compute_loss_func"),
        ({}, {"n_gpu": 2}, "2 GPUs in one process"),
    ],
)
def test_what_would_be_ignored_is_refused(
    tmp_path: Path, made: dict[str, Any], set_up: dict[str, Any], message: str
) -> None:
    args = arguments(tmp_path)
    if set_up:
        args._n_gpu = set_up["n_gpu"]
    with pytest.raises(ValueError, match=message):
        FenchelTrainer(model(), args, **made)


@pytest.mark.parametrize("objective", ["gce:0.7", "nce + 0.5*rce", CompSum(1.5)])
def test_a_label_loss_is_any_supervised_objective(objective: Any) -> None:
    states = NextStates(torch.randn(5, 4), torch.tensor([1, 2, -100, 0, 6]))
    weight, bias = torch.randn(7, 4), torch.randn(7)
    got = LabelLoss(objective, 0.1)(states, Head(weight, bias), {})
    logits = states.hidden @ weight.T + bias
    want = fenchel.supervised(logits, states.target, objective, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(got, want)
    with pytest.raises(ValueError, match="label_smoothing: got 0.1, but Margin takes no probabilities"):
        LabelLoss("margin", 0.1)
