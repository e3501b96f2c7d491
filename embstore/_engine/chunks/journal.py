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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.format.record import STRING, ArrayState, Record, offsets_name
from embstore._engine.format.zarr_layout import crc32c, crc32c_extend, decode_strings, dump_json, payload
from embstore._engine.io.folder import Folder, Together
from embstore._engine.io.threadlock import ThreadLock
from embstore.errors import CorruptStoreError

__all__ = ["Journal", "begin_journal", "journal_path", "remove_journal", "remove_other_journals"]

_FOLDER: Final = "key_hash"  # other Zarr readers list what is in a group, and not what is in an array
_PREFIX: Final = "journal."
_MAX_NBYTES: Final = 64 * 2**20
_MAGIC: Final = b"EmbJ"
_HEAD: Final = struct.Struct("<4sIQ")  # the magic; bytes of the description, and of the rows
_CHECKSUM_NBYTES: Final = 4  # at the end: CRC-32C of all before
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
    sizes = _HEAD.pack(_MAGIC, len(about), sum(nbytes for *_, nbytes in arrays))
    pieces = [sizes, about, *(data for _, data in parts.values())]
    checksum = functools.reduce(crc32c_extend, pieces, 0)
    return b"".join([*pieces, checksum.to_bytes(_CHECKSUM_NBYTES, "little")])  # the one copy of the rows


def whole_frames(data: memoryview) -> Iterator[memoryview]:
    """Yield the frames at the start of some bytes, as far as they are whole.

    Raises
    ------
    ValueError
        One is not whole, but one that comes after it is.
    """
    position = 0
    while (stop := _end_of_whole(data, position)) is not None:
        yield data[position:stop]
        position = stop
    rest, found = bytes(data[position:]), 0
    while (found := rest.find(_MAGIC, found + 1)) >= 0:
        if _end_of_whole(data, position + found) is not None:
            raise ValueError("a commit in it is damaged, and one that came after it is whole")


def _end_of_whole(data: memoryview, position: int) -> int | None:
    """Return where the frame ends that is whole at `position`; None, if there is none."""
    if len(data) - position < _HEAD.size + _CHECKSUM_NBYTES:
        return None
    magic, about, rows = _HEAD.unpack_from(data, position)
    stop: int = position + _HEAD.size + about + rows + _CHECKSUM_NBYTES
    if magic != _MAGIC or stop > len(data):
        return None
    checksum = int.from_bytes(data[stop - _CHECKSUM_NBYTES : stop], "little")
    return stop if crc32c(data[position : stop - _CHECKSUM_NBYTES]) == checksum else None


def _read_frame(data: memoryview) -> Frame:
    """Read a frame whose checksum is right: it is as somebody wrote it, who need not be one of us."""
    start = _HEAD.size + _HEAD.unpack_from(data)[1]
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
        if start != len(data) - _CHECKSUM_NBYTES or not _is_count(head["rows"], len(data)):
            raise ValueError("its rows are not as many as it says")
        return Frame(previous, commit_id, head["rows"], arrays)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"a commit in it can't be read: {error}") from error


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


@dataclass(frozen=True, slots=True)
class _Kept:
    """A commit that was read: where it leads to, and the rows that it adds to each array."""

    commit_id: str
    nbytes: int  # of the journal, up to its end
    checksum: bytes  # the last of these bytes: no two commits end alike
    rows: int
    lengths: dict[str, int]
    added: dict[str, Rows]


