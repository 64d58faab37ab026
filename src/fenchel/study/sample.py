"""A sampled continuation: what a model writes, drawn from the distribution that it was trained for."""

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fenchel.objectives.supervised import predictions

SEED = 0


@torch.no_grad()
def continuation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Tensor, objective: str, tokens: int = 96
) -> dict[str, str]:
    """{"prompt", "text"}: `tokens` tokens after `prompt` [T], drawn from what a model of the objective predicts.

    The random numbers are the same for every objective, so that differences come from the models.
    """
    was_training = model.training
    model.eval()
    random = torch.Generator().manual_seed(SEED)
    step, cache, drawn = prompt[None].to(model.device), None, []
    for _ in range(tokens):
        outputs = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        p = predictions(outputs.logits[:, -1].float(), objective)[0].cpu()
        token = int(torch.multinomial(p, 1, generator=random))
        if token == tokenizer.eos_token_id:
            break
        drawn.append(token)
        step = torch.tensor([[token]], device=model.device)
    model.train(was_training)
    return {"prompt": str(tokenizer.decode(prompt.tolist())), "text": str(tokenizer.decode(drawn))}
