"""`make gpu`: every Triton kernel against dense float64 on this machine's GPU, then the heads' times and memory there.

Needs torch and triton alone, no network: `PYTHONPATH=src python benchmarks/gpu.py`. Where a check fails, nothing is timed.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fenchel
from fenchel.head import half
from fenchel.head.divergence import linear_divergence
from fenchel.head.logp import linear_logp

__all__ = ["Check", "Time", "checks", "main"]

# what the times are of: a Llama-3 vocabulary
N, D, V = 8192, 4096, 128_256
MEMORY = 2**29
REPEATS = 7
Step = Callable[..., Tensor]
YOUNG = ("kl", "js", "hellinger", "alpha:1.5", "alpha:2", "reverse_kl", "jeffreys", "le_cam")
WITHOUT = ("kl", "alpha:1.5")
PAIRS = ("kl", "reverse_kl", "js", "alpha:1.5")


@dataclass(frozen=True)
class Check:
    """One head in one dtype: the largest error of value and gradients by their norms, and torch's own in that dtype."""

    head: str
    dtype: str
    error: float
    usual: float

    @property
    def passed(self) -> bool:
        """Whether the error is torch's own, but for a factor and rounding in float32."""
        return self.error <= 2 * self.usual + 1e-5


@dataclass(frozen=True)
class Time:
    """Milliseconds of one forward and backward pass, median, least and most; peak bytes beyond what was there before and the gradients."""

    path: str
    median: float
    least: float
    most: float
    peak: int


@dataclass(frozen=True)
class Case:
    """A head by Triton, and the same by dense torch: tensors of `tensors_of` -> a scalar."""

    name: str
    fused: Step
    dense: Step


def cases() -> list[Case]:
    """Every kernel: Fenchel-Young rows, solved and in closed form, dense and sparse; log-probabilities; divergences."""
    alone = [_young(name, accumulator=False) for name in WITHOUT]
    return [*(_young(name) for name in YOUNG), *alone, _logp(), *(_pair(name) for name in PAIRS)]


def _young(name: str, accumulator: bool = True) -> Case:
    options: dict[str, Any] = {"backend": "triton", "memory": MEMORY, "accumulator": accumulator}
    return Case(
        f"young {name}" + ("" if accumulator else ", no accumulator"),
        lambda h, w, y, *_: fenchel.linear_fenchel_young(h, w, y, name, **options),
        lambda h, w, y, *_: fenchel.fenchel_young(_logits(h, w), y, name),
    )


def _logp() -> Case:
    def fused(h: Tensor, w: Tensor, y: Tensor, *_: Tensor) -> Tensor:
        out = linear_logp(h, w, y, backend="triton", memory=MEMORY)
        return (out.logp - 0.1 * out.entropy + 0.01 * out.logsumexp).mean()

    def dense(h: Tensor, w: Tensor, y: Tensor, *_: Tensor) -> Tensor:
        log_p = torch.log_softmax(_logits(h, w), 1)
        own, entropy = log_p.gather(1, y.unsqueeze(1)).squeeze(1), -(log_p.exp() * log_p).sum(1)
        return (own - 0.1 * entropy + 0.01 * torch.logsumexp(_logits(h, w), 1)).mean()

    return Case("log-probability and entropy", fused, dense)


def _pair(name: str) -> Case:
    return Case(
        f"divergence {name}",
        lambda h, w, y, ht, wt: linear_divergence(
            (ht, wt), (h, w), name, reduction="mean", backend="triton", memory=MEMORY
        ),
        lambda h, w, y, ht, wt: fenchel.divergence(_logits(ht, wt), _logits(h, w), name).mean(),
    )


def _logits(h: Tensor, w: Tensor) -> Tensor:
    z = h @ w.T
    return z.to(torch.promote_types(z.dtype, torch.float32))


def tensors_of(n: int, d: int, v: int, dtype: torch.dtype, device: torch.device, spread: float) -> tuple[Tensor, ...]:
    """Hidden states and weight that require gradients, labels, a teacher's hidden states and weight; logits of this standard deviation."""
    made = torch.Generator().manual_seed(0)
    h, w, ht, wt = (torch.randn(s, generator=made) for s in ((n, d), (v, d), (n, d), (v, d)))
    y = torch.randint(v, (n,), generator=made)
    scale = (spread / d**0.5) ** 0.5
    h, w, ht, wt = ((x * scale).to(device, dtype) for x in (h, w, ht, wt))
    return h.requires_grad_(), w.requires_grad_(), y.to(device), ht, wt


def checks(device: torch.device, n: int, d: int, v: int, dtypes: Sequence[torch.dtype]) -> list[Check]:
    """Each case in each dtype against dense float64, on flat logits and on peaked ones (whose gradients are sparse)."""
    found = []
    for dtype in dtypes:
        found += _products(device, n, d, v, dtype)
        for spread in (0.5, 8.0):
            given = tensors_of(n, d, v, dtype, device, spread)
            wide = tuple(x.detach().double() if x.is_floating_point() else x for x in given)
            for x in wide[:2]:
                x.requires_grad_()
            for case in cases():
                want = _derivatives(case.dense, wide)
                errors = [_error(_derivatives(f, given), want) for f in (case.fused, case.dense)]
                found.append(Check(f"{case.name}, logits of {spread:g}", str(dtype).removeprefix("torch."), *errors))
    return found


