"""Models small enough to run in milliseconds, and batches for them."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

SMALL = {
    "vocab_size": 90,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
# Every way in which a model's head differs from hidden @ weight.T, with (softcap, scale).
HEADS = {
    "llama": ({}, None, 1.0),
    "qwen3": ({"head_dim": 8}, None, 1.0),
    "gemma2": ({"head_dim": 8, "final_logit_softcapping": 5.0}, 5.0, 1.0),
    "cohere": ({"logit_scale": 0.0625}, None, 0.0625),
    "granite": ({"logits_scaling": 8.0}, None, 0.125),
    "hyperclovax": ({"logits_scaling": 3.0, "head_dim": 8}, None, 3.0),
    "gpt2": ({"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}, None, 1.0),
    "phi": ({}, None, 1.0),
}


def config(kind: str, **more: Any) -> Any:
    return AutoConfig.for_model(kind, **{**SMALL, **HEADS.get(kind, ({},))[0], **more})


def model(kind: str = "llama", seed: int = 0, spread: float = 1.0, **more: Any) -> Any:
    """A float32 model; `spread` scales its head's weights, so that distributions are not flat."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config(kind, **more), dtype=torch.float32)
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(spread)
    return made


def padded(lengths: list[int], width: int = 12, v: int = 90, seed: int = 0) -> dict[str, Tensor]:
    """Sequences padded on the right, what is padded ignored and not attended to."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(v, (len(lengths), width), generator=random)
    attended = torch.arange(width) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids, "attention_mask": attended.long(), "labels": ids.masked_fill(~attended, -100)}
