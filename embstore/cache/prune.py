"""Maintenance of a cache: disk use and usage of each store, the choice of stores to remove, and their removal."""

from __future__ import annotations

import contextlib
import errno
import glob
import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path, PurePath
from typing import Any, Final, Literal

from embstore._engine.format.arguments import whole_number
from embstore._engine.format.zarr_layout import METADATA_NAME
from embstore._engine.io.durable import remove_tree, sibling
from embstore._engine.io.filesystem import move_into_place
from embstore._engine.io.folder import PARTIAL
from embstore._engine.io.locks import OPEN_MARK, FileLock, lock
from embstore.cache.claims import at_work
from embstore.cache.lookup import CacheEntry
from embstore.cache.pins import is_pinned
from embstore.cache.usage import Usage, forget, usage_of
from embstore.errors import NotAStoreError, ReadOnlyError, StoreLockedError

BACKFILL: Final = ".backfill"
"""Suffix of the store that gathers the rows of a new field, beside the store that will get the field."""


IfOpen = Literal["remove", "keep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUse(CacheEntry):
    """A store of a cache, with its disk use and usage.

    Attributes
    ----------
    path, config, rows, last_used, pinned, differs
        See `CacheEntry`.
    nbytes : int
        Bytes on disk.
    usage : Usage
    """

    nbytes: int
    usage: Usage


def use_of(entry: CacheEntry, nbytes: int) -> StoreUse:
    """Return an entry with the disk use and the usage of its store."""
    known = {field.name: getattr(entry, field.name) for field in fields(entry)}
    return StoreUse(**known, nbytes=nbytes, usage=usage_of(entry.path))


def nbytes_on_disk(path: Path) -> int:
    """Return the bytes of a folder's files on disk. Holes count as 0 bytes."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a writer may remove files
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def check_limits(max_nbytes: Any, unused_for: Any) -> tuple[int | None, float | None]:
    """Return the limits of a cache: bytes on disk, and seconds.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(max_nbytes, float) and max_nbytes.is_integer():  # 50e9
        max_nbytes = int(max_nbytes)
    if max_nbytes is not None:
        max_nbytes = whole_number("max_nbytes", max_nbytes, 0)
    if isinstance(unused_for, timedelta):
        unused_for = unused_for.total_seconds()
    if unused_for is None:
        return max_nbytes, None
    if isinstance(unused_for, bool) or not isinstance(unused_for, int | float):
        raise TypeError(f"expected unused_for to be a timedelta or a number of seconds, found {unused_for!r:.200}")
    if not 0 <= unused_for < math.inf:
        raise ValueError(f"expected unused_for from 0 seconds on, found {unused_for}")
    return max_nbytes, float(unused_for)


def choose_for_removal(
    stores: Sequence[StoreUse],
    *,
    now: float,
    max_nbytes: int | None = None,
    unused_for: float | None = None,
    kept: Collection[PurePath] = (),
) -> list[StoreUse]:
    """Return the stores to remove, those used longest ago first.

    Parameters
    ----------
    stores : sequence of StoreUse
    now : float
        Seconds since the epoch.
    max_nbytes : int, optional
        Bytes for all other stores together.
    unused_for : float, optional
        Seconds. Stores that were last used longer ago are removed.
    kept : collection of PurePath
        Paths of stores that are not chosen. Their bytes count.
    """
    chosen: list[StoreUse] = []
    total = sum(store.nbytes for store in stores)
    for store in sorted(stores, key=lambda store: store.last_used):
        old = unused_for is not None and now - store.last_used > unused_for
        if store.path not in kept and (old or (max_nbytes is not None and total > max_nbytes)):
            chosen.append(store)
            total -= store.nbytes
    return chosen


def on_this_machine(path: PurePath, what: str) -> Path:
    """Return the path of a store or cache, which `what` needs on this machine.

    Raises
    ------
    ReadOnlyError
        It is in a bucket.
    """
    if isinstance(path, Path):
        return path
    raise ReadOnlyError(
        path,
        f"{what} is not possible in a bucket, where other machines may use a store; to remove a store, delete all "
        "objects below its URL with the tools of the bucket",
    )


def remove_store(path: PurePath, *, timeout: float = 0.0, if_open: IfOpen = "remove") -> None:
    """Remove a store and its usage. Open readers keep the chunks that they have mapped.

    One rename takes the whole store away from `path`. A process that is killed after it leaves a folder of another
    name, which the next writer or `remove_leftovers` removes.

    Parameters
    ----------
    path : PurePath
    timeout : float
        Seconds to wait for a writer.
    if_open : {"remove", "keep"}
        Whether to remove a store that a process of this machine has open.

    Raises
    ------
    StoreLockedError
        A writer is active, a process is encoding rows for the store or has it open (`if_open`), or it is pinned.
    NotAStoreError
        `path` is a symbolic link. Its target may be in use elsewhere.
    ReadOnlyError
    """
    path = on_this_machine(path, "removal of a store")
    if path.is_symlink():
        raise NotAStoreError(path, "it is a link")
    with lock(path, timeout=timeout):
        fields = [*path.parent.glob(f".{glob.escape(path.name)}.*{BACKFILL}")]
        if any(map(at_work, [path, *fields])):
            raise StoreLockedError(path, holder="a process that encodes", timeout=timeout)
        if is_pinned(path):
            raise StoreLockedError(path, holder="a pin (cache.unpin removes it)", timeout=timeout)
        beside = sibling(path)
        remove_tree(beside, first=METADATA_NAME)  # left by a killed process
        if path.exists():  # otherwise another process has removed it
            with _no_reader(path, if_open):
                try:
                    move_into_place(path, beside)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    beside = path  # a lower layer of an overlay has it, so it is removed where it is
                    remove_tree(beside / METADATA_NAME)
            forget(path)
            remove_tree(beside, first=METADATA_NAME)
        for gathered in fields:
            remove_tree(gathered, first=METADATA_NAME)


@contextlib.contextmanager
def _no_reader(path: Path, if_open: IfOpen) -> Iterator[None]:
    """Keep processes from opening the store at `path` inside the block.

    Raises
    ------
    StoreLockedError
        A process has it open.
    """
    mark = FileLock(path / OPEN_MARK, folder=True)
    if if_open == "keep" and mark.place.is_dir() and not mark.acquire():
        raise StoreLockedError(path, holder="a process that has it open", timeout=0)
    try:
        yield
    finally:
        mark.release()


def remove_leftovers(folder: Path, suffix: str) -> None:
    """Remove the folders that killed processes left beside stores without an active writer.

    Parameters
    ----------
    folder : Path
        Folder of a cache.
    suffix : str
        Suffix of its stores.
    """
    for beside in folder.glob(f".*{suffix}{PARTIAL}"):
        path = beside.with_name(beside.name.removeprefix(".").removesuffix(PARTIAL))
        with contextlib.suppress(StoreLockedError), lock(path, timeout=0):
            remove_tree(sibling(path), first=METADATA_NAME)
            if not path.exists():
                forget(path)
