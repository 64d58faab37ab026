"""Which models are taken, how they are initialised, and that a model with another head is refused."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fenchel.study.errors import StudyError
from fenchel.study.model import ModelSource, build, check_head, read_model, state_hash
from fenchel.study.presets import PRESETS, preset, preset_for, steps_within

SMALL = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
IDS = torch.arange(64).reshape(2, 32)


def config(kind: str, **more: Any) -> Any:
    return AutoConfig.for_model(kind, **{**SMALL, **more})


@pytest.mark.parametrize(
    ("kind", "more", "field", "neutral"),
    [
        ("gemma2", {"head_dim": 8}, "final_logit_softcapping", None),
        ("granite", {"logits_scaling": 8.0}, "logits_scaling", 1.0),
    ],
)
def test_a_head_that_differs_is_refused_even_at_initialisation(
    kind: str, more: dict[str, Any], field: str, neutral: Any
) -> None:
    model = build(ModelSource(config(kind, **more)), 0)
    own = model.forward
    value = getattr(model.config, field)

    def forward(*arguments: Any, **options: Any) -> Any:
        setattr(model.config, field, value)
        try:
            return own(*arguments, **options)
        finally:
            setattr(model.config, field, neutral)

    forward.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    model.forward = forward  # type: ignore[method-assign]
    setattr(model.config, field, neutral)
    with pytest.raises(StudyError, match=f"--model: model of type {kind} does something to its logits"):
        check_head(model, IDS)


def test_a_model_that_looks_ahead_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(config("bert", is_decoder=False))
    with pytest.raises(StudyError, match="--model: model of type bert looks at later tokens"):
        check_head(model, IDS)


def test_initialisation_is_decided_by_the_seed() -> None:
    source = ModelSource(config("llama"))
    one, same, other = build(source, 1), build(source, 1), build(source, 2)
    assert state_hash(one) == state_hash(same) != state_hash(other)
    with torch.no_grad():
        one.lm_head.weight[0, 0] += 1e-6
    assert state_hash(one) != state_hash(same)


def test_checkpoint_directory_is_loaded_in_float32(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = build(read_model(str(tmp_path), preset("nano")), 5)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.float())


def test_config_file_and_directory_without_weights_are_initialised(tmp_path: Path, tiny: Path) -> None:
    LlamaConfig(**SMALL).save_pretrained(tmp_path / "config_only")
    for path in (tiny, tmp_path / "config_only"):
        source = read_model(str(path), preset("nano"))
        assert source.checkpoint is None
        assert source.config.vocab_size == 300


def broken(root: Path) -> str:
    (root / "config.json").write_text("{")
    return str(root)


def truncated(root: Path) -> str:
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(root)
    weights = root / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return str(root)


def pickled(root: Path) -> str:
    LlamaConfig(**SMALL).save_pretrained(root)
    (root / "pytorch_model.bin").write_bytes(b"\x80\x04")
    return str(root)


def remote_code(root: Path) -> str:
    written = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (root / "config.json").write_text(json.dumps(written))
    (root / "mine.py").write_text(f"open({str(root / 'ran')!r}, 'w')")
    return str(root)


def untyped(root: Path) -> str:
    (root / "config.json").write_text('{"hidden_size": 3}')
    return str(root)


def empty(root: Path) -> str:
    return str(root)


def missing(root: Path) -> str:
    return str(root / "none")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (broken, "is not a readable transformers configuration"),
        (truncated, "cannot be loaded"),
        (pickled, "convert them to safetensors"),
        (remote_code, "is not a readable transformers configuration"),
        (untyped, "names no model_type"),
        (empty, "holds no config.json"),
        (missing, "no such file or directory, and no preset"),
    ],
)
def test_bad_models(tmp_path: Path, write: Any, message: str) -> None:
    name = write(tmp_path)
    with pytest.raises(StudyError, match=message) as caught:
        build(read_model(name, preset("nano")), 0)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_budget_chooses_the_preset() -> None:
    assert [preset_for(minutes).name for minutes in (0.5, 5, 30, 60, 1000)] == [p.name for p in PRESETS]
    assert preset_for(5).vocab_size == 4096
    assert preset_for(5).hidden_size == 128
    with pytest.raises(StudyError, match="positive number of minutes, got -1"):
        preset_for(-1)


def test_steps_fit_the_budget() -> None:
    assert steps_within(300, per_step=1.0, fixed=30, most=500) == 220
    assert steps_within(300, per_step=1.0, fixed=30, most=150) == 150
    with pytest.raises(StudyError, match="leaves 0 steps a run: pass --budget 1.1 or more"):
        steps_within(10, per_step=1.0, fixed=30, most=150)
