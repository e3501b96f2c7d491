"""Add the rows of a local store to a store in a bucket: `embstore.push`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path, PurePath
from typing import Any, Final, get_args

from embstore._engine.format.arguments import check_choice
from embstore._engine.format.values import dump_json
from embstore._engine.io.durable import replacing
from embstore._engine.io.urls import is_url, local_path
from embstore._engine.pickles import PickledByName
from embstore._engine.progress import Progress, check_progress, reporting
from embstore._engine.read.column import Rows
from embstore._engine.read.key_index import KeyIndex
from embstore._engine.read.open_snapshot import open_snapshot
from embstore._engine.read.parts_snapshot import PartsSnapshot
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.parts_session import PartsSession
from embstore._engine.write.plans import AppendResult, IfExists, Plan
from embstore.errors import CopyRefusedError, KeysExistError, NotAStoreError
from embstore.store.embedding_store import EmbeddingStore, session_of
from embstore.store.merge import Part, live_part, options_like, plan_merge
from embstore.store.open import open as open_store

logger = logging.getLogger("embstore")

_PART_NBYTES: Final = 2**30
"""Bytes of the rows of one commit."""
NOTE: Final = "pushed.json"
"""File in a local store: the epoch that each store in a bucket had when the local store had none of its erased rows.

It lies in the folder of the store, so a backup that is put back brings its own note back.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult(PickledByName):
    """The result of `push`.

    Attributes
    ----------
    path : PurePath
        The store in the bucket, without credentials.
    appended, skipped, replaced : int
        Numbers of rows, as in `AppendResult`.
    commits : int
        Number of commits that added them, one for each part.
    """

    path: PurePath
    appended: int
    skipped: int
    replaced: int
    commits: int


def push(
    local: str | os.PathLike[str],
    url: str,
    *,
    if_exists: IfExists = "skip",
    seen_epoch: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress = None,
) -> PushResult:
    """Add the rows of a local store to a store in a bucket. It is made if it does not exist.

    Rows go in parts of about 1 GiB, each with a commit. A stopped push can be repeated: keys that are stored are
    skipped. Paths of folders in the origins of rows are left out.

    The epoch of a store in a bucket counts its erases. A local store may still have rows that were erased there, and
    `push` must not bring them back. So it is refused once the epoch is above 0, unless `local` is a mirror of that
    epoch or was pushed at that epoch before. Erase the same rows in `local`, then pass the epoch that the error names
    as `seen_epoch`. Later pushes need no `seen_epoch`, until the next erase. Rows that were deleted but not erased come
    back, if `local` has them.

    Parameters
    ----------
    local : path_like
        A store or a mirror. Its rows are not changed.
    url : str
        In a bucket of S3, Google Cloud Storage or Azure.
    if_exists : {"skip", "error", "replace"}
        How to treat keys that are stored in the bucket already.
    seen_epoch : int, optional
        The epoch of the store in the bucket up to which `local` has no erased row.
    storage_options : mapping, optional
        As `embstore.open` takes them.
    progress : callable, bool or None
        Function of (rows done, rows in all), or True for a bar. By default there is a bar at a terminal.

    Returns
    -------
    PushResult

    Raises
    ------
    CopyRefusedError
        Rows were erased in the bucket that `local` may have.
    ConfigMismatchError, FieldMismatchError, UnknownFieldError, UnknownColumnError
        The stores differ.
    KeysExistError
        Some keys are stored in the bucket, and `if_exists` is "error". No row was added.
    NotAStoreError, ReadOnlyError, RemoteError, CommitUncertainError, CorruptStoreError
    """
    check_choice("if_exists", if_exists, get_args(IfExists))
    check_progress(progress)
    if is_url(local):
        raise ValueError(
            f"expected the path of a store to push, found the URL {os.fspath(local)!r}; see embstore.merge"
        )
    place = local_path(local).resolve()
    # A new checksum must not hide a flipped bit.
    part = live_part(place, lru_cache(1)(partial(open_snapshot, check="touched")))
    done: list[AppendResult] = []
    with _in_bucket(url, part, storage_options) as store:
        session = session_of(store)
        assert isinstance(session, PartsSession)
        listing = session.parts_snapshot.listing
        guard = _Guard(place, store.path, listing.id, listing.empty.epoch)
        guard.check_local(part.snapshot, seen_epoch)

        def plan(rows: Rows, snapshot: Snapshot, index: KeyIndex) -> tuple[Plan | None, AppendResult]:
            guard.check_bucket(snapshot)
            return plan_merge(snapshot, index.find, [replace(part, rows=rows)], if_exists, roots=False)

        if if_exists == "error":
            found = session.index.find(part.snapshot.take("key_hash", part.rows))
            if (found >= 0).any():
                raise KeysExistError(part.snapshot.keys_of(part.rows[found >= 0]), path=store.path)
        with reporting(progress, len(part.rows), "push") as advance:
            for rows in _blocks(part):
                done.append(session.apply(partial(plan, rows)))
                advance(len(rows))
        guard.note()
        return PushResult(
            path=store.path,
            appended=sum(one.appended for one in done),
            skipped=sum(one.skipped for one in done),
            replaced=sum(one.replaced for one in done),
            commits=sum(one.appended > 0 for one in done),
        )


