"""The journal: small commits at the end of one file, one write and one sync each, until a commit takes them in.

A commit writes its arrays' last chunks whole, which for a few rows is a hundred times their bytes. Where the record
says so, its store has a journal: frames, each with the rows that one commit adds to the arrays of the one before. Here
they are written and read; `journalled` shows their rows behind those in the chunk files, and `session` says which
commits are for the journal. The format is section 16 of ``docs/format.md``.
"""

from __future__ import annotations

import functools
import json
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from embstore.errors import CorruptStoreError
from embstore.fsio import Folder
from embstore.layout import crc32c, crc32c_extend, decode_strings, dump_json, payload
from embstore.schema import STRING, ArrayState, Record, offsets_name

__all__ = ["FOLDER", "MAX_JOURNAL_NBYTES", "Journal", "is_journal", "journal_name"]

FOLDER: Final = "key_hash"
"""The array in whose folder it lies: other Zarr readers list what is in a group, and not what is in an array."""
MAX_JOURNAL_NBYTES: Final = 64 * 2**20
_HEAD: Final = struct.Struct("<IIQ")  # CRC-32C of all that follows; bytes of the description, and of the rows
_CHECKSUM_NBYTES: Final = 4
_PREFIX: Final = "journal."

Rows = np.ndarray[Any, Any] | list[str]


def journal_name(commit_id: str) -> str:
    """Name the journal of the record of a commit."""
    return f"{_PREFIX}{commit_id}"


def is_journal(name: str) -> bool:
    """Tell whether a name in `FOLDER` is that of a journal."""
    return name.startswith(_PREFIX)


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
    sizes = _HEAD.pack(0, len(about), sum(nbytes for *_, nbytes in arrays))[_CHECKSUM_NBYTES:]
    pieces = [sizes, about, *(data for _, data in parts.values())]
    checksum = functools.reduce(crc32c_extend, pieces, 0)
    return b"".join([checksum.to_bytes(_CHECKSUM_NBYTES, "little"), *pieces])  # the one copy of the rows


def whole_frames(data: memoryview) -> Iterator[tuple[int, Frame]]:
    """Yield the frames at the start of some bytes, each with where it ends, as far as they are whole.

    Raises
    ------
    ValueError
        One is not, but what comes after it is; or one that is whole can't be read.
    """
    position = 0
    while (stop := _end_of_whole(data, position)) is not None:
        yield stop, _read_frame(data[position:stop])
        position = stop
    stop = position + _HEAD.size + sum(_sizes(data, position) or (0, 0))
    if len(data) - position > _HEAD.size and _end_of_whole(data, stop) is not None:
        raise ValueError(f"the commit at byte {position:,} is damaged, and the one after it is whole")


def _sizes(data: memoryview, position: int) -> tuple[int, int] | None:
    if len(data) - position < _HEAD.size:
        return None
    _, about, rows = _HEAD.unpack_from(data, position)
    return about, rows


def _end_of_whole(data: memoryview, position: int) -> int | None:
    """Return where the frame ends that is whole at `position`; None, if there is none."""
    sizes = _sizes(data, position)
    if sizes is None or position + _HEAD.size + sum(sizes) > len(data):
        return None
    stop = position + _HEAD.size + sum(sizes)
    checksum = _HEAD.unpack_from(data, position)[0]
    return stop if crc32c(data[position + _CHECKSUM_NBYTES : stop]) == checksum else None


