"""A real run, and what its head sees: hidden states, weight and labels after some steps and at the end.

A small Llama trained on the source of the Python standard library with one objective, through the pieces of
`fenchel.study`, in a plain loop. The snapshots are kept in the user's cache directory for the next benchmark.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fenchel.bench.sizes import Size
from fenchel.study.errors import StudyError

# Batches that the run, once over, is trained on again and again: what fine-tuning on a small text does to its logits.
FITTED_BATCHES = 4
SNAPSHOTS = ("early", "late", "fitted")


@dataclass(frozen=True)
class Snapshot:
    """What the head of a model sees: hidden `[N, D]`, weight `[V, D]`, labels `[N]`, and where they come from."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    facts: dict[str, Any]


def cache_directory() -> Path:
    """The user's cache directory of the benchmark."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fenchel" / "bench"


def run_name(size: Size, objective: str) -> str:
    """Directory of a run: its readable settings, and a hash of all of them."""
    settings = asdict(size)
    del settings["dtype"]  # the run is made in float32
    key = hashlib.sha256(json.dumps([settings, objective, FITTED_BATCHES, 1]).encode()).hexdigest()[:8]
    return f"{objective.replace(':', '-')}-{size.name}-{size.steps}-{key}"


def snapshots(
    size: Size, objective: str, cache: Path, say: Callable[[str], None], train: bool = True
) -> dict[str, Snapshot]:
    """The snapshots of the run of this size and objective by name, trained now if the cache does not hold them."""
    directory = cache / run_name(size, objective)
    if not all((directory / f"{name}.safetensors").is_file() for name in SNAPSHOTS):
        if not train:
            raise StudyError(f"no run of {objective} in {cache}: run fenchel bench --prepare")
        _train(size, objective, directory, say)
    return {name: read(directory / f"{name}.safetensors") for name in SNAPSHOTS}


def read(path: Path) -> Snapshot:
    """A snapshot from its file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("hidden", "weight", "labels")}
            facts = json.loads(file.metadata()["facts"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{path} is not a snapshot of a run: delete it, and it is made again") from error
    return Snapshot(**tensors, facts=facts)


def write(snapshot: Snapshot, path: Path) -> None:
    """A snapshot to its file, whole or not at all."""
    from safetensors.torch import save_file

    partial = path.with_suffix(f".{os.getpid()}.partial")
    tensors = {name: getattr(snapshot, name).contiguous() for name in ("hidden", "weight", "labels")}
    try:
        save_file(tensors, str(partial), metadata={"facts": json.dumps(snapshot.facts)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _train(size: Size, objective: str, directory: Path, say: Callable[[str], None]) -> None:
    from fenchel.study.data import TrainBlocks
    from fenchel.study.model import ModelSource, build, preset_config
    from fenchel.study.presets import Preset

    # rows of a window: every token but the last has a successor
    windows = -(-size.n // (size.context - 1))
    count = size.steps * size.sequences + windows
    data = _data(size, count * size.context)
    vocabulary = len(data.tokenizer)
    say(f"{data.facts['tokens_train']:,} tokens of the standard library, vocabulary of {vocabulary:,}")
    if vocabulary != size.v:
        say(f"the text has too few pairs for {size.v:,} entries: the trained regimes have V = {vocabulary:,}")
    blocks = TrainBlocks(data.train.ids, size.context, 0, count)
    if len(data.train.ids) // size.context < count:
        raise StudyError(f"the standard library has too little text for {size.steps} steps: pass fewer --steps")
    p = Preset("bench", 0.0, vocabulary, size.d, size.layers, size.heads, size.context, size.sequences, size.steps, 0)
    model = build(ModelSource(preset_config(p)), seed=0)
    unseen = torch.stack([blocks[size.steps * size.sequences + i]["input_ids"] for i in range(windows)])
    directory.mkdir(parents=True, exist_ok=True)
    made = {
        "objective": objective,
        "layers": size.layers,
        "tokens_per_step": size.sequences * size.context,
        "seed": 0,
        "torch": torch.__version__,
        "corpus": data.facts["sha256"][:12],
    }

    def keep(name: str, step: int, ids: Tensor, loss: float) -> None:
        from fenchel.integrations.hooks import head_of, last_hidden

        model.eval()
        with torch.no_grad():
            hidden = last_hidden(model, input_ids=ids)[:, :-1].flatten(0, 1)[: size.n]
        model.train()
        weight = head_of(model).weight.detach().clone()
        facts = made | {"step": step, "loss": loss}
        write(Snapshot(hidden, weight, ids[:, 1:].flatten()[: size.n], facts), directory / f"{name}.safetensors")

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.lr, weight_decay=0.0, fused=True)
    last = _steps(
        model, optimizer, blocks, size, objective, range(size.steps), say, lambda s, l: _early(keep, s, l, size, unseen)
    )
    keep("late", size.steps, unseen, last)
    chosen = [i % FITTED_BATCHES for i in range(size.fit)]
    for group in optimizer.param_groups:
        group["lr"] = size.lr / 2
    last = _steps(model, optimizer, blocks, size, objective, chosen, say, None)
    seen = torch.stack([blocks[i % (FITTED_BATCHES * size.sequences)]["input_ids"] for i in range(windows)])
    keep("fitted", size.steps + size.fit, seen, last)


def _early(keep: Callable[..., None], step: int, loss: float, size: Size, unseen: Tensor) -> None:
    if step == size.early:
        keep("early", step, unseen, loss)


def _steps(
    model: Any,
    optimizer: torch.optim.Optimizer,
    blocks: Any,
    size: Size,
    objective: str,
    batches: Any,
    say: Callable[[str], None],
    after: Callable[[int, float], None] | None,
) -> float:
    """Trains on the batches of these numbers; warm-up over a tenth and a cosine to zero where there is a schedule."""
    from fenchel.integrations.losses import LabelLoss, batch_loss

    loss, start, total = 0.0, time.perf_counter(), len(batches)
    scheduled = after is not None
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _rate(s, total) if scheduled else 1.0)
    for i, batch in enumerate(batches):
        ids = torch.stack([blocks[batch * size.sequences + k]["input_ids"] for k in range(size.sequences)])
        value = batch_loss(LabelLoss(objective), model, model, {"input_ids": ids, "labels": ids})
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        loss = float(value.detach())
        if not abs(loss) < float("inf"):
            raise StudyError(f"the loss of {objective} became {loss} at step {i + 1}")
        if after is not None:
            after(i + 1, loss)
        if (i + 1) % max(1, total // 20) == 0:
            say(
                f"{objective} step {i + 1} of {total}: loss {loss:.3f}, {(time.perf_counter() - start) / (i + 1):.2f} s a step"
            )
    return loss


def _rate(step: int, total: int) -> float:
    import math

    warm = max(1, total // 10)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _data(size: Size, tokens: int) -> Any:
    from fenchel.study.corpus import Document, standard_library
    from fenchel.study.data import prepare

    documents: list[Document] = []
    left = size.characters
    for document in standard_library():
        if left <= 0:
            break
        documents.append(document)
        left -= len(document.text)
    return prepare(documents, size.v, train_tokens=tokens, heldout_tokens=0, name="the Python standard library")
