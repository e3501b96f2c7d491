"""A session with one store: which commit is read, the index over it, and how a writer gets to commit.

Every change runs inside `writing`: under the lock, on the newest commit, and after what a killed writer left
was mended. What a change is, `changes` says; how it is written, `commit`. Which commits go into the journal
instead, is said here: small ones, once there was one before.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from embstore._engine.chunks.record_file import read_record
from embstore._engine.format.record import Record
from embstore._engine.io import folder as fsio
from embstore._engine.read.key_index import KeyIndex, wants_run, write_run
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.commit import Blocks, Committed, Values, commit, new_id
from embstore._engine.write.plans import Plan
from embstore._engine.write.recover import recover
from embstore.errors import EmbstoreError, ReadOnlyError, StoreChangedError, StoreReplacedError

__all__ = ["Session"]

logger = logging.getLogger("embstore")

_SMALL_NBYTES: Final = 2**20
"""Of a commit for the journal: what is larger costs little more where it belongs."""
_JOURNAL_NBYTES: Final = 8 * 2**20
"""Of a journal, then its rows move on: readers keep them in memory."""
_JOURNAL_COMMITS: Final = 1000
"""In a journal, then its rows move on: readers read them one by one."""
_FEW_ROWS: Final = 1024
_LEAVING_SECONDS: Final = 5.0
"""To wait for another writer when a store is closed: then its journal is left to that one."""


class Session:
    """The commit that a store object reads, and its way to the next one.

    Parameters
    ----------
    snapshot : Snapshot
    writable : bool
    lock_timeout : float
        Seconds to wait for another writer.
    """

    def __init__(self, snapshot: Snapshot, *, writable: bool, lock_timeout: float) -> None:
        self.path: Path = snapshot.folder.path
        self.writable = writable
        self._lock_timeout = lock_timeout
        self._snapshot: Snapshot | None = snapshot
        self._index: KeyIndex | None = None
        self._recovered = ""  # the record up to which nothing can be left to mend
        self._small = 0  # commits that the journal would have taken
        self._busy = False  # inside `writing`: a signal's handler may come here
        self._mutex = threading.RLock()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._snapshot is None

    @property
    def snapshot(self) -> Snapshot:
        """The commit that is read from."""
        if self._snapshot is None:
            raise ValueError(f"the store {self.path} is closed")
        return self._snapshot

    @property
    def index(self) -> KeyIndex:
        """The index over that commit."""
        snapshot, index = self.snapshot, self._index
        if index is None or index.snapshot is not snapshot:
            same = index is not None and index.snapshot.record.generation == snapshot.record.generation
            index = self._index = KeyIndex(snapshot, index if same else None)
        return index

    def close(self) -> None:
        """Let go of the store; maps stay as long as arrays over them. Rows in a journal of its own move on before."""
        if self._snapshot is not None and self.writable and not self._busy:
            _leave(self.path, lambda: self)
        self._snapshot = None
        self._index = None

    def refresh(self) -> bool:
        """Move on to the newest commit; returns whether there was one."""
        with self._mutex:
            before = self.snapshot
            self._snapshot = self._newest()
            return self._snapshot.record.commit_id != before.record.commit_id

    def reopen(self) -> None:
        """Take up the store that is at the path now, whichever it is."""
        self._snapshot = self.snapshot.opened_again()
        self._index = None

    def _newest(self) -> Snapshot:
        """Return the newest commit at the path; from the folder that is open, if it is still there."""
        old = self.snapshot
        if not old.replaced():
            # Otherwise it is erased or replaced at this very moment, and opened anew.
            with contextlib.suppress(StoreChangedError, StoreReplacedError):
                return old.newest()
        self._index = None
        return old.opened_again()

    def check_writable(self) -> None:
        """Raise `ReadOnlyError` if it was opened for reading."""
        if not self.writable:
            raise ReadOnlyError(self.path, 'it was opened with mode "r"')

    @contextlib.contextmanager
    def writing(self, *, journal: bool = False, lock_timeout: float | None = None) -> Iterator[Snapshot]:
        """Hold the lock, on the newest commit, with nothing left behind by a killed writer.

        Parameters
        ----------
        journal : bool
            Whether the block can do with rows in the journal; else they are in chunk files before it begins.
        lock_timeout : float, optional
            Seconds to wait for another writer, if not as long as usual.
        """
        self.check_writable()
        timeout = self._lock_timeout if lock_timeout is None else lock_timeout
        with self._mutex, fsio.lock(self.path, timeout=timeout):
            self._snapshot = self._newest()
            base = self._snapshot.base
            if base.commit_id != self._recovered:
                self.moved_to(Committed(recover(self._snapshot.folder, base), tidy=True))
            self._busy = True
            try:
                if not journal:
                    self._end_journal()
                yield self.snapshot
            except BaseException:
                self._recovered = ""  # whatever was left half done is mended first
                raise
            finally:
                self._busy = False

    def commit(self, plan: Plan) -> None:
        """Carry out a plan. Called inside `writing`."""
        commit_id, small = new_id(), self._is_small(plan)
        if small and self._journalled(plan, commit_id):
            return
        self._small += small
        # The first small commit is written whole. After that, each that is has room made for more.
        journal = small and (self._small > 1 or self.snapshot.journal is not None) and self._is_local
        self._write(replace(plan.record, journal=journal), plan.appends, commit_id)
        if journal:
            _journalling[self.path] = os.getpid()

    @functools.cached_property
    def _is_local(self) -> bool:
        """Whether what one process writes to the end of a file is there for the next one."""
        return not fsio.on_network(self.path)

    def _is_small(self, plan: Plan) -> bool:
        """Tell whether a plan adds a few rows, and does nothing else."""
        record = self.snapshot.record
        rows = [v for v in plan.appends.values() if not isinstance(v, Iterator)]
        return (
            plan.record == replace(record, rows=plan.record.rows)
            and len(rows) == len(plan.appends)
            and not len(plan.appends.get("dead_rows", ()))  # type: ignore[arg-type]
            and sum(map(_nbytes, rows)) <= _SMALL_NBYTES
        )

    def _journalled(self, plan: Plan, commit_id: str) -> bool:
        """Write a small commit into the journal; tells whether there is one, with room, that could take it."""
        journal = self.snapshot.journal
        if journal is None or journal.failed or not self._is_local:
            return False
        if journal.nbytes + _SMALL_NBYTES > _JOURNAL_NBYTES or journal.commits >= _JOURNAL_COMMITS:
            return False
        try:
            journal.append(plan.record.rows - self.snapshot.record.rows, plan.appends, commit_id)
        except OSError as error:
            logger.warning("%s: the journal can't be written, so chunks are: %s", self.path, error)
            return False
        self._snapshot = self.snapshot.extended()
        _journalling[self.path] = os.getpid()
        return True

    def _write(self, record: Record, appends: Mapping[str, Blocks], commit_id: str) -> None:
        """Make a commit in chunk files, which takes in all that is in the journal."""
        snapshot = self.snapshot
        self._recovered = ""
        rows = dict(appends)
        if snapshot.journal is not None:
            for name, pending in snapshot.journal.pending().items():
                rows[name] = _one_after_the_other(pending, rows.get(name, ()))
        arrays = {name: snapshot.base.arrays[name] for name in record.arrays if name in snapshot.base.arrays}
        committed = commit(snapshot.folder, snapshot.base, record.with_arrays(**arrays), rows, commit_id=commit_id)
        self.moved_to(committed)

    def _end_journal(self) -> None:
        """Write the rows in the journal into chunk files, and remove it. The commit is the same one."""
        record = self.snapshot.record
        if record.journal:
            self._write(replace(record, journal=False), {}, record.commit_id)
        _journalling.pop(self.path, None)

    def checkpoint(self, *, lock_timeout: float | None = None) -> None:
        """Write all rows that are in the journal into chunk files."""
        with self.writing(lock_timeout=lock_timeout):
            pass

    def moved_to(self, committed: Committed) -> None:
        """Take up a commit that was just written."""
        snapshot = self.snapshot
        if not committed.record.same_as(snapshot.base):
            record, signature = read_record(snapshot.folder)
            self._snapshot = snapshot.advanced(record, signature)
        self._recovered = committed.record.commit_id if committed.tidy else ""

    def tidy_index(self) -> None:
        """Write the index anew, if many rows are indexed in memory only. Called inside `writing`.

        Not while some are in the journal: if its last commit were damaged, the index would have rows that others get.
        """
        snapshot = self.snapshot
        if snapshot.record is snapshot.base and wants_run(rows=snapshot.base.rows, in_memory=self.index.in_memory):
            try:
                write_run(self.snapshot)
            except OSError as error:
                # It is derived, and the commit stands: readers index the rows themselves.
                logger.warning("%s: the index could not be written: %s", self.path, error)
                self._recovered = ""
            self._index = None


def _nbytes(rows: Values) -> int:
    """Return about how many bytes rows take."""
    return rows.nbytes if isinstance(rows, np.ndarray) else sum(4 + len(text) for text in rows)


def _one_after_the_other(rows: Values, more: Blocks) -> Blocks:
    """Return rows and those that come after them; as one block, if these are not many."""
    if isinstance(more, Iterator) or len(more) > max(len(rows), _FEW_ROWS):
        return chain([rows], more if isinstance(more, Iterator) else [more])
    if isinstance(rows, np.ndarray):
        return np.concatenate([rows, more]) if len(more) else rows
    return [*rows, *more]


_journalling: dict[Path, int] = {}
"""Stores whose journal was used and not ended, each with the process that did."""


def _leave(path: Path, session: Callable[[], Session]) -> None:
    """Leave no journal behind, if this process used it. Its rows are safe: what fails now, the next writer does."""
    if _journalling.pop(path, None) == os.getpid():
        try:
            if path.exists():
                session().checkpoint(lock_timeout=_LEAVING_SECONDS)
        except (OSError, EmbstoreError) as error:
            logger.warning("%s: rows stay in the journal, for the next writer: %s", path, error)


def _opened(path: Path) -> Session:
    return Session(Snapshot.open(path), writable=True, lock_timeout=_LEAVING_SECONDS)


@atexit.register
def _leave_all() -> None:
    with contextlib.ExitStack() as stack:  # whatever becomes of one, the others get their turn
        for path in list(_journalling):
            stack.callback(_leave, path, functools.partial(_opened, path))
