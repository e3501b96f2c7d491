"""A snapshot: one commit of a store with its keys, classes and deleted rows, and the way to the next commit."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from embstore._engine.chunks.chunk_file import check_tail
from embstore._engine.chunks.record_file import as_corruption, is_newer, read_record
from embstore._engine.format.keys import UNLABELLED, key_text
from embstore._engine.format.record import Record
from embstore._engine.format.zarr_layout import METADATA_NAME
from embstore._engine.io.folder import Folder, Signature
from embstore._engine.lazy import cached_property
from embstore._engine.read.column import Rows
from embstore._engine.read.commit_reader import CommitReader, array_of
from embstore._engine.read.history import position_of
from embstore._engine.read.open_column import grow_column
from embstore._engine.read.string_column import StringColumn
from embstore.errors import CorruptStoreError, StoreReplacedError

_NEEDED: Final = ("class_names", "dead_rows", "class_code")
_FEW: Final = 8
"""Most chunks of an array that is read ahead. Chunks of numbers have 64 KiB here."""


class Snapshot(CommitReader):
    """One commit of the store in an open folder. It is immutable, and safe to share between threads."""

    _class_names: list[str] | None = None
    _dead_rows: Rows | None = None

    def check_opened(self) -> None:
        """Check the tail of each array, or all chunks if `check` is "all", and that the commit is still current."""
        self.position = position_of(self.folder, self.record)
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
        """At a URL, read the small arrays that every selection needs. One look at the record serves all of them."""
        if isinstance(self.folder, Folder):
            return
        few = {name for name in _NEEDED if self.record.arrays[name].chunks <= _FEW}
        with self.reading():
            # Kept only after the look at the record, which proves that they are of this commit.
            names = self._read_class_names() if "class_names" in few else None
            dead = self._read_dead_rows() if "dead_rows" in few else None
            if rows := self.record.rows:  # at least the last chunk: it proves the number of rows
                self.numeric("class_code").copy(0 if "class_code" in few else rows - 1, rows)
        self._class_names, self._dead_rows = names, dead

    def _check_tails(self) -> None:
        if not isinstance(self.folder, Folder):
            return  # at a URL each last chunk is checked when it is fetched
        erasing = self.record.erasing or {}
        for name, array in self.record.arrays.items():
            check_tail(self.folder.child(name), array, tail_after_erase=erasing.get(name))

    def advanced(self, record: Record, signature: Signature) -> Snapshot:
        """Return the snapshot of a later commit in the same folder. Columns in use grow in place."""
        erased = record.epoch != self.record.epoch
        reuse = isinstance(self.folder, Folder) or not erased  # a column at a URL is opened anew after an erase
        with self._reading():
            columns = {
                name: grow_column(column, array, mapping=self.mapping, erased=erased)
                if column.array != array or erased
                else column
                for name, column in list(self._columns.items())
                if reuse and (array := array_of(record, name)) is not None
            }
        snapshot = Snapshot(self.folder, record, signature, mapping=self.mapping, check=self.check, columns=columns)
        with self._reading():
            snapshot.position = position_of(self.folder, record)
        # Both arrays only grow, except in a compaction, which makes another folder.
        if record.arrays["class_names"].length == self.record.arrays["class_names"].length:
            snapshot._class_names = self._class_names
        if record.arrays["dead_rows"].length == self.record.arrays["dead_rows"].length:
            snapshot._dead_rows = self._dead_rows
        return snapshot

    def checked(self) -> Snapshot:
        """Return this commit with a check of each chunk that is read: a new checksum must not hide a flipped bit."""
        snapshot = Snapshot(self.folder, self.record, self._signature, mapping=self.mapping, check="touched")
        snapshot.position = self.position
        return snapshot

    def newest(self) -> Snapshot:
        """Return the newest commit in the same folder, which may be this one.

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
        self._check_continues(record)
        try:
            snapshot = self.advanced(record, signature)
            snapshot._check_tails()
        except (FileNotFoundError, CorruptStoreError) as error:
            if is_newer(self.folder, record):
                raise StoreReplacedError(self.folder.path, "it moved on while it was refreshed") from error
            raise as_corruption(error) from error.__cause__
        snapshot._recheck_record()
        return snapshot

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
            raise CorruptStoreError(self.folder.path / "dead_rows", "expected distinct numbers of the store's rows")
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
        """Return for each row whether it is deleted."""
        dead = self.dead_rows
        if not len(dead):
            return np.zeros(len(rows), dtype=bool)
        found: np.ndarray[Any, np.dtype[np.bool_]] = (
            dead[np.minimum(np.searchsorted(dead, rows), len(dead) - 1)] == rows
        )
        return found

    @property
    def class_names(self) -> list[str]:
        """Names by class code. That of rows without a class is ``_``."""
        if self._class_names is None:
            names = self._read_class_names()
            self._recheck_record()  # it is kept, so the record is re-read before the block around ends
            self._class_names = names
        return self._class_names

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their codes, without that of rows without a class."""
        return [name for name in self.class_names if name != UNLABELLED]

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
            raise CorruptStoreError(self.folder.path / "class_code", "expected codes of the stored class names")
        return codes

    def file_ids_of(self, rows: Rows) -> list[str]:
        """Return the file_id of each row."""
        return self.take_strings("file_id", rows)

    def keys_of(self, rows: Rows) -> list[str]:
        """Return the key of each row."""
        with self.together():
            return list(map(key_text, self.file_ids_of(rows), self.class_names_of(rows)))
