"""HTML that is escaped unless it says otherwise: `el` makes elements, `Raw` marks text that is HTML already."""

from __future__ import annotations

import unicodedata
from html import escape

VOID = frozenset({"meta", "br", "hr", "img", "wbr"})


class Raw(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Raw:
    """Escapes a value for use between tags or in an attribute.

    Example:
        >>> text("a < b")
        'a &lt; b'
    """
    return value if isinstance(value, Raw) else Raw(escape(_printable(str(value)), quote=True))


def _printable(value: str) -> str:
    # generated text may hold control characters, lone surrogates and bidirectional overrides: none may act in a report
    kept = (c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "�" for c in value.replace("\r\n", "\n"))
    return "".join(kept)


def join(*parts: object) -> Raw:
    """Escaped parts one after another; `None` is left out."""
    return Raw("".join(text(part) for part in parts if part is not None))


def el(tag: str, *children: object, **attributes: object) -> Raw:
    """One element; a trailing underscore in an attribute's name is dropped, and other underscores become hyphens.

    Example:
        >>> el("td", "1 < 2", class_="num")
        '<td class="num">1 &lt; 2</td>'
    """
    names = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opening = "".join([tag, *(f' {key}="{text(value)}"' for key, value in names.items())])
    if tag in VOID:
        return Raw(f"<{opening}>")
    return Raw(f"<{opening}>{join(*children)}</{tag}>")
