"""Make or update a mirror of a store in a bucket: the same parts and record in a folder, where they are mapped."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from embstore._engine.chunks.chunk_file import sizes
from embstore._engine.chunks.record_file import as_corruption, listing_in
from embstore._engine.format.arguments import check_choice
from embstore._engine.format.parts import DEAD, PARTS, Listing, Part
from embstore._engine.format.zarr_layout import MAX_METADATA_BYTES, METADATA_NAME, chunk_name
from embstore._engine.io.durable import WriteBatch, replace_file
from embstore._engine.io.filesystem import check_filesystem, explained, make_parents, move_into_place
from embstore._engine.io.folder import PARTIAL, Folder, ReadableFolder, is_partial
from embstore._engine.io.locks import lock
from embstore._engine.io.remote import RemoteFolder
from embstore._engine.io.urls import is_url, local_path
from embstore._engine.pickles import PickledByName
from embstore._engine.progress import Progress, check_progress, reporting
from embstore._engine.read.parts_snapshot import Parts, folder_name
from embstore.errors import CopyRefusedError, CorruptStoreError, NotAStoreError
from embstore.store.verify import examine

logger = logging.getLogger("embstore")

_ATTEMPTS: Final = 20
"""Commits that remove parts while they are fetched, before a pull gives up."""
_WRITTEN_NBYTES: Final = 64 * 2**20
"""Bytes of a part that are fetched before they are synced: a killed pull fetches no more than these again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullResult(PickledByName):
    """The result of `pull`.

    Attributes
    ----------
    path : Path
        The mirror.
    rows : int
        Number of rows of the mirror that are not deleted.
    parts : int
        Number of parts of the mirror.
    fetched : int
        Number of parts that were fetched.
    nbytes : int
        Bytes that were fetched, without records and lists of deleted rows.
    removed : int
        Number of parts that were removed, since the store no longer has them.
    """

    path: Path
    rows: int
    parts: int
    fetched: int
    nbytes: int
    removed: int


def pull(
    url: str,
    mirror: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress = None,
    lock_timeout: float = 60.0,
    network: Literal["refuse", "allow"] = "refuse",
) -> PullResult:
    """Make a mirror of a store in a bucket, or update one.

    A mirror is read-only, and `embstore.open` maps it. It needs one request if the store has no new commit. A stopped
    pull can be repeated: parts that are complete are not fetched again. All chunks are checked before a part is used.

    Rows that were erased in the bucket are erased here first, before new rows are fetched. Until these are complete,
    the mirror can't be opened. Processes that have the mirror open keep the rows that they have mapped, or get
    `StoreChangedError`.

    Parameters
    ----------
    url : str
        A store that `embstore.open` made in a bucket. It may be read over HTTP.
    mirror : path_like
        A mirror of the same store, or a path where nothing is.
    storage_options : mapping, optional
        As `embstore.open` takes them.
    progress : callable, bool or None
        Function of (rows done, rows in all), or True for a bar. By default there is a bar at a terminal.
    lock_timeout : float
        Seconds to wait for another pull of the mirror.
    network : {"refuse", "allow"}
        Whether the mirror may lie on a network or FUSE file system.

    Returns
    -------
    PullResult

    Raises
    ------
    CopyRefusedError
        There is something else at `mirror`: a mirror of another store, a store, or other files. Or the store at the URL
        is older than the mirror, or is a copy of a local store.
    NotAStoreError, CorruptStoreError, RemoteError, UnsupportedFormatError
    StoreLockedError, StorageFullError, ReadOnlyError, NetworkFileSystemError
    """
    if not is_url(url):
        raise ValueError(f"expected a URL to pull from, found {url!r}")
    if is_url(mirror):
        raise ValueError(f"expected a path for the mirror, found the URL {os.fspath(mirror)!r}")
    check_progress(progress)
    check_choice("network", network, ("refuse", "allow"))
    place = local_path(mirror).resolve()
    if network != "allow":
        check_filesystem(place)
    make_parents(place)
    remote = RemoteFolder.open(url, storage_options, max_signed_bytes=MAX_METADATA_BYTES)
    with lock(place, timeout=lock_timeout):
        return _Pull(remote, place, progress).run()


