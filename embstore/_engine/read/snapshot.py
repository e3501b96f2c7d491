"""A snapshot: one commit of a store, as a reader holds it.

It reads the commit record, hands out the columns that the record names, and notices when what it
holds is no longer what lies on disk. It never sees half a commit: the record is read first, and
what it names is immutable but for an erase, which raises the record's epoch before it touches a row.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final

import numpy as np

from embstore._engine.chunks.chunk_file import check_tail
from embstore._engine.chunks.record_file import as_corruption, is_newer, read_record
from embstore._engine.format.record import Record
from embstore._engine.format.zarr_layout import METADATA_NAME
from embstore._engine.io.folder import Folder, ReadableFolder, Signature
from embstore._engine.read.column import Check, NumericColumn, Rows
from embstore._engine.read.mapped_column import MappedColumn, State
from embstore._engine.read.open_column import Column, Mapping, grow_column, open_column
from embstore._engine.read.string_column import StringColumn
from embstore.errors import CorruptStoreError, StoreChangedError, StoreReplacedError

logger = logging.getLogger("embstore")

_NEEDED: Final = ("class_names", "dead_rows", "class_code")
_FEW: Final = 8
"""Chunks, of 64 KiB where they are numbers."""


class Snapshot:
    """One commit of the store in an open folder; immutable, and safe to share between threads.

    Attributes
    ----------
    record : Record
        Of this commit.
    """

    def __init__(
        self,
        folder: ReadableFolder,
        record: Record,
        signature: Signature,
        *,
        mapping: Mapping,
        check: Check,
        columns: dict[str, Column] | None = None,
    ) -> None:
        self.folder = folder
        self.record = record
        self.mapping = mapping
        self.check = check
        self._signature = signature  # of this commit's record, while it is the newest
        self._seen = signature  # of the newest record that was found not to matter to this commit
        self._columns = {} if columns is None else columns
        self._rechecked: object = None  # the last read by name that a look at the record came after
        self._within = threading.local()
        self._class_names: list[str] | None = None
        self._dead_rows: Rows | None = None

    @property
    def local_folder(self) -> Folder:
        """The folder of a store on this machine, which writers need."""
        assert isinstance(self.folder, Folder), self.folder.path
        return self.folder

    def check_opened(self) -> None:
        """Check the tail of each array, or all chunks where `check` says so, and that the commit is still current."""
        self._check_tails()
        self._read_ahead()
        if self.check == "all":
            for name in self.record.arrays:
                column = self.column(name)
                if isinstance(column, StringColumn):
                    for _ in column.chunks():
                        pass
        self._recheck_record()

    def _read_ahead(self) -> None:
        """Read what every selection needs, if it is little and not here: one look at the record does for all of it."""
        if isinstance(self.folder, Folder):
            return
        few = {name for name in _NEEDED if self.record.arrays[name].chunks <= _FEW}
        with self.reading():
            # Kept only once it is known to be of this commit.
            names = self._read_class_names() if "class_names" in few else None
            dead = self._read_dead_rows() if "dead_rows" in few else None
            if rows := self.record.rows:  # the last chunk, at least: then their number is not made up
                self.numeric("class_code").copy(0 if "class_code" in few else rows - 1, rows)
        self._class_names, self._dead_rows = names, dead

    def _check_tails(self) -> None:
        if not isinstance(self.folder, Folder):
            return  # there each last chunk is checked when it is fetched
        erasing = self.record.erasing or {}
        for name, array in self.record.arrays.items():
            check_tail(self.folder.child(name), array, tail_after_erase=erasing.get(name))

    def advanced(self, record: Record, signature: Signature) -> Snapshot:
        """Return the snapshot of a later commit in the same folder; columns in use grow in place."""
        erased = record.epoch != self.record.epoch
        reuse = isinstance(self.folder, Folder) or not erased  # chunks of a URL are read anew after an erase
        with self._reading():
            columns = {
                name: grow_column(column, record.arrays[name], mapping=self.mapping, erased=erased)
                if column.array != record.arrays[name] or erased
                else column
                for name, column in list(self._columns.items())
                if name in record.arrays and reuse
            }
        snapshot = Snapshot(self.folder, record, signature, mapping=self.mapping, check=self.check, columns=columns)
        # Both only grow, but for a compaction, which is in another folder.
        if record.arrays["class_names"].length == self.record.arrays["class_names"].length:
            snapshot._class_names = self._class_names
        if record.arrays["dead_rows"].length == self.record.arrays["dead_rows"].length:
            snapshot._dead_rows = self._dead_rows
        return snapshot

    def newest(self) -> Snapshot:
        """Return the newest commit in the same folder; itself, if there is none newer.

        Raises
        ------
        StoreReplacedError, StoreChangedError, CorruptStoreError
        """
        with self._replacement_noticed():
            if self.folder.signature(METADATA_NAME) == self._signature:
                return self
            record, signature = read_record(self.folder)
        if record.commit_id == self.record.commit_id:
            self._signature = signature
            return self
        self._check_generation(record)
        snapshot = self.advanced(record, signature)
        try:
            snapshot._check_tails()
        except (FileNotFoundError, CorruptStoreError) as error:
            if is_newer(self.folder, record):
                raise StoreReplacedError(self.folder.path, "it moved on while it was refreshed") from error
            raise as_corruption(error) from error.__cause__
        snapshot._recheck_record()
        return snapshot

    def ensure_current(self) -> None:
        """Raise if rows were erased, or the folder removed, since this commit was read.

        What was read before this call is what the commit holds; what is read by name after an erase
        might be blanked rows.

        Raises
        ------
        StoreChangedError, StoreReplacedError
        """
        with self._replacement_noticed():
            if self.folder.signature(METADATA_NAME) == self._seen:
                return
            record, signature = read_record(self.folder)
        self._check_generation(record)
        if record.epoch != self.record.epoch:
            raise StoreChangedError(
                self.folder.path,
                "rows were erased since it was opened; refresh() it",
                expected=self.record.epoch,
                found=record.epoch,
            )
        self._seen = signature

    def _check_generation(self, record: Record) -> None:
        # Of an open folder it can't change; what lies at a URL is another folder after a compaction, or an old copy.
        if record.generation != self.record.generation or record.rows < self.record.rows:
            raise StoreReplacedError(self.folder.path)

    def replaced(self) -> bool:
        """Tell whether another store is at the path by now, or none."""
        return self.folder.replaced()

    @contextlib.contextmanager
    def _replacement_noticed(self) -> Iterator[None]:
        """Tell a record that was lost from a folder that a compaction has replaced, and removes."""
        try:
            yield
        except (FileNotFoundError, CorruptStoreError) as error:
            gone = not isinstance(self.folder, Folder) and isinstance(error, FileNotFoundError)
            if gone or self.folder.replaced():
                raise StoreReplacedError(self.folder.path) from error
            raise as_corruption(error) from error.__cause__

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell a file that was lost from a store that moved on."""
        try:
            yield
        except FileNotFoundError as error:
            with self._replacement_noticed():
                record, _ = read_record(self.folder)
            self._check_generation(record)
            if record.commit_id != self.record.commit_id:
                raise StoreChangedError(
                    self.folder.path,
                    f"{error.filename} was replaced since it was opened; refresh() it",
                    expected=self.record.commit_id,
                    found=record.commit_id,
                ) from error
            raise as_corruption(error) from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Guard reads by name: what the block reads is from this commit, or it raises.

        The record is looked at once the outermost block is through; not, if nothing was read by name since the
        last time.
        """
        within, self._within.block = getattr(self._within, "block", False), True
        try:
            with self._reading():
                yield
        except CorruptStoreError:
            self.ensure_current()  # rows that were blanked meanwhile are not those committed
            raise
        finally:
            self._within.block = within
        if not within:
            self._recheck_record()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Look at the record once for all reads of a block, where each look is a request."""
        if isinstance(self.folder, Folder):
            yield
        else:
            with self.reading():
                yield

    def _recheck_record(self) -> None:
        """Look at the record, if anything was read by name since: that was perhaps read after an erase."""
        last = self.folder.last_read  # before the look, which is too early for what others read meanwhile
        if last is not self._rechecked:
            # Mapped before the look: one that is mapped later may be of an erase that comes later.
            mapped = [column for column in list(self._columns.values()) if isinstance(column, MappedColumn)]
            mapped = [column for column in mapped if column.state is State.MAPPED]
            self.ensure_current()
            for column in mapped:
                column.settle()
            self._rechecked = last

    def take(self, name: str, rows: Rows) -> np.ndarray[Any, Any]:
        """Copy rows of a numeric array, in the order given: ``(n, *shape)``."""
        column = self.numeric(name)
        if column.complete:
            return column.take(rows)
        with self.reading():
            return column.take(rows)

    def span(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        """Return neighbouring rows of a numeric array, read-only; all of them, unless told otherwise."""
        column = self.numeric(name)
        stop = len(column) if stop is None else stop
        if column.complete:
            return column.span(start, stop)
        with self.reading():
            return column.span(start, stop)

    def copy(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Copy neighbouring rows of a numeric array, writable."""
        column = self.numeric(name)
        try:
            with self.reading():
                return column.copy(start, stop)
        except (StoreChangedError, StoreReplacedError):
            if column.complete:
                return column.copy_mapped(start, stop)
            raise

    def mapped(self, name: str) -> np.ndarray[Any, Any] | None:
        """Return a numeric array as it is mapped, whole and read-only; None, where it is not."""
        column = self.numeric(name)
        if not column.in_place:
            return None
        self.span(name, 0, 0)  # has it mapped, and looked at
        return column.span(0, len(column)) if column.complete else None

    def writable_copy(self, name: str) -> np.ndarray[Any, Any]:
        """Return all rows of a numeric array as a writable array of the caller's own."""
        with self.reading():
            return self.numeric(name).writable_copy()

    def take_strings(self, name: str, rows: Rows) -> list[str]:
        """Return rows of a string array, in the order given."""
        with self.reading():
            return self.strings(name).take(rows)

    def column(self, name: str) -> Column:
        """Return the column of the array `name`; that of its files is opened when it is first asked for."""
        column = self._columns.get(name)
        if column is None:
            with self._reading():
                column = open_column(
                    self.folder.child(name),
                    self.record.arrays[name],
                    mapping=self.mapping,
                    check=self.check,
                    tail_after_erase=(self.record.erasing or {}).get(name),
                )
            if self.check == "all":
                self._recheck_record()  # else nothing was read yet
            column = self._columns.setdefault(name, column)
        return column

    def numeric(self, name: str) -> NumericColumn:
        """Return a column that holds numbers."""
        column = self.column(name)
        assert isinstance(column, NumericColumn), name
        return column

    def strings(self, name: str) -> StringColumn:
        """Return a column that holds strings."""
        column = self.column(name)
        assert isinstance(column, StringColumn), name
        return column

    @property
    def dead_rows(self) -> Rows:
        """Numbers of the deleted rows, ascending."""
        if self._dead_rows is None:
            dead = self._read_dead_rows()
            self._recheck_record()  # it is kept, so the record is re-read before the block around ends
            self._dead_rows = dead
        return self._dead_rows

    def _read_dead_rows(self) -> Rows:
        dead = np.sort(self.span("dead_rows"))
        if len(dead) and (dead[0] < 0 or dead[-1] >= self.record.rows or (np.diff(dead) == 0).any()):
            raise CorruptStoreError(self.folder.path / "dead_rows", "it names rows that are not there, or twice")
        return dead

    @cached_property
    def live_rows(self) -> Rows:
        """Numbers of the rows that are not deleted, ascending."""
        alive = np.ones(self.record.rows, dtype=bool)
        alive[self.dead_rows] = False
        rows = np.flatnonzero(alive)
        rows.flags.writeable = False
        return rows

    def is_dead(self, rows: Rows) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Tell for each row whether it is deleted."""
        dead = self.dead_rows
        if not len(dead):
            return np.zeros(len(rows), dtype=bool)
        found: np.ndarray[Any, np.dtype[np.bool_]] = (
            dead[np.minimum(np.searchsorted(dead, rows), len(dead) - 1)] == rows
        )
        return found

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their codes."""
        if self._class_names is None:
            names = self._read_class_names()
            self._recheck_record()  # it is kept, so the record is re-read before the block around ends
            self._class_names = names
        return self._class_names

    def _read_class_names(self) -> list[str]:
        with self.reading():
            return [name for chunk in self.strings("class_names").chunks() for name in chunk]

    def class_names_of(self, rows: Rows) -> list[str]:
        """Return the class of each row."""
        names = self.class_names
        return [names[code] for code in self.class_codes_of(rows).tolist()]

    def class_codes_of(self, rows: Rows) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Return the code of each row's class."""
        codes, names = self.take("class_code", rows), self.class_names
        if len(codes) and not 0 <= codes.min() <= codes.max() < len(names):
            raise CorruptStoreError(self.folder.path / "class_code", "it names classes that are not there")
        return codes

    def file_ids_of(self, rows: Rows) -> list[str]:
        """Return the file_id of each row."""
        return self.take_strings("file_id", rows)

    def keys_of(self, rows: Rows) -> list[str]:
        """Return the key of each row."""
        with self.together():
            pairs = zip(self.file_ids_of(rows), self.class_names_of(rows), strict=True)
        return [f"{file_id}:{class_name}" for file_id, class_name in pairs]
