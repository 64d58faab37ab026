"""Laws of row programs: what is written in C for a function equals that function, in both types, on every row, at the edges of arithmetic."""

import os
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from fenchel import solve
from fenchel.generators import Generator, generator, operator_of
from fenchel.head import divergence_tiles, logp, programs, tiles
from fenchel.head.lowered import Unwritable
from fenchel.head.trace import COLUMNS, ROWS
from fenchel.operators import polish
from fenchel.vocab import LOCAL
from tests.table import DISTINCT, over

COMPILER = shutil.which((os.environ.get("CC") or "cc").split()[0]) is not None
pytestmark = pytest.mark.skipif(
    not COMPILER or os.environ.get("FENCHEL_NATIVE") == "0", reason="row programs need a C compiler"
)
TYPES = [torch.float32, torch.float64]
each_type = pytest.mark.parametrize("dtype", TYPES, ids=str)
INF, NAN = torch.inf, torch.nan

ELEMENTARY = {
    "exp": torch.exp,
    "log": torch.log,
    "expm1": torch.expm1,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
    "sinh": torch.sinh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: torch.nn.functional.softplus(x, threshold=40.0),
    "softplus of a multiple": lambda x: torch.nn.functional.softplus(x, beta=2.0),
    "abs": torch.abs,
    "sign": torch.sign,
    "relu": torch.relu,
    "reciprocal": torch.reciprocal,
    "square": torch.square,
    "clamp": lambda x: x.clamp(-0.5, 2.0),
    "clamp_min": lambda x: x.clamp_min(0.25),
    "clamp_max": lambda x: x.clamp_max(0.25),
    "where": lambda x: torch.where((x > 1) | ~(x >= -1), x, 1 - x),
    "masked_fill": lambda x: x.masked_fill(x.isnan(), 3.0),
    "power": lambda x: x.abs() ** 0.75,
}


def run(fn, *args):
    """A program, and what the function itself gives in float64."""
    made = programs.program(fn, args)
    return made(*args), fn(*[x.double() for x in args])


def long_(z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """A loop of five elementary functions, with a mask and an entry that later parts use, a second loop, and what it is given overwritten."""
    u = torch.log1p(torch.exp(-z.abs()) + k)
    low = z < 0
    w = torch.tanh(torch.where(low, u, torch.exp(u) - 1)) * torch.log(1 + z * z)
    best, total = w.amax(1, keepdim=True), w.sum(1, keepdim=True)
    z.copy_(torch.where(low, w / total, u * best))
    return total.squeeze(1), low.sum(1)


@each_type
@pytest.mark.parametrize("v", [2, 7, 255, 256, 257, 1025])
def test_a_long_loop_in_parts_equals_the_function(v, dtype):
    torch.manual_seed(0)
    z, k = torch.randn(3, v).to(dtype), torch.tensor([[0.5], [1.0], [2.0]], dtype=dtype)
    wide = z.double().clone()
    total, count = long_(wide, k.double())
    got = programs.program(long_, (z, k))(z, k)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got[0].double(), total, rtol=50 * eps, atol=50 * eps)
    assert torch.equal(got[1], count)
    torch.testing.assert_close(z.double(), wide, rtol=100 * eps, atol=10 * eps)


def test_a_long_loop_is_written_in_parts_and_keeps_one_row():
    made = programs._written(long_, [torch.zeros(ROWS, COLUMNS), torch.zeros(ROWS, 1)], "row")
    # log(1 + z z), the third function of the first loop, is in a part of its own; w and u are read back, and what is cheap to make of them is not
    assert made.code.count("for (int64_t j = b; j < whole; j += LANES)") > 4
    assert made.scratch == 2


