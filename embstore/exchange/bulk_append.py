"""BulkAppend: write the rows of a table to a store in one commit, a block at a time.

Rows that can't be used are found while they are written. The commit is then abandoned, all rows are checked, and a new
commit leaves out the bad ones. So a sound file is read once. `importing` opens the table and the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import replace
from itertools import chain
from pathlib import PurePath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.keys import Hashes, hash_keys
from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import STRING, ArrayState, ColumnSpec, FieldSpec, Record, offsets_name
from embstore._engine.read.key_index import KeyIndex
from embstore._engine.read.read_rows import check_ends
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.check_input import Casting, Stored, column_values, field_values
from embstore._engine.write.commit import Blocks, Values
from embstore._engine.write.plans import (
    AppendResult,
    IfExists,
    Plan,
    check_columns,
    class_codes,
    kept_values,
    name_fields,
    pick,
)
from embstore._engine.write.record_edits import with_column, with_field
from embstore.errors import (
    DtypeError,
    FieldMismatchError,
    FileFormatError,
    KeysExistError,
    NonFiniteError,
    ShapeError,
)
from embstore.exchange.file_contents import BLOCK_BYTES, BLOCK_ROWS, Unreadable
from embstore.exchange.table import Table
from embstore.store.embedding_store import EmbeddingStore, session_of

Part = TypeVar("Part", bound=Sized)


class _BadRowsError(Exception):
    """Raised when rows that can't be used are found while they are written. Never leaves this module."""


