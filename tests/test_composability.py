"""Every cell of the table of `tests/composability.py`: it works, or raises what the page says."""

import inspect
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path as File

import pytest

import fenchel
from tests.composability import COLUMNS, PATHS, RANKED
from tests.head.interpreted import NUMPY_WARNS, quick_calls  # noqa: F401

ROOT = File(__file__).resolve().parents[1]
# names that are no path: what they return is no function of scores
OTHER = {
    "Generator",
    "LogProbabilities",
    "distillation_names",
    "generator",
    "generator_names",
    "supervised_names",
    "supervised_objective",
}

pytestmark = [
    NUMPY_WARNS,
    # torch's own decompositions for forward mode, and its compiler
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_cell(path, column):
    for name in path.generators if column.every else path.generators[-1:]:
        refused = dict(path.refused).get(column.name)
        if refused is None:
            column.check(path, path.of(name))
        else:
            with pytest.raises((RuntimeError, NotImplementedError), match=refused):
                column.check(path, path.of(name))


def test_every_public_function_has_a_row():
    public = {name for name in fenchel.__all__ if callable(getattr(fenchel, name))}
    assert {path.function for path in PATHS} == public - OTHER
    assert all(inspect.isfunction(getattr(fenchel, name)) or inspect.isclass(getattr(fenchel, name)) for name in OTHER)


def test_refusals_name_columns():
    known = {column.name for column in COLUMNS} | {name for name, _ in RANKED}
    assert {name for path in PATHS for name, _ in path.refused} <= known


# Two processes, once for all cells


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> dict[str, dict[str, str]]:
    """What two gloo processes found: column -> path -> "" or what went wrong."""
    directory = tmp_path_factory.mktemp("ranks")
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.ranks", str(directory)]
    started = [
        subprocess.Popen([*command, str(rank)], env=env, stderr=subprocess.PIPE, text=True, cwd=ROOT) for rank in (0, 1)
    ]
    end = time.monotonic() + 90
    try:
        said = [process.communicate(timeout=max(1.0, end - time.monotonic()))[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    found = [json.loads((directory / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    return {
        column: {name: found[0][column][name] or found[1][column][name] for name in found[0][column]}
        for column in found[0]
    }


@pytest.mark.parametrize("column", [name for name, _ in RANKED])
def test_two_ranks_train_as_one(column, ranks):
    assert set(ranks[column]) == {path.name for path in PATHS}
    refused = {path.name: dict(path.refused).get(column, "^$") for path in PATHS}
    assert {name: said for name, said in ranks[column].items() if not re.search(refused[name], said)} == {}
