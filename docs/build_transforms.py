"""Writes docs/transforms.md from the table that the tests run over (tests/transforms.py).

The tests fail while the committed page differs from what this writes.
"""

import importlib.util
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "transforms.md"


def page() -> str:
    """The text of the page."""
    spec = importlib.util.spec_from_file_location("transforms_table", DOCS.parent / "tests" / "transforms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.page()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
