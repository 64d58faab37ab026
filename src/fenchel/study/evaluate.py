"""Held-out evaluation: hidden states of the windows, handed to the metrics."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fenchel.integrations.hooks import Head, head_of, last_hidden
from fenchel.study import metrics
from fenchel.study.data import IGNORED, Windows

# Windows that go through the model at a time.
BATCH = 16


def every(windows: Windows, step: int) -> Windows:
    """Every `step`-th window, for the points of a learning curve, which need not be as exact as the final figures."""
    document = windows.document[::step]
    used, renumbered = document.unique(return_inverse=True)
    names = tuple(windows.names[i] for i in used.tolist())
    return Windows(windows.ids[::step], windows.labels[::step], renumbered, names)


@torch.no_grad()
def heldout_states(model: PreTrainedModel, windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden [N, D], target [N], document [N]) of every token of the windows that has a successor."""
    was_training = model.training
    model.eval()
    hidden, target, document = [], [], []
    for start in range(0, len(windows.ids), BATCH):
        rows = slice(start, start + BATCH)
        following = windows.labels[rows, 1:]
        kept = following != IGNORED
        states = last_hidden(model, input_ids=windows.ids[rows].to(model.device))[:, :-1]
        hidden.append(states[kept.to(states.device)])
        target.append(following[kept])
        document.append(windows.document[rows, None].expand_as(following)[kept])
    model.train(was_training)
    return torch.cat(hidden), torch.cat(target).to(model.device), torch.cat(document).to(model.device)


def evaluate(model: PreTrainedModel, windows: Windows, objective: str) -> metrics.Evaluation:
    """The metrics of a model that was trained with `objective` on held-out windows."""
    hidden, target, document = heldout_states(model, windows)
    head = head_of(model)
    hidden, weight = without_bias(hidden, head)
    return metrics.evaluate(hidden, weight, target, document, objective, softcap=head.softcap, scale=head.scale)


def without_bias(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """(hidden, weight) with the bias as one more column: hidden @ W.T + b = [hidden, 1] @ [W, b].T."""
    if head.bias is None:
        return hidden, head.weight.detach()
    ones = hidden.new_ones(hidden.shape[0], 1)
    return torch.cat([hidden, ones], -1), torch.cat([head.weight, head.bias[:, None]], -1).detach()
