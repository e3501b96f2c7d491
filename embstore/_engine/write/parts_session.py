"""A session with a store of parts in a bucket: every change is one conditional replacement of its record.

There is no lock. A writer reads the newest record, plans its change on that, uploads a part, and replaces the record if
it is still the same. Otherwise it pauses, and plans again. `docs/design/10-buckets.md` has the reasons.
"""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn, TypeVar

import numpy as np

from embstore._engine.chunks.record_file import listing_in
from embstore._engine.format.parts import DEAD, PARTS, RECENT, Dead, Listing, as_empty
from embstore._engine.format.record import Record
from embstore._engine.format.values import crc32c, dump_json
from embstore._engine.format.zarr_layout import MAX_METADATA_BYTES, METADATA_NAME
from embstore._engine.io.bucket import Bucket
from embstore._engine.io.object_store import Mark
from embstore._engine.io.remote import RemoteFolder
from embstore._engine.io.urls import ConditionError
from embstore._engine.io.zip_folder import zipped
from embstore._engine.read.column import Check, Rows
from embstore._engine.read.key_index import KeyIndex
from embstore._engine.read.parts_snapshot import PartsSnapshot
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.build_part import BuiltPart, additions, build_part, renamed, same_additions, temporary
from embstore._engine.write.commit import Blocks
from embstore._engine.write.plans import Plan
from embstore._engine.write.record_edits import new_id
from embstore._engine.write.session import Session
from embstore.errors import (
    CommitUncertainError,
    ConfigError,
    ReadOnlyError,
    RemoteError,
    StoreChangedError,
    StoreExistsError,
    StoreReplacedError,
)

logger = logging.getLogger("embstore")

_Result = TypeVar("_Result")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.5  # seconds
_UNCERTAIN: Final = 8
"""Requests in a row whose outcome is not known, before a commit gives up."""


@dataclass(slots=True)
class _Attempts:
    """The attempts of one change: their commit ids, and the parts that they list."""

    ids: list[str] = field(default_factory=list)
    parts: set[str] = field(default_factory=set)
    uncertain: int = 0
    pause: float = _FIRST_PAUSE

    def landed(self, listing: Listing) -> str | None:
        """Return the id of the attempt that is in the history of a record, or None.

        A compaction may have folded the part, and later commits may have pushed the id out of the list.
        """
        recent = set(listing.recent)
        if found := [one for one in self.ids if one in recent]:
            return found[0]
        listed = {name for part in listing.parts for name in (part.name, *part.of)}
        return None if self.parts.isdisjoint(listed) else self.ids[-1]

    def wait(self) -> None:
        """Pause for a random time, which grows with each attempt."""
        time.sleep(random.uniform(0, self.pause))  # no secret
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)


