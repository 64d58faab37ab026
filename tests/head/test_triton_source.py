"""What Triton kernels are made of: scalar functions that are accurate, and printed as what they were traced from; and when kernels are used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from interpreted import NUMPY_WARNS, quick_calls  # noqa: F401
from torch import Tensor

import fenchel
from fenchel.head.divergence import linear_divergence
from fenchel.head.logp import linear_logp
from fenchel.head.triton import maths, source, use
from tests.table import MINE, over

pytestmark = NUMPY_WARNS


@triton.jit
def _apply(x, out, n, fn: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out + place, fn(tl.load(x + place, mask=place < n, other=1.0)), mask=place < n)


def applied(fn, x: Tensor) -> Tensor:
    out = torch.full_like(x, -7.0)
    _apply[(-(-len(x) // 8192),)](x, out, len(x), fn=fn, BLOCK=8192)
    return out


def ulps(got: Tensor, want: Tensor) -> float:
    """The largest error in units of the last place of what is right, given in float64."""
    rounded = want.to(got.dtype)
    unit = torch.nextafter(rounded.abs(), torch.full_like(rounded, torch.inf)) - rounded.abs()
    return float(((got.double() - want) / unit.double()).abs().max())


ANY = torch.cat([s * torch.logspace(-37, 38, 40001, dtype=torch.float64) for s in (-1, 1)]).float()
NEAR_ONE = 1 + torch.cat([s * torch.logspace(-7, -0.01, 20001, dtype=torch.float64) for s in (-1, 1)]).float()


def test_exp_in_float32():
    x = torch.cat((ANY[(ANY > -87.3) & (ANY < 88.7)], torch.linspace(-87.3, 88.7, 30001)))
    assert ulps(applied(maths.exp, x), x.double().exp()) < 1.5
    far = torch.tensor([-torch.inf, torch.inf, torch.nan, -1e9, 1e9, 0.0, -95.0, -104.5])
    torch.testing.assert_close(applied(maths.exp, far), far.exp(), rtol=1e-6, atol=2e-45, equal_nan=True)


def test_log_in_float32():
    x = torch.cat((ANY[ANY > 0], NEAR_ONE[NEAR_ONE > 0], torch.tensor([1e-40, 3e-45])))
    assert ulps(applied(maths.log, x), x.double().log()) < 3
    edge = torch.tensor([0.0, -0.0, -1.0, torch.inf, torch.nan, 1.0])
    torch.testing.assert_close(applied(maths.log, edge), edge.log(), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["log1p", "expm1", "tanh", "sinh", "sigmoid", "softplus", "sqrt", "reciprocal"])
def test_functions_keep_their_digits(name, dtype):
    fn = torch.nn.functional.softplus if name == "softplus" else getattr(torch, name)
    x = torch.cat([s * torch.logspace(-30, 1.9, 3001, dtype=torch.float64) for s in (-1, 1)])
    x = x[x > -1] if name == "log1p" else x[x > 0] if name == "sqrt" else x
    x = torch.cat((x, torch.zeros(1, dtype=torch.float64), torch.tensor([torch.inf, torch.nan]))).to(dtype)
    got, want = applied(source.triton_function(name, fn, 1, dtype), x), fn(x.double())
    finite = want.isfinite() & (want != 0) & (want.abs() < torch.finfo(dtype).max)
    error = ((got.double() - want) / want)[finite].abs().max()
    assert error < 12 * torch.finfo(dtype).eps
    torch.testing.assert_close(got[~finite], fn(x)[~finite], rtol=0, atol=0, equal_nan=True)


def test_numbers_keep_float64_digits():
    """A literal that became a float32 on the way would show at 1e-8."""
    third = 1 / 3

    def fn(x: Tensor) -> Tensor:
        chosen = torch.where(x > 0.1, third, x.clamp(0.07, 0.09))
        return third * chosen + torch.tensor(0.3, dtype=torch.float64) - torch.full_like(x, 0.7).clamp_max(0.6)

    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(applied(source.triton_function("fn", fn, 1, x.dtype), x), fn(x), rtol=1e-15, atol=1e-15)


def test_nan_survives_what_would_drop_it():
    x = torch.tensor([torch.nan, -1.0, 2.0])
    for fn in (
        lambda x: x.clamp_min(0.0),
        lambda x: x.clamp_max(0.0),
        torch.relu,
        torch.sign,
        lambda x: torch.maximum(x, x * 0 + 1),
        lambda x: torch.minimum(x * 0 + 1, x),
    ):
        torch.testing.assert_close(applied(source.triton_function("f", fn, 1, x.dtype), x), fn(x), equal_nan=True)


@over(MINE)
def test_what_a_user_wrote_is_printed_too(case):
    """f at a log-ratio: the whole of a divergence."""
    t = torch.linspace(-8, 2, 201, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        fn = source.triton_function("f", case.g.of_log_ratio, 1, dtype)
        torch.testing.assert_close(
            applied(fn, t.to(dtype)).double(), case.g.of_log_ratio(t.to(dtype)).double(), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x.cumsum(0), "aten.cumsum.default has no Triton expression"),
        (lambda x: torch.erf(x), "aten.erf.default"),
        (lambda x: x + torch.arange(3.0), "has no Triton expression"),
        (lambda x: torch.add(x, x, alpha=2), "aten.add.Tensor"),
    ],
)
def test_what_is_not_elementary_is_named(fn, message):
    with pytest.raises(source.NotElementary, match=message):
        source.printed(fn, 1, torch.float32)


HIDDEN, WEIGHT, Y = torch.randn(3, 4), torch.randn(9, 4), torch.arange(3)
HEADS = {
    "young": lambda **more: fenchel.linear_fenchel_young(HIDDEN, WEIGHT, Y, more.pop("name", "js"), **more),
    "logp": lambda **more: linear_logp(HIDDEN, WEIGHT, Y, **more).logp,
    "divergence": lambda **more: linear_divergence((HIDDEN, WEIGHT), (-HIDDEN, WEIGHT), **more),
}


@pytest.mark.parametrize("head", HEADS)
def test_the_backend_is_one_of_three(head):
    with pytest.raises(ValueError, match="backend: got 'cuda'; pass one of 'auto', 'torch', 'triton'"):
        HEADS[head](backend="cuda")


@pytest.mark.parametrize("head", HEADS)
def test_asked_for_where_it_cannot_run(head, monkeypatch):
    monkeypatch.setattr(use, "_interpreted", lambda: False)
    with pytest.raises(ValueError, match="'triton', but the tensors are on cpu: .* pass backend='auto'"):
        HEADS[head](backend="triton")
    monkeypatch.setattr(use, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"triton is not installed \(pip install 'fenchel\[triton\]'\)"):
        HEADS[head](backend="triton")


@pytest.mark.parametrize("head", HEADS)
def test_a_cpu_is_left_to_torch_unless_triton_is_asked_for(head, monkeypatch):
    monkeypatch.setattr(use, "_missing", lambda device: pytest.fail("asked"))
    for backend in ("auto", "torch"):
        assert bool(HEADS[head](backend=backend).isfinite().all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "alpha:3"}, "generator 'alpha:3' is flat at 0"),
        ({"name": MINE[0].g}, "generator 'my kl': fenchel.invert.default has no Triton expression"),
        ({"label_smoothing": 0.1, "q": torch.rand(9) + 0.1}, "label smoothing beside class weights or a vector q"),
    ],
)
def test_what_has_no_kernel_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"backend: got 'triton'.*{message}"):
        HEADS["young"](backend="triton", **arguments)


def test_a_gpu_takes_what_it_can_and_says_what_it_cannot(caplog):
    use._say.cache_clear()
    gpu = torch.device("cuda")
    assert use.chosen("auto", gpu)
    assert not use.chosen("torch", gpu)
    assert not use.chosen("auto", gpu, "", lambda: "a reason")
    assert not use.chosen("auto", gpu, "", lambda: "a reason")
    assert not use.chosen("auto", gpu, "ranks")
    with pytest.raises(ValueError, match="backend: got 'triton', but ranks share the vocabulary"):
        use.chosen("triton", gpu, "ranks")
    assert [r.getMessage() for r in caplog.records] == [
        f"fenchel: no Triton kernels for this call: {why}; torch's operations are used, slower"
        for why in ("a reason", "ranks share the vocabulary")
    ]


COMPILE = """
import sys
import torch, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fenchel import generator
from fenchel.head.triton import divergence, functions, softmax, sparse, threshold

