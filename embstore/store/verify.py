"""Check every byte of a store against the last commit, and find the rows that damage affects."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Final

import numpy as np

from embstore._engine.chunks.chunk_file import PLACES_DIFFER, check_tail, digest_of, read_chunk, read_committed
from embstore._engine.chunks.record_file import (
    METADATA_REWRITTEN,
    check_record,
    is_newer,
    metadata_rewritten,
    parse_document,
    parse_json,
    parse_record,
)
from embstore._engine.format.keys import hash_keys
from embstore._engine.format.ragged import offsets_message, sound
from embstore._engine.format.record import STRING, ArrayState, Record, offsets_name
from embstore._engine.format.zarr_layout import (
    MAX_METADATA_BYTES,
    METADATA_NAME,
    array_metadata,
    chunk_name,
    chunk_number,
)
from embstore._engine.io.folder import Folder
from embstore._engine.notebook import ShownAsText
from embstore._engine.pickles import PickledByName
from embstore._engine.read.column import Rows
from embstore._engine.read.key_index import run_problems
from embstore._engine.read.read_rows import row_bounds
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.commit import BACKUP_ARRAY
from embstore.errors import CorruptStoreError, EmbstoreError, NotAStoreError, StoreReplacedError

logger = logging.getLogger("embstore")

NOT_THE_HASH: Final = "it is not the hash of the keys"
_NO_ROWS = np.empty(0, dtype=np.int64)
_MOST_LISTED: Final = 2**20
"""Lost rows that are listed one by one. A forged record may claim 2**48 rows."""
_ATTEMPTS: Final = 5
"""How often a store is checked if it changes during the check. Each time all of it is checked."""


@dataclass(frozen=True, slots=True)
class Problem(PickledByName):
    """One difference between a store and its last commit.

    Attributes
    ----------
    path : Path
        The file.
    detail : str
    rows : ndarray, (n,) int64
        The affected live rows. Empty if embstore can read them without the file.
    """

    path: PurePath
    detail: str
    rows: Rows

    def __str__(self) -> str:
        count = f" ({len(self.rows):,} rows affected)" if len(self.rows) else ""
        return f"{self.path}: {self.detail}{count}"


@dataclass(frozen=True, slots=True)
class Report(ShownAsText, PickledByName):
    """The result of `verify`.

    Attributes
    ----------
    path : Path, or a URL of type PurePath
    rows : int
        The number of live rows.
    problems : tuple of Problem
    keys_affected : tuple of str
        The keys of the affected rows, as far as they can be read.
    """

    path: PurePath
    rows: int
    problems: tuple[Problem, ...]
    keys_affected: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if the store is as it was committed."""
        return not self.problems

    @property
    def rows_affected(self) -> Rows:
        """Numbers of the affected live rows, ascending: ``(n,) int64``."""
        return np.unique(np.concatenate([_NO_ROWS, *(problem.rows for problem in self.problems)]))

    def __str__(self) -> str:
        if self.ok:
            return f"{self.path}: {self.rows:,} rows, all as they were committed"
        head = f"{self.path}: {len(self.rows_affected):,} of {self.rows:,} rows affected"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


class Damaged(Snapshot):
    """A commit whose undamaged rows can be read although others are damaged."""

    salvage = True

    def ensure_current(self) -> None:
        """Do nothing: the record on disk may be unreadable."""

    def _check_continues(self, record: Record) -> None:
        pass


def examine(place: Path) -> tuple[Snapshot | None, Report]:
    """Check a store. Check again if there are problems and another commit was written during the check."""
    for _ in range(_ATTEMPTS):
        if not place.is_dir():
            raise NotAStoreError(place, "it is a file" if place.exists() else "there is nothing")
        folder = Folder.open(place)
        try:
            snapshot, problems = _opened(folder)
        except NotAStoreError:
            if folder.replaced():
                continue
            raise
        report = _report(place, snapshot, problems)
        newer = folder.replaced() if snapshot is None else is_newer(folder, snapshot.record)
        if report.ok or not newer:
            return snapshot, report
    raise StoreReplacedError(place, f"it changed during each of {_ATTEMPTS} checks")


