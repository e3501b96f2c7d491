"""Open the newest commit of a store: by path, by URL, or again after another process replaced the store."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from embstore._engine.chunks.record_file import ATTEMPTS, as_corruption, is_newer, read_head
from embstore._engine.format.parts import PARTS, Listing
from embstore._engine.format.record import Record
from embstore._engine.format.zarr_layout import MAX_METADATA_BYTES, METADATA_NAME
from embstore._engine.io.filesystem import on_network
from embstore._engine.io.folder import Folder, ReadableFolder
from embstore._engine.io.locks import OPEN_MARK, share
from embstore._engine.io.remote import RemoteFolder
from embstore._engine.io.urls import is_url
from embstore._engine.read.column import Check
from embstore._engine.read.history import PUT_BACK, Position
from embstore._engine.read.open_column import Mapping as MappingPolicy
from embstore._engine.read.parts_snapshot import PartsSnapshot
from embstore._engine.read.snapshot import Snapshot
from embstore.errors import CorruptStoreError, NotAStoreError, StoreChangedError, StoreReplacedError

logger = logging.getLogger("embstore")


def exists(place: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> bool:
    """Return whether anything is at a resolved path, or whether a store is at a URL.

    Raises
    ------
    RemoteError
    """
    if not is_url(place):
        return Path(place).exists()
    folder = RemoteFolder.open(os.fspath(place), storage_options, max_signed_bytes=MAX_METADATA_BYTES)
    try:
        folder.read(METADATA_NAME, most=MAX_METADATA_BYTES)
    except FileNotFoundError:
        return False
    return True


def open_snapshot(
    place: str | os.PathLike[str],
    *,
    mapping: MappingPolicy = "auto",
    check: Check = "tail",
    storage_options: Mapping[str, Any] | None = None,
) -> Snapshot:
    """Open the newest commit of the store at a resolved path or a URL, and check the tail of each of its arrays.

    Raises
    ------
    NotAStoreError, UnsupportedFormatError, CorruptStoreError, RemoteError
    """
    if is_url(place):
        folder = RemoteFolder.open(os.fspath(place), storage_options, max_signed_bytes=MAX_METADATA_BYTES)
        return _open_remote(folder, check)
    path = Path(place)
    if not path.is_dir():
        raise NotAStoreError(path, "it is a file" if path.exists() else "there is nothing")
    kind = on_network(path)
    if mapping == "auto" and kind:
        logger.info("%s: on %s; reading it chunk by chunk", path, kind)
        mapping = "never"
    # A lock of a network file system may hang, and would not show readers on other machines reliably.
    return _open(path, lambda: Folder.open(path), mapping=mapping, check=check, marked=not kind)


def _open_remote(folder: RemoteFolder, check: Check) -> Snapshot:
    return _open(folder.path, lambda: folder, mapping="never", check=check)


def _open(
    path: PurePath,
    find_folder: Callable[[], ReadableFolder],
    *,
    mapping: MappingPolicy,
    check: Check,
    marked: bool = False,
) -> Snapshot:
    for _ in range(ATTEMPTS):
        try:
            folder = find_folder()
        except FileNotFoundError as error:  # removed since the check
            raise NotAStoreError(path, "there is nothing") from error
        record: Record | Listing | None = None
        try:
            record, signature = read_head(folder)
            if marked and isinstance(folder, Folder):
                share(folder.child(PARTS if isinstance(record, Listing) else OPEN_MARK).descriptor)
                if folder.replaced():  # it was removed, or compacted, before it was marked as open
                    continue
            snapshot: Snapshot
            if isinstance(record, Listing):
                snapshot = PartsSnapshot(folder, record, signature, mapping=mapping, check=check)
            else:
                snapshot = Snapshot(folder, record, signature, mapping=mapping, check=check)
            snapshot.check_opened()
            return snapshot
        except (FileNotFoundError, CorruptStoreError, StoreChangedError, StoreReplacedError) as error:
            # Either there was a newer commit while it was opened, or it is broken.
            if not is_newer(folder, record):
                raise as_corruption(error) from error.__cause__
    raise StoreReplacedError(path, f"it was replaced {ATTEMPTS} times while it was opened")


def open_again(snapshot: Snapshot) -> Snapshot:
    """Open the newest commit of the store that is at the path now, which must have the same config.

    Raises
    ------
    StoreReplacedError
        The store at the path has another config, so the same keys have other values. Or it is an earlier copy of this
        store, which may have other rows at the same numbers.
    """
    folder = snapshot.folder
    if isinstance(folder, RemoteFolder):
        found = _open_remote(folder, snapshot.check)
    else:
        found = open_snapshot(folder.path, mapping=snapshot.mapping, check=snapshot.check)
    if found.record.fingerprint != snapshot.record.fingerprint:
        raise StoreReplacedError(folder.path, "a store of another config took its place")
    same = found.record.generation == snapshot.record.generation and isinstance(folder, Folder)
    if same and not found.follows(snapshot.position):
        raise StoreReplacedError(folder.path, PUT_BACK)
    return found


def open_later(
    place: str | os.PathLike[str],
    position: Position,
    *,
    mapping: MappingPolicy = "auto",
    check: Check = "tail",
    storage_options: Mapping[str, Any] | None = None,
) -> Snapshot:
    """Open a store for row numbers of an earlier commit, for example from a pickle.

    Parameters
    ----------
    place
    position : Position
        The earlier commit.
    mapping, check, storage_options

    Raises
    ------
    StoreChangedError
        The row numbers belong to other samples by now.
    """
    snapshot = open_snapshot(place, mapping=mapping, check=check, storage_options=storage_options)
    if not snapshot.follows(position):
        raise StoreChangedError(
            snapshot.folder.path,
            "the store was compacted or replaced since it was pickled",
            expected=position[:2],
            found=snapshot.position[:2],
        )
    return snapshot
