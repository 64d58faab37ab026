"""A Lightning module that trains a causal language model with any objective, without logits."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning
from torch import Tensor, nn

from ..generators import Generator
from ..objectives.distillation import RowObjective
from ..objectives.supervised import LabelObjective
from .distillation import LiveTeacher, TeacherLoss, asked, check_pair
from .hooks import IGNORED, check_head
from .losses import LabelLoss, TokenLoss, batch_loss

__all__ = ["FenchelModule"]

Optimizers = Callable[[Iterable[nn.Parameter]], Any]


class FenchelModule(lightning.LightningModule):
    """A causal language model with an objective: a supervised one of labels, or one of distillation from a teacher.

    Batches are as transformers' collators make them: "input_ids" and "labels" [B, T] (-100: not learnt), padded or not.
    The loss of a batch is a mean over its tokens; Lightning averages accumulated batches, and devices, each with the same
    weight, however many tokens they hold: batches of equal length, such as packed ones, give the gradient of one big batch.

    Args:
        model: a transformers causal language model; `module.model.save_pretrained` writes it.
        objective: without a teacher a supervised one (`FenchelTrainer`), with one as `TeacherLoss`.
        optimizer: makes the optimizer, or what else `configure_optimizers` may return, from the parameters.
        teacher: a model, or a `Teacher`. A model, also that of a `LiveTeacher`, is moved to the student's device, stays in evaluation mode, and is no part
            of the module: checkpoints do not hold it.
        vocabulary, hard_weight: as `TeacherLoss`.
        backend: as `LabelLoss`; with a teacher that is a model, as `LiveTeacher`.

    Raises:
        ValueError: as `check_head` and `check_pair`; options of distillation without a teacher.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=1)
        >>> module = FenchelModule(LlamaForCausalLM(config), "alpha:1.5", lambda p: torch.optim.SGD(p, 0.1))
        >>> ids = torch.arange(12)[None] % 5
        >>> module.loss({"input_ids": ids, "labels": ids}).shape
        torch.Size([])
    """

    def __init__(
        self,
        model: Any,
        objective: str | Generator | RowObjective | LabelObjective,
        optimizer: Optimizers,
        *,
        teacher: Any = None,
        vocabulary: int | None = None,
        hard_weight: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_head(model)
        source: Any = None if teacher is None else asked(teacher, backend)
        if isinstance(source, LiveTeacher):
            check_pair(source.model, model, vocabulary)
        if teacher is None:
            if vocabulary is not None or hard_weight != 0:
                raise ValueError("vocabulary, hard_weight: got one without a teacher; pass one, or leave them out")
            if not isinstance(objective, (str, Generator, LabelObjective)):
                raise ValueError(
                    f"objective: got {type(objective).__name__} without a teacher; pass one, or a supervised objective"
                )
            self.token_loss: TokenLoss = LabelLoss(objective, backend=backend)
        elif not isinstance(objective, (str, Generator, RowObjective)):
            raise ValueError(
                f"objective: got {type(objective).__name__} with a teacher; pass one of distillation, or leave the teacher out"
            )
        else:
            self.token_loss = TeacherLoss(source, objective, vocabulary, hard_weight)
        self.model, self.optimizer = model, optimizer

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """The mean loss of a batch's tokens; 0, differentiable, if none counts."""
        return batch_loss(self.token_loss, self.model, self.model, batch)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """The loss, logged as "loss"."""
        loss = self.loss(batch)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=self._tokens(batch))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Logs the loss as "val_loss", a mean over tokens."""
        self.log("val_loss", self.loss(batch), batch_size=self._tokens(batch))

    def on_fit_start(self) -> None:
        """The teacher goes where the student is."""
        source = getattr(self.token_loss, "teacher", None)
        if isinstance(source, LiveTeacher):
            source.model.to(self.device)

    def configure_optimizers(self) -> Any:
        """What `optimizer` makes of the parameters that are trained."""
        return self.optimizer(p for p in self.model.parameters() if p.requires_grad)

    @staticmethod
    def _tokens(batch: Mapping[str, Any]) -> int:
        labels = batch["labels"] if batch.get("shift_labels") is None else batch["shift_labels"]
        return max(1, int((labels != IGNORED).sum()))
