"""The journal: small commits at the end of one file, one write and one sync each, until a commit takes them in.

A commit writes its arrays' last chunks whole, which for a few rows is a hundred times their bytes. Where the record
says so, its store has a journal: frames, each with the rows that one commit adds to the arrays of the one before. Here
they are written and read; `journalled` shows their rows behind those in the chunk files, and `session` says which
commits are for the journal. The format is section 16 of ``docs/format.md``.
"""

from __future__ import annotations

import functools
import json
import re
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore.errors import CorruptStoreError
from embstore.fsio import Folder, Together
from embstore.layout import crc32c, crc32c_extend, decode_strings, dump_json, payload
from embstore.schema import STRING, ArrayState, Record, offsets_name

__all__ = ["Journal", "begin_journal", "journal_path", "remove_journal", "remove_other_journals"]

_FOLDER: Final = "key_hash"  # other Zarr readers list what is in a group, and not what is in an array
_PREFIX: Final = "journal."
_MAX_NBYTES: Final = 64 * 2**20
_MAGIC: Final = b"EmbJ"
_HEAD: Final = struct.Struct("<4sIIQ")  # the magic, CRC-32C of all that follows, bytes of the description and the rows
_CHECKED_FROM: Final = 8
_ID = re.compile(r"[0-9a-f]{32}")

Rows = np.ndarray[Any, Any] | list[str]


def _name(commit_id: str) -> str:
    return f"{_PREFIX}{commit_id}"


def journal_path(folder: Folder, record: Record) -> Path:
    """Return where the journal of a record lies."""
    return folder.path / _FOLDER / _name(record.commit_id)


def begin_journal(files: Together, folder: Folder, commit_id: str) -> None:
    """Make the journal of a record that is about to be committed."""
    files.replace(folder.child(_FOLDER), _name(commit_id), [])


def remove_journal(folder: Folder, record: Record) -> None:
    """Remove the journal of a record that was replaced."""
    folder.child(_FOLDER).remove(_name(record.commit_id))


def remove_other_journals(folder: Folder, record: Record) -> None:
    """Remove what killed writers left of journals, of other records than this one."""
    child = folder.child(_FOLDER)
    for name in child.names():
        if name.startswith(_PREFIX) and not (record.journal and name == _name(record.commit_id)):
            child.remove(name)


@dataclass(frozen=True, slots=True)
class Frame:
    """One commit in the journal: what it follows, and for each array how many rows it adds, and their bytes."""

    previous: str
    commit_id: str
    rows: int
    arrays: list[tuple[str, int, memoryview]]


def encode_frame(
    previous: str, commit_id: str, rows: int, parts: Mapping[str, tuple[int, bytes | memoryview]]
) -> bytes:
    """Write one commit as its bytes."""
    arrays = [[name, count, len(memoryview(data).cast("B"))] for name, (count, data) in parts.items()]
    about = dump_json({"previous": previous, "commit_id": commit_id, "rows": rows, "arrays": arrays})
    sizes = _HEAD.pack(_MAGIC, 0, len(about), sum(nbytes for *_, nbytes in arrays))[_CHECKED_FROM:]
    pieces = [sizes, about, *(data for _, data in parts.values())]
    checksum = functools.reduce(crc32c_extend, pieces, 0)
    return b"".join([_MAGIC, checksum.to_bytes(4, "little"), *pieces])  # the one copy of the rows


def whole_frames(data: memoryview) -> Iterator[tuple[int, Frame]]:
    """Yield the frames at the start of some bytes, each with where it ends, as far as they are whole.

    Raises
    ------
    ValueError
        One is not whole, but one that comes after it is; or one that is whole can't be read.
    """
    position = 0
    while (stop := _end_of_whole(data, position)) is not None:
        yield stop, _read_frame(data[position:stop])
        position = stop
    rest, found = bytes(data[position:]), 0
    while (found := rest.find(_MAGIC, found + 1)) >= 0:
        if _end_of_whole(data, position + found) is not None:
            raise ValueError("a commit in it is damaged, and one that came after it is whole")


def _end_of_whole(data: memoryview, position: int) -> int | None:
    """Return where the frame ends that is whole at `position`; None, if there is none."""
    if len(data) - position < _HEAD.size:
        return None
    magic, checksum, about, rows = _HEAD.unpack_from(data, position)
    stop: int = position + _HEAD.size + about + rows
    if magic != _MAGIC or stop > len(data) or crc32c(data[position + _CHECKED_FROM : stop]) != checksum:
        return None
    return stop


