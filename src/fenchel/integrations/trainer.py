"""Hugging Face's Trainer with any supervised objective, through hidden states and the fused head."""

from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from ..generators import Generator
from ..objectives.supervised import LabelObjective
from .hooks import check_head
from .losses import LabelLoss, TokenLoss, batch_loss

__all__ = ["FenchelTrainer", "HeadTrainer"]


class HeadTrainer(Trainer):
    """A Trainer of causal language models that minimises a `TokenLoss`: hidden states and the head, no logits.

    The sum over tokens is divided by the number of tokens of the whole accumulated batch, over all devices where
    `average_tokens_across_devices` is set (it is by default), so that the gradient is that of one big batch. A
    micro-batch without a token to learn from has the loss 0 and no gradient. Batches may be padded (labels -100),
    padding-free (`DataCollatorWithFlattening`) or hold `shift_labels`.

    Evaluation gives the loss alone, since there are no logits to give to metrics.

    Raises:
        ValueError: a model whose logits the fused head does not reproduce (`check_head`), or options that would have no
            effect: metrics of logits, another loss function, DataParallel, sequences split over devices.
    """

    # the sum is divided by the tokens of the accumulated batch here
    loss_is_scaled_for_ga = True

    def __init__(self, model: Any, args: TrainingArguments | None = None, *, token_loss: TokenLoss, **kwargs: Any):
        for name in ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}: {type(self).__name__} makes no logits to call it with; leave it out")
        super().__init__(model, args, **kwargs)
        self.token_loss = token_loss
        self._refuse_what_would_be_ignored()
        check_head(self.model)
        # tokens are counted whatever the model's own loss takes, and as labels that are shifted
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True

    def _refuse_what_would_be_ignored(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process: {type(self).__name__} does not run under DataParallel; "
                "launch with torchrun, or make one GPU visible with CUDA_VISIBLE_DEVICES"
            )
        if self.args.use_liger_kernel:
            raise ValueError("use_liger_kernel: the loss is fused already; leave it out")
        plan = getattr(self.accelerator, "parallelism_config", None)
        if plan is not None and (plan.cp_enabled or plan.sp_enabled):
            raise ValueError("parallelism_config: a sequence split over devices is not supported; set cp and sp to 1")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss over the number of tokens: `num_items_in_batch`, or those of this batch where it is not given."""
        loss = batch_loss(self.token_loss, self.accelerator.unwrap_model(model), model, inputs, num_items_in_batch)
        if num_items_in_batch is not None:
            loss = loss * devices(self)
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """The loss of a batch.

        Raises:
            ValueError: predictions are asked for (`Trainer.predict`): call the model itself for logits.
        """
        if not prediction_loss_only:
            raise ValueError(f"{type(self).__name__} makes no logits to predict with: call the model for them")
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)


def devices(trainer: Trainer) -> int:
    """What a loss over the items of all devices is multiplied by, since gradients are averaged over them."""
    return (
        trainer.accelerator.num_processes // trainer.get_tp_size() if trainer.args.average_tokens_across_devices else 1
    )


class FenchelTrainer(HeadTrainer):
    """Trainer that minimises any supervised objective over next tokens, without logits.

    Takes what `transformers.Trainer` takes, and
        objective: as `LabelLoss`: "kl" is cross-entropy, "alpha:1.5" the entmax loss, "gce:0.7", ... Probabilities of a
            model trained with a generator are `fenchel.softargmax(logits, objective)`.
        backend: as `fenchel.linear_supervised`.

    `label_smoothing_factor` of the arguments is honoured.

    Raises:
        ValueError: as `HeadTrainer`; an unknown name, a generator without a loss.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
        >>> config = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=1)
        >>> arguments = TrainingArguments("unused", use_cpu=True, report_to=[])
        >>> trainer = FenchelTrainer(LlamaForCausalLM(config), arguments, objective="alpha:1.5")
        >>> ids = torch.arange(12)[None] % 5
        >>> trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": ids}).shape
        torch.Size([])
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments | None = None,
        *,
        objective: str | Generator | LabelObjective = "kl",
        backend: str = "auto",
        **kwargs: Any,
    ):
        smoothing = 0.0 if args is None else float(args.label_smoothing_factor)
        super().__init__(model, args, token_loss=LabelLoss(objective, smoothing, backend), **kwargs)
