"""Where a causal language model gives its last hidden states and its head, and a check that the two make its logits.

The heads of `fenchel.head` need three things of a model: the states that enter its output projection, the projection's
weight, and whatever is done to the product. `next_states` and `head_of` find them, and `check_head` compares what they
make with the model's own logits, so that a model which does something else is refused before it is trained.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from ..head.young import linear_fenchel_young

__all__ = [
    "IGNORED",
    "TEACHER_ROWS",
    "Head",
    "NextStates",
    "check_head",
    "head_of",
    "last_hidden",
    "next_states",
    "probe",
]

IGNORED = -100
# What a batch calls the numbers [B, T] of its rows in a teacher cache: of no interest to models.
TEACHER_ROWS = "teacher_rows"
# Largest difference between the fused and the model's own cross-entropy, relative to 1 + loss, in float32; in half
# precision the model rounds its logits, by SLACK steps of its dtype.
TOLERANCE = 1e-4
SLACK = 4
# The check also runs with hidden states scaled so that the largest logit has about this size: at initialisation logits
# are so near zero that a soft-cap would not show.
LOUD = 40.0
# Fields of configurations that multiply a model's logits: Cohere, Falcon-H1, Muse; and that divide them: Granite.
MULTIPLIED = ("logit_scale", "lm_head_multiplier", "output_multiplier")
DIVIDED = "logits_scaling"


@dataclass(frozen=True)
class Head:
    """Output projection: logits = cap(scale * (hidden @ weight.T + bias)), cap(z) = softcap * tanh(z / softcap)."""

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def detached(self) -> "Head":
        """The same head as a constant."""
        return Head(self.weight.detach(), None if self.bias is None else self.bias.detach(), self.softcap, self.scale)


@dataclass(frozen=True)
class NextStates:
    """What a loss of a batch is made of: the states [N, D] that predict a token, and the tokens [N] they predict.

    `target` is IGNORED where nothing is to be learnt: the states there take no part in a loss.
    """

    hidden: Tensor
    target: Tensor

    @property
    def counted(self) -> Tensor:
        """The rows that take part, bool [N]."""
        return self.target != IGNORED


def unwrapped(model: Any) -> Any:
    """The transformers model inside what PEFT made of it; other models as they are."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: Any) -> Head:
    """The head of a transformers model, from its output embedding and the configuration fields that change its logits.

    Args:
        model: a causal language model, or a PEFT model of one. Not what DDP or FSDP made of it.

    Returns:
        its `Head`; the tensors are the model's parameters, so gradients reach them.

    Raises:
        ValueError: no output embedding with a weight, one that an adapter changes, or one that is sharded.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=1)
        >>> head = head_of(LlamaForCausalLM(config))
        >>> tuple(head.weight.shape), head.bias, head.softcap, head.scale
        ((50, 8), None, None, 1.0)
    """
    model = unwrapped(model)
    config = model.config.get_text_config()
    kind = f"model of type {model.config.model_type}"
    output = model.get_output_embeddings()
    if output is None or not isinstance(getattr(output, "weight", None), Tensor):
        raise ValueError(f"{kind} has no output embedding with a weight: pass a causal language model")
    if hasattr(output, "base_layer"):
        raise ValueError(
            f"{kind} has an adapter on its output embedding, which the fused head would leave untrained: "
            "take it out of target_modules, or merge it (merge_and_unload)"
        )
    if isinstance(output.weight, DTensor):
        raise ValueError(f"{kind} has its output embedding sharded over devices: keep it whole, as under DDP")
    scale = 1.0
    for field in MULTIPLIED:
        value = getattr(config, field, None)
        scale *= 1.0 if value is None else float(value)
    divisor = getattr(config, DIVIDED, None)
    if divisor is not None:
        # HyperCLOVA X has Granite's field and multiplies by it
        scale *= float(divisor) if config.model_type.startswith("hyperclovax") else 1 / float(divisor)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(output.weight, getattr(output, "bias", None), None if softcap is None else float(softcap), scale)


def last_hidden(model: nn.Module, **inputs: Any) -> Tensor:
    """Hidden states [B, T, D] that enter the head, from the model's own forward with no logits computed.

    `model` may be what an engine made of a transformers model (DDP, PEFT): the forward goes through it.
    """
    none = torch.zeros(0, dtype=torch.long, device=inputs["input_ids"].device)
    return model(**inputs, logits_to_keep=none, output_hidden_states=True, use_cache=False).hidden_states[-1]