class _Pull:
    """One pull, which holds the lock of its mirror."""

    def __init__(self, remote: RemoteFolder, place: Path, progress: Progress) -> None:
        self._remote = remote
        self._place = place
        self._progress = progress
        self._fetched = self._nbytes = self._removed = 0

    def run(self) -> PullResult:
        """Bring the mirror to the newest commit."""
        listing, data = self._newest()
        root = self._root()
        for _ in range(_ATTEMPTS):
            try:
                self._bring(root, listing, data)
                break
            except FileNotFoundError as error:
                before, (listing, data) = listing, self._newest()
                if listing.commit_id == before.commit_id:
                    raise as_corruption(error) from error
                logger.info("%s: its parts were replaced while they were fetched; beginning again", self._remote.path)
        else:
            raise CorruptStoreError(self._remote.path, f"its parts were replaced {_ATTEMPTS} times during the pull")
        return PullResult(
            path=self._place,
            rows=sum(part.live for part in listing.parts),
            parts=len(listing.parts),
            fetched=self._fetched,
            nbytes=self._nbytes,
            removed=self._removed,
        )

    def _newest(self) -> tuple[Listing, bytes]:
        """Fetch the record of the store, and check that it can be mirrored."""

        def parse(path: Any, data: bytes) -> tuple[Listing | None, bytes]:
            return listing_in(path, data), data

        try:
            _, (listing, data) = self._remote.read_marked(METADATA_NAME, parse, most=MAX_METADATA_BYTES)
        except NotAStoreError:
            raise
        except FileNotFoundError as error:
            raise NotAStoreError(self._remote.path, "it has no zarr.json") from error
        if listing is None:
            self._refuse("the store there is a copy of a local store, without parts; embstore.merge copies its rows")
        if (known := self._mirrored()) is not None:
            if known.id != listing.id:
                self._refuse("the path has a mirror of another store; choose another path, or remove the mirror")
            if listing.seq < known.seq or listing.empty.epoch < known.empty.epoch:
                self._refuse("an earlier copy of the store was put back there; remove the mirror, and pull again")
        return listing, data

    def _refuse(self, reason: str) -> NoReturn:
        raise CopyRefusedError(self._place, self._remote.path, reason)

    def _mirrored(self) -> Listing | None:
        """Return the record of the mirror, or None without one."""
        path = self._place / METADATA_NAME
        if not path.exists():
            return None
        listing = listing_in(path, path.read_bytes())
        if listing is None:
            self._refuse("the path has a store of its own, not a mirror; choose another path")
        return listing

    def _root(self) -> Folder:
        """Return the folder of the mirror. It is made if it is absent."""
        place = self._place
        with explained(place):
            if os.path.lexists(place) and not place.is_dir():
                self._refuse("the path has a file; choose another path")
            if place.exists() and not (place / METADATA_NAME).exists():
                # A pull that was killed leaves these.
                others = [name for name in os.listdir(place) if name not in (PARTS, DEAD) and not is_partial(name)]
                if others:
                    self._refuse(f"the path has a folder that is not a mirror, with {others[0]!r}; choose another path")
            place.mkdir(exist_ok=True)
        root = Folder.open(place)
        for name in {PARTS, DEAD}.difference(root.names()):
            root.make_child(name)
        root.remove_partials()
        root.sync()
        Folder.open(place.parent).sync()
        return root

    def _bring(self, root: Folder, listing: Listing, data: bytes) -> None:
        """Bring the mirror to one commit.

        Raises
        ------
        FileNotFoundError
            A later commit removed a part meanwhile.
        """
        known = self._mirrored()
        if known is not None and listing.empty.epoch > known.empty.epoch:
            # Erased rows go before anything else. A kill from here on leaves a record whose parts are missing.
            self._replace_record(root, data)
            self._remove_unlisted(root, listing)
        self._fetch_missing(root, listing)
        known = self._mirrored()
        if known is None or known.commit_id != listing.commit_id:
            self._replace_record(root, data)
        self._remove_unlisted(root, listing)

    def _replace_record(self, root: Folder, data: bytes) -> None:
        replace_file(root, METADATA_NAME, [data])
        root.sync()

    def _remove_unlisted(self, root: Folder, listing: Listing) -> None:
        """Remove parts and lists of deleted rows that a record does not name."""
        parts, dead = root.child(PARTS), root.child(DEAD)
        listed = {folder_name(part) for part in listing.parts}
        begun = {_partial(name) for name in listed.difference(parts.names())}
        gone = [name for name in parts.names() if name not in listed | begun]
        for name in gone:
            # Without its record, a part that is half removed is not taken for a whole one.
            parts.remove(name, first=METADATA_NAME)
        self._removed += sum(not name.startswith(".") for name in gone)
        lists = {part.dead.name for part in listing.parts if part.dead}
        old = [name for name in dead.names() if name not in lists]
        for name in old:
            dead.remove(name)
        for folder, removed in ((parts, gone), (dead, old)):
            if removed:
                folder.sync()

    def _fetch_missing(self, root: Folder, listing: Listing) -> None:
        """Fetch the parts and lists of deleted rows that the mirror lacks."""
        dead, remote = root.child(DEAD), Parts(self._remote, mapping="never", check="touched")
        have = set(dead.names())
        for part in listing.parts:
            if part.dead and part.dead.name not in have:
                rows = remote.dead_rows(part)
                replace_file(dead, part.dead.name, [rows.astype("<i8").tobytes()])
                dead.sync()
        here = set(root.child(PARTS).names())
        missing = [part for part in listing.parts if folder_name(part) not in here]
        with reporting(self._progress, sum(part.rows for part in missing), "pull") as advance:
            for part in remote.loaded(missing):
                self._fetch(remote, root.child(PARTS), part, listing)
                self._fetched += 1
                advance(part.rows)

    def _fetch(self, remote: Parts, parts: Folder, part: Part, listing: Listing) -> None:
        """Fetch a part under a temporary name, check every byte, sync it, and give it its name."""
        source, record = remote.folder_of(part), remote.record(part, listing.empty)
        name = _partial(folder_name(part))
        begun = name in parts.names()
        while True:
            target = parts.child(name) if name in parts.names() else parts.make_child(name)
            self._fetch_files(source, target, [METADATA_NAME], MAX_METADATA_BYTES)
            for array_name, array in record.arrays.items():
                known = set(target.names())
                child = target.child(array_name) if array_name in known else target.make_child(array_name)
                chunks = (chunk_name(array, index) for index in range(array.chunks))
                self._fetch_files(source.child(array_name), child, [METADATA_NAME], MAX_METADATA_BYTES)
                self._fetch_files(source.child(array_name), child, chunks, sizes(array)[1])
            target.sync()
            snapshot, report = examine(target.path)
            if report.ok and snapshot is not None and snapshot.record.commit_id == record.commit_id:
                break
            parts.remove(name)
            if not begun:
                detail = report.problems[0].detail if report.problems else "it is of another part"
                raise CorruptStoreError(source.path, detail)
            begun = False  # a power cut may have damaged files of an earlier pull
        move_into_place(target.path, parts.path / folder_name(part))

    def _fetch_files(self, source: ReadableFolder, target: Folder, names: Iterable[str], most: int) -> None:
        """Fetch files that are absent, each under a temporary name first."""
        target.remove_partials()
        have = set(target.names())
        missing = [name for name in names if name not in have]
        written = 0
        with WriteBatch() as batch:
            for name, data in zip(missing, source.contents(missing, _content, most=most), strict=True):
                batch.write(target, name, [data])
                self._nbytes += len(data)
                written += len(data)
                if written > _WRITTEN_NBYTES:
                    batch.publish()
                    written = 0


def _content(_: Any, data: bytes | memoryview) -> bytes | memoryview:
    return data


def _partial(name: str) -> str:
    """Return the temporary name of the folder of a part."""
    return f".{name}{PARTIAL}"
