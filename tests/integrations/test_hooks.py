"""The head of a model and the states that enter it: found, checked, refused where they are not what they seem."""

import inspect
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import AutoModelForCausalLM

from fenchel.integrations.hooks import Head, check_head, head_of, last_hidden, next_states

from .models import HEADS, config, model, padded

# PEFT reads a name that transformers is giving up
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.mark.parametrize("kind", HEADS)
def test_heads_that_are_computed_as_the_model_does(kind: str) -> None:
    net = model(kind)
    check_head(net)
    head, (_, softcap, scale) = head_of(net), HEADS[kind]
    assert (head.softcap, head.scale) == (softcap, scale)
    assert (head.bias is not None) == (kind == "phi")


def test_a_mixture_of_mamba_and_attention_with_a_multiplier() -> None:
    small = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
    net = AutoModelForCausalLM.from_config(config("falcon_h1", lm_head_multiplier=0.5, **small))
    check_head(net)
    assert head_of(net).scale == 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_judged_by_its_own_rounding(dtype: torch.dtype) -> None:
    net = model("gemma2").to(dtype)
    check_head(net)
    own = head_of(net).softcap
    assert own == 5.0
    net.config.final_logit_softcapping = None
    forward = net.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = own * torch.tanh(out.logits / own)
        return out

    capped.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    net.forward = capped
    with pytest.raises(ValueError, match="does something to its logits"):
        check_head(net)


def test_checking_leaves_the_model_as_it_was() -> None:
    net = model().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    check_head(net)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not net.get_output_embeddings()._forward_pre_hooks


def test_no_logits_are_computed_for_hidden_states() -> None:
    net, ids = model(), padded([12, 12])["input_ids"]
    seen = []
    net.get_output_embeddings().register_forward_hook(lambda _, args, out: seen.append(tuple(out.shape)))
    hidden = last_hidden(net, input_ids=ids)
    assert seen == [(2, 0, 90)]
    assert torch.allclose(hidden @ net.lm_head.weight.T, net(input_ids=ids).logits, atol=1e-6)


def test_labels_are_shifted_once() -> None:
    net, batch = model(), padded([12, 7])
    states = next_states(net, batch)
    assert states.hidden.shape == (22, 16)
    assert states.target.tolist() == batch["labels"][:, 1:].flatten().tolist()
    assert int(states.counted.sum()) == 11 + 6
    shifted = torch.cat([batch["labels"][:, 1:], torch.full((2, 1), -100)], 1)
    again = next_states(net, {"input_ids": batch["input_ids"], "shift_labels": shifted})
    assert again.target[again.counted].tolist() == states.target[states.counted].tolist()
    assert torch.allclose(again.hidden[again.counted], states.hidden[states.counted], atol=1e-6)


def test_batches_without_fitting_labels_are_refused() -> None:
    ids = torch.arange(8).reshape(2, 4)
    with pytest.raises(ValueError, match="the batch has no labels, only input_ids"):
        next_states(model(), {"input_ids": ids})
    with pytest.raises(ValueError, match=r"labels of shape \[2, 3\] for input_ids of \[2, 4\]"):
        next_states(model(), {"input_ids": ids, "labels": ids[:, 1:]})


def lora(*targets: str, **more: Any) -> Any:
    return peft.get_peft_model(
        model(), peft.LoraConfig(r=2, target_modules=list(targets), task_type="CAUSAL_LM", **more)
    )


def test_an_adapter_inside_the_model_is_fine() -> None:
    net = lora("q_proj", "v_proj")
    check_head(net)
    assert head_of(net).weight is net.get_base_model().lm_head.weight


def test_an_adapter_on_the_head_is_refused_until_it_is_merged() -> None:
    net = lora("q_proj", "lm_head")
    with pytest.raises(ValueError, match="adapter on its output embedding, which the fused head would leave untrained"):
        check_head(net)
    check_head(net.merge_and_unload())


def test_a_head_that_is_trained_whole_beside_an_adapter_is_the_trained_copy() -> None:
    net = lora("q_proj", modules_to_save=["lm_head"])
    check_head(net)
    assert head_of(net).weight.requires_grad
    assert head_of(net).weight is net.get_base_model().lm_head.modules_to_save["default"].weight


def test_virtual_tokens_are_refused() -> None:
    net = peft.get_peft_model(model(), peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="19 hidden states for 16 tokens: prompt-learning adapters"):
        check_head(net)


def test_models_without_a_head_are_refused() -> None:
    net = model()
    net.lm_head = None
    with pytest.raises(ValueError, match="has no output embedding with a weight"):
        head_of(net)


def test_damaged_weights_are_named() -> None:
    net = model()
    with torch.no_grad():
        net.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="hidden states that are not finite"):
        check_head(net)


def test_a_detached_head_is_a_constant() -> None:
    head = Head(torch.randn(3, 2, requires_grad=True), torch.zeros(3, requires_grad=True), 2.0, 0.5).detached()
    assert not head.weight.requires_grad
    assert head.bias is not None
    assert not head.bias.requires_grad
    assert (head.softcap, head.scale) == (2.0, 0.5)


def test_a_head_that_is_sharded_over_devices_is_refused(tmp_path: Path) -> None:
    """As FSDP leaves it: the fused head would read the part of one device."""
    net = model()
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        net.lm_head.weight = nn.Parameter(distribute_tensor(net.lm_head.weight.detach(), mesh, [Shard(0)]))
        with pytest.raises(ValueError, match="model of type llama has its output embedding sharded over devices"):
            head_of(net)
    finally:
        dist.destroy_process_group()