@each_type
@pytest.mark.parametrize("name", ELEMENTARY)
def test_an_elementary_function_is_right_to_the_last_digits(name, dtype):
    fn = ELEMENTARY[name]
    size = torch.logspace(-44, 38, 6000, dtype=torch.float64)
    size = torch.cat(
        (
            size,
            torch.linspace(0.01, 100, 3001, dtype=torch.float64),
            1 + torch.linspace(-1e-3, 1e-3, 500, dtype=torch.float64),
        )
    )
    x = torch.cat((size, -size)).to(dtype)
    edges = torch.tensor(
        [0.0, -0.0, INF, -INF, NAN, torch.finfo(dtype).max, torch.finfo(dtype).tiny, -1.0], dtype=dtype
    )
    x = torch.cat((x, edges, x[: (-len(x) - len(edges)) % 13]))[: (len(x) + len(edges)) // 13 * 13].view(13, -1)
    want = fn(x.double() if dtype == torch.float32 else x)
    result = torch.empty_like(x)

    def into(x, out):
        out.copy_(fn(x))
        return x.new_ones(len(x), 1)

    programs.program(into, (x, result))(x, result)
    plain = fn(x)
    finite = want.isfinite() & (want.abs() < torch.finfo(dtype).max) & (want.abs() > torch.finfo(dtype).tiny)
    error = ((result.double() - want.double()) / want.double())[finite].abs()
    allowed = ((plain.double() - want.double()) / want.double())[finite].abs() + 6 * torch.finfo(dtype).eps
    assert bool((error <= allowed).all()), (float(error.max()), x[finite][error.argmax()])
    rest = ~finite
    small = rest & (want.abs() <= torch.finfo(dtype).tiny)
    assert bool((result[small].abs() <= 4 * torch.finfo(dtype).tiny).all())
    rest &= ~small
    assert torch.equal(result[rest].isnan(), plain[rest].isnan())
    keep = rest & ~plain.isnan() & plain.isinf()
    assert torch.equal(result[keep], plain[keep])


@each_type
@pytest.mark.parametrize("v", [2, 3, 7, 8, 9, 31, 1023, 1024, 1025, 3000])
def test_reductions_take_every_entry_once(v, dtype):
    torch.manual_seed(v)
    x = torch.randn(6, v, dtype=dtype)
    (top, total, count, spread), want = run(
        lambda x: (
            x.amax(1),
            x.sum(1, keepdim=True),
            (x > 0).sum(1, keepdim=True),
            (x - x.amax(1, keepdim=True)).exp().sum(1).log(),
        ),
        x,
    )
    assert [x.shape for x in (top, total, count)] == [(6,), (6, 1), (6, 1)]
    assert torch.equal(top.double(), want[0])
    assert torch.equal(count, want[2])
    tight: Any = {"rtol": 1e-6, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-13, "atol": 1e-13}
    torch.testing.assert_close(total.double(), want[1], **tight)
    torch.testing.assert_close(spread.double(), want[3], **tight)


@each_type
def test_a_row_with_nan_or_infinity_keeps_it_and_no_other_row_sees_it(dtype):
    x = torch.zeros(5, 21, dtype=dtype)
    x[1, 20], x[2, 3], x[3, 7] = NAN, INF, -INF
    (top, total), want = run(lambda x: (x.amax(1), x.sum(1)), x)
    torch.testing.assert_close(top.double(), want[0], equal_nan=True)
    torch.testing.assert_close(total.double(), want[1], equal_nan=True)


SOLVED = tuple(case for case in DISTINCT if not case.g.multiplicative and not solve.is_steep(case.g))


def computed_in(g: Generator) -> list[torch.dtype]:
    return [torch.float64] if g.double else TYPES


def _cases(dtype):
    torch.manual_seed(2)
    z = torch.randn(9, 701, dtype=torch.float64) * 3
    z[0, 5:] = -INF
    z[1] = 0.0
    d = (z.amax(1, keepdim=True) - z).to(dtype)
    for q in (torch.tensor(1.0, dtype=dtype), 1 / torch.arange(1, 702, dtype=dtype)):
        yield d, q


@over(SOLVED)
def test_the_solver_in_c_equals_the_solver(case):
    g, op = case.g, operator_of(case.g)
    for dtype, d, q in [(t, d, q) for t in computed_in(g) for d, q in _cases(t)]:
        got, want = programs.solver(g, dtype, q.dim() > 0)(d, q), solve.threshold(d, q, g)
        p = []
        for found in (got, want):
            u = op.unlink(found.top - d)
            p.append(polish(q * u, q * op.spread(u)))
            torch.testing.assert_close((q * u).sum(1), found.mass.squeeze(1), rtol=1e-5, atol=0)
        slack: Any = {"rtol": 2e-5, "atol": 1e-9} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-13}
        torch.testing.assert_close(*p, **slack)
        if g.sparse:
            exact = (got.top == want.top).squeeze(1)
            assert torch.equal(got.support[exact], want.support[exact])