def _opened(folder: Folder) -> tuple[Snapshot | None, list[Problem]]:
    """Open a store by its record, or by the copy of the record."""
    place = folder.path
    problems: list[Problem] = []
    record: Record | None = None
    try:
        document = parse_document(place / METADATA_NAME, folder.read(METADATA_NAME, most=MAX_METADATA_BYTES))
        record = parse_record(place / METADATA_NAME, document["attributes"]["embstore"])
        if metadata_rewritten(document):
            problems.append(Problem(place / METADATA_NAME, METADATA_REWRITTEN, _NO_ROWS))
    except (CorruptStoreError, FileNotFoundError) as error:
        if "key_hash" not in folder.names():
            raise NotAStoreError(place, "it has neither a record nor key_hash") from error
        record = _from_backup(folder)
        detail = str(getattr(error, "detail", "it is missing"))
        if record is None:
            return None, [Problem(place / METADATA_NAME, f"{detail}; nor can its copy be read", _NO_ROWS)]
        detail += "; read by the copy of the record in key_hash/zarr.json, which may be one commit older"
        problems.append(Problem(place / METADATA_NAME, detail, _NO_ROWS))
    held = _held_rows(folder, record)
    if record.rows > held + _MOST_LISTED:
        detail = f"it claims {record.rows:,} rows, and the files hold at most {held:,}"
        return None, [*problems, Problem(place / METADATA_NAME, detail, _NO_ROWS)]
    return Damaged(folder, record, (0, 0, 0), mapping="never", check="touched"), problems