def _read_frame(data: memoryview) -> Frame:
    """Read a frame whose checksum is right: it is as somebody wrote it, who need not be one of us."""
    _, about, _ = _HEAD.unpack_from(data)
    start = _HEAD.size + about
    try:
        head = json.loads(bytes(data[_HEAD.size : start]))
        arrays = []
        for name, count, nbytes in head["arrays"]:
            if not isinstance(name, str) or min(count, nbytes) < 0 or max(count, nbytes) > len(data):
                raise ValueError("it names more rows than it has")
            arrays.append((name, int(count), data[start : start + nbytes]))
            start += nbytes
        if start != len(data) or not 0 <= head["rows"] <= len(data):
            raise ValueError("its rows are not as many as it says")
        return Frame(str(head["previous"]), str(head["commit_id"]), int(head["rows"]), arrays)
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"a commit in it can't be read: {error}") from error


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
        while blocks:
            block = blocks.pop(0)  # and its frame can go
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
    """

    def __init__(self, folder: Folder, base: Record) -> None:
        self.base = base
        self.record = base
        self.torn = False
        self._folder = folder.child(FOLDER)
        self._name = journal_name(base.commit_id)
        self._position = 0
        self._numbers: dict[str, _Numbers] = {}
        self._strings: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of its commits."""
        return self._position

    def read(self) -> Record:
        """Read on to the newest commit; gives its record.

        Raises
        ------
        FileNotFoundError
            The store has another record by now.
        CorruptStoreError
        """
        with self._lock:
            data = memoryview(self._folder.read_on(self._name, self._position, most=MAX_JOURNAL_NBYTES))
            self._take_in(data)
            return self.record

    def _take_in(self, data: memoryview) -> None:
        stop = 0
        try:
            for end, frame in whole_frames(data):
                self._add(frame)
                self._position += end - stop
                stop = end
        except ValueError as error:
            raise CorruptStoreError(self._folder.path / self._name, str(error)) from error
        self.torn = stop < len(data)  # of a commit that is being written, or whose writer was killed

    def _add(self, frame: Frame) -> None:
        """Check a commit against the one before, and keep its rows."""
        record, found = self.record, {}
        if frame.previous != record.commit_id:
            raise ValueError(f"commit {frame.commit_id} follows {frame.previous}, and not {record.commit_id}")
        for name, count, data in frame.arrays:
            array = record.arrays.get(name)
            if array is None or name == "dead_rows" or name in found:
                raise ValueError(f"commit {frame.commit_id} can't add to {name!r}")
            found[name] = (count, _decoded(array, count, data))
        for name in record.ragged:
            self._check_offsets(name, found)
        each = record.sample_arrays | {offsets_name(name) for name in record.ragged}
        if wrong := [name for name in each if found.get(name, (0,))[0] != frame.rows]:
            raise ValueError(f"commit {frame.commit_id} has not {frame.rows} rows for {sorted(wrong)}")
        for name, (_, rows) in found.items():
            if isinstance(rows, list):
                self._strings.setdefault(name, []).extend(rows)
            else:
                self._numbers.setdefault(name, _Numbers(record.arrays[name])).add(rows)
        arrays = {
            name: replace(record.arrays[name], length=record.arrays[name].length + count, tail=None)
            for name, (count, _) in found.items()
            if count
        }
        self.record = replace(record.with_arrays(**arrays), rows=record.rows + frame.rows, commit_id=frame.commit_id)

    def _check_offsets(self, name: str, found: Mapping[str, tuple[int, Rows]]) -> None:
        """Raise if the offsets of a ragged field don't rise to its last token."""
        start = self.record.arrays[name].length
        stop = start + found.get(name, (0,))[0]
        offsets = np.asarray(found.get(offsets_name(name), (0, []))[1], dtype=np.int64)
        bounds = np.concatenate([[start], offsets])
        if (np.diff(bounds) < 0).any() or bounds[-1] != stop:
            raise ValueError(f"the offsets of {name!r} don't rise from {start} to {stop}")

    def rows(self, name: str, record: Record) -> Rows:
        """Return what an array has at the commit of `record` behind the rows in its files: numbers, read-only."""
        count = record.arrays[name].length - self.base.arrays[name].length
        if record.arrays[name].dtype == STRING:
            return self._strings.get(name, [])[:count]
        return self._numbers.get(name, _Numbers(record.arrays[name])).first(count)

    def append(self, rows: int, appends: Mapping[str, Any], commit_id: str) -> Record:
        """Add a commit to its end, durably; gives its record. Called under the store's lock, on the newest commit.

        Raises
        ------
        OSError
            It is cut off again, and the file is not to be relied on.
        """
        before = self.record
        parts = {name: (len(values), payload(before.arrays[name], values)) for name, values in appends.items()}
        frame = encode_frame(before.commit_id, commit_id, rows, parts)
        with self._lock:
            self._folder.extend(self._name, frame, self._position)
            self._take_in(memoryview(frame))
        return self.record

    def pending(self) -> dict[str, Rows]:
        """Return all rows that are in no chunk file yet, by array."""
        grown = [name for name, array in self.record.arrays.items() if array.length > self.base.arrays[name].length]
        return {name: self.rows(name, self.record) for name in grown}


def _decoded(array: ArrayState, count: int, data: memoryview) -> Rows:
    if array.dtype == STRING:
        return decode_strings(data, count)
    if len(data) != count * array.row_nbytes:
        raise ValueError(f"{count} rows have {count * array.row_nbytes} bytes, found {len(data)}")
    return np.frombuffer(data, np.dtype(array.dtype).newbyteorder("<")).reshape(count, *array.shape)


def nbytes_of(appends: Mapping[str, Sequence[Any] | np.ndarray[Any, Any]]) -> int:
    """Return about how many bytes rows take."""
    return sum(v.nbytes if isinstance(v, np.ndarray) else sum(4 + len(text) for text in v) for v in appends.values())
