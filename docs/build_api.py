"""Writes docs/api: one page per module, made from the docstrings of the public names, and the table of generators.

The tests fail while the committed pages differ from what this writes.
"""

import inspect
import math
import re
import sys
from collections import Counter
from pathlib import Path

import fenchel

API = Path(__file__).parent / "api"
SECTION = re.compile(
    r"^(Args|Attributes|Returns|Raises|Example|Examples|Shape|Shapes|Note|Source|References?|Yields):\s*$"
)
ENTRY = re.compile(r"^(\*{0,2}\w[\w., *]*):\s+(.*)$")


def part_of(name: str) -> str:
    """The page of a public name: the first component of the module that defines it."""
    return inspect.unwrap(getattr(fenchel, name)).__module__.split(".")[1]


def signature(thing: object, name: str) -> str:
    """The call as one would write it, one parameter a line where it is long."""
    shown = inspect.signature(thing)  # pyright: ignore[reportArgumentType]
    text = re.sub(r"\b(?:torch\.Tensor|torch\._tensor\.Tensor)\b", "Tensor", f"{name}{shown}")
    text = re.sub(r"\b(?:fenchel(?:\.\w+)+|collections\.abc)\.(\w+)", r"\1", text)
    text = re.sub(r"'(Generator|str \| Generator)'", r"\1", text)
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


def entry(name: str) -> list[str]:
    """The section of one public name."""
    thing = getattr(fenchel, name)
    shown = [
        f"## {name}",
        "",
        "```text",
        signature(thing, f"fenchel.{name}"),
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


def pages() -> dict[str, str]:
    """File name -> text, for all of docs/api."""
    names = [name for name in fenchel.__all__ if not name.startswith("__")]
    made: dict[str, str] = {}
    index = ["# API", "", "Made from the docstrings by `make docs`; every example is run by the tests, and assumes", ""]
    index += ["```text", "import torch; from fenchel import *", "```", ""]
    index += ["[The named generators](names.md): formulas, limits, sources.", ""]
    made["names.md"] = "\n".join(names_page()) + "\n"
    for part in dict.fromkeys(part_of(name) for name in names):
        here = [name for name in names if part_of(name) == part]
        module = sys.modules[f"fenchel.{part}"]
        text = [f"# fenchel: {part}", "", *render(module.__doc__ or ""), ""]
        index += [f"## [{part}]({part}.md)", "", "| name | what it is |", "|---|---|"]
        seen: Counter[str] = Counter()
        for name in here:
            # two names that differ in case alone share an anchor, and the second gets a number
            anchor = name.lower() + (f"-{seen[name.lower()]}" if seen[name.lower()] else "")
            seen[name.lower()] += 1
            summary = (inspect.getdoc(getattr(fenchel, name)) or "").splitlines()[0].replace("|", "\\|")
            index.append(f"| [`{name}`]({part}.md#{anchor}) | {summary} |")
            text += entry(name)
        index.append("")
        made[f"{part}.md"] = "\n".join(text).rstrip() + "\n"
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
