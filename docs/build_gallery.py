"""Writes docs/gallery.md and docs/gallery from the numbers in src/fenchel/gallery/results.

`python docs/build_gallery.py` draws the page again; `python docs/build_gallery.py P065 P076`, or `--all`, runs those papers first. The tests fail while
the committed page or pictures differ from what this writes.
"""

import sys
from pathlib import Path

from fenchel.gallery import find, papers
from fenchel.gallery.command import execute_all
from fenchel.gallery.page import page, pictures
from fenchel.gallery.result import RESULTS, load, save

DOCS = Path(__file__).resolve().parent


def made() -> dict[str, str]:
    """The text of each file by its name under docs/."""
    known = papers()
    results = load(RESULTS, list(known))
    drawn = {f"gallery/{name}": text for name, text in pictures(known, results).items()}
    return {"gallery.md": page(known, results), **drawn}


if __name__ == "__main__":
    names = sys.argv[1:]
    chosen = list(papers().values()) if names == ["--all"] else [find(name) for name in names]
    for one in chosen:
        # saved one by one: a run that is stopped loses only the paper it was at
        save(execute_all([one])[one.id], RESULTS)
    (DOCS / "gallery").mkdir(exist_ok=True)
    for name, text in made().items():
        (DOCS / name).write_text(text, encoding="utf-8")
    print("wrote gallery.md and its figures")
