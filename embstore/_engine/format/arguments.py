"""Check arguments before they are used: choices, numbers, names, mappings and row numbers. Pure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.text import plain_text
from embstore.errors import ShapeError


def check_choice(name: str, value: Any, known: Sequence[str | None]) -> None:
    """Raise ValueError unless the argument `name` is one of the known values."""
    if not (value is None or isinstance(value, str)) or value not in known:
        raise ValueError(f"expected {name} to be one of {', '.join(map(repr, known))}, found {value!r:.200}")


def function_of(name: str, value: Any) -> Callable[..., Any]:
    """Return a function or another callable.

    Raises
    ------
    TypeError
        It can't be called. The message names the argument.
    """
    if not callable(value):
        raise TypeError(f"expected a function as {name}, found {value!r:.200}")
    found: Callable[..., Any] = value
    return found


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return a whole number of Python or NumPy.

    Raises
    ------
    TypeError, ValueError
        The value is of another type, or out of range. The message names the argument.
    """
    up_to = "" if most is None else f" to {most:,}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"expected a whole number from {least:,}{up_to} as {name}, found {value!r:.200}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"expected {name} from {least:,}{up_to}, found {value:,}")
    return int(value)


def refuse_hidden(name: str, values: Any) -> None:
    """Raise ShapeError for values that are masked, null or NA. NumPy would return other numbers in their place.

    Takes masked arrays of NumPy, arrays of pandas, and arrays of Arrow and Polars.
    """
    masked = sys.modules.get("numpy.ma")  # its import takes 15 ms
    hidden: Any = 0
    if masked is not None and isinstance(values, masked.MaskedArray):
        hidden = 0 if values.dtype.names else masked.count_masked(values)
    elif (nulls := getattr(values, "null_count", None)) is not None:
        hidden = nulls() if callable(nulls) else nulls
    elif not isinstance(getattr(values, "dtype", np.dtype(float)), np.dtype) and hasattr(values, "isna"):
        hidden = values.isna().sum()
    if hidden:
        raise ShapeError(name, expected="a value in each place", found=f"{hidden:,} masked or missing ones")


def row_numbers(rows: Any) -> NDArray[np.int64]:
    """Return row numbers as ``(n,) int64``.

    Raises
    ------
    TypeError
        The numbers are not integers, or not a list. A mask would read rows 0 and 1, and 1.9 would read row 1.
    ShapeError
        Some are masked or missing.
    """
    refuse_hidden("row numbers", rows)
    found = np.asarray(rows)
    if found.dtype == bool:
        raise TypeError("expected row numbers, found a mask; use view[mask] or numpy.flatnonzero(mask)")
    if found.ndim != 1 or (found.dtype.kind not in "iu" and len(found)):
        raise TypeError(f"expected a list of integers as row numbers, found {rows!r:.200}")
    return found.astype(np.int64, copy=False)


def mapping_of(name: str, given: Any, expected: str) -> Mapping[str, Any]:
    """Return a mapping with its names as plain text, and an empty one for None.

    Raises
    ------
    TypeError
        `given` is anything else. The message has the expected names and values.
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
        `given` is not an iterable of text, or a set although the order counts. The message names the argument.
    """
    if isinstance(given, str):
        return [plain_text(given)]
    found = list(given) if isinstance(given, Iterable) and not isinstance(given, bytes) else [None]
    if not all(isinstance(item, str) for item in found) or (in_order and isinstance(given, set | frozenset)):
        raise TypeError(f"expected {name} to be a list of names, found {given!r:.200}")
    return [plain_text(item) for item in found]