@over(SOLVED)
def test_finished_tiles_equal_the_functions(case):
    g = case.g

    def finish(d: Tensor, top: Tensor, shift: Tensor, q: Tensor, c: Tensor) -> Tensor:
        return tiles.finish_(d, top, shift, q, c, tiles.Operator(g))

    for dtype, d, q in [(t, d, q) for t in computed_in(g) for d, q in _cases(t)]:
        found = solve.threshold(d, q, g)
        shift, c = (1 - found.mass) / found.spread, torch.linspace(0.1, 1, 9, dtype=dtype).unsqueeze(1)
        args = (d, found.top, shift, q, c)
        plain = [x.clone() for x in args]
        want = finish(*plain)
        made = programs.program(finish, args)
        given = [x.clone() for x in args]
        got = made(*given)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(got, want, rtol=2000 * eps, atol=2000 * eps)
        torch.testing.assert_close(given[0], plain[0], rtol=500 * eps, atol=eps)


@over(DISTINCT)
@pytest.mark.parametrize("needed", [(False, True), (True, True)], ids=str)
def test_two_tiles_equal_the_functions(case, needed):
    torch.manual_seed(3)
    zp, zq = torch.randn(2, 6, 333) * 3
    zp[0, 100:], zq[1, 7] = -INF, -INF
    c = torch.linspace(0.5, 1, 6).unsqueeze(1)
    of = divergence_tiles.Divergence(divergence_tiles.scalars_of(case.g, 0.0), needed, torch.float64, True)
    wide = [x.double() for x in (zp, zq, c)]
    want = divergence_tiles.rows_(*wide, of)
    made = programs.program(lambda *x: divergence_tiles.rows_(*x, of), tuple(x.double() for x in (zp, zq, c)))
    given = [x.double() for x in (zp, zq, c)]
    got = made(*given)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    for a, b in zip(given, wide, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13, equal_nan=True)


@each_type
def test_log_probabilities_equal_the_functions(dtype):
    torch.manual_seed(4)
    z, c = torch.randn(6, 900, dtype=dtype) * 4, torch.randn(6, 3, dtype=dtype)
    plain, given = z.double(), z.clone()
    want = logp._gradient_(plain, c.double(), LOCAL)

    def gradient(z: Tensor, c: Tensor) -> Any:
        return logp._gradient_(z, c, LOCAL)

    got = programs.program(gradient, (given, c))(given, c)
    eps = torch.finfo(dtype).eps
    for a, b in zip((*got, given), (*want, plain), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=100 * eps, atol=100 * eps)


def test_results_do_not_depend_on_the_number_of_threads():
    z = torch.randn(37, 513)
    made = programs.program(lambda z: (z.exp().sum(1), z.amax(1)), (z,))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 64):
            torch.set_num_threads(threads)
            results.append(made(z))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_square_tiles_and_strided_rows():
    wide = torch.randn(12, 40)
    z = wide[:, :12]
    made = programs.program(lambda z, t: (z * t).sum(1), (z, torch.ones(12, 1)))
    t = torch.randn(12, 1)
    torch.testing.assert_close(made(z, t), (z * t).sum(1))


