"""Select rows by number, by class and by conditions on columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import mapping_of, refuse_hidden, row_numbers, text_list
from embstore._engine.format.text import plain_text
from embstore._engine.read.column import Rows, check_rows
from embstore._engine.read.read_rows import column_of
from embstore._engine.read.snapshot import Snapshot
from embstore.errors import UnknownClassError

Condition = Any


def live_rows_at(snapshot: Snapshot, rows: Any) -> Rows:
    """Return row numbers after a check that these rows are live: ``(n,) int64``.

    Raises
    ------
    TypeError, IndexError
    """
    chosen = row_numbers(rows)
    check_rows(chosen, snapshot.record.rows)
    if snapshot.is_dead(chosen).any():
        raise IndexError("some of these rows were deleted; live ones are in store.rows")
    return chosen


def filter_rows(
    snapshot: Snapshot,
    rows: Rows,
    classes: Sequence[str] | str | None,
    where: Mapping[str, Condition] | None,
) -> Rows:
    """Return those of `rows` that belong to the classes and meet the conditions, in their order: ``(n,) int64``.

    Raises
    ------
    UnknownClassError, UnknownColumnError, TypeError, ValueError
    """
    if classes is not None:
        wanted = text_list("classes", classes, in_order=False)
        codes = {name: code for code, name in enumerate(snapshot.class_names)}
        if unknown := [name for name in wanted if name not in codes]:
            raise UnknownClassError(unknown, snapshot.classes)
        stored = snapshot.class_codes_of(rows)
        mask = np.zeros(len(codes), dtype=bool)
        mask[[codes[name] for name in wanted]] = True
        rows = rows[mask[stored]]
    expected = "columns to conditions; an expression is a function: where={'size': lambda values: values > 3}"
    for name, condition in mapping_of("where", where, expected).items():
        values = column_of(snapshot, name, rows)
        rows = rows[_meets(name, values, condition)]
    return rows


def _meets(name: str, values: np.ndarray[Any, Any], condition: Condition) -> NDArray[np.bool_]:
    """Return the mask of the values that meet a condition: ``(n,) bool``."""
    if isinstance(condition, Callable):  # type: ignore[arg-type]
        found = condition(values)
        refuse_hidden(name, found)
        mask = np.asarray(found)
        if mask.shape != values.shape or mask.dtype != bool:
            raise ValueError(
                f"the condition on {name!r} should give a mask of {len(values)} bools, found {mask.dtype} {mask.shape}"
            )
        return mask
    refuse_hidden(name, condition)
    # One value, of NumPy and torch too, or any iterable of values: an Index, a tensor, a generator.
    one = (
        isinstance(condition, str | bytes) or getattr(condition, "ndim", 1) == 0 or not isinstance(condition, Iterable)
    )
    mask = np.zeros(len(values), dtype=bool)
    for place, value in enumerate([condition] if one else condition):
        refuse_hidden(name, value)
        value = value.as_py() if hasattr(value, "as_py") else value  # of Arrow
        option = plain_text(value.item() if getattr(value, "ndim", 1) == 0 else value)
        kind = values.dtype.kind
        _check_fits(name, kind, option, mask=not one and (kind != "b" or place > 1))  # two bools are all values
        mask |= np.asarray(values == option, dtype=bool)
    return mask


def _check_fits(name: str, kind: str, option: Any, *, mask: bool) -> None:
    """Raise TypeError for a value that no value of the column can equal, such as "2" for 2: it would select no row."""
    expected, wanted = ("text", str) if kind == "O" else ("a number", Real)
    hint = ""
    if isinstance(option, bool) and mask:
        hint = "; for a mask use view[mask]"
    elif isinstance(option, float) and option != option:
        hint = "; NaN equals no number: use numpy.isnan"
    if hint or not isinstance(option, wanted) or (isinstance(option, bool) and kind != "b"):
        raise TypeError(f"expected {expected} as the condition on {name!r}, found {option!r:.200}{hint}")
