"""TRL's trainers with our objectives: one step each, on-policy and off-policy, equal to the loss from both models' logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fenchel.integrations.distillation import LiveTeacher
from fenchel.integrations.trl import (
    DistillationConfig,
    GKDConfig,
    TRLDistillationTrainer,
    TRLGKDTrainer,
    check_version,
)
from fenchel.objectives.distillation import distillation
from fenchel.study.data import fit_tokenizer

from .models import HEADS, model
from .steps import arguments, assert_same, gradients, step

# TRL reads a name that transformers is giving up
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

TEXTS = ["return self value", "for name in index", "if not None else result", "def class"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    made = fit_tokenizer(TEXTS * 9, 300)
    made.padding_side = "left"
    return made


def net(kind: str, seed: int, **more: Any) -> Any:
    made = model(kind, seed, 20.0 / HEADS[kind][2], vocab_size=300, **more)
    made.generation_config.pad_token_id = 0
    return made


def options(directory: Path, **more: Any) -> dict[str, Any]:
    """Arguments of one plain step, as both of TRL's configurations take them."""
    args = arguments(directory)
    names = (
        "learning_rate",
        "lr_scheduler_type",
        "optim",
        "max_grad_norm",
        "logging_steps",
        "save_strategy",
        "report_to",
    )
    given = {name: getattr(args, name) for name in (*names, "disable_tqdm", "dataloader_pin_memory", "use_cpu")}
    own = {"output_dir": str(directory), "max_steps": 1, "per_device_train_batch_size": 4, "bf16": False}
    return {**given, **own, "activation_checkpointing": False, **more}


def dense(teacher: Any, student: Any, batch: dict[str, Tensor], labels: Tensor, objective: str) -> Tensor:
    passed = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        t = teacher.eval()(**passed).logits[:, :-1]
    y = labels[:, 1:]
    target = y.clamp_min(0) if objective == "dkd" else None
    return distillation(objective, t, student(**passed).logits[:, :-1], target, mask=y != -100)


def spied(trainer: Any, method: str) -> list[Any]:
    """Keeps the batches that a method is given."""
    kept: list[Any] = []
    own = getattr(trainer, method)

    def keep(*args: Any, **kwargs: Any) -> Any:
        kept.append({name: x.clone() for name, x in args[1].items() if isinstance(x, Tensor)})
        return own(*args, **kwargs)

    setattr(trainer, method, keep)
    return kept


@pytest.mark.parametrize(
    ("theirs", "ours", "objective"), [("gemma2", "llama", "reverse_kl"), ("llama", "cohere", "dkd")]
)
def test_on_policy_distillation(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    theirs: str,
    ours: str,
    objective: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    for head in ("divergence", "logp"):
        monkeypatch.setattr(f"fenchel.head.{head}.chosen", lambda backend, *_: bool(asked.append(backend)))
    teacher, prompts = net(theirs, 7), Dataset.from_dict({"prompt": TEXTS})
    trainer = TRLDistillationTrainer(
        net(ours, 0),
        teacher,
        DistillationConfig(**options(tmp_path, max_completion_length=6, temperature=0.7)),
        objective=objective,
        backend="torch",
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    batches = spied(trainer, "_compute_loss")
    moved, loss = step(trainer)
    assert set(asked) == {"torch"}
    (made,) = batches
    whole = {
        "input_ids": torch.cat([made["prompt_ids"], made["completion_ids"]], 1),
        "attention_mask": torch.cat([made["prompt_mask"], made["completion_mask"]], 1),
    }
    labels = torch.cat([torch.zeros_like(made["prompt_mask"]), made["completion_mask"]], 1)
    student = net(ours, 0)
    expected, value = gradients(
        student, dense(teacher, student, whole, torch.where(labels.bool(), whole["input_ids"], -100), objective)
    )
    assert_same(moved, expected, 1e-5)
    assert loss == pytest.approx(value, abs=1e-4)
    with torch.no_grad():
        logits = net(ours, 0)(**whole).logits[:, :-1] / 0.7
    entropy = torch.distributions.Categorical(logits=logits).entropy()[labels[:, 1:].bool()].mean()
    assert trainer.state.log_history[0]["entropy"] == pytest.approx(entropy.item(), abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_gkd_off_policy_and_on_policy(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, share: float, accumulated: int
) -> None:
    texts = [{"prompt": text[:4], "input_ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    teacher = net("llama", 7)
    made = options(tmp_path, lmbda=share, max_new_tokens=5, max_length=32, gradient_accumulation_steps=accumulated)
    trainer = TRLGKDTrainer(
        net("llama", 0),
        teacher,
        GKDConfig(**{**made, "per_device_train_batch_size": 4 // accumulated}),
        objective="js:0.3",
        backend="torch",
        train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
    )
    source = trainer.token_loss.teacher
    assert isinstance(source, LiveTeacher)
    assert source.backend == "torch"
    batches = spied(trainer, "compute_loss")
    moved, loss = step(trainer)
    student, losses, counts = net("llama", 0), [], []
    for batch in batches:
        losses.append(dense(teacher, student, batch, batch["labels"], "js:0.3"))
        counts.append(int(batch["labels"][:, 1:].ne(-100).sum()))
    assert len(batches) == accumulated
    weights = [1 / accumulated] * accumulated if share else [count / sum(counts) for count in counts]
    expected, value = gradients(student, sum(w * one for w, one in zip(weights, losses, strict=True)))
    assert_same(moved, expected, 1e-5)
    assert loss == pytest.approx(value, abs=1e-4)


def test_what_would_be_ignored_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    given = {"train_dataset": Dataset.from_dict({"prompt": TEXTS}), "processing_class": tokenizer}
    config = DistillationConfig(**options(tmp_path, beta=0.5))
    with pytest.raises(ValueError, match="beta: got 0.5, which has no effect here; pass objective, as in 'js:0.5'"):
        TRLDistillationTrainer(net("llama", 0), net("llama", 7), config, objective="kl", **given)
    with pytest.raises(ValueError, match="backend: got 'triton', which only divergences and their mixtures have"):
        TRLDistillationTrainer(net("llama", 0), net("llama", 7), objective="dkd", backend="triton", **given)
    with pytest.raises(ValueError, match="backend: got 'cuda'"):
        TRLGKDTrainer(net("llama", 0), net("llama", 7), objective="kl", backend="cuda", **given)
    with pytest.raises(ValueError, match="objective: got 'none'"):
        TRLGKDTrainer(net("llama", 0), net("llama", 7), objective="none", **given)
    with pytest.raises(ValueError, match="teacher_model: got None"):
        TRLDistillationTrainer(net("llama", 0), None, objective="kl", **given)


def test_other_versions_are_refused() -> None:
    check_version("1.16.0")
    with pytest.raises(ImportError, match=r"trl 1.17.0 is installed, fenchel.integrations.trl works with 1.16"):
        check_version("1.17.0")
