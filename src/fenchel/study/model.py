"""The model under study: from a preset, a configuration or a checkpoint; its output projection, and a check of it."""

import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from fenchel.study.errors import StudyError, one_line
from fenchel.study.presets import PRESETS, Preset

# Largest difference between the fused and the model's own cross-entropy, relative to 1 + loss, in float32.
TOLERANCE = 1e-4
# The check also runs with hidden states scaled so that the largest logit has about this size: at initialisation logits
# are so near zero that a soft-cap would not show.
LOUD = 40.0


@dataclass(frozen=True)
class ModelSource:
    """Where models come from: the weights in the directory `checkpoint`, or an initialisation from `config`."""

    config: PretrainedConfig
    checkpoint: Path | None = None


def preset_config(p: Preset) -> LlamaConfig:
    """Llama architecture of a preset. The output projection is not tied to the input embedding, as in Llama models."""
    return LlamaConfig(
        vocab_size=p.vocab_size,
        hidden_size=p.hidden_size,
        intermediate_size=-(-p.hidden_size * 8 // 3 // 32) * 32,
        num_hidden_layers=p.layers,
        num_attention_heads=p.heads,
        num_key_value_heads=p.heads,
        max_position_embeddings=max(1024, p.context),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        # A padding entry would keep the separator's embedding at zero, and nothing here is padded in training.
        pad_token_id=None,
    )


def read_model(name: str | None, p: Preset) -> ModelSource:
    """What `--model` names: None is the preset of the budget; otherwise a preset, a config file or a directory.

    A directory with weights must hold them as safetensors, and code in it is never executed. Raises StudyError for
    anything unreadable.
    """
    if name is None or name in {candidate.name for candidate in PRESETS}:
        return ModelSource(preset_config(p))
    path = Path(name).expanduser()
    if not path.exists():
        known = ", ".join(candidate.name for candidate in PRESETS)
        raise StudyError(f"--model {name}: no such file or directory, and no preset of that name ({known})")
    if path.is_dir() and not (path / "config.json").is_file():
        raise StudyError(f"--model {name} holds no config.json: pass the directory of a Hugging Face checkpoint")
    config = _read_config(path, name)
    if path.is_file():
        return ModelSource(config)
    if any(path.glob("*.safetensors")):
        return ModelSource(config, path)
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise StudyError(f"--model {name} has its weights as pickles, which can run code: convert them to safetensors")
    return ModelSource(config)


def _read_config(path: Path, name: str) -> PretrainedConfig:
    file = path / "config.json" if path.is_dir() else path
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(written, dict) or "model_type" not in written:
            raise StudyError(
                f"--model {name}: {file.name} names no model_type, so it is not a transformers configuration"
            )
        return AutoConfig.from_pretrained(str(file), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"--model {name} is not a readable transformers configuration: {one_line(error)}") from error


def build(source: ModelSource, seed: int, device: str = "cpu") -> PreTrainedModel:
    """The model in float32 on `device`: the checkpoint's weights, or an initialisation that `seed` alone decides."""
    torch.manual_seed(seed)
    try:
        if source.checkpoint is None:
            model = AutoModelForCausalLM.from_config(source.config, dtype=torch.float32, trust_remote_code=False)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                str(source.checkpoint),
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        where = source.checkpoint or source.config.model_type
        raise StudyError(f"--model {where} cannot be loaded: {one_line(error)}") from error
    nn.Module.to(model, device)
    return model


def state_hash(model: PreTrainedModel) -> str:
    """sha256 of every parameter and buffer by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Head:
    """Output projection: logits = cap(scale * (hidden @ weight.T + bias)), cap(z) = softcap * tanh(z / softcap)."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    scale: float


def head_of(model: PreTrainedModel) -> Head:
    """The head of a model, from its output embedding and the configuration fields that change its logits."""
    output = model.get_output_embeddings()
    if output is None or not isinstance(getattr(output, "weight", None), Tensor):
        raise StudyError(f"--model of type {model.config.model_type} has no output embedding with a weight")
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(output.weight, getattr(output, "bias", None), None if softcap is None else float(softcap), scale)


def last_hidden(model: torch.nn.Module, **inputs: Tensor) -> Tensor:
    """Hidden states [B, T, D] that enter the head, from the model's own forward with no logits computed."""
    none = torch.zeros(0, dtype=torch.long, device=inputs["input_ids"].device)
    return model(**inputs, logits_to_keep=none, output_hidden_states=True, use_cache=False).hidden_states[-1]


@torch.no_grad()
def check_head(model: PreTrainedModel, ids: Tensor) -> None:
    """Refuse a model whose logits are not what the fused head computes, or that looks at later tokens.

    Compares the fused cross-entropy with that of the model's own logits on `ids` [B, T], as they are and again with
    the head's input scaled up. Raises StudyError on a difference.
    """
    kind = model.config.model_type
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise StudyError(f"--model of type {kind} cannot skip its logits (no logits_to_keep), so they cannot be fused")
    head, was_training = head_of(model), model.training
    model.eval()
    try:
        hidden = last_hidden(model, input_ids=ids)
        if hidden.shape[-1] != head.weight.shape[1]:
            raise StudyError(
                f"--model of type {kind} has another projection before its head "
                f"({hidden.shape[-1]} -> {head.weight.shape[1]}): pass one without"
            )
        logits = model(input_ids=ids, use_cache=False).logits
        later = torch.cat([ids[:, :1], (ids[:, 1:] + 1) % head.weight.shape[0]], -1)
        moved = (last_hidden(model, input_ids=later)[:, 0] - hidden[:, 0]).abs().max()
        if not moved <= 1e-5 * hidden[:, 0].abs().max():
            raise StudyError(f"--model of type {kind} looks at later tokens: pass a causal language model")
        factor = LOUD / max(float((hidden @ head.weight.T).abs().max()) * head.scale, 1e-6)
        with _scaled_input(model, factor):
            loud = model(input_ids=ids, use_cache=False).logits
    finally:
        model.train(was_training)
    _same(kind, head, hidden, logits, ids)
    _same(kind, head, hidden * factor, loud, ids)


def _same(kind: str, head: Head, hidden: Tensor, logits: Tensor, ids: Tensor) -> None:
    from fenchel import linear_fenchel_young

    target = ids[:, 1:].flatten()
    own = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), target, reduction="none")
    fused = linear_fenchel_young(
        hidden[:, :-1].flatten(0, 1),
        head.weight,
        target,
        "kl",
        bias=head.bias,
        softcap=head.softcap,
        scale=head.scale,
        reduction="none",
    )
    worst = float(((fused - own).abs() / (1 + own.abs())).max())
    if not worst <= TOLERANCE:
        raise StudyError(
            f"--model of type {kind} does something to its logits that the fused head does not: "
            f"cross-entropy {float(own.mean()):.4f}, fused {float(fused.mean()):.4f}"
        )


@contextmanager
def _scaled_input(model: PreTrainedModel, factor: float) -> Iterator[None]:
    output = model.get_output_embeddings()
    assert output is not None
    hook = output.register_forward_pre_hook(lambda _, args: (args[0] * factor, *args[1:]))
    try:
        yield
    finally:
        hook.remove()
