"""Writes docs/api: pages of the public names, made from their docstrings, and the table of generators.

The names of `import fenchel` have a page per module, those of the packages beside it a page per package.

The tests fail while the committed pages differ from what this writes.
"""

import importlib
import inspect
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import fenchel
from fenchel.objectives.described import described
from fenchel.objectives.names import makers

API = Path(__file__).parent / "api"
# What every example may use.
CORE = "import torch; from fenchel import *"
SECTION = re.compile(
    r"^(Args|Attributes|Returns|Raises|Example|Examples|Shape|Shapes|Note|Source|References?|Yields):\s*$"
)
ENTRY = re.compile(r"^(\*{0,2}\w[\w., *]*):\s+(.*)$")


# Packages whose public names are imported from them, with the modules that list those in `__all__`, in the order of reading.
PACKAGES = {
    "fenchel.objectives.distillation": (
        "sequence",
        "kdrl",
        "trrd",
        "paced",
        "mi_alpha",
        "recommend",
        "stable_kd",
        "landmarks",
    ),
    "fenchel.objectives.risks": (),
    "fenchel.objectives.sequences": (),
    "fenchel.objectives.supervised": (),
    "fenchel.objectives.representation": (),
    "fenchel.objectives.structured": (),
    "fenchel.teachers": ("buckets", "linear_buckets", "sparse", "fingerprint", "format", "writer", "cache", "spans"),
    "fenchel.integrations": (
        "trainer",
        "distillation",
        "cached",
        "on_policy",
        "losses",
        "denoisers",
        "hooks",
        "lightning",
        "trl",
    ),
    "fenchel.estimators": (),
}


@dataclass(frozen=True)
class Named:
    """A public name and the module that it is imported from."""

    module: str
    name: str

    @property
    def thing(self) -> object:
        """What it names."""
        return getattr(importlib.import_module(self.module), self.name)

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.thing) or "").splitlines()[0]


@dataclass(frozen=True)
class Page:
    """One file: its names, the docstring above them, and what their examples import."""

    file: str
    title: str
    doc: str
    names: tuple[Named, ...]
    imports: str


def core_pages() -> list[Page]:
    """The pages of `import fenchel`: the names by the first component of the module that defines them."""
    parts: dict[str, list[Named]] = {}
    for name in fenchel.__all__:
        if not name.startswith("__"):
            part = inspect.unwrap(getattr(fenchel, name)).__module__.split(".")[1]
            parts.setdefault(part, []).append(Named("fenchel", name))
    return [
        Page(f"{part}.md", f"fenchel: {part}", sys.modules[f"fenchel.{part}"].__doc__ or "", tuple(names), CORE)
        for part, names in parts.items()
    ]


def package_page(package: str) -> Page:
    """The page of a package: its own public names, then those of its modules, without what `import fenchel` has."""
    modules = [package, *(f"{package}.{module}" for module in PACKAGES[package])]
    found: dict[str, Named] = {}
    for module in modules:
        for name in getattr(importlib.import_module(module), "__all__", ()):
            found.setdefault(name, Named(module, name))
    # constants have no page of their own
    names = tuple(named for name, named in found.items() if name not in fenchel.__all__ and callable(named.thing))
    imported = dict.fromkeys(["fenchel.objectives.distillation", *modules])
    lines = [CORE, *(f"from {module} import *" for module in imported if hasattr(sys.modules[module], "__all__"))]
    doc = importlib.import_module(package).__doc__ or ""
    return Page(f"{package.rpartition('.')[2]}.md", package, doc, names, "\n".join(lines))


def signature(thing: object, name: str) -> str:
    """The call as one would write it, one parameter a line where it is long."""
    shown = inspect.signature(thing)  # pyright: ignore[reportArgumentType]
    text = re.sub(r"\btorch(?:\.\w+)*\.(Tensor|ProcessGroup)\b", r"\1", str(shown))
    text = re.sub(r"\b(?:fenchel(?:\.\w+)+|collections\.abc)\.(\w+)", r"\1", text)
    # a default that is a function has no text but its address
    text = re.sub(r"<function \S+ at 0x[0-9a-f]+>", "...", text)
    text = name + re.sub(r"'(Generator|str \| Generator)'", r"\1", text)
    if len(text) <= 100:
        return text
    head, _, rest = text.partition("(")
    inside, _, returned = rest.rpartition(")")
    parts = [str(p) for p in re.split(r", (?![^\[({]*[\])}])", inside)]
    return head + "(\n" + "".join(f"    {part},\n" for part in parts) + ")" + returned


def entries(lines: list[str]) -> list[str]:
    """`name: text` items, with their continuation lines, as a list."""
    shown: list[str] = []
    for line in lines:
        match = ENTRY.match(line)
        if match:
            shown.append(f"- `{match[1]}`: {match[2]}")
        elif line.strip():
            shown.append(f"  {line.strip()}")
    return shown


def render(docstring: str) -> list[str]:
    """Markdown from a docstring: sections become headings in bold, indented formulas and examples become code."""
    shown: list[str] = []
    lines = inspect.cleandoc(docstring).splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        block: list[str] = []
        if SECTION.match(line) or (line.startswith("    ") and line.strip()):
            indented = not SECTION.match(line)
            if indented:
                at -= 1
            while at < len(lines) and (not lines[at].strip() or lines[at].startswith("    ")):
                block.append(lines[at][4:])
                at += 1
            while block and not block[-1].strip():
                block.pop()
            title = line.rstrip().rstrip(":")
            if indented:
                shown += ["```text", *block, "```", ""]
            elif title.startswith("Example"):
                shown += ["**Example**", "", "```pycon", *block, "```", ""]
            elif title in ("Args", "Attributes", "Raises"):
                shown += [f"**{title}**", "", *entries(block), ""]
            else:
                shown += [f"**{title}**", "", *(part.strip() for part in block), ""]
        else:
            shown.append(line)
    while shown and not shown[-1].strip():
        shown.pop()
    return shown


