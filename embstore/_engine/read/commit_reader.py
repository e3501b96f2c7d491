"""One commit of a store: its columns, and the guards of each read.

It reads the commit record, opens the columns that the record names, and notices when the files on disk change. It never
sees half a commit: the record is read first, and the rows that it names are immutable except for an erase, which raises
the record's epoch before it changes a row.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from embstore._engine.chunks.record_file import as_corruption, read_record
from embstore._engine.format.record import ArrayState, Record
from embstore._engine.format.zarr_layout import METADATA_NAME
from embstore._engine.io.folder import Folder, ReadableFolder, Signature
from embstore._engine.read.column import Check, NumericColumn, Rows
from embstore._engine.read.history import PUT_BACK, Position, continues
from embstore._engine.read.mapped_column import MappedColumn, State
from embstore._engine.read.open_column import AnyColumn, Mapping, open_column
from embstore._engine.read.string_column import StringColumn
from embstore.errors import CorruptStoreError, StoreChangedError, StoreReplacedError


class CommitReader:
    """The columns of one commit in an open folder.

    Attributes
    ----------
    record : Record
        Record of this commit.
    position : Position
        To find out later whether the store went on from this commit.
    salvage : bool
        Whether undamaged rows are read although other parts of their files are damaged.
    """

    salvage = False
    position: Position

    def __init__(
        self,
        folder: ReadableFolder,
        record: Record,
        signature: Signature,
        *,
        mapping: Mapping,
        check: Check,
        columns: dict[str, AnyColumn] | None = None,
    ) -> None:
        self.folder = folder
        self.record = record
        self.mapping = mapping
        self.check = check
        self._signature = signature  # of this commit's record, while it is the newest
        self._seen = signature  # of the newest record that does not affect this commit
        self._columns = {} if columns is None else columns
        self._rechecked: object = None  # `last_read` at the time of the last look at the record
        self._within = threading.local()

    @property
    def local_folder(self) -> Folder:
        """The folder of a store on this machine. Writers need it."""
        assert isinstance(self.folder, Folder), self.folder.path
        return self.folder

    def ensure_current(self) -> None:
        """Raise if rows were erased, or the folder removed, since this commit was read.

        Rows that were read before this call are those of the commit. Rows read by file name after an erase may be
        blanked.

        Raises
        ------
        StoreChangedError, StoreReplacedError
        """
        with self._replacement_noticed():
            if self.folder.signature(METADATA_NAME) == self._seen:
                return
            record, signature = read_record(self.folder)
        self._check_continues(record)
        if record.epoch != self.record.epoch:
            raise StoreChangedError(
                self.folder.path,
                "rows were erased since it was opened; refresh() it",
                expected=self.record.epoch,
                found=record.epoch,
            )
        self._seen = signature

    def _check_continues(self, record: Record) -> None:
        # An open folder keeps its generation. A URL may lead to another folder after a compaction, or to an old copy.
        with self._replacement_noticed():
            if not continues(self.folder, record, self.position):
                raise StoreReplacedError(self.folder.path, PUT_BACK)

    def follows(self, position: Position) -> bool:
        """Return whether this is the commit at that position, or a later one."""
        with self._replacement_noticed():
            return continues(self.folder, self.record, position)

    def replaced(self) -> bool:
        """Return whether another store is at the path by now, or no store."""
        return self.folder.replaced()

    @contextlib.contextmanager
    def _replacement_noticed(self) -> Iterator[None]:
        """Raise StoreReplacedError for a missing or broken record if a compaction replaced the folder."""
        try:
            yield
        except (FileNotFoundError, CorruptStoreError) as error:
            gone = not isinstance(self.folder, Folder) and isinstance(error, FileNotFoundError)
            if gone or self.folder.replaced():
                raise StoreReplacedError(self.folder.path) from error
            raise as_corruption(error) from error.__cause__

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Raise StoreChangedError for a missing file if there is a newer commit, else CorruptStoreError."""
        try:
            yield
        except FileNotFoundError as error:
            with self._replacement_noticed():
                record, _ = read_record(self.folder)
            self._check_continues(record)
            if record.commit_id != self.record.commit_id:
                raise StoreChangedError(
                    self.folder.path,
                    f"{error.filename} was replaced since it was opened; refresh() it",
                    expected=self.record.commit_id,
                    found=record.commit_id,
                ) from error
            raise as_corruption(error) from error

    @contextlib.contextmanager
    def _erase_noticed(self) -> Iterator[None]:
        """Raise StoreChangedError for damage if an erase blanked rows during the read."""
        try:
            yield
        except CorruptStoreError:
            self.ensure_current()
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Guard reads by file name: the block reads rows of this commit, or it raises.

        The record is re-read at the end of the outermost block, unless no file was read by name since the last look.
        """
        within, self._within.block = getattr(self._within, "block", False), True
        try:
            with self._erase_noticed(), self._reading():
                yield
        finally:
            self._within.block = within
        if not within:
            self._recheck_record()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Re-read the record once for all reads of a block at a URL, where each look is a request."""
        if isinstance(self.folder, Folder):
            yield
        else:
            with self.reading():
                yield

    def _recheck_record(self) -> None:
        """Re-read the record, if a file was read by name since: that read may have come after an erase."""
        last = self.folder.last_read  # taken before the look, which does not cover reads of other threads during it
        if last is not self._rechecked:
            # Only columns mapped before the look: one mapped later may have chunks of a later erase.
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
        """Return neighbouring rows of a numeric array, read-only, by default all rows."""
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
            if isinstance(column, MappedColumn) and column.complete:
                return column.copy_mapped(start, stop)
            raise

    def mapped(self, name: str) -> np.ndarray[Any, Any] | None:
        """Return a numeric array as it is mapped, whole and read-only, or None if it is not mapped."""
        column = self.numeric(name)
        if not column.in_place:
            return None
        self.span(name, 0, 0)  # maps it, and re-reads the record
        return column.span(0, len(column)) if column.complete else None

    def writable_copy(self, name: str) -> np.ndarray[Any, Any]:
        """Return all rows of a numeric array as a writable array that only the caller holds."""
        with self.reading():
            return self.numeric(name).writable_copy()

    def take_strings(self, name: str, rows: Rows) -> list[str]:
        """Return rows of a string array, in the order given."""
        with self.reading():
            return self.strings(name).take(rows)

    def column(self, name: str) -> AnyColumn:
        """Return the column of the array `name`, which is opened at the first call."""
        column = self._columns.get(name)
        if column is None:
            with self._erase_noticed(), self._reading():
                array = array_of(self.record, name)
                assert array is not None, name
                column = open_column(
                    self.folder.child(name),
                    array,
                    mapping=self.mapping,
                    check=self.check,
                    tail_after_erase=(self.record.erasing or {}).get(name),
                    salvage=self.salvage,
                )
            if self.check == "all":
                self._recheck_record()  # otherwise no chunk was read yet
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


def array_of(record: Record, name: str) -> ArrayState | None:
    """Return an array, without its digest in the middle of an erase: blanked and other chunks may be there."""
    array = record.arrays.get(name)
    return array if array is None or record.erasing is None else replace(array, digest=None)