@pytest.mark.parametrize(
    "fn",
    [
        torch.erf,
        lambda x: x.sort(1).values,
        lambda x: x.sum(0),
        lambda x: x.cumsum(1),
        lambda x: x @ x.T,
        lambda x: x.long(),
    ],
    ids=["erf", "sort", "sum over rows", "cumsum", "product", "cast"],
)
def test_what_has_no_row_program_says_so(fn):
    with pytest.raises(Unwritable):
        programs.program(fn, (torch.randn(4, 9),))


def test_reading_what_was_written_has_no_row_program():
    def fn(x):
        x.copy_(x * 2)
        return x.sum(1)

    with pytest.raises(Unwritable, match="written"):
        programs.program(fn, (torch.randn(4, 9),))


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_a_function_without_a_row_program_still_runs(monkeypatch):
    mine = Generator.from_f(lambda u: u * u.log(), name="mine")
    with pytest.raises(Unwritable, match="invert"):
        programs.solver(mine, torch.float64, False)
    z = torch.randn(20, 300, dtype=torch.float64)
    monkeypatch.setenv("FENCHEL_COMPILE", "1")
    d = z.amax(1, keepdim=True) - z
    q = torch.tensor(1.0, dtype=torch.float64)
    got, want = tiles.solved(d, q, mine, d.numel()), solve.threshold(d, q, generator("kl"))
    p = [torch.exp(want.top - d), operator_of(mine).unlink(got.top - d)]
    torch.testing.assert_close(*p, rtol=1e-6, atol=1e-9)


def test_a_program_of_many_arguments():
    """A stage of a row's function takes what the stages before it found, a number of the row each."""
    z, numbers = torch.randn(9, 30), [torch.randn(9, 1) for _ in range(40)]

    def fn(z, *numbers):
        return (z * sum(numbers)).exp().sum(1, keepdim=True), *(z * x for x in numbers[:20])

    got, want = run(fn, z, *numbers)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_tiles_too_small_for_torch_compile_have_row_programs_too(monkeypatch):
    monkeypatch.delenv("FENCHEL_COMPILE", raising=False)
    monkeypatch.setattr(torch, "compile", None)
    built = []
    monkeypatch.setattr(programs, "program", lambda fn, args: built.append(fn) or fn)
    z = torch.randn(8, 16)
    for entries, many in ((tiles.SMALL - 1, 0), (tiles.SMALL, 1)):
        assert tiles.compiles(entries) == bool(many)
        got = tiles.tile_function(lambda z, of: of * z.exp(), 2.0, entries)(z)
        torch.testing.assert_close(got, 2 * z.exp(), rtol=0, atol=0)
        assert len(built) == many

    def unwritable(fn, args):
        raise Unwritable("no")

    monkeypatch.setattr(programs, "program", unwritable)
    got = tiles.tile_function(lambda z, of: of * z.exp(), 3.0, tiles.SMALL)(z)
    torch.testing.assert_close(got, 3 * z.exp(), rtol=0, atol=0)


GRADIENTS = {
    "softmax": lambda x: torch.softmax(x, -1).square().sum(-1),
    "log_softmax": lambda x: (torch.log_softmax(x, -1) * torch.log_softmax(x, -1).exp()).sum(-1),
    "logsumexp": lambda x: torch.logsumexp(x, -1) * torch.logsumexp(x / 2, 1, keepdim=True).squeeze(-1),
    "softplus": lambda x: torch.nn.functional.softplus(x, threshold=40.0).sum(-1),
    "sigmoid": lambda x: torch.sigmoid(x).square().sum(-1),
    "tanh": lambda x: torch.tanh(x).exp().sum(-1),
    "relu": lambda x: torch.relu(x).square().sum(-1),
    "abs": lambda x: (x.abs() * x).sum(-1),
    "amax": lambda x: x.amax(-1) * x.square().amax(-1),
    "lerp": lambda x: torch.lerp(x, x.exp(), 0.3).sum(-1),
    "power": lambda x: (x.square() + 1).pow(0.75).sum(-1),
    "where": lambda x: torch.where(x > 0.3, x.exp(), x.square()).sum(-1),
    "truth as a number": lambda x: ((x > 0.3) * x).sum(-1) / (x > 0.3).sum(-1),
}


