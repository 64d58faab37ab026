"""The model under study: from a preset, a configuration or a checkpoint, and a check of its head."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from fenchel.integrations import hooks
from fenchel.study.errors import StudyError, one_line
from fenchel.study.presets import PRESETS, Preset


@dataclass(frozen=True)
class ModelSource:
    """Where models come from: the weights in the directory `checkpoint`, or an initialisation from `config`.

    `option` is the one that named it, for messages.
    """

    config: PretrainedConfig
    checkpoint: Path | None = None
    option: str = "--model"


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


def read_model(name: str | None, p: Preset, option: str = "--model") -> ModelSource:
    """What `--model`, or another option, names: None is the preset of the budget; otherwise a preset, a config file or a directory.

    A directory with weights must hold them as safetensors, and code in it is never executed. Raises StudyError for
    anything unreadable.
    """
    if name is None or name in {candidate.name for candidate in PRESETS}:
        return ModelSource(preset_config(p), option=option)
    path = Path(name).expanduser()
    if not path.exists():
        known = ", ".join(candidate.name for candidate in PRESETS)
        raise StudyError(f"{option} {name}: no such file or directory, and no preset of that name ({known})")
    if path.is_dir() and not (path / "config.json").is_file():
        raise StudyError(f"{option} {name} holds no config.json: pass the directory of a Hugging Face checkpoint")
    config = _read_config(path, name, option)
    if path.is_file():
        return ModelSource(config, option=option)
    if any(path.glob("*.safetensors")):
        return ModelSource(config, path.absolute(), option)
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise StudyError(f"{option} {name} has its weights as pickles, which can run code: convert them to safetensors")
    return ModelSource(config, option=option)


def _read_config(path: Path, name: str, option: str) -> PretrainedConfig:
    file = path / "config.json" if path.is_dir() else path
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(written, dict) or "model_type" not in written:
            raise StudyError(
                f"{option} {name}: {file.name} names no model_type, so it is not a transformers configuration"
            )
        return AutoConfig.from_pretrained(str(file), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{option} {name} is not a readable transformers configuration: {one_line(error)}") from error


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
        raise StudyError(f"{source.option} {where} cannot be loaded: {one_line(error)}") from error
    nn.Module.to(model, device)
    return model


def state_hash(model: PreTrainedModel) -> str:
    """sha256 of every parameter and buffer by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_head(model: PreTrainedModel, ids: Tensor, option: str = "--model") -> None:
    """`integrations.hooks.check_head`, its refusal said of what `option` names."""
    try:
        hooks.check_head(model, ids)
    except ValueError as error:
        raise StudyError(f"{option}: {one_line(error)}") from error
