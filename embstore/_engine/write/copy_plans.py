"""Plan rows that are copied to other keys. Where a row moves, the old one is deleted in the same commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.keys import hash_keys
from embstore._engine.format.ragged import Ragged
from embstore._engine.format.source_columns import DIGEST_COLUMN, ORIGINS_COLUMN
from embstore._engine.read.column import Rows
from embstore._engine.read.key_index import KeyIndex
from embstore._engine.read.read_rows import check_ends, column_of, read_field, row_bounds
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.check_input import KeyBatch, column_values
from embstore._engine.write.commit import Blocks, Values
from embstore._engine.write.plans import Plan, check_columns, class_codes, kept_values, pick, row_blocks

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Rows to copy to other keys, all in one order.

    Attributes
    ----------
    keys : KeyBatch
        Keys of the new rows.
    found : ndarray, (n,) int64
        Row of each of these keys when it was compared, or -1. A row is replaced.
    sources : list of str
        Keys of the rows to copy.
    moves : ndarray, (n,) bool
        Whether the row of the source is deleted.
    digests : list of str
        Digest, as it is stored, that the row of the source must have.
    origin : int
        Bit of the origin that a row must have to be deleted.
    columns : mapping of str to list
        Values of the new rows. In other columns, a row that moves keeps its value, a row that is replaced hands on its
        own, and others have the fill.
    """

    keys: KeyBatch
    found: Rows
    sources: list[str]
    moves: Mask
    digests: list[str]
    origin: int
    columns: Mapping[str, Any]


def plan_copies(snapshot: Snapshot, index: KeyIndex, copies: Copies) -> tuple[Plan | None, tuple[Mask, Mask]]:
    """Plan the copies that are still right at this commit. Without any, return None as the plan.

    Returns
    -------
    Plan or None
    done, moved : ndarray, (n,) bool
        The copies that the plan makes, and those of them whose old row it deletes.

    Raises
    ------
    UnknownColumnError
        A column of the store has no fill, and no value for a row that does not move.
    """
    record = snapshot.record
    check_ends(snapshot)
    rows, found = index.find(hash_keys(copies.sources)), index.find(hash_keys(copies.keys.texts))
    done: Mask = (rows >= 0) & (found == copies.found)
    places = np.flatnonzero(done)
    done[places] = column_of(snapshot, DIGEST_COLUMN, rows[places]) == np.array(copies.digests, dtype=object)[places]
    moved: Mask = done & copies.moves
    places = np.flatnonzero(moved)
    moved[places] = (column_of(snapshot, ORIGINS_COLUMN, rows[places]) & copies.origin) != 0
    chosen = np.flatnonzero(done)
    if not len(chosen):
        return None, (done, moved)
    keys, rows, found = copies.keys.at(chosen), rows[chosen], found[chosen]
    codes, new_names = class_codes(snapshot.class_names, keys.class_names)
    appends: dict[str, Blocks] = {
        "file_id": keys.file_ids,
        "class_code": codes,
        "key_hash": hash_keys(keys.texts),
        **_columns(snapshot, copies, chosen, np.where(moved[chosen], rows, found)),
        **_fields(snapshot, rows),
    }
    if new_names:
        appends["class_names"] = new_names
    dead = np.unique(np.concatenate([rows[moved[chosen]], found[found >= 0]]))
    if len(dead):
        appends["dead_rows"] = dead
    return Plan(replace(record, rows=record.rows + len(chosen)), appends), (done, moved)


def _columns(snapshot: Snapshot, copies: Copies, chosen: Rows, kept: Rows) -> dict[str, Values]:
    """Return the values of each column: those given, else those of the rows that move or are replaced, or the fill."""
    record, values = snapshot.record, {}
    check_columns(record, copies.columns, snapshot.folder.path, kept)
    for name, column in record.columns.items():
        if name in copies.columns:
            given = column_values(name, column.dtype, copies.columns[name], len(copies.keys))[1]
            values[column.array] = pick(given, chosen)
        else:
            values[column.array] = kept_values(snapshot, name, column, kept)
    return values


def _fields(snapshot: Snapshot, rows: Rows) -> dict[str, Blocks]:
    """Return the stored bytes of rows in all fields, a block at a time."""
    record, checked = snapshot.record, snapshot.checked()  # a new checksum must not hide a flipped bit
    appends: dict[str, Blocks] = {}
    for name, spec in record.fields.items():
        appends[name] = _blocks(checked, name, rows)
        if spec.ragged:
            starts, stops = row_bounds(checked, name, rows)
            appends[f"{name}_offsets"] = record.arrays[name].length + np.cumsum(stops - starts)
    return appends


def _blocks(snapshot: Snapshot, name: str, rows: Rows) -> Iterator[Values]:
    for block in row_blocks(snapshot, rows):
        values = read_field(snapshot, name, block)
        yield values.values if isinstance(values, Ragged) else values
