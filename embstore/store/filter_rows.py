"""Choose rows: by number, by class and by conditions on columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore._engine.read.column import Rows
from embstore._engine.read.read_rows import column_of
from embstore._engine.read.snapshot import Snapshot
from embstore.errors import UnknownClassError

Condition = Any


def row_numbers(rows: Any) -> Rows:
    """Return row numbers as ``(n,) int64``. A mask is refused: it would read rows 0 and 1."""
    found = np.asarray(rows)
    if found.dtype == bool:
        raise TypeError(
            "expected row numbers, found a mask: of a view that is view[mask]; else numpy.flatnonzero(mask)"
        )
    return found.astype(np.int64, copy=False) if len(found) else np.empty(0, np.int64)


def filter_rows(
    snapshot: Snapshot,
    rows: Rows,
    classes: Sequence[str] | str | None,
    where: Mapping[str, Condition] | None,
) -> Rows:
    """Return those of `rows` that belong to the classes and meet the conditions, in their order: ``(n,) int64``.

    Raises
    ------
    UnknownClassError, UnknownColumnError, ValueError
    """
    if classes is not None:
        wanted = [classes] if isinstance(classes, str) else list(classes)
        codes = {name: code for code, name in enumerate(snapshot.class_names)}
        if unknown := [name for name in wanted if name not in codes]:
            raise UnknownClassError(unknown, codes)
        stored = snapshot.class_codes_of(rows)
        mask = np.zeros(len(codes), dtype=bool)
        mask[[codes[name] for name in wanted]] = True
        rows = rows[mask[stored]]
    for name, condition in (where or {}).items():
        values = column_of(snapshot, name, rows)
        rows = rows[_meets(name, values, condition)]
    return rows


def _meets(name: str, values: np.ndarray[Any, Any], condition: Condition) -> NDArray[np.bool_]:
    """Return the mask of the values that meet a condition: ``(n,) bool``."""
    if isinstance(condition, Callable):  # type: ignore[arg-type]
        mask = np.asarray(condition(values))
        if mask.shape != values.shape or mask.dtype != bool:
            raise ValueError(
                f"the condition on {name!r} should give a mask of {len(values)} bools, found {mask.dtype} {mask.shape}"
            )
        return mask
    if isinstance(condition, list | tuple | set | frozenset | np.ndarray):
        options = list(condition)
        mask = np.zeros(len(values), dtype=bool)
        for option in options:
            mask |= np.asarray(values == option, dtype=bool)
        return mask
    return np.asarray(values == condition, dtype=bool)