def _read_frame(data: memoryview) -> Frame:
    """Read a frame whose checksum is right: it is as somebody wrote it, who need not be one of us."""
    start = _HEAD.size + _HEAD.unpack_from(data)[2]
    try:
        head = json.loads(bytes(data[_HEAD.size : start]))
        previous, commit_id = head["previous"], head["commit_id"]
        if not all(isinstance(text, str) and _ID.fullmatch(text) for text in (previous, commit_id)):
            raise ValueError(f"expected 32 hexadecimal digits, found {previous!r} and {commit_id!r}")
        arrays = []
        for name, count, nbytes in head["arrays"]:
            if not isinstance(name, str) or not _is_count(count, len(data)) or not _is_count(nbytes, len(data)):
                raise ValueError(f"it says {nbytes!r} bytes in {count!r} rows for {name!r}")
            arrays.append((name, count, data[start : start + nbytes]))
            start += nbytes
        if start != len(data) or not _is_count(head["rows"], len(data)):
            raise ValueError("its rows are not as many as it says")
        return Frame(previous, commit_id, head["rows"], arrays)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"a commit in it can't be read: {error}") from error


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


class _Numbers:
    """Rows of numbers, put one after the other once somebody asks for them; what was given out stays as it is."""

    __slots__ = ("_blocks", "_count", "_lock", "_values")

    def __init__(self, array: ArrayState) -> None:
        self._values = np.empty((0, *array.shape), array.dtype)
        self._count = 0
        self._blocks: list[np.ndarray[Any, Any]] = []
        self._lock = threading.Lock()

    def add(self, rows: np.ndarray[Any, Any]) -> None:
        with self._lock:
            self._blocks.append(rows)  # as they are in the frame: a writer may never look at them

    def first(self, count: int) -> np.ndarray[Any, Any]:
        with self._lock:
            if count > self._count:
                self._join()
            rows = self._values[:count]
        rows.flags.writeable = False
        return rows

    def _join(self) -> None:
        blocks, self._blocks = self._blocks, []
        stop = self._count + sum(map(len, blocks))
        if stop > len(self._values):
            values = np.empty((max(stop, 2 * len(self._values)), *self._values.shape[1:]), self._values.dtype)
            values[: self._count] = self._values[: self._count]
            self._values = values
        for block in blocks:
            self._values[self._count : self._count + len(block)] = block
            self._count += len(block)


