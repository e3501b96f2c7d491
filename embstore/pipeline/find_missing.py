"""Comparison of a store with the samples and fields that a run wants: stored, missing, stale, gone, new fields.

`freshness` finds the rows of the current content. `embed` acts on the result.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.format.record import MAX_ORIGINS, Origin
from embstore._engine.format.source_columns import ORIGINS_COLUMN, STAMP_COLUMNS, UNKNOWN_SOURCE
from embstore._engine.io.stamps import settled
from embstore._engine.read.key_index import KeyIndex
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.plans import Plan
from embstore._engine.write.record_edits import with_origin
from embstore.cache.coverage import Coverage, Rows
from embstore.encoders.base import BaseEncoder
from embstore.errors import (
    DatasetMismatchError,
    FieldMismatchError,
    NetworkFileSystemError,
    ReadOnlyError,
    StoreChangedError,
    StoreLockedError,
    StoreReplacedError,
    UnknownFieldError,
)
from embstore.pipeline.check import recheck
from embstore.pipeline.freshness import compare_samples
from embstore.pipeline.run import Run, Samples
from embstore.store.embedding_store import EmbeddingStore, session_of
from embstore.store.open import open as open_store

logger = logging.getLogger("embstore")

_MANY: Final = 100
"""Rows of which a source without a root may not delete more than half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    """Result of comparing a store with the samples and fields that a run wants.

    Attributes
    ----------
    found : Coverage
    reason : str
        Text: hit, field miss, partial or miss.
    new_fields : list of str
        Fields of the encoder that the store lacks.
    gone : list of str
        Keys of rows from the origin of the source whose sample is no longer in it.
    unnoted : list of str
        Current keys whose row does not have the origin of the source yet.
    rows : int
        Live rows.
    made : bool
        Whether the store exists.
    columns : tuple of str
        Columns whose values change.
    """

    found: Coverage
    reason: str
    new_fields: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unnoted: list[str] = field(default_factory=list)
    rows: int = 0
    made: bool = True
    columns: tuple[str, ...] = ()

    @property
    def wanted(self) -> list[str]:
        """Keys of the samples to encode."""
        return [*self.found.missing, *self.found.stale]

    @property
    def work(self) -> bool:
        """Whether the run has to write."""
        return bool(self.wanted or self.new_fields or self.columns or not self.made)


def compare_with_store(run: Run, *, whole: Coverage | None = None, gone: bool = True) -> StoreStatus:
    """Compare the store of a run with the samples and fields that are wanted.

    Parameters
    ----------
    run : Run
    whole : Coverage, optional
        For a shard: coverage of its samples by the whole store.
    gone : bool
        Whether to look for rows whose sample is gone.
    """
    samples = run.samples
    if not run.cache.has_store(run.path):
        found = whole or Coverage(missing=list(samples))
        run.columns.fit(None)
        return StoreStatus(
            found=found, reason=whole.reason if whole else run.cache.lookup(run.config).reason, made=False
        )
    with open_store(run.path, config=run.config, **run.options) as store:
        left = samples if whole is None else {key: samples[key] for key in (*whole.missing, *whole.stale)}
        own = _compared(store, run, left)
        found = own if whole is None else _together(whole, own)
        new_fields = new_fields_of(store, run.encoder)
        _recheck(store, run, own)
        reason = found.reason
        if new_fields:
            reason = f"field miss: no {', '.join(new_fields)} yet; {found.reason.partition(': ')[2]}"
        bit = origin_bit(store, run.origin)
        left_over = _gone(store, own, bit) if gone else []
        new_rows = bool(found.missing) and not left_over  # rows that move bring their values along
        rows = own.rows if whole is None else store.find(list(samples))
        return StoreStatus(
            columns=run.columns.changed(store, rows, new_rows=new_rows),
            found=found,
            reason=reason,
            new_fields=new_fields,
            gone=left_over,
            unnoted=_unnoted(store, list(left), own, bit),
            rows=len(store),
        )