def members(cls: type) -> list[tuple[str, object]]:
    """The documented methods and properties that a class itself defines, in the order of the source."""
    found = []
    for name, member in vars(cls).items():
        inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and (inspect.isfunction(inner) or isinstance(member, property)) and inner.__doc__:
            found.append((name, member))
    return found


def entry(named: Named) -> list[str]:
    """The section of one public name."""
    name, thing = named.name, named.thing
    call = f"{named.module}.{name}"
    shown = [
        f"## {name}",
        "",
        "```text",
        # exceptions are built in, and their call is of no interest
        call if inspect.isclass(thing) and issubclass(thing, Exception) else signature(thing, call),
        "```",
        "",
        *render(thing.__doc__ or ""),
        "",
    ]
    if inspect.isclass(thing):
        for member_name, member in members(thing):
            inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            call = f"{name}.{member_name}"
            title = call if isinstance(member, property) else signature(inner, call)
            shown += [f"### {call}", "", "```text", title, "```", "", *render(inner.__doc__ or ""), ""]
    return shown


# Families are shown at one parameter.
MEMBERS = {"js:BETA": "js:0.25", "alpha:A": "alpha:1.5"}


def number(x: float) -> str:
    """A number for the table."""
    return "∞" if x == math.inf else "−∞" if x == -math.inf else f"{x:.4g}".replace("-", "−")


def names_page() -> list[str]:
    """The table of named generators."""
    shown = [
        "# The named generators",
        "",
        "Every function takes one of these names, or a `Generator`; `C*NAME` scales any of them. A finite f′(0) means",
        "exact zeros: a token whose score is −f′(0) or more below the best one has probability zero, at q = 1 and",
        "temperature 1. f(0) = ∞ means that the loss is its θ-part",
        "([concepts](../concepts.md#generators-with-infinite-f0)).",
        "",
        "| name | f(u) | f(0) | f′(0) | operator and loss | source |",
        "|---|---|---|---|---|---|",
    ]
    for name in fenchel.generator_names():
        g = fenchel.generator(MEMBERS.get(name, name))
        title = f"`{name}`, here `{g.name}`" if name in MEMBERS else f"`{name}`"
        kind = "no: divergence only" if g.unlink is None else "sparse" if g.sparse else "full support"
        row = (title, g.formula, number(g.f0), number(g.df0), kind, g.source)
        shown.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return shown


def supervised_names_page() -> list[str]:
    """The table of supervised objectives by name."""
    shown = [
        "# Supervised objectives by name",
        "",
        "What `fenchel.supervised`, `fenchel.linear_supervised` and `LabelLoss` take beside [the generators](names.md). Parameters follow a colon, by",
        "position or by name; those shown are the defaults. y is the label, p = softmax(z). Every objective takes class indices; the third column says what",
        "else ([targets](../supervised.md#targets)).",
        "",
        "| name | what it is | takes | source |",
        "|---|---|---|---|",
    ]
    for name, make in sorted(makers("fenchel.objectives.supervised").items()):
        said = described(name, make)
        kinds = ", ".join(sorted(make().takes)).replace("empty set, probabilities, set", "anything")
        row = (f"`{said.name}`", said.meaning, kinds, said.source)
        shown.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return shown


def pages() -> dict[str, str]:
    """File name -> text, for all of docs/api."""
    made: dict[str, str] = {}
    index = ["# API", "", "Made from the docstrings by `make docs`; every example is run by the tests, and assumes", ""]
    index += ["```text", CORE, "```", "", "and on the pages of packages what they say at their top.", ""]
    index += ["[The named generators](names.md): formulas, limits, sources.", ""]
    index += ["[The supervised objectives by name](supervised_names.md): parameters, targets, sources.", ""]
    made["names.md"] = "\n".join(names_page()) + "\n"
    made["supervised_names.md"] = "\n".join(supervised_names_page()) + "\n"
    for page in [*core_pages(), *map(package_page, PACKAGES)]:
        text = [f"# {page.title}", "", *render(page.doc), ""]
        if page.imports != CORE:
            text += ["The examples assume", "", "```text", page.imports, "```", ""]
        index += [f"## [{page.title.removeprefix('fenchel: ')}]({page.file})", "", "| name | what it is |", "|---|---|"]
        seen: Counter[str] = Counter()
        for named in page.names:
            # two names that differ in case alone share an anchor, and the second gets a number
            low = named.name.lower()
            anchor = low + (f"-{seen[low]}" if seen[low] else "")
            seen[low] += 1
            summary = named.summary.replace("|", "\\|")
            index.append(f"| [`{named.name}`]({page.file}#{anchor}) | {summary} |")
            text += entry(named)
        index.append("")
        made[page.file] = "\n".join(text).rstrip() + "\n"
    made["README.md"] = "\n".join(index).rstrip() + "\n"
    return made


def main() -> None:
    """Write the pages and remove those of modules that are gone."""
    API.mkdir(exist_ok=True)
    made = pages()
    for path in API.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (API / name).write_text(text, encoding="utf-8")
    print(f"{len(made)} pages in {API.name}/")


if __name__ == "__main__":
    main()
