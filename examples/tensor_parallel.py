"""Trains the demo's model with its output embedding over several processes; the losses are those of one process.

    torchrun --nproc-per-node 2 examples/tensor_parallel.py
    python examples/tensor_parallel.py

Every process sees every batch and holds the body of the model whole; of the output embedding it holds, multiplies and trains its share of the vocabulary. So
there is no [tokens, vocabulary] tensor on any of them, and the sharded half of the model takes a share of the memory: weight, gradient and both of Adam's.
"""

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import fenchel
from fenchel.study.corpus import standard_library
from fenchel.study.data import TrainBlocks, prepare
from fenchel.study.model import ModelSource, build, preset_config
from fenchel.study.presets import Preset, preset


def batches(size: Preset, steps: int, documents: int | None) -> torch.Tensor:
    """Token ids [steps, batch, context] of the standard library's source."""
    data = prepare(
        standard_library()[:documents],
        size.vocab_size,
        train_tokens=steps * size.batch_size * size.context,
        heldout_tokens=1,
        name="standard library",
    )
    blocks = TrainBlocks(data.train.ids, size.context, seed=0, count=steps * size.batch_size)
    ids = torch.stack([blocks[i]["input_ids"] for i in range(len(blocks))])
    return ids.view(steps, size.batch_size, size.context)


def train(size: Preset, ids: torch.Tensor, objective: str) -> list[float]:
    """The loss of each step; with a process group, the output embedding is sharded over it."""
    model = build(ModelSource(preset_config(size)), seed=0)
    if dist.is_initialized():
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        model.lm_head.weight = nn.Parameter(distribute_tensor(model.lm_head.weight.data, mesh, [Shard(0)]))
    # one parameter at a time: torch's fused loops take no mixture of DTensors and tensors
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0, foreach=False)
    losses = []
    for batch in ids:
        hidden = model.model(input_ids=batch[:, :-1]).last_hidden_state
        loss = fenchel.linear_fenchel_young(hidden, model.lm_head.weight, batch[:, 1:], objective)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", default="nano", help="a preset of fenchel compare")
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--objective", default="alpha:1.5", help="a generator")
    options.add_argument("--documents", type=int, help="use the first of the corpus alone")
    options.add_argument("--out", type=Path, help="a file for the losses")
    given = options.parse_args()
    size = preset(given.size)
    parallel = "LOCAL_RANK" in os.environ
    if parallel:
        dist.init_process_group("gloo")
    losses = train(size, batches(size, given.steps, given.documents), given.objective)
    if not parallel or dist.get_rank() == 0:
        for step, loss in enumerate(losses, 1):
            if step % max(1, given.steps // 10) == 0:
                print(f"step {step:4d}  loss {loss:.6f}")
        if given.out is not None:
            given.out.write_text(json.dumps(losses))
    if parallel:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