class Journal:
    """The journal of one record, and the rows in it, which are kept in memory.

    Snapshots of all commits in it share it; each has as many of its rows as its record says.

    Parameters
    ----------
    folder : Folder
        Of the store.
    base : Record
        What is in the store's ``zarr.json``, and has a journal.

    Attributes
    ----------
    record : Record
        Of the newest commit that was read.
    commits, nbytes : int
        How many commits were read, and their bytes.
    torn : bool
        Whether something that is not a whole commit follows: it is being written, or its writer was killed.
    failed : bool
        Whether a commit could not be written. Nothing is added to that file any more.
    """

    def __init__(self, folder: Folder, base: Record) -> None:
        self.base = base
        self.record = base
        self.commits = 0
        self.nbytes = 0
        self.torn = False
        self.failed = False
        self._folder = folder.child(_FOLDER)
        self._name = _name(base.commit_id)
        self._each = base.sample_arrays | {offsets_name(name) for name in base.ragged}
        self._lengths = {name: array.length for name, array in base.arrays.items()}
        self._numbers = {name: _Numbers(a) for name, a in base.arrays.items() if a.dtype != STRING}
        self._strings: dict[str, list[str]] = {n: [] for n, a in base.arrays.items() if a.dtype == STRING}
        self._lock = threading.Lock()

    def read(self) -> Record:
        """Read on to the newest commit; gives its record.

        Raises
        ------
        FileNotFoundError
            The store has another record by now.
        CorruptStoreError
        """
        with self._lock:
            data = memoryview(self._folder.read_on(self._name, self.nbytes, most=_MAX_NBYTES))
            commit_id, rows, stop = self.record.commit_id, self.record.rows, 0
            try:
                for end, frame in whole_frames(data):
                    self._keep(self._checked(frame, commit_id))
                    commit_id, rows = frame.commit_id, rows + frame.rows
                    self.commits += 1
                    self.nbytes += end - stop
                    stop = end
            except ValueError as error:
                raise CorruptStoreError(self._folder.path / self._name, str(error)) from error
            finally:
                self._move_to(commit_id, rows)  # as far as it is sound, for whoever can do with that
            self.torn = stop < len(data)
            return self.record

    def _checked(self, frame: Frame, previous: str) -> dict[str, tuple[int, Rows]]:
        """Check a commit against the one before; gives the rows that it adds to each array.

        Raises
        ------
        ValueError
        """
        if frame.previous != previous:
            raise ValueError(f"commit {frame.commit_id} follows {frame.previous}, and not {previous}")
        found: dict[str, tuple[int, Rows]] = {}
        for name, count, data in frame.arrays:
            if name not in self._lengths or name == "dead_rows" or name in found:
                raise ValueError(f"commit {frame.commit_id} can't add to {name!r}")
            found[name] = (count, _decoded(self.base.arrays[name], count, data))
        if wrong := [name for name in self._each if found.get(name, (0,))[0] != frame.rows]:
            raise ValueError(f"commit {frame.commit_id} has not {frame.rows} rows for {sorted(wrong)}")
        for name in self.base.ragged:
            start = self._lengths[name]
            stop = start + found.get(name, (0,))[0]
            offsets = found.get(offsets_name(name), (0, []))[1]
            bounds = np.array([start, *offsets], dtype=np.int64)
            if (np.diff(bounds) < 0).any() or bounds[-1] != stop:
                raise ValueError(f"the offsets of {name!r} don't rise from {start} to {stop}")
        return found

    def _keep(self, found: Mapping[str, tuple[int, Rows]]) -> None:
        for name, (count, rows) in found.items():
            self._lengths[name] += count
            if isinstance(rows, list):
                self._strings[name].extend(rows)
            else:
                self._numbers[name].add(rows)

    def _move_to(self, commit_id: str, rows: int) -> None:
        """Take up the commit that was kept last."""
        if commit_id != self.record.commit_id:
            arrays = {
                name: replace(array, length=self._lengths[name], tail=None)
                for name, array in self.base.arrays.items()
                if self._lengths[name] > array.length
            }
            self.record = replace(self.base.with_arrays(**arrays), rows=rows, commit_id=commit_id)

    def rows(self, name: str) -> Rows:
        """Return what an array has behind the rows in its files, at the newest commit that was read, or a later one.

        Returns
        -------
        ndarray, (n, *shape), read-only; or list of str
            Not to be changed. Those of a later commit come after those of an earlier one.
        """
        if name in self._strings:
            return self._strings[name]
        return self._numbers[name].first(self.record.arrays[name].length - self.base.arrays[name].length)

    def append(self, rows: int, appends: Mapping[str, Any], commit_id: str) -> Record:
        """Add a commit to its end, durably; gives its record. Called under the store's lock, on the newest commit.

        Parameters
        ----------
        rows : int
            Samples that it adds.
        appends : mapping of str to ndarray, (n, *shape), or list of str
            Rows to add to each array.
        commit_id : str

        Raises
        ------
        OSError
            It was cut off again.
        """
        with self._lock:
            before = self.record
            parts = {name: (len(values), payload(before.arrays[name], values)) for name, values in appends.items()}
            data = encode_frame(before.commit_id, commit_id, rows, parts)
            # What is in the file is for all who read it: nothing gets there that they would refuse.
            found = self._checked(_read_frame(memoryview(data)), before.commit_id)
            try:
                self._folder.extend(self._name, data, self.nbytes)
            except BaseException:
                self.failed = True
                raise
            self._keep(found)
            self.commits += 1
            self.nbytes += len(data)
            self._move_to(commit_id, before.rows + rows)
            return self.record

    def pending(self) -> dict[str, Rows]:
        """Return all rows that are in no chunk file yet, by array."""
        grown = [name for name, length in self._lengths.items() if length > self.base.arrays[name].length]
        return {name: self.rows(name) for name in grown}


def _decoded(array: ArrayState, count: int, data: memoryview) -> Rows:
    if array.dtype == STRING:
        return decode_strings(data, count)
    if len(data) != count * array.row_nbytes:
        raise ValueError(f"{count} rows have {count * array.row_nbytes} bytes, found {len(data)}")
    return np.frombuffer(data, np.dtype(array.dtype).newbyteorder("<")).reshape(count, *array.shape)
