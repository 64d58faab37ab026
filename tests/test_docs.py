"""The documentation: its examples run, its links lead somewhere, its generated parts are those of this commit."""

import contextlib
import doctest
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

import fenchel

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# The pages under docs/api are docstrings, whose examples run as doctests.
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
ALL = [*WRITTEN, *sorted(DOCS.glob("api/*.md"))]
FENCE = re.compile(r"^```(\w[^\n]*)?\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def script(name: str):
    """A build script of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_every_python_block_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = path.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in FENCE.finditer(text):
        language = (block[1] or "").strip()
        assert not language.startswith(("python ", "py")) or language == "python", f"unknown kind of block: {language}"
        if language == "python":
            # blank lines put the code at its own line numbers, so that a failure names the line of the page
            line = text.count("\n", 0, block.start(2))
            exec(compile("\n" * line + block[2], str(path), "exec"), namespace)


@pytest.mark.parametrize("path", sorted(DOCS.glob("api/*.md")), ids=name_of)
def test_api_examples_need_only_the_imports_that_the_index_names(path):
    assert "import torch; from fenchel import *" in (DOCS / "api" / "README.md").read_text(encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    said = re.search(r"^The examples assume\n\n```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    imports = "import torch; from fenchel import *" if said is None else said[1]
    for block in FENCE.finditer(text):
        namespace: dict[str, object] = {}
        exec(imports, namespace)
        for example in doctest.DocTestParser().get_examples(block[2]):
            # what they print is checked where they stand, in the docstrings
            with contextlib.nullcontext() if example.exc_msg is None else pytest.raises(Exception, match=r"^(?!name )"):
                exec(compile(example.source, str(path), "single"), namespace)


def anchors_of(path: Path) -> set[str]:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    found: set[str] = set()
    for title in plain:
        slug = re.sub(r"[^\w\- ]", "", title.strip()).lower().replace(" ", "-")
        # a heading that repeats an anchor gets a number
        found.add(next(s for s in (slug, *(f"{slug}-{i}" for i in range(1, 99))) if s not in found))
    return found


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_links_lead_somewhere(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{name_of(path)} links to {target}, which is not there"
        assert ROOT in there.parents, f"{name_of(path)} links out of the project: {target}"
        if anchor:
            assert anchor in anchors_of(there), f"{name_of(path)} links to {target}, which has no such heading"


def test_api_pages_are_those_of_the_docstrings():
    made = script("build_api").pages()
    committed = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md")}
    assert committed == made, "docs/api is stale: run `make docs`"


def test_the_page_of_transforms_is_that_of_the_tables():
    made = script("build_transforms").page()
    assert (DOCS / "transforms.md").read_text(encoding="utf-8") == made, "docs/transforms.md is stale: run `make docs`"


def test_the_page_on_choosing_is_that_of_the_results():
    made = script("build_choosing").page()
    assert (DOCS / "choosing.md").read_text(encoding="utf-8") == made, "docs/choosing.md is stale: run `make docs`"


def test_a_line_on_choosing_whose_check_came_out_the_other_way_is_refused():
    built = script("build_choosing")
    for line, passes in ((built.HELPED[0], True), (built.DID_NOT[0], False)):
        assert f"| {line.situation} |" in built.row(line, passes=passes)
        with pytest.raises(ValueError, match=f"^got no check of {line.paper} that says "):
            built.row(line, passes=not passes)


def test_the_page_of_a_recorded_distillation_is_that_of_its_numbers():
    built = script("build_distilled")
    assert built.PAGE.exists() == built.NUMBERS.exists(), "the page and its numbers are committed together"
    if built.NUMBERS.exists():
        made = built.page(json.loads(built.NUMBERS.read_text(encoding="utf-8")))
        assert built.PAGE.read_text(encoding="utf-8") == made, "run docs/build_distilled.py"


def test_every_public_name_has_an_entry():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    headings = set(re.findall(r"^## (\w+)$", text, re.MULTILINE))
    assert set(fenchel.__all__) - {"__version__"} <= headings
    pages = {package: (DOCS / "api" / f"{package.rpartition('.')[2]}.md") for package in script("build_api").PACKAGES}
    assert len(set(pages.values())) == len(pages)
    for package, page in pages.items():
        public = set(getattr(importlib.import_module(package), "__all__", ())) - set(fenchel.__all__)
        assert public <= set(re.findall(r"^## (\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE))


def numbers_and_rest(svg: str) -> tuple[list[float], str]:
    number = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
    return [float(found) for found in number.findall(svg)], number.sub("0", svg)


def test_plots_are_those_of_the_library(tmp_path):
    made = script("plots").draw(tmp_path)
    committed = sorted((DOCS / "img").glob("*.svg"))
    assert [path.name for path in committed] == sorted(path.name for path in made)
    for path in committed:
        old, old_rest = numbers_and_rest(path.read_text())
        new, new_rest = numbers_and_rest((tmp_path / path.name).read_text())
        assert old_rest == new_rest, f"{path.name} is stale: run `make docs`"
        # coordinates are hundredths of a point: the last digit may differ between processors
        assert new == pytest.approx(old, abs=0.02), f"{path.name} is stale: run `make docs`"


def test_numbers_of_a_plot_are_compared_by_value():
    assert numbers_and_rest('<a x="1.50" y="-2"/>') == ([1.5, -2.0], '<a x="0" y="0"/>')


def test_the_readme_promises_what_the_makefile_has():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    promised = set(re.findall(r"(?:^|`)make (\w+)", "\n".join(p.read_text() for p in WRITTEN), re.MULTILINE))
    assert {"demo", "test"} <= promised <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("package", ["typer", "transformers"])
def test_a_missing_extra_is_one_line(package, monkeypatch, tmp_path):
    from fenchel.__main__ import main

    monkeypatch.chdir(tmp_path)

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [n for n in sys.modules if n.partition(".")[0] == package or n.startswith("fenchel.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    monkeypatch.setattr(sys, "argv", ["fenchel", "compare", "--out", "never"])
    with pytest.raises(SystemExit, match=r"^fenchel: this needs the package \w+: pip install 'fenchel\[\w+\]'$"):
        main()
