"""Whether a call's tiles go through the Triton kernels; imports no triton."""

import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch

__all__ = ["BACKENDS", "check_backend", "chosen"]

BACKENDS = ("auto", "torch", "triton")

log = logging.getLogger("fenchel")


def check_backend(backend: str) -> str:
    """The backend.

    Raises:
        ValueError: not one of `BACKENDS`.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}; pass one of {', '.join(map(repr, BACKENDS))}")
    return backend


def chosen(
    backend: str, device: torch.device, group: str = "", obstacle: Callable[[], str | None] = lambda: None
) -> bool:
    """Whether to use Triton: where it was asked for, and by "auto" on a GPU that has it.

    Args:
        group: ranks that share the vocabulary, "" for none: kernels know rows that are whole.
        obstacle: why the call cannot, if it cannot; asked once a kernel could run at all.

    Raises:
        ValueError: asked for where it cannot run.
    """
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return False
    why = _missing(device) or ("ranks share the vocabulary" if group else obstacle())
    if why is None:
        return True
    if backend == "triton":
        raise ValueError(f"backend: got 'triton', but {why}; pass backend='auto' or 'torch' for torch's operations")
    _say(why)
    return False


def _missing(device: torch.device) -> str | None:
    """Why no Triton kernel can run on the device."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install 'fenchel[triton]')"
    if device.type == "cuda" or (device.type == "cpu" and _interpreted()):
        return None
    return (
        f"the tensors are on {device}: Triton's kernels run on a GPU, "
        "or, slowly, on a CPU with TRITON_INTERPRET=1 set before triton is imported"
    )


def _interpreted() -> bool:
    # decided when a kernel is declared, so a kernel is asked
    from triton.runtime.interpreter import InterpretedFunction

    from .maths import exp

    return isinstance(exp, InterpretedFunction)


@cache
def _say(why: str) -> None:
    log.warning("fenchel: no Triton kernels for this call: %s; torch's operations are used, slower", why)