def _held_rows(folder: Folder, record: Record) -> int:
    """Return the most rows that the chunk files of one array hold, by their sizes. Compressed arrays don't count."""
    held = [0]
    for name in record.sample_arrays:
        array = record.arrays[name]
        with contextlib.suppress(CorruptStoreError, FileNotFoundError):
            child = folder.child(name)
            nbytes = sum(child.signature(file)[1] for file in child.names() if chunk_number(file) is not None)
            if array.compression is None:
                held.append(nbytes // (4 if array.dtype == STRING else array.row_nbytes))
    return max(held)


def _from_backup(folder: Folder) -> Record | None:
    try:
        folder = folder.child(BACKUP_ARRAY)
        own = parse_json(folder.read(METADATA_NAME, most=MAX_METADATA_BYTES))
        return _parsed_backup(folder, own["attributes"])
    except (EmbstoreError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.info("%s: the copy of the record can't be read: %s", folder.path, error)
        return None


def _parsed_backup(folder: Folder, attributes: Any) -> Record:
    """Return the copy of the record in the attributes of an array."""
    path, (copy,) = folder.path / METADATA_NAME, attributes.values()
    check_record(path, attributes["embstore_backup"])
    return parse_record(path, copy)


def live_rows_of(snapshot: Snapshot) -> Rows:
    """Return the live rows: ``(n,) int64``. If the list of deleted rows can't be read, return all rows."""
    try:
        return snapshot.live_rows
    except (EmbstoreError, OSError):
        return np.arange(snapshot.record.rows, dtype=np.int64)


def _report(place: Path, snapshot: Snapshot | None, problems: list[Problem]) -> Report:
    if snapshot is None:
        return Report(place, 0, tuple(problems))
    live = live_rows_of(snapshot)
    damaged = [
        p for name, array in snapshot.record.arrays.items() for p in _array_problems(snapshot, name, array, live)
    ]
    problems += damaged
    if not damaged:
        problems += _agreement_problems(snapshot, live)
    for name in snapshot.record.ragged:
        problems += _offset_problems(snapshot, name, live)
    problems += [Problem(path, detail, _NO_ROWS) for path, detail in run_problems(snapshot)]
    report = Report(place, len(live), tuple(problems))
    return replace(report, keys_affected=tuple(readable_keys(snapshot, report.rows_affected)))


def _array_problems(snapshot: Snapshot, name: str, array: ArrayState, live: Rows) -> Iterator[Problem]:
    """Check the folder, metadata, chunks, tail and digest of an array."""
    try:
        folder = snapshot.local_folder.child(name)
    except (CorruptStoreError, FileNotFoundError) as error:
        yield Problem(snapshot.local_folder.path / name, _detail(error), live)
        return
    if detail := _metadata_problem(folder, name, array):
        yield Problem(folder.path / METADATA_NAME, detail, _NO_ROWS)
    size, whole = array.rows_per_chunk, True
    for index, stop in _present(folder, array):
        detail, tail_after_erase = "", (snapshot.record.erasing or {}).get(name)
        try:
            if stop > index + 1:
                raise FileNotFoundError
            read_chunk(folder, array, index)
            if index == array.chunks - 1:
                check_tail(folder, array, tail_after_erase=tail_after_erase)
        except (CorruptStoreError, FileNotFoundError) as error:
            whole = False
            rows = _rows_in(snapshot, name, index * size, min(stop * size, array.length), live)
            detail = _detail(error) + (f", and {stop - index - 1:,} more after it" if stop > index + 1 else "")
            with contextlib.suppress(CorruptStoreError, FileNotFoundError):
                if stop == index + 1 and index == array.chunks - 1:
                    read_committed(folder, array, index)
                    rows, detail = _NO_ROWS, f"{detail}; its committed rows are sound"
            yield Problem(folder.path / chunk_name(array, index), detail, rows)
    if whole and snapshot.record.erasing is None and digest_of(folder, array) != array.digest:
        yield Problem(folder.path, PLACES_DIFFER, _rows_in(snapshot, name, 0, array.full_chunks * size, live))


def _present(folder: Folder, array: ArrayState) -> Iterator[tuple[int, int]]:
    """Yield each chunk that has a file, and each gap between such chunks, as the numbers from which and up to which.

    A record may claim billions of chunks. The number of files bounds the number of steps.
    """
    numbers = {chunk_number(name) for name in folder.names()}
    at = 0
    for number in sorted(n for n in numbers if n is not None and n < array.chunks):
        if number > at:
            yield at, number
        yield number, number + 1
        at = number + 1
    if at < array.chunks:
        yield at, array.chunks


def _rows_in(snapshot: Snapshot, name: str, first: int, stop: int, live: Rows) -> Rows:
    """Return the live rows that need the elements from `first` to `stop` of an array."""
    record = snapshot.record
    if name in record.sample_arrays:
        return live[(live >= first) & (live < stop)]
    if name in map(offsets_name, record.ragged):  # a row needs its own offset, and the next
        return live[(live >= first - 1) & (live < stop)]
    if name in record.ragged:
        known, starts, stops = _readable_bounds(snapshot, name, live)
        return known[(starts < stop) & (stops > first) & (starts < stops)]
    # Without a chunk of class names no class can be trusted, and without a chunk of deletions no row.
    return live


def _metadata_problem(folder: Folder, name: str, array: ArrayState) -> str:
    """Return the problem of an array's own metadata, or "". Its length may be that of an earlier commit."""
    try:
        own = parse_json(folder.read(METADATA_NAME, most=MAX_METADATA_BYTES))
        expected: dict[str, Any] = array_metadata(array)
        expected["shape"][0] = length = own["shape"][0]
        attributes = own["attributes"]
        if {**own, "attributes": {}} != expected or not 0 <= length <= array.length:
            return "it does not describe the array"
        if name != BACKUP_ARRAY:
            return "" if attributes == {} else "expected no attributes"
        backup = _parsed_backup(folder, attributes)
        return "" if backup.arrays[name].length == length else "its copy of the record has another length"
    except (CorruptStoreError, FileNotFoundError) as error:
        return _detail(error)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return "it is not an array's metadata"


def _agreement_problems(snapshot: Snapshot, live: Rows) -> Iterator[Problem]:
    """Check that undamaged arrays agree: hashes with keys. Also check that no row is deleted twice."""
    root = snapshot.folder.path
    step = 65_536
    for start in range(0, len(live), step):
        rows = live[start : start + step]
        try:
            keys = snapshot.keys_of(rows)
        except CorruptStoreError as error:
            yield Problem(error.path, error.detail, rows)
            continue
        wrong = (hash_keys(keys) != snapshot.take("key_hash", rows)).any(axis=1)
        if wrong.any():
            yield Problem(root / "key_hash", NOT_THE_HASH, rows[wrong])
    dead = snapshot.dead_rows
    if len(np.unique(dead)) != len(dead):
        yield Problem(root / "dead_rows", "it names a row twice", _NO_ROWS)


def _readable_bounds(snapshot: Snapshot, name: str, live: Rows) -> tuple[Rows, Rows, Rows]:
    """Return the live rows whose offsets can be read, and the begin and end of their tokens.

    The other rows are listed already, under their unreadable chunk of offsets.
    """
    found: list[tuple[Rows, Rows, Rows]] = []
    step = snapshot.record.arrays[offsets_name(name)].rows_per_chunk
    for start in range(0, len(live), step):
        block = live[start : start + step]
        try:
            found.append((block, *row_bounds(snapshot, name, block)))
        except (EmbstoreError, OSError):  # row by row, to keep those that can be read
            for row in block:
                with contextlib.suppress(EmbstoreError, OSError):
                    found.append((np.array([row]), *row_bounds(snapshot, name, np.array([row]))))
    if not found:
        return _NO_ROWS, _NO_ROWS, _NO_ROWS
    rows, starts, stops = (np.concatenate([part[i] for part in found]) for i in range(3))
    return rows, starts, stops


def _offset_problems(snapshot: Snapshot, name: str, live: Rows) -> Iterator[Problem]:
    """Check that the offsets of a ragged field begin with 0, never decrease, and end with the last token."""
    array = snapshot.record.arrays[offsets_name(name)]
    tokens = snapshot.record.arrays[name].length
    try:
        offsets = np.concatenate(
            [np.asarray(read_chunk(snapshot.folder.child(offsets_name(name)), array, i)) for i in range(array.chunks)]
        )[: array.length]
    except (CorruptStoreError, FileNotFoundError):
        return  # it is reported already, and `row_bounds` checks row by row
    wrong = (offsets[:-1] > offsets[1:]) | (offsets[:-1] < 0) | (offsets[1:] > tokens)
    # Tokens before the first row or after the last one belong to that row, which is incomplete then.
    if len(wrong):
        wrong[0] |= offsets[0] != 0
        wrong[-1] |= offsets[-1] != tokens
    if not sound(offsets, tokens):
        path = snapshot.folder.path / offsets_name(name)
        yield Problem(path, offsets_message(tokens), live[wrong[live]])


def readable_keys(snapshot: Snapshot, rows: Rows) -> Iterator[str]:
    """Yield the keys of some rows, ascending, as far as their chunks of file_ids and class codes can be read."""
    arrays = snapshot.record.arrays
    step = math.gcd(arrays["file_id"].rows_per_chunk, arrays["class_code"].rows_per_chunk)
    for block in np.split(rows, np.flatnonzero(np.diff(rows // step)) + 1):
        with contextlib.suppress(EmbstoreError, OSError):  # the keys are lost, and the report has the row numbers
            yield from snapshot.keys_of(block)


def _detail(error: Exception) -> str:
    return str(getattr(error, "detail", "it is missing"))
