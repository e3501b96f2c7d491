"""Between a dataset's keys and the stores of a cache: what they have of it, and rows added to them.

Which files the keys stand for, the caller says; which stores fit, `names`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore import Cache, Config, EmbeddingStore
from embstore._engine.io.stamps import UNKNOWN
from embstore.cache.coverage import DIGEST_COLUMN, MTIME_COLUMN, SIZE_COLUMN, SOURCE_COLUMNS
from embstore.cache.usage import count
from embstore.exchange import Unreadable
from embstore.pipeline.freshness import compare_samples
from embstore.sources import FileSample
from embstore.sources.base import file_sample
from embstore_fl.a2v import entries, names
from embstore_fl.overlay import Layer, StoreLayer
from embstore_fl.stores import open_shared, refresh_shared

logger = logging.getLogger("embstore")

_BLOCK_NBYTES: Final = 256 * 2**20
_FIELDS: Final = ("last_hidden_state", "embedding")

FilesOf = Callable[[Sequence[str]], Mapping[str, FileSample]]
"""Gives the files of keys, as they are now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """What the cache had of a dataset's own samples.

    Attributes
    ----------
    stored, missing, stale : tuple of str
        Keys: there and current; not there; there, but made from other content than the file has now.
    reason : str
    paths : tuple of Path
        Of the stores that they were found in.
    """

    stored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    reason: str = ""
    paths: tuple[Path, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every sample's embedding is there and current."""
        return bool(self.paths) and not self.missing and not self.stale

    @property
    def outcome(self) -> str:
        """In a word: "hit", "partial" or "miss"."""
        return "hit" if self.complete else "partial" if self.stored else "miss"


def paths_of(cache: Cache, wanted: names.Wanted, config: Mapping[str, Any] | None) -> list[Path]:
    """Return where the stores that fit lie: that of a config, if one is given.

    Raises
    ------
    AmbiguousConfigError
    """
    if config is not None:
        path = cache.path_of(Config({"dataset": wanted.dataset, **config}))
        return [path] if path.exists() else []
    return [entry.path for entry in names.find_stores(cache, wanted)]


def look_up(
    paths: Sequence[Path], own: Sequence[str], files: FilesOf, *, field: str | None = None
) -> tuple[list[StoreLayer], CacheReport]:
    """Look for keys in stores, each in the first that has it.

    Parameters
    ----------
    paths : sequence of Path
    own : sequence of str
    files : callable
    field : str, optional
        Of stores with several.
    """
    layers: list[StoreLayer] = []
    left, stored, stale = list(own), [], set()
    for path in paths:
        store = open_shared(path).store
        name = field_of(store, field)
        if name is None or (layers and store.fields[name].shape != layers[0].shape):
            logger.info("%s: left out, as its rows are others: %s", path, store.fields)
            continue
        fresh, old = fresh_keys(store, left, files)
        count(path, hits=len(fresh), misses=len(left) - len(fresh), served=len(fresh), encoded=0, seconds=0)
        layers.append(StoreLayer(store.path, name, fresh))
        stored += fresh
        stale |= {*old}
        there = {*fresh}
        left = [key for key in left if key not in there]
    missing = [key for key in left if key not in stale]
    outdated = [key for key in left if key in stale]
    reason = f"{len(stored):,} of {len(own):,} there, {len(missing):,} missing, {len(outdated):,} stale"
    report = CacheReport(
        stored=tuple(stored),
        missing=tuple(missing),
        stale=tuple(outdated),
        reason=reason,
        paths=tuple(layer.path for layer in layers),
    )
    return layers, report


def fresh_keys(store: EmbeddingStore, keys: Sequence[str], files: FilesOf) -> tuple[list[str], list[str]]:
    """Return which keys are stored and current, and which are stale.

    A row is stale if it was made from other content than its file has now. Of rows that a training loop or an old file
    gave without a word on their content, nothing can be said: they count as current.
    """
    rows = store.find(keys)
    there = np.flatnonzero(rows >= 0)
    found = [keys[place] for place in there.tolist()]
    if not SOURCE_COLUMNS.keys() <= store.columns.keys():
        return found, []
    view = store.select(rows=rows[there])
    told = view.column(SIZE_COLUMN) >= 0
    if not told.all():  # by no stamp: by a digest, or not at all
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
) -> list[Unreadable]:
    """Add embeddings to the store of a config, a block at a time, each with the stamp of its file.

    A row that is stored already stays, unless its file has changed since.

    Returns
    -------
    list of Unreadable
        What was not added: rows with NaN or infinity.

    Raises
    ------
    ReadOnlyError, StorageFullError, StoreLockedError
    """
    keys, refused, added = list(values), [], 0
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
                DIGEST_COLUMN: "",  # the content was not read here: its stamp alone tells whether it is still the same
                SIZE_COLUMN: [stamp.size for stamp in stamps],
                MTIME_COLUMN: [stamp.mtime for stamp in stamps],
            }
            if chosen:
                result = store.append(chosen, rows[finite], columns=columns, if_exists="replace")
                added += result.appended
        path = store.path
    refresh_shared(path)
    logger.info("%s: %d rows added", path, added)
    return refused


def _new_keys(store: EmbeddingStore, keys: Sequence[str], files: Mapping[str, FileSample]) -> list[str]:
    """Return the keys that a store does not have, or has of other content than their file has now."""
    store.refresh()
    fresh, _ = fresh_keys(store, [key for key in keys if key in files], lambda some: {k: files[k] for k in some})
    known = {*fresh, *(key for key in keys if key not in files and key in store)}
    return [key for key in keys if key not in known]


def field_of(store: EmbeddingStore, wanted: str | None) -> str | None:
    """Return the field to read: the one wanted, or the sequence of tokens; None, if there is none of that kind."""
    for name in (wanted,) if wanted is not None else _FIELDS:
        if name in store.fields:
            return name
    if wanted is None and len(store.fields) == 1:
        ((name, spec),) = store.fields.items()
        return name if spec.pooling is None else None
    return None


class Files:
    """Some files, as a source."""

    def __init__(self, name: str, files: Mapping[str, FileSample]) -> None:
        self.name = name
        self.files = files

    def __iter__(self) -> Iterator[FileSample]:
        return iter(self.files.values())


def lies_in(layer: Layer, folder: Path) -> bool:
    """Tell whether a layer is a store of this cache."""
    return isinstance(layer, StoreLayer) and layer.path.parent == folder


def file_of(key: str, path: Path) -> FileSample:
    """Return the sample of a file; one that can't be read, if it is not there."""
    try:
        return file_sample(key, path, path.stat())
    except OSError:
        return FileSample(key, path, UNKNOWN)


def shape_of_most(values: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape that most embeddings have."""
    shapes = [tuple(value.shape) for value in values.values()]
    return max(shapes, key=shapes.count) if shapes else ()
