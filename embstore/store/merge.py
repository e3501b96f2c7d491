"""Merge the rows of several stores of one config into one store, in one commit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import PurePath
from typing import Any, Final, get_args

import numpy as np

from embstore._engine.format.arguments import check_choice
from embstore._engine.format.config import Config
from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import ColumnSpec, Origin, Record, offsets_name
from embstore._engine.format.source_columns import ORIGINS_COLUMN, is_source_column
from embstore._engine.io.urls import is_url, local_path
from embstore._engine.read.column import Rows
from embstore._engine.read.history import Position
from embstore._engine.read.open_snapshot import exists, open_snapshot
from embstore._engine.read.read_rows import check_ends, column_of, read_field, read_rows, row_bounds
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.commit import Blocks, Values
from embstore._engine.write.plans import NO_FILL, AppendResult, IfExists, Plan, kept_values, row_blocks
from embstore._engine.write.record_edits import with_column, with_field, with_origin
from embstore.errors import (
    ConfigMismatchError,
    DuplicateKeysError,
    FieldMismatchError,
    KeysExistError,
    StoreChangedError,
    UnknownColumnError,
    UnknownFieldError,
)
from embstore.store.embedding_store import session_of
from embstore.store.open import open as open_store

_MOST_OPEN: Final = 8
"""Parts that are open at once."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one of the merged stores.

    Attributes
    ----------
    opened : callable
        Opens the store of a path, and keeps the stores opened last.
    """

    path: PurePath
    place: str
    record: Record
    position: Position
    rows: Rows
    opened: Callable[[str], Snapshot]

    @property
    def snapshot(self) -> Snapshot:
        """The store, opened for as long as no other parts are in use.

        Raises
        ------
        StoreChangedError
            Rows were erased or renumbered since.
        """
        at = self.opened(self.place)
        if at.position != self.position and (at.record.epoch != self.record.epoch or not at.follows(self.position)):
            reason = "rows were erased or renumbered during the merge"
            raise StoreChangedError(self.path, reason, expected=self.position[:4], found=at.position[:4])
        return at

    def without(self, places: np.ndarray[Any, Any]) -> Part:
        """Return the part without the rows at some places."""
        return replace(self, rows=np.delete(self.rows, places))

    @property
    def hashes(self) -> np.ndarray[Any, Any]:
        """The hashes of the keys: ``(n,)``, 16 bytes each."""
        return np.ascontiguousarray(self.snapshot.take("key_hash", self.rows)).view("V16").reshape(-1)


def merge(
    dest: str | os.PathLike[str],
    *parts: str | os.PathLike[str],
    if_exists: IfExists = "error",
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> AppendResult:
    """Add the rows of several stores to one store, in one commit. It is made if it does not exist.

    Parameters
    ----------
    dest : path_like
        Or a URL in a bucket.
    *parts : path_like
        Or URLs. Stores with the same config, fields and columns. They are not changed.
    if_exists : {"error", "skip", "replace"}
        How to treat keys that `dest` already has. "skip" also skips keys of an earlier part. "replace" keeps the values
        of columns that the part lacks.
    storage_options : mapping, optional
        Of all URLs, as for `embstore.open`.
    **options
        Further options of `embstore.open` for `dest`.

    Returns
    -------
    AppendResult

    Raises
    ------
    ConfigMismatchError
        The config of a part differs from that of the first part, or of `dest`.
    FieldMismatchError, UnknownFieldError, UnknownColumnError
        A part has other fields or columns.
    KeysExistError
        `dest` has some of the keys, and `if_exists` is "error".
    DuplicateKeysError
        Two parts have the same key, and `if_exists` is not "skip".
    """
    if not parts:
        raise TypeError("expected stores to merge, found none")
    check_choice("if_exists", if_exists, get_args(IfExists))
    # A store has a descriptor for each array, and a process has 1,024 descriptors on many machines.
    # A new checksum must not hide a flipped bit.
    opened = lru_cache(_MOST_OPEN)(partial(_opened, storage_options))
    live = [live_part(part, opened) for part in parts]
    config = Config(live[0].record.config)
    for part in live:
        if differences := config.diff(part.record.config):
            raise ConfigMismatchError(part.path, differences)
    # A store without rows and fields (its first rows would decide them) has nothing to merge or to compare.
    first, path = live[0].record, live[0].path
    live = [part for part in live if part.record.fields or len(part.rows)]
    first = live[0].record if live else first
    for part in live:
        _check_same(first, part)
    if if_exists != "skip":
        # Raise before `dest` is made.
        _new_only(live, lambda hashes: np.full(len(hashes), -1), if_exists, path)
    if storage_options is not None and is_url(dest):
        options["storage_options"] = storage_options
    new = not exists(dest if is_url(dest) else local_path(dest), storage_options)
    made = options_like(first, sum(len(part.rows) for part in live)) if new else {}
    with open_store(dest, "a", config=first.config, **{**made, **options}) as store:
        return session_of(store).apply(lambda snapshot, index: plan_merge(snapshot, index.find, live, if_exists))


def _opened(storage_options: Mapping[str, Any] | None, place: str) -> Snapshot:
    return open_snapshot(place, check="touched", storage_options=storage_options if is_url(place) else None)


def options_like(record: Record, rows: int) -> dict[str, Any]:
    """Return the options of `embstore.open` that make a store for rows of another."""
    return {
        "fields": record.fields,
        "columns": record.columns,
        "primary": record.primary,
        "chunk_bytes": record.options.get("chunk_bytes"),
        "expected_rows": max(record.options.get("expected_rows", 0), rows),
        "compression": record.compression,
        "provenance": record.provenance,
    }


def live_part(path: str | os.PathLike[str], opened: Callable[[str], Snapshot]) -> Part:
    """Return the live rows of a store."""
    place = os.fspath(path if is_url(path) else local_path(path).resolve())
    snapshot = opened(place)
    return Part(snapshot.folder.path, place, snapshot.record, snapshot.position, snapshot.live_rows, opened)


def _check_same(record: Record, part: Part) -> None:
    """Check that a part has the fields and columns of the destination."""
    path = part.path
    for name in sorted(part.record.fields.keys() ^ record.fields.keys()):
        raise UnknownFieldError(name, record.fields, path=path)
    for name, spec in record.fields.items():
        found = part.record.fields[name]
        if found.meaning != spec.meaning:
            raise FieldMismatchError(name, path=path, expected=spec, found=found)
    columns = {name: spec.dtype for name, spec in record.columns.items()}
    for name, column in part.record.columns.items():
        if columns.get(name) != column.dtype:
            raise UnknownColumnError(name, columns, path=path, what=f"there is no {column.dtype} column")
    for name in columns.keys() - part.record.columns.keys():
        if record.columns[name].fill_value is None:
            raise UnknownColumnError(name, part.record.columns, path=path, hint=NO_FILL)


def _decided(record: Record, parts: Sequence[Part]) -> Record:
    """Return the record. If it has no fields yet, add the fields and columns of the first part."""
    if record.fields or not parts:
        return record
    first = parts[0].record
    for name, spec in first.fields.items():
        record = with_field(record, name, spec)
    record = replace(record, primary=first.primary)
    for name, column in first.columns.items():
        record = record if name in record.columns else with_column(record, name, column.dtype, fill=column.fill)
    return record


def plan_merge(
    snapshot: Snapshot,
    find: Callable[[Any], Rows],
    parts: Sequence[Part],
    if_exists: IfExists,
    *,
    roots: bool = True,
) -> tuple[Plan | None, AppendResult]:
    """Plan the merge. The commit reads the values, a block at a time.

    Parameters
    ----------
    snapshot : Snapshot
    find : callable
        Returns the row of each key hash ``(n, 2) uint64`` in the snapshot, and -1 for an unknown hash.
    parts : sequence of Part
    if_exists : {"error", "skip", "replace"}
    roots : bool
        Whether origins keep the paths of their folders, which mean nothing on other machines.

    Raises
    ------
    KeysExistError, DuplicateKeysError, FieldMismatchError, UnknownFieldError, UnknownColumnError
    """
    check_ends(snapshot)
    record = _decided(snapshot.record, parts)
    for part in parts:  # again, under the lock: another process may have changed the store
        _check_same(record, part)
    total = sum(len(part.rows) for part in parts)
    parts, dead = _new_only(parts, find, if_exists, snapshot.folder.path)
    count = sum(len(part.rows) for part in parts)
    result = AppendResult(appended=count, skipped=total - count, replaced=len(dead))
    if not count:
        return None, result
    names = list(snapshot.class_names)
    codes = {name: code for code, name in enumerate(names)}
    for part in parts:
        at = part.snapshot
        for code in np.unique(at.class_codes_of(part.rows)).tolist():
            codes.setdefault(at.class_names[code], len(codes))
    appends: dict[str, Blocks] = {
        "file_id": _blocks(parts, lambda at, rows: read_rows(at, "file_id", rows)),
        "class_code": _blocks(parts, lambda at, rows: np.array([codes[n] for n in at.class_names_of(rows)], np.int32)),
        "key_hash": _blocks(parts, lambda at, rows: read_rows(at, "key_hash", rows)),
    }
    if new_names := list(codes)[len(names) :]:
        appends["class_names"] = new_names

    def kept(name: str, column: ColumnSpec, at: Snapshot, rows: Rows) -> Values:
        found = find(at.take("key_hash", rows)) if if_exists == "replace" else np.full(len(rows), -1)
        return kept_values(snapshot, name, column, found)

    for name, column in record.columns.items():
        appends[column.array] = _blocks(parts, partial(_column_values, name, column, kept))
    if is_source_column(ORIGINS_COLUMN, record.columns.get(ORIGINS_COLUMN)):
        record, appends[record.columns[ORIGINS_COLUMN].array] = _with_origins(record, parts, roots)
    for name, spec in record.fields.items():
        appends[name] = _blocks(parts, partial(_field_values, name))
        if spec.ragged:
            lengths = [np.subtract(*row_bounds(part.snapshot, name, part.rows)[::-1]) for part in parts]
            ends = record.arrays[name].length + np.cumsum(np.concatenate(lengths))
            new = not record.arrays[offsets_name(name)].length
            appends[offsets_name(name)] = np.concatenate([[0], ends]) if new else ends
    if len(dead):
        appends["dead_rows"] = dead
    return Plan(replace(record, rows=record.rows + count), appends), result


def _with_origins(record: Record, parts: Sequence[Part], roots: bool) -> tuple[Record, Iterator[Values]]:
    """Return the record with the origins of the parts, and the origins of their rows by its own list."""
    bits = dict[Origin, int]()
    for origin in [origin for part in parts for origin in part.record.origins]:
        record, bits[origin] = with_origin(record, origin if roots else replace(origin, root=None))

    def translated(at: Snapshot, rows: Rows) -> Values:
        known = ORIGINS_COLUMN in at.record.columns
        stored = column_of(at, ORIGINS_COLUMN, rows) if known else np.zeros(len(rows), np.int64)
        found = np.zeros_like(stored)
        for place, origin in enumerate(at.record.origins):
            found |= (stored >> place & 1) * bits[origin]
        return found

    return record, _blocks(parts, translated)


def _new_only(
    parts: Sequence[Part], find: Callable[[Any], Rows], if_exists: IfExists, path: PurePath
) -> tuple[list[Part], Rows]:
    """Return the parts without keys that are stored or in an earlier part, and the stored rows to replace."""
    seen, dead = np.empty(0, "V16"), [np.empty(0, np.int64)]
    chosen = []
    for part in parts:
        at = part.snapshot
        found = find(at.take("key_hash", part.rows))
        stored = np.flatnonzero(found >= 0)
        if len(stored) and if_exists == "error":
            raise KeysExistError(at.keys_of(part.rows[stored]), path=path)
        if if_exists == "replace":
            dead.append(found[stored])
        else:
            part = part.without(stored)
        twice = np.flatnonzero(np.isin(part.hashes, seen))
        if len(twice) and if_exists != "skip":
            raise DuplicateKeysError(at.keys_of(part.rows[twice]), path=at.folder.path)
        part = part.without(twice)
        seen = np.concatenate([seen, part.hashes])
        chosen.append(part)
    return [part for part in chosen if len(part.rows)], np.concatenate(dead)


def _blocks(parts: Sequence[Part], read: Callable[[Snapshot, Rows], Values]) -> Iterator[Values]:
    for part in parts:
        at = part.snapshot
        for rows in row_blocks(at, part.rows):
            yield read(at, rows)


def _column_values(name: str, column: ColumnSpec, kept: Callable[..., Values], at: Snapshot, rows: Rows) -> Values:
    if name not in at.record.columns:
        return kept(name, column, at, rows)
    return read_rows(at, at.record.columns[name].array, rows)


def _field_values(name: str, at: Snapshot, rows: Rows) -> Values:
    values = read_field(at, name, rows)
    return values.values if isinstance(values, Ragged) else values
