"""On-policy distillation: a share of the batches is what the student itself writes, judged token by token by the teacher.

On data alone a student never sees the contexts that its own mistakes lead to; trained on its own continuations it does.
The sampled tokens are constants: no gradient flows through the choice of them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .hooks import IGNORED

__all__ = ["OnPolicy", "continued"]


@torch.no_grad()
def continued(model: Any, prompts: Tensor, length: int, random: torch.Generator) -> Tensor:
    """Prompts [B, P] with what the model writes after them, [B, length], drawn from softmax(logits), in evaluation mode.

    `random` is a generator on the CPU, so that the same seed draws the same on every device, as far as logits agree.
    """
    was_training = model.training
    model.eval()
    ids, step, cache = prompts, prompts, None
    try:
        while ids.shape[1] < length:
            outputs = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = outputs.past_key_values
            p = outputs.logits[:, -1].float().softmax(-1).cpu()
            step = torch.multinomial(p, 1, generator=random).to(ids.device)
            ids = torch.cat([ids, step], 1)
    finally:
        model.train(was_training)
    return ids


@dataclass(frozen=True)
class OnPolicy:
    """Replaces a share of the batches by the student's continuations of their first tokens.

    Attributes:
        share: of the batches, 0 to 1.
        prompt: how many tokens of each sequence are kept; they are not learnt from.
        seed: with the number of a step it decides whether the batch is replaced, and by what: a resumed run writes the
            same as one that was never stopped.

    Source: Agarwal et al., arXiv 2306.13649 (GKD), whose lambda the share is.
    """

    share: float
    prompt: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: got {self.share}; pass a number from 0 to 1")

    def __call__(self, model: Any, inputs: dict[str, Any], step: int) -> dict[str, Any]:
        """The batch ("input_ids" and "labels" [B, T]) or its replacement, whose prompts are ignored."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        if float(torch.rand((), generator=random, dtype=torch.float64)) >= self.share:
            return inputs
        given = inputs["input_ids"]
        ids = continued(model, given[:, : self.prompt], given.shape[1], random)
        labels = ids.clone()
        labels[:, : self.prompt] = IGNORED
        return {"input_ids": ids, "labels": labels}
