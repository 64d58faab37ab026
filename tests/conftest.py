"""What every test runs under: no network, two threads, one seed, the same examples, uninitialised memory that shows."""

import os

# Read once by the packages when they are imported, so they are set first.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    # kernels for a GPU run here one operation at a time
    TRITON_INTERPRET="1",
)

import hypothesis
import pytest
import torch

# The same examples on every machine; HYPOTHESIS_PROFILE=search looks for new ones.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=40)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))


def pytest_configure() -> None:
    # one core for each of several processes
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    poison_empty()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    torch.manual_seed(0)


def poison_empty() -> None:
    """Fill what torch.empty and its kin return with NaN: a value that was never written cannot pass for a zero."""

    def poisoned(make):
        def filled(*args, **kwargs):
            out = make(*args, **kwargs)
            if torch.compiler.is_compiling() or not (out.is_floating_point() and out.device.type in ("cpu", "cuda")):
                return out
            filled = out.detach().fill_(float("nan"))
            # not unless it is needed: functorch refuses the call
            return filled.requires_grad_() if out.requires_grad else filled

        return filled

    torch.empty = poisoned(torch.empty)
    torch.empty_like = poisoned(torch.empty_like)
    torch.Tensor.new_empty = poisoned(torch.Tensor.new_empty)
