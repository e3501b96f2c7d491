"""One open reader for each store in this process, shared by all nodes, and its rows as tensors over its map.

Ten nodes with their own maps of ten gigabytes in thousands of files would exceed a process's limit of maps.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Any

import numpy as np

from embstore import EmbeddingStore
from embstore import open as open_store
from embstore._engine.format.record import offsets_name
from embstore._engine.io.mapping import available
from embstore._engine.io.threads import ThreadLock
from embstore._engine.io.urls import is_url, local_path
from embstore._outputs.tensors import as_tensor
from embstore.errors import StoreReplacedError

State = tuple[str, int]


class Rows:
    """Rows of a field as tensors, by row number.

    Each is a slice of one tensor over a private map of the store: no copy, and read from disk on first access. torch
    has no read-only tensors, and a write through a read-only map kills the process. The map is therefore private and
    writable. A write into a row changes this row for all readers in this process, and never the files. If a store
    can't be mapped, each row is a copy.
    """

    def __init__(self, store: EmbeddingStore, field: str) -> None:
        self._store = store
        self._field = field
        self._whole: Any = None
        snapshot = store.snapshot
        column = snapshot.numeric(field)
        ragged = snapshot.record.fields[field].ragged
        if column.in_place and not available(0, column.array.chunks):
            self._whole = store.tensor(field, dead="include")

        self.length = len(snapshot.numeric(offsets_name(field))) - 1 if ragged else len(column)

    def __getitem__(self, row: int) -> Any:
        if self._whole is not None:
            return self._whole[row]
        found = self._store.take(np.array([row]), self._field)
        spec = self._store.fields[self._field]
        if spec.ragged:
            return as_tensor(np.array(found.values[0, : int(found.lengths[0])]))
        return as_tensor(found[0])


class OpenStore:
    """A reader of a store, shared in this process.

    Attributes
    ----------
    store : EmbeddingStore
    """

    def __init__(self, path: str) -> None:
        self.store = open_store(path)
        self._rows: dict[str, tuple[State, Rows]] = {}

    @property
    def state(self) -> State:
        """Generation and epoch: they change when row numbers change, or rows were blanked."""
        record = self.store.snapshot.record
        return record.generation, record.epoch

    def rows(self, field: str, *, least: int) -> Rows:
        """Return the rows of a field, at least up to row number `least`. A store that has grown is mapped again."""
        state, known = self._rows.get(field, (None, None))
        if known is None or state != self.state or known.length <= least:
            known = Rows(self.store, field)
            self._rows[field] = (self.state, known)
        return known


_open: weakref.WeakValueDictionary[str, OpenStore] = weakref.WeakValueDictionary()
_lock = ThreadLock()


def _place(path: str | os.PathLike[str]) -> str:
    """Return a URL, or a resolved path."""
    return os.fspath(path if is_url(path) else local_path(path).resolve())


def open_shared(path: str | os.PathLike[str]) -> OpenStore:
    """Return this process's reader of a store at a path or URL, at the newest commit.

    It is closed with its last reference.
    """
    place = _place(path)
    with _lock():
        known = _open.get(place)
        if known is not None:
            with contextlib.suppress(StoreReplacedError):  # a store of another config took its place
                known.store.refresh()
                return known
        known = _open[place] = OpenStore(place)
        return known


def refresh_shared(path: str | os.PathLike[str]) -> None:
    """Refresh this process's reader of a store, if it is open."""
    place = _place(path)
    with _lock():
        known = _open.get(place)
    if known is not None:
        known.store.refresh()
