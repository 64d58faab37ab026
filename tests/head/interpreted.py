"""What tests of interpreted Triton kernels share."""

import pytest
from triton.runtime.interpreter import InterpretedFunction

# the interpreter computes by numpy, which warns of what is meant
NUMPY_WARNS = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.fixture(autouse=True)
def quick_calls(monkeypatch):
    """A function of ours that a kernel calls is just called.

    The interpreter replaces the language's own functions once for a kernel, and again for each call within it: a hundred times what the call itself takes.
    """
    usual = InterpretedFunction.__call__

    def call(self, *args, **more):
        ours = self.fn.__module__.startswith("fenchel.")
        return self.rewrite()(*args, **more) if ours else usual(self, *args, **more)

    monkeypatch.setattr(InterpretedFunction, "__call__", call)