def next_states(model: nn.Module, inputs: Mapping[str, Any]) -> NextStates:
    """The states of a batch that predict a token, with what they predict.

    Args:
        model: as `last_hidden`.
        inputs: a batch: "input_ids" [B, T], what else the model's forward takes ("attention_mask", "position_ids", ...),
            and either "labels" [B, T], which are shifted here and hold -100 where nothing is to be predicted, or
            "shift_labels" [B, T], which are shifted already (padding-free collators).

    Raises:
        ValueError: no labels, or labels of another shape than the tokens.
    """
    passed = {name: value for name, value in inputs.items() if name not in ("labels", "shift_labels", TEACHER_ROWS)}
    shifted = inputs.get("shift_labels")
    labels = inputs.get("labels") if shifted is None else shifted
    if labels is None:
        raise ValueError(f"the batch has no labels, only {', '.join(passed)}: pass labels, with -100 where none apply")
    if labels.shape != inputs["input_ids"].shape:
        shape = list(inputs["input_ids"].shape)
        raise ValueError(f"the batch has labels of shape {list(labels.shape)} for input_ids of {shape}: pass as many")
    hidden = last_hidden(model, **passed)
    if shifted is None:
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    return NextStates(hidden.flatten(0, 1), labels.flatten().to(hidden.device))


def probe(model: Any) -> Tensor:
    """Token ids [2, 16] to check a model with, where there is no text at hand."""
    v = unwrapped(model).config.get_text_config().vocab_size
    device = next(model.parameters()).device
    return (torch.arange(32, device=device) * 7 % v).reshape(2, 16)


@torch.no_grad()
def check_head(model: Any, ids: Tensor | None = None) -> None:
    """Refuse a model whose logits are not what the fused head computes, or that looks at later tokens.

    Compares the fused cross-entropy with that of the model's own logits on `ids` [B, T] (default: `probe`), as they are
    and again with the head's input scaled up, so that a soft-cap shows.

    Raises:
        ValueError: a model without `logits_to_keep`, one that is not causal, that projects or changes its hidden states
            or logits in a way `Head` does not know, or whose prompt an adapter lengthens.
    """
    inner = unwrapped(model)
    kind = f"model of type {inner.config.model_type}"
    if "logits_to_keep" not in inspect.signature(inner.forward).parameters:
        raise ValueError(f"{kind} cannot skip its logits (no logits_to_keep), so they cannot be fused")
    head, was_training = head_of(model), model.training
    ids = probe(model) if ids is None else ids
    model.eval()
    try:
        hidden = last_hidden(model, input_ids=ids)
        if hidden.shape[1] != ids.shape[1]:
            raise ValueError(
                f"{kind} gave {hidden.shape[1]} hidden states for {ids.shape[1]} tokens: "
                "prompt-learning adapters are not supported, pass another, such as LoRA"
            )
        if hidden.shape[-1] != head.weight.shape[1]:
            raise ValueError(
                f"{kind} has another projection before its head "
                f"({hidden.shape[-1]} -> {head.weight.shape[1]}): pass one without"
            )
        if not hidden.isfinite().all():
            raise ValueError(f"{kind} has hidden states that are not finite: its weights are damaged")
        logits = model(input_ids=ids, use_cache=False).logits
        later = torch.cat([ids[:, :1], (ids[:, 1:] + 1) % head.weight.shape[0]], -1)
        moved = (last_hidden(model, input_ids=later)[:, 0] - hidden[:, 0]).abs().max()
        if not moved <= max(1e-5, torch.finfo(hidden.dtype).eps) * hidden[:, 0].abs().max():
            raise ValueError(f"{kind} looks at later tokens: pass a causal language model")
        factor = LOUD / max(float((hidden @ head.weight.T).abs().max()) * abs(head.scale), 1e-6)
        with _scaled_input(inner, factor):
            loud = model(input_ids=ids, use_cache=False).logits
    finally:
        model.train(was_training)
    _same(kind, head, hidden, logits, ids)
    _same(kind, head, hidden * factor, loud, ids)


def _same(kind: str, head: Head, hidden: Tensor, logits: Tensor, ids: Tensor) -> None:
    target = ids[:, 1:].flatten()
    own = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), target, reduction="none")
    fused = linear_fenchel_young(
        hidden[:, :-1].flatten(0, 1).to(head.weight.dtype),
        head.weight,
        target,
        "kl",
        bias=head.bias,
        softcap=head.softcap,
        scale=head.scale,
        reduction="none",
    )
    worst = float(((fused - own).abs() / (1 + own.abs())).max())
    if not worst <= max(TOLERANCE, SLACK * torch.finfo(logits.dtype).eps):
        raise ValueError(
            f"{kind} does something to its logits that the fused head does not: "
            f"cross-entropy {float(own.mean()):.4f}, fused {float(fused.mean()):.4f}"
        )


@contextmanager
def _scaled_input(model: Any, factor: float) -> Iterator[None]:
    output = model.get_output_embeddings()
    hook = output.register_forward_pre_hook(lambda _, args: (args[0] * factor, *args[1:]))
    try:
        yield
    finally:
        hook.remove()