class BulkAppend:
    """One commit of the usable rows of a table. All keys are read at once.

    Parameters
    ----------
    table : Table
        The `unreadable` of its file gets the rows that can't be used.
    if_exists : {"error", "skip", "replace"}
    casting : {"no", "same_kind"}
    """

    def __init__(self, table: Table, if_exists: IfExists, casting: Casting) -> None:
        self.table, self.if_exists, self.casting = table, if_exists, casting
        self._reported = 0
        self._read_keys()

    def run(
        self, store: EmbeddingStore, specs: Mapping[str, FieldSpec], advance: Callable[[int], object]
    ) -> AppendResult:
        """Store all rows that can be used. If an error is raised, no row is stored.

        Parameters
        ----------
        store : EmbeddingStore
        specs : mapping of str to FieldSpec
            The fields of a store that has no fields yet.
        advance : callable
            Called with the number of rows done.
        """
        self.specs, self.advance = specs, advance
        if not self.table.fields and not self.table.rows:
            return AppendResult()  # the export of a store whose fields are not decided yet
        try:
            return session_of(store).apply(self._plan)
        except _BadRowsError:
            self._look(store.fields or specs)
        return session_of(store).apply(self._plan)

    # -- which rows ---------------------------------------------------------------------------

    def _read_keys(self) -> None:
        """Read all keys. Leave out rows without a key, and all rows of a repeated key."""
        hashes: list[Hashes] = [np.empty((0, 2), np.uint64)]
        codes: list[int] = []
        classes: dict[str, int] = {}
        for block in self.table.row_names():
            texts = []
            for name in block:
                if isinstance(name, Unreadable):
                    self.table.file.unreadable.append(name)
                    texts.append("")
                    codes.append(-1)
                else:
                    key = name[1]
                    texts.append(str(key))
                    codes.append(classes.setdefault(key.class_name, len(classes)))
            hashes.append(hash_keys(texts))
        self.hashes, self.codes, self.classes = np.concatenate(hashes), np.array(codes, np.int32), list(classes)
        if len(codes) != self.table.rows:
            raise FileFormatError(self.table.path, f"it has {len(codes):,} keys, expected {self.table.rows:,}")
        self.usable = self.codes >= 0
        self._leave_out_twins()

    def _leave_out_twins(self) -> None:
        """Leave out all rows of a repeated key: a missing row is encoded again, a wrong one is not."""
        places = np.flatnonzero(self.usable)
        _, which, counts = np.unique(self.hashes[places].view("V16"), return_inverse=True, return_counts=True)
        self._leave_out({int(place): "" for place in places[counts[which.reshape(-1)] > 1]})

    def _leave_out(self, reasons: Mapping[int, str]) -> None:
        """Note rows that are not used. An empty reason stands for a repeated key."""
        for place, found, key in self._named(np.array(sorted(reasons), np.int64)):
            reason = reasons[place] or f"several entries have the key '{key}'"
            self.table.file.unreadable.append(Unreadable(found, reason))
            self.usable[place] = False

    def _named(self, places: NDArray[np.int64]) -> Iterator[tuple[int, object, Any]]:
        """Yield the place, the name and the key of the rows at some places."""
        start, wanted = 0, set(places.tolist())
        for block in self.table.row_names() if wanted else ():
            for place, name in enumerate(block, start):
                if place in wanted and not isinstance(name, Unreadable):
                    yield place, *name
            start += len(block)

    def _look(self, specs: Mapping[str, FieldSpec]) -> None:
        """Check all rows of all fields, and leave out those that can't be used."""
        reasons: dict[int, str] = {}
        for name, spec in specs.items():
            for places, _, bad in self._checked(name, spec, self.usable):
                reasons |= {int(places[i]): reason for i, reason in bad.items() if int(places[i]) not in reasons}
        self._leave_out(reasons)

    # -- into the store -----------------------------------------------------------------------

    def _plan(self, snapshot: Snapshot, index: KeyIndex) -> tuple[Plan | None, AppendResult]:
        """Plan the commit. The values are read later, while it is written."""
        check_ends(snapshot)
        stored = np.full(len(self.usable), -1, np.int64)
        stored[self.usable] = index.find(self.hashes[self.usable])
        kept = stored if self.if_exists == "replace" else np.full(len(self.usable), -1, np.int64)
        record = self._agreed(snapshot.record, snapshot.folder.path, kept[self.usable])
        present = np.flatnonzero(stored >= 0)
        if len(present) and self.if_exists == "error":
            raise KeysExistError([str(key) for _, _, key in self._named(present)], path=snapshot.folder.path)
        chosen = self.usable & (stored < 0) if self.if_exists == "skip" else self.usable
        dead = stored[present] if self.if_exists == "replace" else np.empty(0, np.int64)
        count = int(chosen.sum())
        result = AppendResult(appended=count, skipped=int(self.usable.sum()) - count, replaced=len(dead))
        if not count:
            return None, result
        appends: dict[str, Blocks] = {}
        for place, (name, spec) in enumerate(record.fields.items()):
            lengths: list[NDArray[np.int64]] = []
            appends[name] = _whole_chunks(
                self._rows(name, spec, chosen, lengths, report=place == 0), record.arrays[name]
            )
            if spec.ragged:  # written after its tokens, when their lengths are known
                array = record.arrays[offsets_name(name)]
                appends[offsets_name(name)] = _ends(lengths, record.arrays[name].length, first=not array.length)
        for name, column in record.columns.items():
            values = self._values(snapshot, name, column, chosen, kept[chosen])
            appends[column.array] = _whole_chunks(values, record.arrays[column.array])
        names = [self.classes[code] for code in self.codes[chosen].tolist()]
        codes, new_names = class_codes(snapshot.class_names, names)
        file_ids = _whole_chunks(self._file_ids(chosen), record.arrays["file_id"])
        appends |= {"file_id": file_ids, "class_code": codes, "key_hash": self.hashes[chosen]}
        appends |= {name: values for name, values in (("class_names", new_names), ("dead_rows", dead)) if len(values)}
        return Plan(replace(record, rows=record.rows + count), appends), result

    def _agreed(self, record: Record, path: PurePath, kept: NDArray[np.int64]) -> Record:
        """Return the record with the fields and columns of the file. Raise if those of the store differ."""
        if not record.fields:
            for name, spec in self.specs.items():
                record = with_field(record, name, spec)
            for name, dtype in self.table.columns.items():
                record = record if name in record.columns else with_column(record, name, dtype)
        name_fields(record, dict(self.table.fields.items()), path)
        for name, spec in record.fields.items():
            found = self.table.fields[name]
            if self.table.file.metadata is not None and replace(found, dtype=spec.dtype).meaning != spec.meaning:
                raise FieldMismatchError(name, path=path, expected=spec, found=found)
            if (found.shape, found.ragged) != (spec.shape, spec.ragged):
                raise ShapeError(name, expected=spec, found=found)
            if found.dtype != spec.dtype and self.casting == "no":
                raise DtypeError(name, expected=spec.dtype, found=found.dtype, hint='casting="same_kind" converts it')
        check_columns(record, self.table.columns, path, kept)
        for name, dtype in self.table.columns.items():
            column_values(name, record.columns[name].dtype, np.empty(0, object if dtype == STRING else dtype), 0)
        return record

    def _rows(
        self, name: str, spec: FieldSpec, chosen: NDArray[np.bool_], lengths: list[Any], *, report: bool
    ) -> Iterator[Values]:
        """Yield the rows of a field as they are stored. Of ragged rows, yield the tokens and append the lengths."""
        for places, values, bad in self._checked(name, spec, chosen):
            if bad:
                raise _BadRowsError(bad)
            if report and places[-1] >= self._reported:  # once a row, also if the commit is repeated
                self.advance(int(places[-1]) + 1 - self._reported)
                self._reported = int(places[-1]) + 1
            if isinstance(values, Ragged):
                lengths.append(np.asarray(values.lengths))
                yield values.values
            else:
                yield values

    def _checked(
        self, name: str, spec: FieldSpec, chosen: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.int64], Stored, Mapping[int, str]]]:
        """Yield the chosen rows of a field: places in the table, stored values, reasons of bad rows."""
        dtype = self.table.fields[name].dtype
        for start, places, block in self._chosen(name, self.table.field(name), chosen):
            bad = {i: f"{name!r}: {block.bad[at]}" for i, at in enumerate(places.tolist()) if at in block.bad}
            good = np.delete(np.arange(len(places)), list(bad))
            values = block.values if len(good) == len(block) else pick(block.values, places[good])
            try:
                # Places are passed as keys, so that the error names the rows by their places.
                keys = list(map(str, good.tolist()))
                values = field_values(name, spec, values, keys, casting=self.casting, stored_as=dtype)
            except NonFiniteError as error:
                bad |= {int(key): f"NaN or infinity in {name!r}" for key in error.keys}
            yield places + start, values, bad

    def _chosen(
        self, name: str, blocks: Iterator[Part], chosen: NDArray[np.bool_]
    ) -> Iterator[tuple[int, NDArray[np.int64], Part]]:
        """Yield the first row of each block, the places of the chosen rows in it, and the block.

        Raises FileFormatError if the file has another number of rows than it states: all arrays of a commit must have
        equally many.
        """
        start = 0
        for block in blocks:
            if len(places := np.flatnonzero(chosen[start : start + len(block)])):
                yield start, places, block
            start += len(block)
        if start != self.table.rows:
            raise FileFormatError(self.table.path, f"{name!r} has {start:,} rows, expected {self.table.rows:,}")

    def _values(
        self, snapshot: Snapshot, name: str, column: ColumnSpec, chosen: NDArray[np.bool_], kept: NDArray[np.int64]
    ) -> Iterator[Values]:
        if name not in self.table.columns:
            for start in range(0, len(kept), BLOCK_ROWS):
                yield kept_values(snapshot, name, column, kept[start : start + BLOCK_ROWS])
            return
        for _, places, values in self._chosen(name, self.table.column(name), chosen):
            yield column_values(name, column.dtype, pick(values, places), len(places))[1]

    def _file_ids(self, chosen: NDArray[np.bool_]) -> Iterator[Values]:
        for _, places, block in self._chosen("file_id", self.table.row_names(), chosen):
            yield [block[place][1].file_id for place in places.tolist()]


