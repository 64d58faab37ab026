"""One step of plain descent by a Trainer, and what it moved: the gradient it trained with."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainingArguments

LENGTHS = [12, 5, 9, 1, 12, 3, 2, 8]


def arguments(directory: Path, **more: Any) -> TrainingArguments:
    given = {
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
        "remove_unused_columns": False,
    }
    return TrainingArguments(str(directory), **{**given, **more})


def rows(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{name: tensor[i] for name, tensor in batch.items()} for i in range(len(batch["input_ids"]))]


def step(trainer: Any) -> tuple[dict[str, Tensor], float]:
    """What a step with a learning rate of 1 moved every parameter by, and the logged loss."""
    net = trainer.model
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    trainer.train()
    return {name: before[name] - p.detach() for name, p in net.named_parameters()}, trainer.state.log_history[0]["loss"]


def gradients(net: Any, loss: Tensor) -> tuple[dict[str, Tensor], float]:
    loss.backward()
    return {name: p.grad for name, p in net.named_parameters()}, loss.item()


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], within: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    size = max(float(g.abs().max()) for g in other.values())
    assert size > 1e-3
    for name, g in other.items():
        assert float((one[name] - g).abs().max()) <= within * max(1.0, size), name


def flattened(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same sequences one after another in one row, as a padding-free collator makes them."""
    from transformers import DataCollatorWithFlattening

    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return dict(DataCollatorWithFlattening()([{"input_ids": row[: int(m.sum())].tolist()} for row, m in pairs]))