def refuse_another_dataset(run: Run, status: StoreStatus, *, delete: bool) -> None:
    """Check that a run replaces and deletes only rows of the source's own data set.

    Parameters
    ----------
    run : Run
    status : StoreStatus
    delete : bool
        Whether the run deletes rows whose sample is gone.

    Raises
    ------
    DatasetMismatchError
    """
    found, name = status.found, run.config["dataset"]
    if found.foreign:
        reason = "were made from other content in another place"
        raise DatasetMismatchError(name, found.foreign, path=run.path, reason=reason)
    compared = len(found.stored) + len(found.stale)
    if delete and status.gone and not run.origin.is_place:
        most = status.rows >= _MANY and 2 * len(status.gone) > status.rows
        if most or not (compared or found.unreadable):
            reason = f"have no sample in the source, of {status.rows:,} rows"
            raise DatasetMismatchError(name, status.gone, path=run.path, reason=reason)
    if 2 * len(found.stale) > compared:
        logger.warning(
            "%s: %d of %d rows of %r have other content, and are encoded again; give another data set another name",
            *(run.path, len(found.stale), compared, name),
        )


def whole_store(run: Run) -> Coverage | None:
    """Return the coverage of a shard's samples by the whole store, or None if that store does not exist."""
    path = run.cache.path_of(run.config)
    if not run.cache.has_store(path):
        return None
    with open_store(path, **run.options) as store:
        if new := new_fields_of(store, run.encoder):
            raise UnknownFieldError(new[0], store.fields, path=path)
        found = _compared(store, run, run.samples)
        _recheck(store, run, found)
        return replace(found, touched=[])  # a shard writes nothing but its part


def _compared(store: EmbeddingStore, run: Run, samples: Samples) -> Coverage:
    """Return the coverage of samples, with the stale keys whose row is from another origin."""
    found = compare_samples(store, samples, workers=run.workers, compare=run.compare)
    bit, origins = origin_bit(store, run.origin), _origins(store, store.find(found.stale)).tolist()
    stale = zip(found.stale, origins, strict=True)
    return replace(found, foreign=[key for key, was in stale if was and not was & bit])


def _recheck(store: EmbeddingStore, run: Run, found: Coverage) -> None:
    """Encode some stored samples again, if the encoder is in memory anyway."""
    if run.canaries and run.encoder.in_memory and found.stored:
        recheck(store, run.encoder, run.samples, found.stored, run.canaries)


def _together(whole: Coverage, part: Coverage) -> Coverage:
    """Join the coverage by the whole store with that of the remaining samples by the shard's part."""
    outdated = set(whole.stale)
    return Coverage(
        stored=[*whole.stored, *part.stored],
        missing=[key for key in part.missing if key not in outdated],
        stale=[*part.stale, *(key for key in part.missing if key in outdated)],
        foreign=[*whole.foreign, *part.foreign],
        unreadable=whole.unreadable | part.unreadable,
        touched=part.touched,
    )


def new_fields_of(store: EmbeddingStore, encoder: BaseEncoder) -> list[str]:
    """Return the encoder's fields that a store lacks. The first rows of a store in a bucket decide its fields.

    Raises
    ------
    FieldMismatchError
    ReadOnlyError
        The store has rows in a bucket, and they can't get fields.
    """
    new = []
    for name, spec in (encoder.fields or {}).items():
        stored = store.fields.get(name)
        if stored is None:
            new.append(name)
        elif stored.meaning != spec.meaning:
            raise FieldMismatchError(name, path=store.path, expected=stored.meaning, found=spec.meaning)
    if new and not isinstance(store.path, Path):
        if store.fields:
            raise ReadOnlyError(
                store.path,
                f"{', '.join(new)} can't be added in a bucket, whose parts never change; encode into a new store: a "
                "cache at another URL",
            )
        return []
    return new


