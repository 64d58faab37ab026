"""Writes docs/transforms.md from the tables that the tests run over (tests/transforms.py, tests/composability.py).

The tests fail while the committed page differs from what this writes.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "transforms.md"


def page() -> str:
    """The text of the page."""
    sys.path.insert(0, str(DOCS.parent))
    from tests import composability, transforms

    return transforms.section() + "\n" + composability.section()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
