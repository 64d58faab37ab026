"""How much memory the head takes: the peak of one forward and backward, beyond its inputs and gradients."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

CPU_METHOD = "torch profiler, CPU allocator: peak over one forward and backward of the head, minus its gradients"
CUDA_METHOD = "CUDA allocator statistics: peak over one forward and backward of the head, minus its gradients"


def peak_bytes(loss: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor) -> tuple[int, str]:
    """(bytes, method): most memory allocated at once by `loss(hidden, weight)` and its backward pass.

    The inputs exist before, and the gradients of `hidden` [N, D] and `weight` [V, D] are left out. Only memory that
    torch's own allocator hands out is seen, not the workspaces of matrix libraries.
    """
    hidden = hidden.detach().clone().requires_grad_()
    weight = weight.detach().clone().requires_grad_()
    gradients = hidden.numel() * hidden.element_size() + weight.numel() * weight.element_size()
    if hidden.is_cuda:
        torch.cuda.synchronize(hidden.device)
        before = torch.cuda.memory_allocated(hidden.device)
        torch.cuda.reset_peak_memory_stats(hidden.device)
        loss(hidden, weight).backward()
        torch.cuda.synchronize(hidden.device)
        return max(0, torch.cuda.max_memory_allocated(hidden.device) - before - gradients), CUDA_METHOD
    # Its stages are nobody's business; read when the profiler first starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss(hidden, weight).backward()
    kineto: Any = recorded.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return max(0, peak - gradients), CPU_METHOD