@each_type
@pytest.mark.parametrize("name", GRADIENTS)
def test_what_autograd_records_of_a_row_function_has_a_program(name, dtype):
    fn = GRADIENTS[name]

    def gradient(x):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            rows = fn(at)
            [grad] = torch.autograd.grad(rows, at, torch.ones_like(rows))
        return rows.detach(), grad

    torch.manual_seed(3)
    x = torch.randn(6, 33, dtype=dtype)
    (rows, grad), (want_rows, want_grad) = run(gradient, x)
    tight: Any = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(rows.double(), want_rows, **tight)
    torch.testing.assert_close(grad.double(), want_grad, **tight)


def test_a_reduction_over_another_dimension_than_the_last_has_none():
    for fn in (lambda x: torch.softmax(x, 0).sum(1), lambda x: torch.log_softmax(x, 0).sum(1)):
        with pytest.raises(Unwritable):
            programs.program(fn, (torch.randn(6, 33),))


def test_a_number_that_depends_on_v_is_no_constant_of_a_program():
    """The gradient of a mean is over V: a program serves every V, and must not hold that of its example."""

    def gradient(x):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            [grad] = torch.autograd.grad(at.exp().mean(1), at, torch.ones(len(x)))
        return grad

    for fn in (gradient, lambda x: x.sum(1) * x.shape[1]):
        with pytest.raises(Unwritable, match="depends on V"):
            programs.program(fn, (torch.randn(6, 33),))


def passes_of(fn, *args):
    """The program of a function in C, and how many of its passes may be left out."""
    code = programs._written(fn, programs.sample_of(args), "row").code
    return code.count("for (int64_t b"), code.count("if (!")


def root(z: Tensor, goal: Tensor, steps: int = 12) -> Tensor:
    """t with sum_j exp(z_j + t) = goal by Newton's steps, of which those after `done` do nothing."""
    t = torch.zeros_like(goal)
    done = goal < 0
    for _ in range(steps):
        total = (z + t).exp().sum(1, keepdim=True)
        step = (goal - total) / total
        t, done = torch.where(done, t, t + step), done | (step.abs() < 1e-3)
    return t


@each_type
def test_passes_that_nothing_needs_once_a_condition_holds_are_left_out(dtype):
    z = torch.randn(6, 50, dtype=dtype)
    # rows that are done before the first pass, after some, and never
    goal = torch.tensor([[-1.0], [50.0], [60.0], [80.0], [300.0], [2e3]], dtype=dtype)
    got, want = run(root, z, goal)
    torch.testing.assert_close(got.double(), want, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-6)
    assert got[0] == 0
    assert passes_of(root, z, goal) == (12, 12)


def test_a_pass_that_is_needed_for_anything_else_is_made():
    def fn(z: Tensor, goal: Tensor) -> Tensor:
        done = goal < 0
        total = z.exp().sum(1, keepdim=True)
        return torch.where(done, goal, total) + torch.where(goal > 5, total, 0.0)

    z, goal = torch.randn(6, 50), torch.tensor([[-1.0], [-2.0], [3.0], [6.0], [7.0], [8.0]])
    got, want = run(fn, z, goal)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    assert passes_of(fn, z, goal) == (1, 0)


def test_what_a_pass_that_may_be_left_out_computes_is_not_read_back():
    def fn(z: Tensor, goal: Tensor) -> Tensor:
        best = torch.where(goal < 0, goal, z.sigmoid().sum(1, keepdim=True))
        return (z.sigmoid() * best).sum(1)

    z, goal = torch.randn(6, 50), torch.tensor([[-1.0], [-2.0], [3.0], [-6.0], [7.0], [8.0]])
    got, want = run(fn, z, goal)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    assert passes_of(fn, z, goal) == (2, 1)