def _in_bucket(url: str, part: Part, storage_options: Mapping[str, Any] | None) -> EmbeddingStore:
    """Open the store in the bucket, or make it for the rows of a local store."""
    config = part.record.config
    try:
        return open_store(url, "r+", config=config, storage_options=storage_options)
    except NotAStoreError:
        made = options_like(part.record, len(part.rows))
        return open_store(url, "a", config=config, storage_options=storage_options, **made)


def _blocks(part: Part) -> Iterator[Rows]:
    """Yield the rows of a store in blocks of about 1 GiB."""
    record = part.record
    nbytes = sum(record.arrays[name].row_nbytes * record.arrays[name].length for name in record.fields)
    step = max(1, _PART_NBYTES * max(1, record.rows) // max(1, nbytes))
    for start in range(0, len(part.rows), step):
        yield part.rows[start : start + step]


@dataclass(frozen=True, slots=True)
class _Guard:
    """Keeps a push from bringing back rows that were erased in the bucket.

    Attributes
    ----------
    local, url
    id : str
        Of the store in the bucket.
    epoch : int
        Number of its erases at the start of the push.
    """

    local: Path
    url: PurePath
    id: str
    epoch: int

    def check_local(self, snapshot: Snapshot, seen: int | None) -> None:
        """Raise CopyRefusedError if the local store may have rows that were erased in the bucket."""
        if seen is None and isinstance(snapshot, PartsSnapshot) and snapshot.listing.id == self.id:
            seen = snapshot.listing.empty.epoch
        if seen is None:
            seen = self._notes().get(self.id, 0)
        if seen != self.epoch:
            raise CopyRefusedError(
                self.local,
                self.url,
                f"rows were erased there which this store may still have: its epoch is {self.epoch}, and the one seen "
                f"is {seen}. Erase the same rows here, then push with seen_epoch={self.epoch}; or pull a mirror",
            )

    def check_bucket(self, snapshot: Snapshot) -> None:
        """Raise CopyRefusedError if rows were erased in the bucket, or the store was replaced, during the push."""
        assert isinstance(snapshot, PartsSnapshot)
        if (snapshot.listing.id, snapshot.listing.empty.epoch) != (self.id, self.epoch):
            raise CopyRefusedError(
                self.local, self.url, "rows were erased there during the push, or the store was replaced; push again"
            )

    def _notes(self) -> dict[str, int]:
        """Return the epochs seen, by the ids of stores. A file that is no note counts as absent."""
        try:
            found = json.loads((self.local / NOTE).read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        pairs = found.items() if isinstance(found, dict) else ()
        return {name: epoch for name, epoch in pairs if type(epoch) is int}

    def note(self) -> None:
        """Note that the local store has no row that was erased up to this epoch. Epoch 0 needs no note."""
        notes = self._notes()
        if notes.get(self.id, 0) == self.epoch:
            return
        try:
            with replacing(self.local / NOTE) as temporary:
                temporary.write_bytes(dump_json(notes | {self.id: self.epoch}))
        except OSError as error:
            logger.warning("%s: all rows were pushed, but the next push needs seen_epoch= again: %s", self.local, error)
