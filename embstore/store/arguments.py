"""Check arguments before they are used: keys, row numbers and mappings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from embstore._engine.format.keys import Key
from embstore._engine.read.column import Rows


def key_list(keys: Iterable[str | Key]) -> Sequence[str | Key]:
    """Return keys as a sequence. Any iterable is accepted, such as a generator or a Series.

    Raises
    ------
    TypeError
        `keys` is a single key, or not iterable.
    """
    if isinstance(keys, str | bytes | Key) or not isinstance(keys, Iterable):
        raise TypeError(f"expected a list of keys, found {keys!r:.200}")
    return keys if isinstance(keys, list | tuple) else list(keys)


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
    """Return a mapping unchanged, and an empty one for None.

    Raises
    ------
    TypeError
        `given` is anything else. The message says what the argument `name` expects.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"expected {name} to be a mapping of {expected}, found {given!r:.200}")
    return given
