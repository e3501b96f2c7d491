"""`verify` for any place: a store on this machine, the parts of a store in a bucket or a mirror, a copy at a URL.

What is at a URL is copied to a temporary folder, a part at a time, and checked there.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import Any, Final

import numpy as np

from embstore._engine.chunks.record_file import head_in, read_head
from embstore._engine.format.parts import DEAD, PARTS, Listing, Part
from embstore._engine.format.record import Record
from embstore._engine.format.zarr_layout import MAX_METADATA_BYTES, METADATA_NAME, chunk_name
from embstore._engine.io.folder import Folder, ReadableFolder
from embstore._engine.io.remote import RemoteFolder
from embstore._engine.io.threads import in_turn
from embstore._engine.io.urls import is_url, local_path
from embstore._engine.read.column import Rows
from embstore._engine.read.parts_snapshot import PartsSnapshot
from embstore._engine.read.snapshot import Snapshot
from embstore.errors import CorruptStoreError, EmbstoreError, NotAStoreError, StoreReplacedError
from embstore.store.verify import Problem, Report, examine, live_rows_of, readable_keys

_MOST_NBYTES: Final = 2**32
"""Most bytes of a file of a part."""
_AT_ONCE: Final = 16
_HELD_NBYTES: Final = 2**24
_ATTEMPTS: Final = 5
_NO_ROWS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Piece:
    """A store of format 1 that was checked: a whole store, or a part of one.

    Attributes
    ----------
    snapshot : Snapshot or None
        None if it can't be read.
    report : Report
        Its rows and paths are those of the piece.
    live : ndarray, (n,) int64
        Its rows that the store has not deleted.
    """

    snapshot: Snapshot | None
    report: Report
    live: Rows


def verify(path: str | PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> Report:
    """Check every byte of a store against the last commit. Take no lock, and write nothing.

    Of a store in a bucket, all parts are fetched and checked, and the lists of deleted rows.

    Parameters
    ----------
    path : path_like
        Or a URL.
    storage_options : mapping, optional
        As for `embstore.open`.

    Raises
    ------
    NotAStoreError
        `path` has neither a store nor the remains of one.
    UnsupportedFormatError, RemoteError
    """
    return examine_all(path, storage_options, lambda place, piece: None)[1]


def examine_all(
    path: str | PathLike[str],
    storage_options: Mapping[str, Any] | None,
    use: Callable[[int, Piece], None],
) -> tuple[Record | None, Report]:
    """Check a store, and return the record of its commit, if it can be read, and the report.

    Parameters
    ----------
    path, storage_options
        See `verify`.
    use : callable
        Gets the number of the first row of each piece, and the piece, whose files exist during the call. It is called
        again from 0 on if the store changed during the check.
    """
    folder: ReadableFolder
    if is_url(path):
        folder = RemoteFolder.open(fspath(path), storage_options, max_signed_bytes=MAX_METADATA_BYTES)
    else:
        place = local_path(path).resolve()
        if not _has_parts(place):
            snapshot, report = examine(place)
            use(0, Piece(snapshot, report, _NO_ROWS if snapshot is None else live_rows_of(snapshot)))
            return (None if snapshot is None else snapshot.record), report
        folder = Folder.open(place)
    for _ in range(_ATTEMPTS):
        try:
            head = read_head(folder)[0]
        except CorruptStoreError as error:
            return None, Report(folder.path, 0, (Problem(error.path, error.detail, _NO_ROWS),))
        if isinstance(head, Listing):
            report = _parts_report(PartsSnapshot(folder, head, (0, 0, 0), mapping="never", check="touched"), use)
        else:
            report = _copy_report(folder, head, use)
        if report.ok or read_head(folder)[0].commit_id == head.commit_id:
            return (head if isinstance(head, Record) else head.as_one()), report
    raise StoreReplacedError(folder.path, f"it changed during each of {_ATTEMPTS} checks")


def _has_parts(place: Path) -> bool:
    """Return whether there is a mirror of a store in a bucket."""
    try:
        data = Folder.open(place).read(METADATA_NAME, most=MAX_METADATA_BYTES)
        return isinstance(head_in(place / METADATA_NAME, data)[0], Listing)
    except (EmbstoreError, OSError):
        return False


def _copy_report(folder: ReadableFolder, record: Record, use: Callable[[int, Piece], None]) -> Report:
    """Check a store with rows of its own at a URL."""
    with tempfile.TemporaryDirectory(prefix="embstore-") as place:
        _fetch(folder, record, Path(place))
        snapshot, report = examine(Path(place))
        use(0, Piece(snapshot, report, _NO_ROWS if snapshot is None else live_rows_of(snapshot)))
        moved = tuple(_moved(problem, Path(place), folder.path, 0) for problem in report.problems)
        return Report(folder.path, report.rows, moved, report.keys_affected)


def _parts_report(snapshot: PartsSnapshot, use: Callable[[int, Piece], None]) -> Report:
    """Check the parts of a commit one after the other."""
    problems: list[Problem] = []
    keys: list[str] = []
    rows = start = 0
    for part in snapshot.listing.parts:
        with _piece(snapshot, part, start) as (piece, own):
            use(start, piece)
            rows += len(piece.live)
            problems += own
            if piece.snapshot is not None and own:
                affected = np.concatenate([problem.rows for problem in own]) - start
                keys += readable_keys(piece.snapshot, np.unique(affected))
        start += part.rows
    return Report(snapshot.folder.path, rows, tuple(problems), tuple(keys))


@contextlib.contextmanager
def _piece(snapshot: PartsSnapshot, part: Part, start: int) -> Iterator[tuple[Piece, list[Problem]]]:
    """Fetch a part and check it. Yield it with its problems, whose rows and paths are those of the store."""
    folder, every = snapshot.parts.folder_of(part), np.arange(part.rows, dtype=np.int64)
    live, problems = every, list[Problem]()
    try:
        live = np.setdiff1d(every, snapshot.parts.dead_rows(part))
    except (CorruptStoreError, FileNotFoundError) as error:  # then no row can be trusted
        path = snapshot.folder.path / DEAD / (part.dead.name if part.dead else "")
        problems.append(Problem(path, _detail(error), every + start))
    try:
        record = snapshot.parts.record(part, snapshot.listing.empty)
    except (CorruptStoreError, FileNotFoundError, NotAStoreError) as error:
        path = snapshot.folder.path / PARTS / part.name
        problems.append(Problem(path, _detail(error), live + start))
        yield Piece(None, Report(path, 0, ()), live), problems
        return
    with contextlib.ExitStack() as stack:
        if isinstance(folder, Folder):
            place = folder.path
        else:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="embstore-"))).resolve()
            _fetch(folder, record, place)
        found, report = examine(place)
        for problem in report.problems:
            moved = _moved(problem, place, folder.path, start)
            problems.append(Problem(moved.path, moved.detail, np.intersect1d(moved.rows, live + start)))
        yield Piece(found, report, live), problems


def _fetch(folder: ReadableFolder, record: Record, place: Path) -> None:
    """Copy the files of a store of format 1 that exist to a folder on this machine."""
    names = [("", METADATA_NAME)]
    for array in record.arrays:
        names += [(array, METADATA_NAME)]
        names += [(array, chunk_name(record.arrays[array], index)) for index in range(record.arrays[array].chunks)]
        (place / array).mkdir()

    def fetch(one: tuple[str, str]) -> None:
        array, name = one
        with contextlib.suppress(FileNotFoundError):  # the check lists it
            data = (folder.child(array) if array else folder).read(name, most=_MOST_NBYTES)
            (place / array / name).write_bytes(data)

    for _ in in_turn(fetch, names, held=_HELD_NBYTES, threads=_AT_ONCE):
        pass


def _moved(problem: Problem, place: Path, path: PurePath, start: int) -> Problem:
    """Return a problem of a copy with the path and the row numbers of the store."""
    return Problem(path / problem.path.relative_to(place), problem.detail, problem.rows + start)


def _detail(error: Exception) -> str:
    return str(getattr(error, "detail", "it is missing"))
