"""The package as a whole: what it exports, what it imports, how fast, and in which direction."""

import ast
import inspect
import os
import re
import subprocess
import sys
import textwrap
import tomllib
import typing
from pathlib import Path

import pytest
import torch

import fenchel

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "fenchel"

# Data flows one way: nothing imports from its right. A module belongs to the first entry that names it or its package.
LAYERS = (
    {"__init__"},
    {"checks", "opaque", "vocab"},
    {"generators", "from_f"},
    {"agreement"},
    {"solve", "steep"},
    {"operators"},
    {"terms"},
    {"divergences"},
    {"losses"},
    {"head"},
    {"objectives"},
    {"teachers"},
    {"integrations"},
    {"estimators"},
    {"study"},
    {"gallery"},
    {"bench"},
    {"cli", "show", "__main__"},
)

MODULES = sorted(path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".") for path in SOURCE.rglob("*.py"))


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPATH": str(SOURCE.parent)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=100).stdout


def test_the_version_is_that_of_the_project_file():
    assert fenchel.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_core_needs_torch_and_numpy_alone():
    loaded = run(
        """
        import sys
        import torch, numpy
        before = set(sys.modules)
        import fenchel
        print(*{name.partition(".")[0] for name in set(sys.modules) - before})
        """
    )
    assert set(loaded.split()) - set(sys.stdlib_module_names) == {"fenchel"}


def test_importing_adds_less_than_a_third_of_a_second():
    timed = "import time, torch; start = time.perf_counter(); import fenchel; print(time.perf_counter() - start)"
    assert min(float(run(timed)) for _ in range(3)) < 0.3


@pytest.mark.parametrize("name", sorted(fenchel.__all__))
def test_public_names_are_documented_and_typed(name):
    thing = getattr(fenchel, name)
    assert ">>> " in (inspect.getdoc(thing) or ""), f"fenchel.{name} has no example in its docstring"
    # an enumeration of constants has no parameters; classes are judged by their constructor
    function = thing.__init__ if inspect.isclass(thing) else thing
    hints = typing.get_type_hints(function)
    for parameter in list(inspect.signature(function).parameters.values())[inspect.isclass(thing) :]:
        assert parameter.name in hints, f"fenchel.{name}: no type for {parameter.name}"
    assert "return" in hints, f"fenchel.{name}: no return type"


def layer_of(module: str) -> int:
    top = module.partition(".")[0]
    return next(i for i, names in enumerate(LAYERS) if top in names)


def imports_of(module: str) -> set[str]:
    """The modules of this package that a module imports, relative or absolute."""
    path = SOURCE / (module.replace(".", "/") + ".py")
    package = ["fenchel", *module.split(".")[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return {name.removeprefix("fenchel.") for name in found if name.startswith("fenchel.")}


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__"])
def test_nothing_imports_from_its_right(module):
    mine = layer_of(module)
    for other in imports_of(module):
        first = other.partition(".")[0]
        if (SOURCE / first).with_suffix(".py").exists() or (SOURCE / first).is_dir():
            assert layer_of(other) <= mine, f"{module} imports {other}, which is to its right"


def test_layers_name_only_what_exists():
    there = {module.partition(".")[0] for module in MODULES}
    assert set().union(*LAYERS) == there


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30)
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def words_of(module: str) -> set[str]:
    """The string constants of a module that are not docstrings."""
    tree = ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text())
    scopes = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    docstrings = {id(s.body[0].value) for s in scopes if s.body and isinstance(s.body[0], ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings)
    return {node.value for node in constants if isinstance(node.value, str)}


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__" and layer_of(m) < layer_of("study")])
def test_only_the_table_names_generators(module):
    known = {name for name in fenchel.generator_names() if ":" not in name}
    families = "|".join(name.partition(":")[0] for name in fenchel.generator_names() if ":" in name)
    # "kl" is the documented default of every function
    named = {word for word in words_of(module) if word in known or re.fullmatch(rf"({families}):\S+", word)} - {"kl"}
    assert named == set() or module == "generators", f"{module} treats {sorted(named)} specially: say it in the table"


def test_no_path_of_a_machine_in_tracked_files():
    machine = re.compile(rb"(?<![\w.])/(w[o]rk|t[m]p|r[o]ot|h[o]me|U[s]ers)/[A-Za-z]")
    found = {
        path.relative_to(ROOT).as_posix(): line
        for path in tracked()
        for line in path.read_bytes().splitlines()
        if machine.search(line)
    }
    assert found == {}


def test_what_is_not_python_ships_too():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["fenchel"]
    shipped = {path for pattern in patterns for path in SOURCE.glob(pattern) if path.is_file()}
    other = {path for path in tracked() if SOURCE in path.parents and path.suffix != ".py"}
    assert other <= shipped, f"not in the wheel: {sorted(path.name for path in other - shipped)}"


def test_uninitialised_memory_shows():
    made = (
        torch.empty(3),
        torch.empty_like(torch.zeros(3)),
        torch.zeros(3).new_empty(3),
        torch.empty(3, requires_grad=True),
    )
    assert all(bool(x.isnan().all()) for x in made)
    assert made[3].requires_grad
    assert torch.empty(3, dtype=torch.long).dtype == torch.long
    assert torch.compile(lambda: torch.empty(3).fill_(1.0), fullgraph=True, backend="eager")().tolist() == [1.0] * 3


def test_an_operator_and_a_head_import_no_compiler():
    loaded = run(
        """
        import sys, torch, fenchel
        logits, target = torch.randn(3, 5), torch.tensor([0, 1, 2])
        fenchel.softargmax(logits)
        fenchel.fenchel_young(logits, target, "alpha:1.5")
        fenchel.linear_fenchel_young(torch.randn(3, 4), torch.randn(5, 4), target, "js")
        print("torch._dynamo" in sys.modules)
        """
    )
    assert loaded.strip() == "False"
