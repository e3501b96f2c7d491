"""Read the values of rows of a commit: of fields, including ragged ones, and of columns."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from embstore._engine.format.ragged import Padded, Ragged, offsets_message, offsets_of, sound, token_rows, within_bounds
from embstore._engine.format.record import STRING, offsets_name
from embstore._engine.format.text import plain_text
from embstore._engine.read.column import Rows, check_rows
from embstore._engine.read.snapshot import Snapshot
from embstore.errors import CorruptStoreError, UnknownColumnError

Array = np.ndarray[Any, Any]


def consecutive(rows: Rows) -> bool:
    """Return whether each row follows the one before."""
    return int(rows[-1]) - int(rows[0]) == len(rows) - 1 and bool((np.diff(rows) == 1).all()) if len(rows) else False


def read_field(snapshot: Snapshot, name: str, rows: Rows) -> Array | Ragged:
    """Copy rows of a field as they are stored. Neighbouring rows are copied in one step."""
    if snapshot.record.fields[name].ragged:
        return read_ragged(snapshot, name, rows)
    if len(rows) > 1 and consecutive(rows):
        return snapshot.copy(name, int(rows[0]), int(rows[-1]) + 1)
    return snapshot.take(name, rows)


def span_field(snapshot: Snapshot, name: str, row: int) -> Array:
    """Return one row of a field, read-only, without a copy where mapped. A ragged row is ``(length, *shape)``."""
    if not snapshot.record.fields[name].ragged:
        values: Array = snapshot.span(name, row, row + 1)[0]
        return values
    with snapshot.together():
        start, stop = (int(bound[0]) for bound in row_bounds(snapshot, name, np.array([row])))
        return snapshot.span(name, start, stop)


def read_ragged(snapshot: Snapshot, name: str, rows: Rows) -> Ragged:
    """Copy rows of a ragged field. Neighbouring rows are copied in one step."""
    with snapshot.together():
        starts, stops = row_bounds(snapshot, name, rows)
        lengths = stops - starts
        if len(rows) == 1 or consecutive(rows):
            values = snapshot.copy(name, int(starts[0]), int(stops[-1]))
        else:
            values = snapshot.take(name, token_rows(starts, lengths))
    return Ragged(values, offsets_of(lengths))


def padded_rows(snapshot: Snapshot, name: str, rows: Rows) -> Padded:
    """Copy rows of a ragged field into one array with their lengths. A single mapped row is not copied."""
    if len(rows) == 1:
        row = span_field(snapshot, name, int(rows[0]))
        return Padded(row[np.newaxis], np.array([len(row)], dtype=np.int64))
    return read_ragged(snapshot, name, rows).padded()


def row_bounds(snapshot: Snapshot, name: str, rows: Rows) -> tuple[Rows, Rows]:
    """Return where the tokens of rows begin and end, after a check of these offsets.

    Raises
    ------
    CorruptStoreError
        An offset is out of range, or smaller than the one before.
    """
    check_rows(rows, snapshot.record.rows)
    offsets = snapshot.take(offsets_name(name), np.concatenate([rows, rows + 1]))
    starts, stops = offsets[: len(rows)], offsets[len(rows) :]
    if not within_bounds(starts, stops, snapshot.record.arrays[name].length):
        raise _broken_offsets(snapshot, name)
    return starts, stops


def whole_offsets(snapshot: Snapshot, name: str) -> Rows:
    """Return all offsets of a ragged field without a copy, after a check of all of them.

    Raises
    ------
    CorruptStoreError
    """
    offsets: Rows = snapshot.span(offsets_name(name))
    if not sound(offsets, snapshot.record.arrays[name].length):
        raise _broken_offsets(snapshot, name)
    return offsets


def check_ends(snapshot: Snapshot) -> None:
    """Check that the last row of each ragged field ends with the last token: new rows and tokens follow both.

    Raises
    ------
    CorruptStoreError
    """
    for name in snapshot.record.ragged:
        rows = snapshot.record.rows
        if snapshot.span(offsets_name(name), rows, rows + 1)[0] != snapshot.record.arrays[name].length:
            raise _broken_offsets(snapshot, name)


def _broken_offsets(snapshot: Snapshot, name: str) -> CorruptStoreError:
    return CorruptStoreError(
        snapshot.folder.path / offsets_name(name), offsets_message(snapshot.record.arrays[name].length)
    )


def read_rows(snapshot: Snapshot, array_name: str, rows: Rows) -> Array | list[str]:
    """Copy rows of one array, of numbers or strings, as they are stored."""
    if snapshot.record.arrays[array_name].dtype == STRING:
        return snapshot.take_strings(array_name, rows)
    return snapshot.take(array_name, rows)


KEY_COLUMNS: Final = {"key": "keys_of", "file_id": "file_ids_of", "class_name": "class_names_of"}
"""Columns derived from keys, with the snapshot's method that reads each."""


def column_of(snapshot: Snapshot, name: str, rows: Rows) -> Array:
    """Return the values of a column, or of one of `KEY_COLUMNS`, at some rows. Strings are returned as objects."""
    if isinstance(name, str) and name in KEY_COLUMNS:
        return _objects(getattr(snapshot, KEY_COLUMNS[name])(rows))
    spec = snapshot.record.columns.get(plain_text(name)) if isinstance(name, str) else None
    if spec is None:
        raise UnknownColumnError(name, [*snapshot.record.columns, *KEY_COLUMNS], path=snapshot.folder.path)
    if spec.dtype != STRING:
        return snapshot.take(spec.array, rows)
    return _objects(snapshot.take_strings(spec.array, rows))


def _objects(texts: list[str]) -> Array:
    found = np.empty(len(texts), dtype=object)
    found[:] = texts
    return found
