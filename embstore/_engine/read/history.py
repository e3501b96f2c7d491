"""Whether the newest record continues an earlier commit, or another copy of the store was put in its place.

A copy that is put back, such as a backup, has the generation of the store that it replaces. Rows that are appended to
it get row numbers that other rows had. So the last keys and the last deleted rows are compared as well.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from embstore._engine.chunks.chunk_file import open_chunk
from embstore._engine.format.record import Record
from embstore._engine.io.folder import Folder, ReadableFolder, read_exactly

_COMPARED: Final = 16
"""Rows that are compared. The rows before them were appended earlier, so they were not lost alone."""
PUT_BACK: Final = "an earlier copy of it was put back"


class Position(NamedTuple):
    """A commit in the history of its store.

    Attributes
    ----------
    generation : str
    rows, dead, epoch : int
    keys, deleted : bytes
        The ends of ``key_hash`` and ``dead_rows``. Empty at a URL, where each look is a request.
    """

    generation: str
    rows: int
    dead: int
    epoch: int
    keys: bytes
    deleted: bytes


def position_of(folder: ReadableFolder, record: Record) -> Position:
    """Return the position of a commit that was just read or written.

    Raises
    ------
    FileNotFoundError, CorruptStoreError
    """
    keys, deleted = (_end(folder, record, *at) for at in (("key_hash", record.rows), ("dead_rows", record.dead)))
    return Position(record.generation, record.rows, record.dead, record.epoch, keys, deleted)


def continues(folder: ReadableFolder, record: Record, position: Position) -> bool:
    """Return whether a record is of the same generation, and of that commit or a later one.

    Raises
    ------
    FileNotFoundError, CorruptStoreError
    """
    counts = (record.rows, record.dead, record.epoch)
    if record.generation != position.generation or any(map(int.__lt__, counts, position[1:4])):
        return False
    if _end(folder, record, "dead_rows", position.dead) != position.deleted:
        return False
    before = np.frombuffer(position.keys, np.uint64)
    now = np.frombuffer(_end(folder, record, "key_hash", position.rows), np.uint64)
    return bool(((now == before) | (now == 0)).all())  # an erase sets hashes to 0


def _end(folder: ReadableFolder, record: Record, name: str, length: int) -> bytes:
    """Return the last rows of an array as it was with `length` rows, all of one chunk."""
    if not length or not isinstance(folder, Folder):
        return b""
    array = record.arrays[name]
    index = (length - 1) // array.rows_per_chunk
    stop = length - index * array.rows_per_chunk
    start = max(0, stop - _COMPARED)
    with open_chunk(folder.child(name), array, index) as (descriptor, _):
        return read_exactly(descriptor, (stop - start) * array.row_nbytes, start * array.row_nbytes)
