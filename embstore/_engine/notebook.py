"""Tables and text as HTML, for the representations of objects in notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice
from typing import Final

_LEFT: Final = " style='text-align:left'"
_MOST_ROWS: Final = 100


def html_table(rows: Sequence[Iterable[object]], *, header: Iterable[str] = (), caption: str = "") -> str:
    """Return rows as a table, the first 100 of them. Without a header, the first cell of a row is its name."""
    names = "".join(f"<th{_LEFT}>{escape(name)}</th>" for name in header)
    first = "td" if names else "th"
    lines = [names] if names else []
    for row in islice(rows, _MOST_ROWS):
        name, *others = (escape(str(cell)) for cell in row)
        lines.append(f"<{first}{_LEFT}>{name}</{first}>" + "".join(f"<td{_LEFT}>{cell}</td>" for cell in others))
    if len(rows) > _MOST_ROWS:
        lines.append(f"<td>… {len(rows) - _MOST_ROWS:,} more</td>")
    head = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{head}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


class ShownAsText:
    """Base of reports. Notebooks show their text, with its line breaks."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"
