"""Looks up a data set's keys in the stores of a cache, and appends rows to them.

The caller passes the files of the keys. `names` chooses the stores.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

import numpy as np

from embstore import Cache, Config, EmbeddingStore
from embstore._engine.format.record import Origin
from embstore._engine.format.source_columns import DIGEST_COLUMN, ORIGINS_COLUMN, SIZE_COLUMN, SOURCE_COLUMNS
from embstore._engine.io.stamps import UNKNOWN
from embstore.cache.coverage import stamp_values
from embstore.cache.prune import remove_store
from embstore.cache.usage import count
from embstore.errors import StoreLockedError
from embstore.exchange import Unreadable
from embstore.pipeline.freshness import compare_samples
from embstore.sources import FileSample
from embstore_fl.a2v import entries, names
from embstore_fl.overlay import Layer, StoreLayer, Tokens, is_cls
from embstore_fl.stores import open_shared, refresh_shared

logger = logging.getLogger("embstore")

_BLOCK_NBYTES: Final = 256 * 2**20
_FIELDS: Final = ("last_hidden_state", "embedding")

FilesOf = Callable[[Sequence[str]], Mapping[str, FileSample]]
"""Function that returns the files of keys in their current state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """Result of a look-up of a data set's own samples in the cache.

    Attributes
    ----------
    stored : tuple of str
        Keys with a current row.
    missing : tuple of str
        Keys without a row.
    stale : tuple of str
        Keys with a row made from other content than the file has now.
    reason : str
    paths : tuple of Path
        Stores with these rows.
    """

    stored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    reason: str = ""
    paths: tuple[PurePath, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every sample has a current row."""
        return bool(self.paths) and not self.missing and not self.stale

    @property
    def outcome(self) -> str:
        """Outcome: "hit", "partial" or "miss"."""
        return "hit" if self.complete else "partial" if self.stored else "miss"


def paths_of(cache: Cache, wanted: names.Wanted, config: Mapping[str, Any] | None, *, cls: bool) -> list[PurePath]:
    """Return the paths of matching stores. With a config, only its store. With `cls`, stores of the CLS token, too.

    Raises
    ------
    AmbiguousConfigError
    """
    if config is not None:
        path = cache.path_of(Config({"dataset": wanted.dataset, **config}))
        return [path] if cache.has_store(path) else []
    return [entry.path for entry in names.find_stores(cache, wanted, cls=cls)]


def alike(shape: tuple[int, ...], other: tuple[int, ...], tokens: Tokens) -> bool:
    """Return whether a node can use rows of both shapes. A node that uses the CLS token alone cuts each row."""
    return shape[1:] == other[1:] if tokens == "cls" else shape == other


def look_up(
    paths: Sequence[PurePath],
    own: Sequence[str],
    files: FilesOf,
    *,
    counted: set[PurePath],
    field: str | None = None,
    tokens: Tokens = "all",
) -> tuple[list[StoreLayer], CacheReport]:
    """Look up keys in stores. Each key is read from the first store that has it.

    Parameters
    ----------
    paths : sequence of Path
    own : sequence of str
    files : callable
    counted : set of Path
        Stores that count these look-ups already. A data set looks more than once.
    field : str, optional
        Field to read from stores with several fields.
    tokens : {"any", "all", "cls"}
        See `AudioEmbeddings.tokens`.
    """
    layers: list[StoreLayer] = []
    left, stored, stale = list(own), [], set()
    for path in paths:
        store = open_shared(path).store
        name = field_of(store, field)
        shape = () if name is None else store.fields[name].shape
        if (
            name is None
            or (layers and not alike(shape, layers[0].spec.shape, tokens))
            or (tokens == "all" and is_cls(shape))
        ):
            logger.info("%s: skipped, no field with rows of this shape: %s", path, store.fields)
            continue
        fresh, old = fresh_keys(store, left, files)
        if path not in counted:
            counted.add(path)
            count(path, hits=len(fresh), misses=len(left) - len(fresh), served=len(fresh), encoded=0, seconds=0)
        layers.append(StoreLayer(store.path, name, fresh))
        stored += fresh
        stale |= {*old}
        there = {*fresh}
        left = [key for key in left if key not in there]
    missing = [key for key in left if key not in stale]
    outdated = [key for key in left if key in stale]
    reason = f"{len(stored):,} of {len(own):,} there, {len(missing):,} missing, {len(outdated):,} stale"
    if 0 < len(stored) < len(own):
        reason += "; the rows that are there are used"
    unknown = sum(len(one.rows) for one in layers if not isinstance(one.store.config.get("encoder"), Mapping))
    if 0 < unknown < len(stored):
        mixed = f"{unknown:,} rows of a training loop, with unknown weights, are used beside rows of an encoder"
        logger.warning("%s", mixed)
        reason += f"; {mixed}"
    report = CacheReport(
        stored=tuple(stored),
        missing=tuple(missing),
        stale=tuple(outdated),
        reason=reason,
        paths=tuple(layer.path for layer in layers),
    )
    return layers, report


def fresh_keys(store: EmbeddingStore, keys: Sequence[str], files: FilesOf) -> tuple[list[str], list[str]]:
    """Return the keys with current rows, and the keys with stale rows.

    A row is stale if it was made from other content than its file has now. Rows of a training loop or an old file may
    have neither stamp nor digest. They count as current.
    """
    rows = store.find(keys)
    there = np.flatnonzero(rows >= 0)
    found = [keys[place] for place in there.tolist()]
    if not {DIGEST_COLUMN, SIZE_COLUMN} <= store.columns.keys():
        return found, []
    view = store.select(rows=rows[there])
    told = view.column(SIZE_COLUMN) >= 0
    if not told.all():  # rows without a stamp may have a digest
        doubtful = np.flatnonzero(~told)
        told[doubtful] = [digest != "" for digest in view[doubtful].column(DIGEST_COLUMN)]
    known = files([key for key, one in zip(found, told.tolist(), strict=True) if one])
    outdated = {*compare_samples(store, known).stale}
    return [key for key in found if key not in outdated], [key for key in found if key in outdated]


def append(
    cache: Cache,
    config: Config,
    values: Mapping[str, Any],
    shape: tuple[int, ...],
    *,
    files: Mapping[str, FileSample],
) -> tuple[list[str], list[Unreadable]]:
    """Append embeddings with the stamps of their files to the store of a config, block by block.

    A stored row stays, unless its file has changed since.

    Returns
    -------
    list of str
        Keys of new rows.
    list of Unreadable
        Rows with NaN or infinity, which were not appended.

    Raises
    ------
    ReadOnlyError, StorageFullError, StoreLockedError
    """
    keys, refused, added = list(values), [], list[str]()
    step = max(1, _BLOCK_NBYTES // (4 * max(1, int(np.prod(shape)))))
    with cache.open(config, "a", fields={"embedding": entries.spec_of(shape)}, columns=SOURCE_COLUMNS) as store:
        for start in range(0, len(keys), step):
            new = _new_keys(store, keys[start : start + step], files)
            if not new:
                continue
            rows = entries.as_rows([values[key] for key in new])
            finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1).tolist()
            refused += [Unreadable(key, "NaN or infinity") for key, ok in zip(new, finite, strict=True) if not ok]
            chosen = [key for key, ok in zip(new, finite, strict=True) if ok]
            stamps = [files[key].stamp if key in files else UNKNOWN for key in chosen]
            columns = {
                DIGEST_COLUMN: "",  # the content was not read here, so only the stamp shows a change
                **stamp_values(stamps),
                ORIGINS_COLUMN: 0,
            }
            if chosen:
                store.append(chosen, rows[finite], columns=columns, if_exists="replace")
                added += chosen
        path = store.path
    refresh_shared(path)
    logger.info("%s: %d rows added", path, len(added))
    return added, refused


def _new_keys(store: EmbeddingStore, keys: Sequence[str], files: Mapping[str, FileSample]) -> list[str]:
    """Return the keys without a row, and those with a stale row."""
    store.refresh()
    fresh, _ = fresh_keys(store, [key for key in keys if key in files], lambda some: {k: files[k] for k in some})
    known = {*fresh, *(key for key in keys if key not in files and key in store)}
    return [key for key in keys if key not in known]


def remove(cache: Cache, wanted: names.Wanted) -> list[PurePath]:
    """Remove a data set's stores with these attributes. Return their paths. A store that a writer holds is kept."""
    removed: list[PurePath] = []
    for entry in cache.entries():
        if entry.config.get("dataset") != wanted.dataset or names.differences(wanted, entry.config):
            continue
        try:
            remove_store(entry.path)
            removed.append(entry.path)
            logger.info("%s: removed, %d rows", entry.path, entry.rows)
        except StoreLockedError as error:
            logger.warning("%s: not removed: %s", entry.path, error)
    return removed


def field_of(store: EmbeddingStore, wanted: str | None) -> str | None:
    """Return the field to read: `wanted`, or else the field with all tokens. None if the store lacks it."""
    for name in (wanted,) if wanted is not None else _FIELDS:
        if name in store.fields:
            return name
    if wanted is None and len(store.fields) == 1:
        ((name, spec),) = store.fields.items()
        return name if spec.pooling is None else None
    return None


class Files:
    """A source of given files, below a root if that is known."""

    def __init__(self, name: str, files: Mapping[str, FileSample], root: str | os.PathLike[str] | None = None) -> None:
        self.name = name
        self.origin = Origin(kind="folder", root=None if root is None else os.path.abspath(root))
        self.files = files

    def __iter__(self) -> Iterator[FileSample]:
        return iter(self.files.values())


def lies_in(layer: Layer, folder: PurePath) -> bool:
    """Return whether a layer is a store of this cache."""
    return isinstance(layer, StoreLayer) and layer.path.parent == folder


def shape_of_most(values: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the most frequent shape."""
    shapes = [tuple(value.shape) for value in values.values()]
    return max(shapes, key=shapes.count) if shapes else ()
