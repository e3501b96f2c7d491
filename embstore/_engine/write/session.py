"""A session with one store: the commit that is read, its key index, and the way to the next commit.

Every change runs inside `writing`: under the lock, on the newest commit, and after recovery. `plans` makes a change,
and `commit` writes it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, TypeVar, cast

from embstore._engine.format.zarr_layout import METADATA_NAME
from embstore._engine.io.locks import lock
from embstore._engine.io.threads import ThreadLock
from embstore._engine.read.key_index import KeyIndex
from embstore._engine.read.open_snapshot import open_again
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.commit import Committed, commit
from embstore._engine.write.index_file import wants_run, write_run
from embstore._engine.write.plans import Plan
from embstore._engine.write.recover import recover
from embstore.errors import ReadOnlyError, StorageFullError, StoreChangedError, StoreReplacedError

logger = logging.getLogger("embstore")

_Result = TypeVar("_Result")


class Session:
    """The commit that a store object reads, and its way to the next commit.

    Parameters
    ----------
    snapshot : Snapshot
    writable : bool
    lock_timeout : float
        Seconds to wait for another writer.
    """

    interval: ClassVar[float] = 2.0
    """Seconds between the commits of a writer, if it is given none."""

    def __init__(self, snapshot: Snapshot, *, writable: bool, lock_timeout: float) -> None:
        # A `Path` for all stores but those at a URL, which only read: theirs is a `Url`, for display.
        self.path = cast("Path", snapshot.folder.path)
        self.writable = writable
        self._lock_timeout = lock_timeout
        self._snapshot: Snapshot | None = snapshot
        self._index: KeyIndex | None = None
        self._recovered = ""  # commit_id of the newest record that needs no recovery
        self._mutex = ThreadLock()

    @property
    def closed(self) -> bool:
        """Whether the session was closed."""
        return self._snapshot is None

    @property
    def snapshot(self) -> Snapshot:
        """The commit that is read."""
        if self._snapshot is None:
            raise ValueError(f"the store {self.path} is closed")
        return self._snapshot

    @property
    def index(self) -> KeyIndex:
        """The key index of that commit."""
        snapshot, index = self.snapshot, self._index
        if index is None or index.snapshot is not snapshot:
            same = index is not None and index.snapshot.record.generation == snapshot.record.generation
            index = self._index = KeyIndex(snapshot, index if same else None)
        return index

    def close(self) -> None:
        """Release the store. Maps stay as long as arrays over them."""
        self._snapshot = None
        self._index = None

    def refresh(self) -> bool:
        """Move to the newest commit. Return whether it is another commit."""
        with self._mutex():
            before = self.snapshot
            self._snapshot = self._newest()
            return self._snapshot.record.commit_id != before.record.commit_id

    def _newest(self) -> Snapshot:
        """Return the newest commit at the path: from the open folder, if it is still there."""
        old = self.snapshot
        if not old.replaced():
            # If these are raised, the store was erased or replaced at this moment, and is opened again.
            with contextlib.suppress(StoreChangedError, StoreReplacedError):
                return old.newest()
        self._index = None
        return open_again(old)

    def check_writable(self) -> None:
        """Raise `ReadOnlyError` if the store was opened for reading."""
        if not self.writable:
            raise ReadOnlyError(self.path, 'it was opened with mode "r"')

    @contextlib.contextmanager
    def writing(self, *, recovered: bool = False) -> Iterator[Snapshot]:
        """Hold the lock, at the newest commit, after recovery from a killed writer.

        Parameters
        ----------
        recovered : bool
            Recover even if this session made the newest commit: a writer that was killed since may have left copies
            of rows.
        """
        self.check_writable()
        with self._mutex(), lock(self.path, timeout=self._lock_timeout) as locked:
            self._snapshot = self._newest()
            if self._snapshot.local_folder.identity() != locked:  # moved or replaced since the lock was taken
                raise StoreReplacedError(self.path)
            record = self._snapshot.record
            if recovered or record.commit_id != self._recovered:
                self.moved_to(Committed(recover(self._snapshot.local_folder, record), tidy=True))
            try:
                yield self.snapshot
            except StorageFullError:
                self._recovered = ""
                with contextlib.suppress(OSError):  # otherwise the next change does it
                    # Renamed chunks of the commit that failed may fill the disk.
                    self._snapshot = self._newest()
                    recover(self._snapshot.local_folder, self._snapshot.record)
                raise
            except BaseException:
                self._recovered = ""  # the next change recovers first
                raise

    @contextlib.contextmanager
    def rewriting(self, what: str) -> Iterator[Snapshot]:
        """Hold the lock for a change of all rows. `what` names the method, for stores that refuse it."""
        with self.writing() as snapshot:
            yield snapshot

    def commit(self, plan: Plan) -> None:
        """Carry out a plan. Call it inside `writing`."""
        self._recovered = ""
        self.moved_to(commit(self.snapshot.local_folder, self.snapshot.record, plan.record, plan.appends))

    def apply(self, planner: Callable[[Snapshot, KeyIndex], tuple[Plan | None, _Result]]) -> _Result:
        """Plan on the newest commit, under the lock, and carry the plan out. A plan of None makes no commit."""
        with self.writing() as snapshot:
            plan, result = planner(snapshot, self.index)
            if plan is not None:
                self.commit(plan)
                self.tidy_index()
        return result

    def moved_to(self, committed: Committed) -> None:
        """Move to a commit that was just written."""
        snapshot = self.snapshot
        if committed.record.commit_id != snapshot.record.commit_id:
            self._snapshot = snapshot.advanced(committed.record, snapshot.folder.signature(METADATA_NAME))
        self._recovered = committed.record.commit_id if committed.tidy else ""

    def tidy_index(self) -> None:
        """Write the index again if many rows are indexed in memory only. Call it inside `writing`."""
        if wants_run(rows=self.snapshot.record.rows, in_memory=self.index.in_memory):
            try:
                write_run(self.snapshot)
            except OSError as error:
                # The index is derived, and the commit stands. Readers index the rows in memory.
                logger.warning("%s: the index could not be written: %s", self.path, error)
                self._recovered = ""
            self._index = None
