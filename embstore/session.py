"""A session with one store: which commit is read, the index over it, and how a writer gets to commit.

Every change runs inside `writing`: under the lock, on the newest commit, and after what a killed writer left
was mended. What a change is, `changes` says; how it is written, `commit`. Which commits go into the journal
instead, is said here: small ones, once there was one before.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Final

from embstore import fsio
from embstore.changes import Plan
from embstore.commit import Committed, commit, new_id
from embstore.errors import EmbstoreError, ReadOnlyError, StoreChangedError, StoreReplacedError
from embstore.index import KeyIndex, wants_run, write_run
from embstore.journal import nbytes_of
from embstore.recovery import recover
from embstore.snapshot import Snapshot, read_record

__all__ = ["Session"]

logger = logging.getLogger("embstore")

_SMALL_NBYTES: Final = 2**20
"""Of a commit for the journal: what is larger costs little more where it belongs."""
_JOURNAL_NBYTES: Final = 8 * 2**20
"""Of a journal, then its rows move on: readers keep them in memory."""


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
        self._process = os.getpid()
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
        """Let go of the store; maps stay as long as arrays over them. What it left in the journal moves on."""
        if self._snapshot is not None:
            self._leave()
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
        return old.opened_again()

    def check_writable(self) -> None:
        """Raise `ReadOnlyError` if it was opened for reading."""
        if not self.writable:
            raise ReadOnlyError(self.path, 'it was opened with mode "r"')

    @contextlib.contextmanager
    def writing(self, *, journal: bool = False) -> Iterator[Snapshot]:
        """Hold the lock, on the newest commit, with nothing left behind by a killed writer.

        Parameters
        ----------
        journal : bool
            Whether the block can do with rows in the journal; else they are in chunk files before it begins.
        """
        self.check_writable()
        with self._mutex, fsio.lock(self.path, timeout=self._lock_timeout):
            self._snapshot = self._newest()
            base = self._snapshot.base
            if base.commit_id != self._recovered:
                mended = recover(self._snapshot.folder, base)
                self.moved_to(Committed(mended, tidy=True))
            if not journal:
                self._move_on()
            try:
                yield self.snapshot
            except BaseException:
                self._recovered = ""  # whatever was left half done is mended first
                raise

    def commit(self, plan: Plan) -> None:
        """Carry out a plan. Called inside `writing`."""
        commit_id = new_id()
        if self._is_small(plan):
            if self._journalled(plan, commit_id):
                return
            self._small += 1
        # The first small commit is written whole. After that, each that is has room made for more.
        usual = self._small > 1 or self.snapshot.journal is not None
        enabled = usual and self._is_small(plan) and not fsio.on_network(self.path)
        if enabled:
            _JOURNALLING.add(self)
        self._write(Plan(replace(plan.record, journal=enabled), plan.appends), commit_id)

    def _is_small(self, plan: Plan) -> bool:
        """Tell whether a plan adds a few rows, and does nothing else."""
        record = self.snapshot.record
        rows = {name: v for name, v in plan.appends.items() if not isinstance(v, Iterator)}
        return (
            plan.record == replace(record, rows=plan.record.rows)
            and len(rows) == len(plan.appends)
            and not len(rows.get("dead_rows", ()))
            and nbytes_of(rows) <= _SMALL_NBYTES
        )

    def _journalled(self, plan: Plan, commit_id: str) -> bool:
        """Write a small commit into the journal; tells whether there is one, with room, that could take it."""
        journal = self.snapshot.journal
        if journal is None or journal.nbytes + _SMALL_NBYTES > _JOURNAL_NBYTES:
            return False
        added = plan.record.rows - self.snapshot.record.rows
        try:
            journal.append(added, plan.appends, commit_id)
        except OSError as error:
            logger.warning("%s: the journal can't be written, so chunks are: %s", self.path, error)
            return False
        self._snapshot = self.snapshot.read_on()
        _JOURNALLING.add(self)
        return True

    def _write(self, plan: Plan, commit_id: str) -> None:
        """Carry out a plan in chunk files, and all that is in the journal."""
        snapshot = self.snapshot
        self._recovered = ""
        appends = dict(plan.appends)
        if snapshot.journal is not None:
            for name, rows in snapshot.journal.pending().items():
                more = appends.get(name, ())
                appends[name] = chain([rows], more if isinstance(more, Iterator) else [more] if len(more) else [])
        arrays = {name: snapshot.base.arrays[name] for name in plan.record.arrays if name in snapshot.base.arrays}
        record = plan.record.with_arrays(**arrays)
        self.moved_to(commit(snapshot.folder, snapshot.base, record, appends, commit_id=commit_id))

    def _move_on(self) -> None:
        """Write the rows in the journal into chunk files, and end it. The commit is the same one."""
        record = self.snapshot.record
        if record.journal:
            self._write(Plan(replace(record, journal=False), {}), record.commit_id)
        _JOURNALLING.discard(self)

    def flush(self) -> None:
        """Write all rows that are in the journal into chunk files."""
        with self.writing():
            pass

    def _leave(self) -> None:
        """Leave no journal behind, if it was used here. Its rows are safe in it: what fails now, the next one does."""
        if self in _JOURNALLING and self._process == os.getpid() and self.path.exists():
            try:
                self.flush()
            except (OSError, EmbstoreError) as error:
                logger.warning("%s: rows stay in the journal, for the next writer: %s", self.path, error)
        _JOURNALLING.discard(self)

    def moved_to(self, committed: Committed) -> None:
        """Take up a commit that was just written."""
        snapshot = self.snapshot
        if not committed.record.same_as(snapshot.base):
            record, signature = read_record(snapshot.folder)
            self._snapshot = snapshot.advanced(record, signature)
        self._recovered = committed.record.commit_id if committed.tidy else ""

    def tidy_index(self) -> None:
        """Write the index anew, if many rows are indexed in memory only. Called inside `writing`."""
        if wants_run(rows=self.snapshot.record.rows, in_memory=self.index.in_memory):
            try:
                write_run(self.snapshot)
            except OSError as error:
                # It is derived, and the commit stands: readers index the rows themselves.
                logger.warning("%s: the index could not be written: %s", self.path, error)
                self._recovered = ""
            self._index = None


_JOURNALLING: weakref.WeakSet[Session] = weakref.WeakSet()
"""Sessions that have used a journal, and not ended it."""


@atexit.register
def _leave_all() -> None:
    for session in list(_JOURNALLING):
        session._leave()