class _Joined:
    """Rows of one array, put one after the other once somebody asks for them; what was given out stays as it is.

    What it holds is replaced in one step, so that an interruption finds it as it was.
    """

    __slots__ = ("_held", "_lock", "_name")

    def __init__(self, name: str, array: ArrayState) -> None:
        self._name = name
        self._held = (np.empty((0, *array.shape), array.dtype), 0, 0)  # rows, how many count, of how many commits
        self._lock = ThreadLock()

    def first(self, count: int, kept: list[_Kept]) -> np.ndarray[Any, Any]:
        with self._lock():
            if self._held[1] < count:
                self._join(kept)
            rows = self._held[0][:count]
        rows.flags.writeable = False
        return rows

    def _join(self, kept: list[_Kept]) -> None:
        values, have, commits = self._held
        late = kept[commits:]
        blocks = [commit.added[self._name] for commit in late if self._name in commit.added]
        total = have + sum(map(len, blocks))
        if total > len(values):
            larger = np.empty((total + have // 4, *values.shape[1:]), values.dtype)  # if once more, then again
            larger[:have] = values[:have]
            values = larger
        for block in blocks:
            values[have : have + len(block)] = block
            have += len(block)
        self._held = values, have, commits + len(late)
        for commit in late:  # and once all of a frame's rows are here, its memory is free
            commit.added.pop(self._name, None)


class Journal:
    """The journal of one record, and the rows in it, which are kept in memory.

    Snapshots of all commits in it share it; each has as many of its rows as its record says. It only gets more
    commits, each in one step: whatever interrupts that, the next `read` goes on from where it was.

    Parameters
    ----------
    folder : Folder
        Of the store.
    base : Record
        What is in the store's ``zarr.json``, and has a journal.

    Attributes
    ----------
    torn : bool
        Whether something that is not a whole commit follows: it is being written, or its writer was killed.
    failed : bool
        Whether a commit could not be written. Nothing is added to that file any more.
    """

    def __init__(self, folder: Folder, base: Record) -> None:
        self.base = base
        self.torn = False
        self.failed = False
        self._folder = folder.child(_FOLDER)
        self._name = _name(base.commit_id)
        self._each = base.sample_arrays | {offsets_name(name) for name in base.ragged}
        self._joined = {name: _Joined(name, array) for name, array in base.arrays.items() if array.dtype != STRING}
        lengths = {name: array.length for name, array in base.arrays.items()}
        self._kept = [_Kept(base.commit_id, 0, b"", base.rows, lengths, {})]
        self._record = base
        self._lock = ThreadLock()

    @property
    def commits(self) -> int:
        """How many commits were read."""
        return len(self._kept) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of these commits."""
        return self._kept[-1].nbytes

    @property
    def record(self) -> Record:
        """The record of the newest commit that was read."""
        last = self._kept[-1]
        if self._record.commit_id != last.commit_id:
            arrays = {
                name: replace(array, length=last.lengths[name], tail=None)
                for name, array in self.base.arrays.items()
                if last.lengths[name] > array.length
            }
            self._record = replace(self.base.with_arrays(**arrays), rows=last.rows, commit_id=last.commit_id)
        return self._record

    def read(self) -> None:
        """Read on to the newest commit.

        Raises
        ------
        FileNotFoundError
            The store has another record by now.
        StoreReplacedError
            Commits that were read were given up by their writer.
        CorruptStoreError
        """
        with self._lock():
            last = self._kept[-1]
            data = self._folder.read_on(self._name, last.nbytes, most=_MAX_NBYTES, after=last.checksum)
            stop = 0
            try:
                for frame in whole_frames(memoryview(data)):
                    self._kept.append(self._checked(_read_frame(frame), frame))
                    stop += len(frame)
            except ValueError as error:
                raise CorruptStoreError(self._folder.path / self._name, str(error)) from error
            self.torn = stop < len(data)

    def _checked(self, commit: Frame, frame: bytes | memoryview) -> _Kept:
        """Check a commit against the one before.

        Raises
        ------
        ValueError
        """
        last, who = self._kept[-1], f"commit {commit.commit_id}"
        if commit.previous != last.commit_id:
            raise ValueError(f"{who} follows {commit.previous}, and not {last.commit_id}")
        added: dict[str, Rows] = {}
        for name, count, data in commit.arrays:
            if name not in last.lengths or name == "dead_rows" or name in added:
                raise ValueError(f"{who} can't add to {name!r}")
            added[name] = _decoded(self.base.arrays[name], count, data)
        if wrong := [name for name in self._each if len(added.get(name, ())) != commit.rows]:
            raise ValueError(f"{who} has not {commit.rows} rows for {sorted(wrong)}")
        lengths = {name: length + len(added.get(name, ())) for name, length in last.lengths.items()}
        for name in self.base.ragged:
            bounds = np.array([last.lengths[name], *added.get(offsets_name(name), ())], dtype=np.int64)
            if (np.diff(bounds) < 0).any() or bounds[-1] != lengths[name]:
                raise ValueError(f"the offsets of {name!r} don't rise from {bounds[0]} to {lengths[name]}")
        checksum = bytes(frame[-_CHECKSUM_NBYTES:])
        nbytes = last.nbytes + len(frame)
        return _Kept(commit.commit_id, nbytes, checksum, last.rows + commit.rows, lengths, added)

    def rows(self, name: str, record: Record) -> Rows:
        """Return what an array has, at a commit that was read, behind the rows in its files.

        Returns
        -------
        ndarray, (n, *shape), read-only; or list of str
        """
        count = record.arrays[name].length - self.base.arrays[name].length
        if name in self._joined:
            return self._joined[name].first(count, self._kept)
        return [text for commit in self._kept for text in commit.added.get(name, ())][:count]

    def append(self, rows: int, appends: Mapping[str, Any], commit_id: str) -> None:
        """Add a commit to its end, durably. Called under the store's lock, on the newest commit.

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
        with self._lock():
            last = self._kept[-1]
            parts = {name: (len(new), payload(self.base.arrays[name], new)) for name, new in appends.items()}
            data = encode_frame(last.commit_id, commit_id, rows, parts)
            # What is in the file is for all who read it: nothing gets there that they would refuse.
            commit = self._checked(_read_frame(memoryview(data)), data)
            try:
                self._folder.extend(self._name, data, last.nbytes)
            except OSError:
                self.failed = True
                raise
            self._kept.append(commit)

    def pending(self) -> dict[str, Rows]:
        """Return all rows that are in no chunk file yet, by array."""
        record = self.record
        grown = [name for name, array in record.arrays.items() if array.length > self.base.arrays[name].length]
        return {name: self.rows(name, record) for name in grown}


def _decoded(array: ArrayState, count: int, data: memoryview) -> Rows:
    if array.dtype == STRING:
        return decode_strings(data, count)
    if len(data) != count * array.row_nbytes:
        raise ValueError(f"{count} rows have {count * array.row_nbytes} bytes, found {len(data)}")
    return np.frombuffer(data, np.dtype(array.dtype).newbyteorder("<")).reshape(count, *array.shape)
