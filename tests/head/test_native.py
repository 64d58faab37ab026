"""Laws of the row kernels: compiled == plain torch == float64 dense; exact entries; any threads, same bits.

The build survives no compiler, two builders at once and a damaged file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fenchel.head import gathered, kernels, native, native_build
from fenchel.head.gathered import Rows

COMPILER = shutil.which((os.environ.get("CC") or "cc").split()[0]) is not None
WANTED = COMPILER and os.environ.get("FENCHEL_NATIVE") != "0"
PATHS = [gathered, native] if WANTED else [gathered]
TYPES = [torch.float32, torch.float64]
# of rows, and of what they are multiplied by
FACTORS = [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.float32, torch.bfloat16)]
# n = 33 leaves a task of one row, n = 530 two sorts, V = 129 a block of one column, V = 4099 two; D = 129 all kernels
SHAPES = [(0, 5, 3), (1, 1, 1), (5, 128, 31), (17, 129, 33), (33, 1000, 192), (40, 4099, 129), (530, 300, 20)]
DENSITIES = [0.0, 0.0005, 0.02, 0.5]
INF = torch.inf

each_path = pytest.mark.parametrize("path", PATHS, ids=lambda m: m.__name__.rsplit(".", 1)[-1])
each_type = pytest.mark.parametrize("dtype", TYPES, ids=str)
each_factor = pytest.mark.parametrize(("dtype", "stored"), FACTORS, ids=str)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
compiled = pytest.mark.parametrize("path", [p for p in PATHS if p is native], ids=["native"] if WANTED else [])


def tolerance(dtype: torch.dtype) -> dict[str, Any]:
    return {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}


def dense(rows: Rows) -> Tensor:
    full = torch.zeros(rows.shape, dtype=torch.float64)
    full[rows.row_index(), rows.cols.long()] = rows.vals.double()
    return full


def random_rows(n: int, v: int, density: float, dtype: torch.dtype) -> Rows:
    keep = torch.rand(n, v) < density
    if n > 2:
        keep[1] = False
        keep[-1] = True
    row_ptr = torch.zeros(n + 1, dtype=torch.int64)
    row_ptr[1:] = keep.sum(1).cumsum(0)
    cols = keep.nonzero()[:, 1].to(torch.int32)
    return Rows(row_ptr, cols, torch.randn(cols.numel(), dtype=dtype), v)


def same(got: Rows, want: Rows) -> None:
    assert got.columns == want.columns
    for name in ("row_ptr", "cols", "vals"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=0, atol=0, equal_nan=True)


def awkward_logits(n: int, v: int, dtype: torch.dtype) -> Tensor:
    z = torch.randn(n, v, dtype=dtype)
    if n > 12:
        z[1] = -INF
        z[2] = torch.nan
        z[3, v // 2] = torch.nan
        z[4] = 0.25
        z[5] = -INF
        z[5, -1] = 7.0
        z[6, v // 3] = INF
        z[7] = 1e9 + 100 * z[7]
        z[8, 0] = 5.0
        z[8, v - 1] = 3.0
        z[9, : v // 2] = -INF
    return z


def test_the_compiled_path_is_what_runs_here() -> None:
    assert native.available() == WANTED


@each_path
@each_type
@each_shape
@pytest.mark.parametrize("width", [0.0, 2.0, 100.0])
def test_window_holds_exactly_the_entries_near_the_top(path, dtype, shape, width) -> None:
    z = awkward_logits(*shape[:2], dtype)
    row_max, rows = path.window(z, width)
    torch.testing.assert_close(row_max, z.amax(1), rtol=0, atol=0, equal_nan=True)
    near = z >= z.amax(1, keepdim=True) - width  # the subtraction rounds to nearest: it never cuts off a true tie
    near[z.isnan().any(1)] = True
    near[(z == -INF).all(1)] = False
    assert rows.row_ptr.tolist() == [0, *near.sum(1).cumsum(0).tolist()]
    assert rows.cols.tolist() == near.nonzero()[:, 1].tolist()
    torch.testing.assert_close(rows.vals, z[near], rtol=0, atol=0, equal_nan=True)


@each_path
@each_type
@each_shape
@pytest.mark.parametrize("limit", [-INF, 0.0, 1.5, INF, torch.nan])
def test_above_holds_exactly_the_entries_not_below_the_limit(path, dtype, shape, limit) -> None:
    z = awkward_logits(*shape[:2], dtype)
    limits = torch.full((shape[0],), limit, dtype=dtype)
    rows = path.above(z, limits)
    keep = ~(z <= limits[:, None])
    assert rows.row_ptr.tolist() == [0, *keep.sum(1).cumsum(0).tolist()]
    torch.testing.assert_close(rows.vals, z[keep], rtol=0, atol=0, equal_nan=True)
    assert rows.cols.tolist() == keep.nonzero()[:, 1].tolist()


@compiled
@each_type
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (17, 129), (40, 4099)], ids=str)
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_support_solves_and_holds_all_entries_above_the_threshold(path, dtype, shape, k, scale) -> None:
    z = awkward_logits(*shape, dtype) * scale
    v, tolerance = shape[1], 1e-6 if dtype == torch.float32 else 1e-12
    for q in (1.0, 1 / v, 0.3):
        best, found, rows = path.support(z, k, q, tolerance)
        torch.testing.assert_close(best, z.amax(1, keepdim=True), rtol=0, atol=0, equal_nan=True)
        finite = best.squeeze(1).isfinite() & ~z.isnan().any(1)
        assert found.mass[~finite].isnan().all()
        # the difference is rounded in the input's type on purpose: that is the number whose sums are asked for
        x = ((z - best) + found.top).double().clamp_min(0)[finite]
        mass = q * (x / k).pow(k).sum(1, keepdim=True)
        torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=2 * tolerance + v * 1e-14)
        torch.testing.assert_close(
            found.mass[finite].double(), mass, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-11
        )
        spread = q * (x / k).pow(k - 1).where(x > 0, torch.zeros_like(x)).sum(1, keepdim=True)
        torch.testing.assert_close(
            found.spread[finite].double(), spread, rtol=1e-4 if dtype == torch.float32 else 1e-11, atol=0
        )
        assert torch.equal(found.support[finite], (x > 0).sum(1, keepdim=True))
        if rows is None:
            assert found.support.max() > v // 4
            continue
        held = torch.zeros_like(z, dtype=torch.bool)
        held[rows.row_index(), rows.cols.long()] = True
        torch.testing.assert_close(rows.vals, z[held], rtol=0, atol=0, equal_nan=True)
        assert held[finite][x > 0].all()
        # beside them, what the rounding of best - top lets in
        assert held[finite].sum() - (x > 0).sum() <= (x[x == 0].numel() if scale == 0.01 else 0.01 * z.numel() + 40)


@compiled
def test_support_of_a_row_does_not_depend_on_the_row_before_it(path) -> None:
    z = torch.randn(40, 3000)
    z[::3] *= 20
    z[1::3] *= 0.01
    for i in range(0, 40, 7):
        alone, among = (path.support(x, 2, 1.0, 1e-6)[1].top for x in (z[i : i + 1], z))
        torch.testing.assert_close(alone[0], among[i], rtol=2e-6, atol=0)


@each_path
@each_type
@each_shape
def test_moments_equal_their_sums_in_float64(path, dtype, shape) -> None:
    z = awkward_logits(*shape[:2], dtype)
    if shape[0] > 12:
        z[6], z[7] = 1.0, -1.0  # what is infinite, or cancels, has no digits to compare
    tau = torch.linspace(-1, 1, shape[0], dtype=dtype)
    got = path.moments(z, tau)
    # the difference is rounded in the input's type on purpose: that is the number whose moments are asked for
    excess = (z - tau[:, None]).double()
    positive = ~(excess <= 0)
    excess = torch.where(positive, excess, 0.0)
    assert got.count.tolist() == positive.sum(1).tolist()
    close: dict[str, Any] = {"rtol": 2e-6 if dtype == torch.float32 else 1e-13, "atol": 0.0, "equal_nan": True}
    torch.testing.assert_close(got.sum.double(), excess.sum(1), **close)
    torch.testing.assert_close(got.squares.double(), (excess**2).sum(1), **close)


@each_path
@each_factor
@each_shape
@pytest.mark.parametrize("density", DENSITIES)
def test_products_equal_dense_float64(path, dtype, stored, shape, density) -> None:
    n, v, d = shape
    rows = random_rows(n, v, density, dtype)
    weight, hidden = torch.randn(v, d).to(stored), torch.randn(n, d).to(stored)
    scale = max(1.0, v**0.5)
    close = {key: value * scale for key, value in tolerance(dtype).items()}
    product = path.rows_times(rows, weight)
    assert product.dtype == dtype
    torch.testing.assert_close(product.double(), dense(rows) @ weight.double(), **close)

    start = torch.randn(n, d, dtype=dtype)
    out = start.clone()
    assert path.rows_times(rows, weight, out=out) is out
    torch.testing.assert_close(out.double(), start.double() + dense(rows) @ weight.double(), **close)

    start = torch.randn(v, d, dtype=dtype)
    out = start.clone()
    assert path.transpose_times(rows, hidden, out=out) is out
    torch.testing.assert_close(out.double(), start.double() + dense(rows).T @ hidden.double(), **close)
    untouched = torch.ones(v, dtype=torch.bool)
    untouched[rows.cols.long()] = False
    assert torch.equal(out[untouched], start[untouched])


@compiled
@each_shape
@pytest.mark.parametrize("density", DENSITIES)
def test_a_bfloat16_is_the_same_float32(path, shape, density) -> None:
    """To the bit, with whatever a bfloat16 can be."""
    n, v, d = shape
    rows = random_rows(n, v, density, torch.float32)
    weight, hidden = (torch.randint(-(2**15), 2**15, (x, d), dtype=torch.int16).view(torch.bfloat16) for x in (v, n))
    weight[0] = torch.tensor(1e-40)
    products = [path.rows_times(rows, x) for x in (weight, weight.float())]
    torch.testing.assert_close(*products, rtol=0, atol=0, equal_nan=True)
    sums = [path.transpose_times(rows, x, out=torch.zeros(v, d)) for x in (hidden, hidden.float())]
    torch.testing.assert_close(*sums, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("size", [1, 4 * 31, 40 * 4 * 31])
@pytest.mark.parametrize("density", DENSITIES)
def test_what_torch_makes_at_once_changes_nothing(size, density, monkeypatch) -> None:
    rows = random_rows(17, 129, density, torch.float64)
    weight, hidden = torch.randn(129, 31).bfloat16(), torch.randn(17, 31).bfloat16()
    monkeypatch.setattr(gathered, "BYTES", 2 * size)
    close: dict[str, Any] = {"rtol": 1e-13, "atol": 1e-13}
    torch.testing.assert_close(gathered.rows_times(rows, weight), dense(rows) @ weight.double(), **close)
    out = gathered.transpose_times(rows, hidden, out=torch.zeros(129, 31, dtype=torch.float64))
    torch.testing.assert_close(out, dense(rows).T @ hidden.double(), **close)


@each_path
def test_a_nan_stays_in_its_row_and_its_columns(path) -> None:
    rows = random_rows(20, 300, 0.1, torch.float32)
    begin, end = int(rows.row_ptr[7]), int(rows.row_ptr[8])
    assert begin < end < rows.cols.numel()
    rows.vals[begin:end] = torch.nan
    product = path.rows_times(rows, torch.ones(300, 40))
    assert product.isnan().any(1).nonzero()[:, 0].tolist() == [7]
    assert product[7].isnan().all()
    out = path.transpose_times(rows, torch.ones(20, 40), out=torch.zeros(300, 40))
    assert sorted(out.isnan().all(1).nonzero()[:, 0].tolist()) == rows.cols[begin:end].tolist()


@compiled
@each_factor
@pytest.mark.parametrize("density", [0.001, 0.05, 0.5])
def test_threads_change_no_bit(path, dtype, stored, density) -> None:
    n, v, d = 75, 6000, 70
    rows = random_rows(n, v, density, dtype)
    weight, hidden, logits = torch.randn(v, d).to(stored), torch.randn(n, d).to(stored), awkward_logits(n, v, dtype)
    first = path.window(logits, 1.5, threads=1)[1]
    left = path.rows_times(rows, weight, threads=1)
    for threads in (2, 3, 7):
        same(path.window(logits, 1.5, threads=threads)[1], first)
        assert torch.equal(path.rows_times(rows, weight, threads=threads), left)
    begin = torch.randn(v, d, dtype=dtype)
    outs = [path.transpose_times(rows, hidden, out=begin.clone(), threads=threads) for threads in (1, 2, 3, 7)]
    assert all(torch.equal(out, outs[0]) for out in outs)


@compiled
def test_rows_with_a_stride_are_read_in_place(path) -> None:
    wide = torch.randn(20, 500)
    wide[:, 300:] = torch.nan
    view = wide[:, :300]
    same(path.window(view, 1.0)[1], gathered.window(view, 1.0)[1])
    assert not path.moments(view, torch.zeros(20)).sum.isnan().any()


@compiled
def test_what_the_kernels_cannot_take_raises(path) -> None:
    z = torch.randn(4, 6)
    rows = path.above(z, torch.zeros(4))
    with pytest.raises(ValueError, match="contiguous"):
        path.window(z.T, 1.0)
    with pytest.raises(TypeError, match="float32 or float64"):
        path.window(z.bfloat16(), 1.0)
    with pytest.raises(ValueError, match="at least one column"):
        path.window(torch.empty(3, 0), 1.0)
    with pytest.raises(ValueError, match="per row"):
        path.above(z, torch.zeros(5))
    with pytest.raises(ValueError, match="requires a gradient"):
        path.window(z.clone().requires_grad_(), 1.0)
    with pytest.raises(ValueError, match="threads=0"):
        path.window(z, 1.0, threads=0)
    with pytest.raises(ValueError, match="shape"):
        path.rows_times(rows, torch.zeros(7, 2))
    with pytest.raises(TypeError, match="weight of torch.float64 on cpu; pass float32 or bfloat16"):
        path.rows_times(rows, torch.zeros(6, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match="out of torch.bfloat16 on cpu; pass float32 on"):
        path.transpose_times(rows, torch.zeros(4, 2).bfloat16(), out=torch.zeros(6, 2).bfloat16())
    with pytest.raises(TypeError, match="rows of torch.float16; pass float32 or float64"):
        path.rows_times(rows.with_vals(rows.vals.half()), torch.zeros(6, 2).bfloat16())
    with pytest.raises(ValueError, match="contiguous"):
        path.rows_times(rows, torch.zeros(2, 6).T)
    with pytest.raises(ValueError, match="shape"):
        path.transpose_times(rows, torch.zeros(4, 2), out=torch.zeros(6, 3))
    with pytest.raises(ValueError, match="one per entry"):
        rows.with_vals(torch.zeros(1 + rows.cols.numel()))


@compiled
@pytest.mark.parametrize(
    ("row_ptr", "cols"),
    [
        ([0, 2, 3], [0, 4, 1]),
        ([0, 2, 3], [-1, 1, 1]),
        ([0, 2, 3], [1, 0, 1]),
        ([0, 2, 3], [1, 1, 1]),
        ([0, 4, 3], [0, 1, 2]),
        ([1, 2, 3], [0, 1, 2]),
        ([0, 2, 9], [0, 1, 2]),
    ],
)
def test_rows_that_are_not_csr_are_refused_before_memory_is_read(path, row_ptr, cols) -> None:
    rows = Rows(torch.tensor(row_ptr), torch.tensor(cols, dtype=torch.int32), torch.ones(3), 4)
    with pytest.raises(ValueError, match="CSR"):
        path.rows_times(rows, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="CSR"):
        path.transpose_times(rows, torch.zeros(2, 2), out=torch.zeros(4, 2))


@compiled
def test_autograd_sees_the_write_in_place(path) -> None:
    out = torch.zeros(6, 2)
    before = out._version
    path.transpose_times(path.above(torch.randn(4, 6), torch.zeros(4)), torch.ones(4, 2), out=out)
    assert out._version > before


def test_no_path_narrows_a_matrix() -> None:
    rows = gathered.above(torch.randn(4, 6), torch.zeros(4))
    with pytest.raises(TypeError, match="matrix of torch.float64 for rows of torch.float32"):
        kernels.rows_times(rows, torch.zeros(6, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match="matrix of torch.float64 for rows of torch.float32"):
        kernels.transpose_times(rows, torch.zeros(4, 2, dtype=torch.float64), out=torch.zeros(6, 2))


def test_kernels_take_half_precision_and_mixed_input_by_the_torch_path() -> None:
    z = torch.randn(4, 6).half()
    assert not native.handles(z)
    assert not native.handles(z.float(), z.double())
    same(kernels.above(z, z[:, 0].contiguous()), gathered.above(z, z[:, 0]))


PROBE = """
import logging, torch
logging.basicConfig(format="%(message)s")
from fenchel.head import kernels, native
z = torch.randn(9, 50)
for _ in range(3):
    row_max, rows = kernels.window(z, 1.0)
    kernels.rows_times(rows, torch.randn(50, 3))
