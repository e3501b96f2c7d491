"""Upkeep of a cache: disk use and usage of each store, which stores to remove, and how a store is removed."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from embstore._engine.format.zarr_layout import METADATA_NAME
from embstore._engine.io.durable import remove_tree, sibling
from embstore._engine.io.filesystem import move_into_place, sync_path
from embstore._engine.io.folder import PARTIAL
from embstore._engine.io.locks import lock
from embstore.cache.claims import at_work
from embstore.cache.lookup import CacheEntry
from embstore.cache.usage import Usage, forget, usage_of
from embstore.errors import NotAStoreError, StoreLockedError

BACKFILL: Final = ".backfill"
"""Ends the name of the store in which the rows of a new field gather, beside the one that they are for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUse(CacheEntry):
    """One store of a cache, its disk use and its usage.

    Attributes
    ----------
    path, config, rows, last_used
        See `CacheEntry`.
    nbytes : int
        Bytes on disk.
    usage : Usage
    """

    nbytes: int
    usage: Usage


def use_of(entry: CacheEntry) -> StoreUse:
    """Return the disk use and the usage of a store."""
    known = {field.name: getattr(entry, field.name) for field in fields(entry)}
    return StoreUse(**known, nbytes=nbytes_on_disk(entry.path), usage=usage_of(entry.path))


def nbytes_on_disk(path: Path) -> int:
    """Return the bytes that a folder's files take on disk (holes take none)."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a writer at work
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def choose_for_removal(
    stores: Sequence[StoreUse], *, now: float, max_nbytes: int | None = None, unused_for: float | None = None
) -> list[StoreUse]:
    """Return the stores to remove, those that were used longest ago first.

    Parameters
    ----------
    stores : sequence of StoreUse
    now : float
        Seconds since the epoch.
    max_nbytes : int, optional
        Bytes that the other stores may take together.
    unused_for : float, optional
        Seconds; a store that was not used for longer is removed.
    """
    chosen: list[StoreUse] = []
    total = sum(store.nbytes for store in stores)
    for store in sorted(stores, key=lambda store: store.last_used):
        old = unused_for is not None and now - store.last_used > unused_for
        if old or (max_nbytes is not None and total > max_nbytes):
            chosen.append(store)
            total -= store.nbytes
    return chosen


def remove_store(path: Path, *, timeout: float = 0.0) -> None:
    """Remove a store, and what was counted of its use. Readers that have it open keep what they have mapped.

    From one moment to the next there is no store at its place any more; a process that is killed later leaves a
    folder of another name, which the next writer removes, or `remove_leftovers`.

    Parameters
    ----------
    path : Path
    timeout : float
        Seconds to wait for a writer.

    Raises
    ------
    StoreLockedError
        A writer is at work, or a process is encoding what it will write.
    NotAStoreError
        It is a symbolic link: what that leads to may be in use elsewhere.
    ReadOnlyError
    """
    if path.is_symlink():
        raise NotAStoreError(path, "it is a link")
    with lock(path, timeout=timeout):
        fields = [*path.parent.glob(f".{glob.escape(path.name)}.*{BACKFILL}")]
        if any(map(at_work, [path, *fields])):
            raise StoreLockedError(path, holder="a process that encodes", timeout=timeout)
        _remove_beside(path)
        if path.exists():  # else another process was faster
            move_into_place(path, sibling(path))
            forget(path)
            _remove_beside(path)
        for gathered in fields:
            with contextlib.suppress(FileNotFoundError):  # another process removes it, which found it done
                remove_tree(gathered, last_first=METADATA_NAME)


def _remove_beside(path: Path) -> None:
    """Remove what a killed process left beside a store. Called under its lock."""
    beside = sibling(path)
    if beside.exists():
        sync_path(beside.parent)  # it may have come there by a rename that is not on disk yet
        remove_tree(beside, last_first=METADATA_NAME)


def remove_leftovers(folder: Path, suffix: str) -> None:
    """Remove leftovers of killed processes beside stores, where no writer is at work.

    Parameters
    ----------
    folder : Path
        A cache's.
    suffix : str
        Of its stores.
    """
    for beside in folder.glob(f".*{suffix}{PARTIAL}"):
        path = beside.with_name(beside.name.removeprefix(".").removesuffix(PARTIAL))
        with contextlib.suppress(StoreLockedError), lock(path, timeout=0):
            _remove_beside(path)
            if not path.exists():
                forget(path)