def _whole_chunks(blocks: Iterator[Values], array: ArrayState) -> Iterator[Values]:
    """Cut rows into blocks that end where chunks end: a chunk filled in two steps is written and synced twice."""
    size = array.rows_per_chunk
    bytes_at_once = BLOCK_ROWS if array.dtype == STRING else BLOCK_BYTES // max(1, array.chunk_nbytes) * size
    unit = size * max(1, min(BLOCK_ROWS, bytes_at_once) // size)
    held: list[Any] = []
    count, room = 0, unit - array.length % size
    for block in blocks:
        held.append(block)
        count += len(block)
        if count >= room:
            rows = held[0] if len(held) == 1 else _one(held)
            cut = room + (count - room) // size * size
            yield rows[:cut]
            held = [np.array(rows[cut:]) if isinstance(rows, np.ndarray) else rows[cut:]]
            count, room = count - cut, unit
    if count:
        yield _one(held)


def _one(blocks: list[Any]) -> Values:
    """Concatenate blocks."""
    whole: Values = np.concatenate(blocks) if isinstance(blocks[0], np.ndarray) else list(chain.from_iterable(blocks))
    return whole


def _ends(lengths: list[NDArray[np.int64]], tokens: int, *, first: bool) -> Iterator[Values]:
    """Yield the end of each row in the array of tokens, which has `tokens` already. Made when all lengths are known."""
    ends = tokens + np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]))
    yield np.append(tokens, ends) if first else ends