assert torch.equal(row_max, z.amax(1))
print("native" if native.available() else "torch")
"""


def process(cache: Path, **environment: str) -> subprocess.Popen[str]:
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache), "HOME": str(cache), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", PROBE], env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def outcome(running: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    return out.strip(), err


def libraries(cache: Path) -> list[Path]:
    return sorted(cache.rglob("native-*.so"))


def built() -> Any:
    return native_build.load(native_build.SOURCE.read_bytes(), "native")


def test_without_a_compiler_torch_does_it_and_says_so_once(tmp_path) -> None:
    cases = [
        ({"CC": "false"}, "false is not a C compiler that works"),
        ({"CC": "/nowhere/cc"}, "install a C compiler or set CC"),
        ({"FENCHEL_NATIVE": "0"}, "FENCHEL_NATIVE=0"),
    ]
    running = [process(tmp_path, **{"FENCHEL_NATIVE": "1", **environment}) for environment, _ in cases]
    for (_, reason), (out, err) in zip(cases, map(outcome, running), strict=True):
        assert out == "torch"
        assert err.count("no native CPU kernels") == 1
        assert reason in err
    assert not libraries(tmp_path)


@compiled
def test_two_processes_that_build_at_once_both_run(path, tmp_path) -> None:
    running = [process(tmp_path, FENCHEL_NATIVE="1") for _ in range(2)]
    assert [outcome(p) for p in running] == [("native", ""), ("native", "")]
    assert libraries(tmp_path) == sorted((tmp_path / "fenchel").iterdir())  # nothing half-built is left


@compiled
def test_a_library_is_built_once_and_a_damaged_one_again(path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built()
    (library,) = libraries(tmp_path)
    good, made = library.read_bytes(), library.stat().st_mtime_ns
    built()
    assert library.stat().st_mtime_ns == made
    (tmp_path / "short").write_bytes(good[: len(good) // 2])  # not written over the file, which this process has mapped
    os.replace(tmp_path / "short", library)
    built()
    (library,) = libraries(tmp_path)
    assert len(library.read_bytes()) == len(good)


@compiled
def test_another_source_or_compiler_is_another_library(path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built()
    monkeypatch.setattr(native_build, "FLAGS", (*native_build.FLAGS, "-DOTHER"))
    built()
    assert len(libraries(tmp_path)) == 2


@compiled
def test_a_cache_that_others_can_write_is_not_trusted(path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shared = tmp_path / "fenchel"
    shared.mkdir()
    shared.chmod(0o777)
    assert built() is not None
    assert not libraries(tmp_path)


@compiled
def test_a_full_disk_leaves_the_torch_path(path, tmp_path, monkeypatch, caplog) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_build.tempfile, "TemporaryDirectory", full)
    assert native_build._library.__wrapped__() is None
    assert "No space left on device" in caplog.text


def test_a_switch_that_is_neither_on_nor_off_raises(monkeypatch) -> None:
    monkeypatch.setenv("FENCHEL_NATIVE", "maybe")
    with pytest.raises(ValueError, match="FENCHEL_NATIVE='maybe'"):
        built()