def origin_bit(store: EmbeddingStore, origin: Origin) -> int:
    """Return the bit of an origin in a store's column of origins, or 0 if the store does not know the origin."""
    origins = store.snapshot.record.origins
    return 1 << origins.index(origin) if origin in origins else 0


def _origins(store: EmbeddingStore, rows: Rows) -> np.ndarray[Any, Any]:
    """Return the bits of the origins of rows."""
    if ORIGINS_COLUMN not in store.columns:
        return np.zeros(len(rows), np.int64)
    return np.asarray(store.select(rows=rows).column(ORIGINS_COLUMN))


def _unnoted(store: EmbeddingStore, keys: list[str], found: Coverage, bit: int) -> list[str]:
    """Return the current ones of these wanted keys whose row does not have the origin of this bit."""
    there = np.flatnonzero(found.rows >= 0)
    without = there[_origins(store, found.rows[there]) & bit == 0]
    others = {keys[place] for place in without.tolist()}
    return [key for key in found.stored if key in others]


def _gone(store: EmbeddingStore, found: Coverage, bit: int) -> list[str]:
    """Return the keys of rows from the origin of this bit that the source lacks."""
    if not bit or len(store) == len(found.rows) - len(found.missing):  # each row has its sample
        return []
    rows = store.rows[~np.isin(store.rows, found.rows)]
    return store.select(rows=rows, where={ORIGINS_COLUMN: lambda origins: (origins & bit) != 0}).keys


def note_origin(store: EmbeddingStore, origin: Origin) -> int:
    """Add an origin to the list of a store, unless it is there. Return its bit, or 0 if the list is full."""
    if not (bit := origin_bit(store, origin)):

        def plan(snapshot: Snapshot, _: KeyIndex) -> tuple[Plan | None, int]:
            record, bit = with_origin(snapshot.record, origin)
            return (None if record is snapshot.record else Plan(record, {})), bit

        bit = session_of(store).apply(plan)
        if not bit:
            logger.warning("%s: %d origins are noted, which are all that a store can hold", store.path, MAX_ORIGINS)
    return bit


def note_anew(run: Run, touched: list[str], unnoted: list[str]) -> None:
    """Store the new stamps of files that were only touched, so that the next run does not read them, and the origin.

    Another process may replace a row at the same time, and the new row must not get the stamp of the old content. So
    the columns are written only if nothing was committed since they were read. Best effort: skipped for a read-only
    cache, and in a bucket, whose rows never change.
    """
    if not isinstance(run.path, Path):
        return
    found_now = ((key, run.samples[key].stamp) for key in touched)
    stamps = {key: stamp for key, stamp in found_now if stamp.size >= 0 and settled(stamp.mtime, run.began)}
    if not stamps and not unnoted:
        return
    try:
        with open_store(run.path, "r+", **run.options) as store:
            bit = note_origin(store, run.origin)
            seen = store.snapshot.record.commit_id
            keys = [key for key in dict.fromkeys([*stamps, *(unnoted if bit else ())]) if key in store]
            view, of_source = store.select(keys=keys), set(unnoted)
            columns: dict[str, Any] = {}
            for place, name in enumerate(STAMP_COLUMNS if stamps else ()):
                found = view.column(name).tolist() if name in store.columns else [-1] * len(keys)
                pairs = zip(keys, found, strict=True)
                columns[name] = [stamps[key][place] if key in stamps else was for key, was in pairs]
            if unnoted and bit:
                pairs = zip(keys, _origins(store, view.rows).tolist(), strict=True)
                columns[ORIGINS_COLUMN] = [was | bit if key in of_source else was for key, was in pairs]
            store.set_columns(columns, view, fill=UNKNOWN_SOURCE, commit_id=seen)
    except (StoreChangedError, StoreReplacedError):
        logger.debug("%s: another process wrote meanwhile; the next run notes the stamps", run.path)
    except (ReadOnlyError, NetworkFileSystemError, StoreLockedError) as error:
        logger.info("%s: the places of %d files are not noted: %s", run.path, len(stamps) + len(unnoted), error)
