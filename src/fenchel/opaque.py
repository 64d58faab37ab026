"""Operators that compilers and functorch do not look into.

What `torch.library.custom_op` makes, but for one thing: that imports a compiler when an operator is first called, seconds of work that a program which
compiles nothing has no use for.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Opaque", "differentiable", "opaque"]

_library = torch.library.Library("fenchel", "FRAGMENT")


@dataclass(frozen=True, eq=False)
class Opaque:
    """A function of tensors and numbers as the operator torch.ops.fenchel.<name>; it returns new tensors and has no derivative."""

    name: str
    overload: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's result."""
        return self.overload(*args, **kwargs)

    def register_fake(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """What a compiler is told: shapes and dtypes."""
        return torch.library.register_fake(f"fenchel::{self.name}", fn, lib=_library)

    def register_vmap(self, fn: Callable[..., Any]) -> None:
        """What to do with a batch."""
        torch.library.register_vmap(f"fenchel::{self.name}", fn, lib=_library)


def opaque(name: str) -> Callable[[Callable[..., Any]], Opaque]:
    """Makes a function the operator fenchel::name."""

    def register(fn: Callable[..., Any]) -> Opaque:
        schema = torch.library.infer_schema(fn, mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, _uncompiled(fn), "CompositeExplicitAutograd")
        return Opaque(name, getattr(torch.ops.fenchel, name).default)

    return register


def _uncompiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """fn, which no compiler may trace; one that was not imported cannot."""
    disabled = functools.cache(lambda: torch.compiler.disable(fn))

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        inside = disabled() if "torch._dynamo" in sys.modules else fn
        return inside(*args, **kwargs)

    return call


@contextmanager
def differentiable() -> Iterator[None]:
    """Autograd, inside an operator: a compiled function calls operators with autograd's dispatch keys excluded, which enable_grad does not undo."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    excluded = excluded.remove(torch._C.DispatchKey.AutogradFunctionality)
    with torch.enable_grad(), torch._C._ForceDispatchKeyGuard(included, excluded):
        yield