def compiled(kernel, pointers, **constants):
    signature = {}
    for name in kernel.arg_names:
        kind = pointers.get(name, "i32")
        signature[name] = "constexpr" if name in constants else kind
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()})
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print(kernel.__name__, len(built.asm["cubin"]) > 0)

F, W = "*fp32", tl.float32
f = functions.solver(generator("alpha:1.5"), torch.float32)
shape = dict(ROWS=1, BLOCK=1024)
many = dict(MANY_Q=True, CSR=True, WIDE=W, **shape)
compiled(threshold._solve, dict(z=F, pointers="*i64", q=F, out=F), bracket=f.bracket, shares=f.shares, advance=f.advance,
         MULTIPLICATIVE=False, EVALUATIONS=64, **many)
dense = dict(MANY_Q=False, CSR=False, WIDE=W, **shape)
rows = dict.fromkeys(("z", "pointers", "q", "best", "top", "shift", "flat", "c", "own", "rest", "out"), F)
compiled(threshold._finish, dict(rows, y="*i64"), finish=f.finish, GRADIENT=True, TARGET=True, SMOOTHED=True, **dense)
compiled(softmax._softmax, dict(z=F, out=F), WIDE=W, **shape)
compiled(softmax._gradient, dict(z=F, best=F, spread=F, entropy=F, y="*i64", c=F),
         pulled=functions.logp_gradient(torch.float32), WIDE=W, **shape)
terms, pulled = functions.divergence_functions(generator("kl"), 0.0, (True, True), torch.float32)
names = ("zp", "zq", "best_p", "spread_p", "best_q", "spread_q", "c", "out")
compiled(divergence._divergence, dict.fromkeys(names, F), terms=terms, pulled=pulled, NEEDED_P=True, NEEDED_Q=True,
         WIDE=W, **shape)
compiled(sparse._fill, dict(logits=F, limit=F, row_ptr="*i64", cols="*i32", vals=F), **shape)
compiled(sparse._gather, dict(pointers="*i64", index="*i32", vals=F, x="*bf16", into="*i64", out=F), WIDE=W, ROWS=8, BLOCK=256)
"""


@pytest.mark.timeout(300)
def test_kernels_compile_for_a_gpu(tmp_path):
    """To machine code for compute capability 9.0, which Triton does without a GPU; that they run there is another matter."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": str(Path(fenchel.__file__).parents[1]), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    names = ("_solve", "_finish", "_softmax", "_gradient", "_divergence", "_fill", "_gather")
    assert done.stdout.split() == [word for name in names for word in (name, "True")]