def _products(device: torch.device, n: int, d: int, v: int, dtype: torch.dtype) -> list[Check]:
    """Products of half precision against float64, beside torch's of the same numbers in float32: both round to float32 alone."""
    h, w, *_ = (x.detach() for x in tensors_of(n, d, v, dtype, device, 8.0))
    if not half.handles(w):
        return []
    found = []
    for name, a, b in (("hidden @ weight.T", h, w.T), ("weight.T @ weight", w.T, w)):
        want = [a.double() @ b.double()]
        for new in (True, False):
            out = torch.zeros(want[0].shape, device=device)
            half.add_product(out, a, b, new)
            errors = [_error(x, want) for x in ([out], [a.float() @ b.float()])]
            found.append(Check(f"{name}, {'written' if new else 'added'}", str(dtype).removeprefix("torch."), *errors))
    return found


def _derivatives(step: Step, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    value = step(*tensors)
    return [value.detach(), *torch.autograd.grad(value, tensors[:2])]


def _error(got: list[Tensor], want: list[Tensor]) -> float:
    errors = [float((g.double() - w).norm() / (w.norm() + 1e-6)) for g, w in zip(got, want, strict=True)]
    # max() drops a NaN that is not first
    return max(errors) if all(e == e for e in errors) else float("inf")


def times(device: torch.device, n: int, d: int, v: int) -> list[Time]:
    """bfloat16: bare products first, whose multiples the others are; α = 1.5 late in training, and α = 1.5 and the rest on flat logits."""
    flat, late = (tensors_of(n, d, v, torch.bfloat16, device, spread) for spread in (0.5, 8.0))
    h, w, y, ht, wt = flat
    z = h.detach() @ w.detach().T

    def products() -> None:
        torch.mm(h.detach(), w.detach().T, out=z)
        torch.mm(z, w.detach())
        torch.mm(z.T, h.detach())

    steps: dict[str, Callable[[], Any]] = {
        "one product": lambda: torch.mm(h.detach(), w.detach().T, out=z),
        "three products": products,
    }
    for case in cases():
        steps[case.name] = lambda case=case: torch.autograd.grad(case.fused(*flat), flat[:2])
    late_case = _young("alpha:1.5")
    steps["young alpha:1.5, late"] = lambda: torch.autograd.grad(late_case.fused(*late), late[:2])
    return [_time(path, step, device) for path, step in steps.items()]


def _time(path: str, step: Callable[[], Any], device: torch.device) -> Time:
    step()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    out = step()
    torch.cuda.synchronize(device)
    kept = sum(x.nbytes for x in out) if isinstance(out, tuple) else 0
    peak = torch.cuda.max_memory_allocated(device) - before - kept
    taken = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize(device)
        taken.append(start.elapsed_time(end))
    return Time(path, statistics.median(taken), min(taken), max(taken), max(0, peak))


def conditions(device: torch.device) -> dict[str, str]:
    """The GPU, versions and shapes."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name(device),
        "shapes": f"N = {N:,}, D = {D:,}, V = {V:,}, bfloat16",
        "versions": f"fenchel {fenchel.__version__}, python {platform.python_version()}, torch {torch.__version__}, "
        f"triton {triton.__version__}",
        "memory for a tile": f"{MEMORY / 2**20:.0f} MiB",
    }


def markdown(about: dict[str, str], checked: Sequence[Check], timed: Sequence[Time]) -> str:
    """Both tables."""
    lines = ["; ".join(f"{k}: {x}" for k, x in about.items()), "", "| head | dtype | error | torch's | passed |"]
    lines += ["|---|---|---:|---:|---|"]
    lines += [
        f"| {c.head} | {c.dtype} | {c.error:.1e} | {c.usual:.1e} | {'yes' if c.passed else 'NO'} |" for c in checked
    ]
    if timed:
        one = timed[0].median
        lines += ["", "| path | ms | × one product | peak MiB |", "|---|---:|---:|---:|"]
        lines += [
            f"| {t.path} | {t.median:.2f} ({t.least:.2f}–{t.most:.2f}) | {t.median / one:.2f} | {t.peak / 2**20:.0f} |"
            for t in timed
        ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if every check passed, 1 if one did not, 2 without a GPU."""
    flags = argparse.ArgumentParser(prog="gpu.py", description=__doc__)
    flags.add_argument("--out", type=Path, default=Path("gpu"), help="where gpu.md and gpu.json go (default ./gpu)")
    flags.add_argument("--checks-only", action="store_true", help="without times")
    chosen = flags.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("gpu.py: torch finds no GPU here; run it on a machine that has one\n")
        return 2
    device = torch.device("cuda")
    about = conditions(device)
    checked = checks(device, 300, 96, 5003, (torch.float32, torch.bfloat16, torch.float16))
    passed = all(c.passed for c in checked)
    timed = times(device, N, D, V) if passed and not chosen.checks_only else []
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "gpu.md").write_text(markdown(about, checked, timed))
    everything = {"conditions": about, "checks": [asdict(c) for c in checked], "times": [asdict(t) for t in timed]}
    (chosen.out / "gpu.json").write_text(json.dumps(everything, indent=1) + "\n")
    sys.stdout.write(markdown(about, checked, timed))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
