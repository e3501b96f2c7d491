"""Check arguments before they are used: row numbers, names and mappings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from embstore._engine.format.text import plain_text
from embstore._engine.read.column import Rows


def row_numbers(rows: Any) -> Rows:
    """Return row numbers as ``(n,) int64``.

    Raises
    ------
    TypeError
        The numbers are not integers, or not a list. A mask would read rows 0 and 1, and 1.9 would read row 1.
    """
    found = np.asarray(rows)
    if found.dtype == bool:
        raise TypeError("expected row numbers, found a mask; use view[mask] or numpy.flatnonzero(mask)")
    if found.ndim != 1 or (found.dtype.kind not in "iu" and len(found)):
        raise TypeError(f"expected a list of integers as row numbers, found {rows!r:.200}")
    return found.astype(np.int64, copy=False)


def check_if_exists(if_exists: str) -> None:
    """Raise ValueError if `if_exists` is not a known choice."""
    if if_exists not in ("error", "skip", "replace"):
        raise ValueError(f"expected if_exists 'error', 'skip' or 'replace', found {if_exists!r}")


def mapping_of(name: str, given: Any, expected: str) -> Mapping[str, Any]:
    """Return a mapping with its names as plain text, and an empty one for None.

    Raises
    ------
    TypeError
        `given` is anything else. The message says what the argument `name` expects.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"expected {name} to be a mapping of {expected}, found {given!r:.200}")
    return {plain_text(name): value for name, value in given.items()}


def text_list(name: str, given: Iterable[str] | str, *, in_order: bool = True) -> list[str]:
    """Return names as a list of plain text. A single name is a list of one.

    Raises
    ------
    TypeError
        `given` is not iterable, or a set although the order counts. The message names the argument.
    """
    if isinstance(given, str):
        return [plain_text(given)]
    if not isinstance(given, Iterable) or (in_order and isinstance(given, set | frozenset)):
        raise TypeError(f"expected {name} to be a list of names, found {given!r:.200}")
    return [plain_text(item) for item in given]
