"""Upkeep of a cache: disk use and usage of each store, which stores to remove, and how a store is removed."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from embstore._engine.format.zarr_layout import METADATA_NAME
from embstore._engine.io.durable import remove_tree, sibling
from embstore._engine.io.filesystem import move_into_place, sync_path
from embstore._engine.io.folder import PARTIAL
from embstore._engine.io.locks import lock
from embstore.cache.claims import at_work
from embstore.cache.usage import Usage, forget, last_use, usage_of
from embstore.errors import NotAStoreError, StoreLockedError

if TYPE_CHECKING:
    from embstore._engine.format.config import Config

logger = logging.getLogger("embstore")

BACKFILL: Final = ".backfill"
"""Ends the name of the store in which the rows of a new field gather, beside the one that they are for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUse:
    """One store of a cache, what it takes and what it was used for.

    Attributes
    ----------
    path : Path
    config : Config
    rows : int
        Live ones.
    nbytes : int
        On disk.
    usage : Usage
    last_used : float
        The later of `Usage.last_used` and the mtime of the store's record; seconds since the epoch.
    """

    path: Path
    config: Config
    rows: int
    nbytes: int
    usage: Usage
    last_used: float


def use_of(path: Path, config: Config, rows: int) -> StoreUse | None:
    """Look at a store; None, if it was removed meanwhile."""
    usage = usage_of(path)
    try:
        last_used = last_use(path, usage)
    except FileNotFoundError:
        return None
    return StoreUse(
        path=path,
        config=config,
        rows=rows,
        nbytes=nbytes_on_disk(path),
        usage=usage,
        last_used=last_used,
    )


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


def remove_stores(stores: Sequence[StoreUse]) -> list[StoreUse]:
    """Remove stores; gives those that are gone. What must be left alone is, with a logged warning."""
    gone = []
    for store in stores:
        try:
            remove_store(store.path)
        except (StoreLockedError, NotAStoreError) as error:
            logger.warning("%s: not removed: %s", store.path, error)
            continue
        gone.append(store)
    return gone


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