class PartsSession(Session):
    """The commit that a store object reads, and its way to the next commit in a bucket.

    Parameters
    ----------
    snapshot : PartsSnapshot
    mark : Mark
        Of the record of this commit.
    bucket : Bucket
    """

    interval: ClassVar[float] = 20.0  # each commit is a part, and many parts make a store slow to open

    def __init__(self, snapshot: PartsSnapshot, mark: Mark, bucket: Bucket) -> None:
        super().__init__(snapshot, writable=True, lock_timeout=0)
        self.bucket = bucket
        self._mark = mark

    @property
    def parts_snapshot(self) -> PartsSnapshot:
        """The commit that is read."""
        snapshot = self.snapshot
        assert isinstance(snapshot, PartsSnapshot)
        return snapshot

    def refresh(self) -> bool:
        """Move to the newest commit. Return whether it is another commit."""
        with self._mutex():
            before = self.snapshot.record.commit_id
            self.move_to_newest()
            return self.snapshot.record.commit_id != before

    def move_to_newest(self) -> None:
        """Read the record, unless it has not changed.

        Raises
        ------
        StoreReplacedError, CorruptStoreError, UnsupportedFormatError, RemoteError
        """
        snapshot = self.parts_snapshot
        path = snapshot.folder.path
        try:
            found = self.bucket.read(METADATA_NAME, most=MAX_METADATA_BYTES, unless=self._mark)
        except FileNotFoundError as error:
            raise StoreReplacedError(path) from error
        if found is None:
            return
        data, mark, _ = found
        listing = listing_in(path / METADATA_NAME, data)
        if listing is None or listing.empty.fingerprint != snapshot.record.fingerprint:
            raise StoreReplacedError(path, "a store of another config took its place")
        if listing.seq < snapshot.listing.seq:
            raise StoreReplacedError(path, "an earlier copy of it was put back")
        if listing.commit_id != snapshot.listing.commit_id:
            self._snapshot = snapshot.moved(listing, (0, len(data), 0))
        self._mark = mark

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other threads of this process from changing the session."""
        with self._mutex():
            yield

    @contextlib.contextmanager
    def writing(self, *, recovered: bool = False) -> Iterator[Snapshot]:
        """Refuse: a bucket has no lock, so a change is a function of the newest commit. See `apply`."""
        self.refuse("this change")
        yield self.snapshot  # pragma: no cover

    def refuse(self, what: str) -> NoReturn:
        """Raise ReadOnlyError for a change that stores in a bucket do not have."""
        raise ReadOnlyError(
            self.snapshot.folder.path,
            f"{what} is not possible in a bucket, whose parts never change; make a local copy with "
            "embstore.merge(copy, url), change that, and push it to a new URL",
        )

    def without_rows(
        self, snapshot: Snapshot, plan: Plan | None, changed: tuple[str, ...]
    ) -> tuple[Plan | None, tuple[str, ...]]:
        """Return a plan of columns, unless it changes stored rows: then raise ReadOnlyError."""
        if plan is not None and snapshot.record.rows:
            self.refuse(f"a change of {', '.join(changed)} in stored rows")
        return plan, changed

    @contextlib.contextmanager
    def rewriting(self, what: str) -> Iterator[Snapshot]:
        """Refuse a change of all rows. `what` names the method."""
        self.refuse(what)
        yield self.snapshot  # pragma: no cover

    def commit(self, plan: Plan) -> None:
        """Refuse, as `writing` does."""
        self.refuse("this change")

    def apply(self, planner: Callable[[Snapshot, KeyIndex], tuple[Plan | None, _Result]]) -> _Result:
        """Plan on the newest commit, and carry the plan out. A plan of None makes no commit.

        The planner is called again whenever another writer was faster.

        Raises
        ------
        CommitUncertainError, RemoteError
            And the errors of the planner.
        """
        self.check_writable()
        results: dict[str, _Result] = {}
        built: BuiltPart | None = None
        added: Mapping[str, Blocks] = {}
        with self._mutex(), contextlib.ExitStack() as stack:

            def new_folder() -> Path:
                return Path(stack.enter_context(temporary()))

            def change(listing: Listing, attempt: str) -> Listing | None:
                nonlocal built, added
                snapshot = self.parts_snapshot
                plan, results[attempt] = planner(snapshot, self.index)
                if plan is None:
                    return None
                rows = plan.record.rows - snapshot.record.rows
                wanted = with_dead(self.bucket, snapshot, np.asarray(plan.appends.get("dead_rows", ()), np.int64))
                wanted = replace(wanted, empty=as_empty(plan.record))
                if rows:
                    fresh = additions(snapshot, plan)
                    if built is None or not same_additions(added, fresh):
                        built, added = build_part(new_folder, listing.seq + 1, plan.record, rows, fresh), fresh
                        self.upload(built)
                    elif _seq(built.part.name) < listing.floor:
                        built = renamed(built, listing.seq + 1)
                        self.upload(built)
                    wanted = replace(wanted, parts=(*wanted.parts, built.part))
                return wanted

            attempt = self.swap(change, lambda: built.part.name if built else None)
        return results[attempt]

    def upload(self, built: BuiltPart) -> None:
        """Write the objects of a part."""
        if built.part.zipped:
            files = built.files()
            self.bucket.add_all([(f"{PARTS}/{built.part.name}", lambda: zipped(files))])
            self.parts_snapshot.parts.written(built.part, files)
        else:
            self.bucket.add_all([(f"{PARTS}/{name}", read) for name, read in built.objects()])

    def swap(
        self, change: Callable[[Listing, str], Listing | None], part_of: Callable[[], str | None] = lambda: None
    ) -> str:
        """Replace the record by a changed one, as often as it takes. Return the commit id of the attempt that counts.

        Parameters
        ----------
        change : callable
            Takes the newest list of parts and the id of the attempt. It returns the list to commit, or None for no
            commit.
        part_of : callable
            Returns the name of the part that the attempt lists, if any: another sign that it landed.

        Raises
        ------
        CommitUncertainError
            The outcome is not known.
        RemoteError
            The server refuses. Nothing was committed.
        """
        attempts, last = _Attempts(), ""
        while True:
            try:
                self.move_to_newest()
            except RemoteError as error:
                if last:
                    raise CommitUncertainError(self.path, last) from error
                raise
            if last and (landed := attempts.landed(self.parts_snapshot.listing)):
                return landed
            before, mark, attempt = self.parts_snapshot.listing, self._mark, new_id()
            try:
                wanted = change(before, attempt)
            except StoreChangedError:  # an object was deleted since the record was read, for a later record
                self.move_to_newest()
                if self.parts_snapshot.listing.commit_id == before.commit_id:
                    raise
                continue
            except RemoteError as error:
                if attempts.uncertain:
                    raise CommitUncertainError(self.path, last) from error
                raise
            if wanted is None:
                return attempt
            made = _next(wanted, before, attempt)
            data = document(made)
            if len(data) > MAX_METADATA_BYTES:
                raise ConfigError("", f"{len(data):,} bytes", f"zarr.json may have {MAX_METADATA_BYTES:,}; compact()")
            attempts.ids.append(attempt)
            attempts.parts.update(filter(None, [part_of()]))
            last = attempt
            try:
                mark = self.bucket.replace(METADATA_NAME, data, mark)
            except ConditionError:
                attempts.uncertain = 0
            except RemoteError as error:
                if attempts.uncertain:
                    return self._settled(attempts, error)
                raise
            except OSError as error:
                logger.info("%s: the outcome of a commit is not known: %s", self.path, error)
                attempts.uncertain += 1
                if attempts.uncertain == _UNCERTAIN:
                    return self._settled(attempts, error)
            else:
                self._snapshot = self.parts_snapshot.moved(made, (0, len(data), 0))
                self._mark = mark
                return attempt
            attempts.wait()

    def _settled(self, attempts: _Attempts, error: Exception) -> str:
        """Look once more whether an attempt landed, and return its id.

        Raises
        ------
        CommitUncertainError
        """
        with contextlib.suppress(RemoteError):
            self.move_to_newest()
            if landed := attempts.landed(self.parts_snapshot.listing):
                return landed
        raise CommitUncertainError(self.path, attempts.ids[-1]) from error


def _next(wanted: Listing, before: Listing, commit_id: str) -> Listing:
    """Return a list of parts as the commit after another one."""
    recent = (*before.recent, commit_id)[-RECENT:]
    empty = replace(wanted.empty, commit_id=commit_id)
    return replace(wanted, empty=empty, seq=before.seq + 1, recent=recent)


def document(listing: Listing) -> bytes:
    """Return the ``zarr.json`` of a store of parts: a group whose parts are groups of their own."""
    return dump_json({"zarr_format": 3, "node_type": "group", "attributes": {"embstore": listing.to_json()}})


def _seq(name: str) -> int:
    return int(name.partition("-")[0])


def with_dead(bucket: Bucket, snapshot: PartsSnapshot, rows: Rows) -> Listing:
    """Return the list of parts with more deleted rows. The new lists of these are written.

    Parameters
    ----------
    bucket, snapshot
    rows : ndarray, (n,) int64
        Numbers of rows of the store.
    """
    listing, rows = snapshot.listing, np.unique(rows)
    parts, retired = list(listing.parts), dict(listing.retired)
    starts = np.cumsum([0, *(part.rows for part in parts)])
    which = np.searchsorted(starts, rows, side="right") - 1
    for place in np.unique(which).tolist():
        part = parts[place]
        with snapshot.reading():
            dead = np.union1d(snapshot.parts.dead_rows(part), rows[which == place] - starts[place])
        data = dead.astype("<i8").tobytes()
        name = add_list(bucket, listing, data)
        parts[place] = replace(part, dead=Dead(name=name, rows=len(dead), crc32c=crc32c(data)))
        if part.dead:
            retired[f"{DEAD}/{part.dead.name}"] = name
    return replace(listing, parts=tuple(parts), retired=retired)


def add_list(bucket: Bucket, listing: Listing, data: bytes) -> str:
    """Write a list of deleted rows for the commit after another one. Return its name."""
    name = f"{listing.seq + 1:08}-{secrets.token_hex(8)}"
    bucket.add(f"{DEAD}/{name}", data)
    return name


def open_session(bucket: Bucket, url: str, options: Mapping[str, Any] | None, *, check: Check) -> PartsSession | None:
    """Open a store of parts for writing. Return None if there is no store.

    Raises
    ------
    ReadOnlyError
        The store has rows of its own: it is a copy of a local store.
    NotAStoreError, UnsupportedFormatError, CorruptStoreError, RemoteError
    """
    try:
        found = bucket.read(METADATA_NAME, most=MAX_METADATA_BYTES)
    except FileNotFoundError:
        return None
    assert found is not None
    data, mark, _ = found
    listing = listing_in(bucket.path / METADATA_NAME, data)
    if listing is None:
        raise ReadOnlyError(
            bucket.path, "it is a copy of a local store; embstore.push() makes a store that can be written in a bucket"
        )
    folder = RemoteFolder.open(url, options, max_signed_bytes=MAX_METADATA_BYTES)
    snapshot = PartsSnapshot(folder, listing, (0, len(data), 0), mapping="never", check=check)
    snapshot.check_opened()
    return PartsSession(snapshot, mark, bucket)


def create(bucket: Bucket, record: Record, *, exist_ok: bool) -> None:
    """Make a new store in a bucket.

    Raises
    ------
    StoreExistsError
        Another process has just made one, and `exist_ok` is False.
    RemoteError
        The server ignores conditions, so two writers would lose each other's rows.
    """
    check_conditions(bucket)
    listing = Listing(empty=as_empty(record), id=new_id())
    made = bucket.add(METADATA_NAME, document(listing))
    if not made and not exist_ok:
        raise StoreExistsError(bucket.path)


def check_conditions(bucket: Bucket) -> None:
    """Write a probe to find out whether the server obeys conditions.

    Raises
    ------
    RemoteError
    """
    name = f"{PARTS}/{0:08}-{secrets.token_hex(8)}"  # of a writer that is killed now, `tidy` removes it
    bucket.add(name, b"1")
    try:
        for old, what in ((None, "create-only writes"), (Mark('"0123456789abcdef0123456789abcdef"', "0"), "If-Match")):
            if not bucket.obeys(name, old):
                raise RemoteError(
                    str(bucket.path),
                    f"the server ignores {what}: two writers would lose rows of each other",
                    attempts=1,
                )
    finally:
        bucket.delete([name])
