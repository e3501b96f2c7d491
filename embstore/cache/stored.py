"""The stores in the folder of a cache, on this machine or in a bucket."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from embstore._engine.chunks.record_file import head_in, read_record
from embstore._engine.format.config import Config
from embstore._engine.format.record import Record
from embstore._engine.format.zarr_layout import MAX_METADATA_BYTES, METADATA_NAME
from embstore._engine.io.bucket import Bucket
from embstore._engine.io.folder import Folder
from embstore.cache.lookup import CacheEntry
from embstore.cache.pins import is_pinned
from embstore.cache.prune import StoreUse, nbytes_on_disk, use_of
from embstore.cache.usage import usage_of
from embstore.errors import CorruptStoreError, NotAStoreError, UnsupportedFormatError

logger = logging.getLogger("embstore")


def stores_in(place: PurePath, suffix: str, storage_options: Mapping[str, Any] | None) -> list[CacheEntry]:
    """Return the stores in a folder or below a URL whose names end with `suffix`, sorted by name.

    Log those that can't be read. The last use of a store in a bucket is its last commit.

    Raises
    ------
    RemoteError, MissingLibraryError
    """
    if isinstance(place, Path):
        return _in_folder(place, suffix)
    return _in_bucket(place, Bucket(str(place), storage_options), suffix)


def uses_of(
    place: PurePath, entries: Sequence[CacheEntry], storage_options: Mapping[str, Any] | None
) -> list[StoreUse]:
    """Return stores of a cache with their disk use and usage. Of a store in a bucket, all objects count."""
    if isinstance(place, Path):
        uses = [use_of(entry, nbytes_on_disk(Path(entry.path))) for entry in entries]
        return [store for store in uses if Path(store.path).exists()]  # another process may have removed one
    nbytes: Counter[str] = Counter()
    for one in Bucket(str(place), storage_options).listed(""):
        nbytes[one.name.partition("/")[0]] += one.nbytes
    return [use_of(entry, nbytes[entry.path.name]) for entry in entries]


def _in_folder(folder: Path, suffix: str) -> list[CacheEntry]:
    found = []
    for path in sorted(folder.glob(f"*{suffix}")):
        try:
            record = read_record(Folder.open(path))[0]
            used = max(usage_of(path).last_used, (path / METADATA_NAME).stat().st_mtime)
        except (NotAStoreError, CorruptStoreError, UnsupportedFormatError, OSError) as error:
            logger.warning("%s: left out of the cache: %s", path, error)
            continue
        found.append(_entry(path, record, used))
    return found


def _in_bucket(url: PurePath, bucket: Bucket, suffix: str) -> list[CacheEntry]:
    found = []
    for name in bucket.folders():
        path = url / name
        if not name.endswith(suffix):
            continue
        try:
            read = bucket.read(f"{name}/{METADATA_NAME}", most=MAX_METADATA_BYTES)
            assert read is not None
            data, _, modified = read
            record, _ = head_in(path / METADATA_NAME, data)
        except (NotAStoreError, CorruptStoreError, UnsupportedFormatError, FileNotFoundError) as error:
            logger.warning("%s: left out of the cache: %s", path, error)
            continue
        found.append(_entry(path, record if isinstance(record, Record) else record.as_one(), modified.timestamp()))
    return found


def _entry(path: PurePath, record: Record, used: float) -> CacheEntry:
    return CacheEntry(path, Config(record.config), record.rows - record.dead, used, is_pinned(path))
