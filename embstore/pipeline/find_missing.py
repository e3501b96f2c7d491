"""Comparison of a store with the samples and fields that a run wants: stored, missing, stale, gone, new fields.

`freshness` finds the rows of the current content. `embed` acts on the result.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import numpy as np

from embstore._engine.format.source_columns import IDENTITY_COLUMN, STAMP_COLUMNS
from embstore._engine.io.stamps import UNKNOWN, origin_of, settled
from embstore.cache.coverage import Coverage
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
from embstore.store.embedding_store import EmbeddingStore
from embstore.store.open import open as open_store

logger = logging.getLogger("embstore")


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
        Keys of rows whose sample is no longer in the source.
    strangers : int
        Number of these rows that are not known to come from the place of the source.
    rows : int
        Live rows.
    made : bool
        Whether the store exists.
    """

    found: Coverage
    reason: str
    new_fields: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    strangers: int = 0
    rows: int = 0
    made: bool = True

    @property
    def wanted(self) -> list[str]:
        """Keys of the samples to encode."""
        return [*self.found.missing, *self.found.stale]

    @property
    def work(self) -> bool:
        """Whether the run has to write."""
        return bool(self.wanted or self.new_fields or not self.made)


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
    if not run.path.exists():
        found = whole or Coverage(missing=list(samples))
        return StoreStatus(
            found=found, reason=whole.reason if whole else run.cache.lookup(run.config).reason, made=False
        )
    with open_store(run.path, config=run.config, **run.options) as store:
        left = samples if whole is None else {key: samples[key] for key in (*whole.missing, *whole.stale)}
        own = compare_samples(store, left, workers=run.workers, compare=run.compare)
        found = own if whole is None else _together(whole, own)
        new_fields = new_fields_of(store, run.encoder)
        _recheck(store, run, own)
        reason = found.reason
        if new_fields:
            reason = f"field miss: no {', '.join(new_fields)} yet; {found.reason.partition(': ')[2]}"
        rows_gone, strangers = _gone(store, left, own) if gone else ([], 0)
        return StoreStatus(
            found=found, reason=reason, new_fields=new_fields, gone=rows_gone, strangers=strangers, rows=len(store)
        )


def refuse_another_dataset(run: Run, status: StoreStatus, *, delete: bool) -> None:
    """Check that the source is not another data set under the name of the stored one.

    A data set may move, and some of its files may change. But if half of its rows have other content in another place,
    or if most of its rows have no sample, two data sets have one name. They would replace each other's rows in each
    run, or delete them.

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
    compared = len(found.stored) + len(found.stale)
    if found.moved and 2 * len(found.moved) >= compared:
        reason = "were made from other content, in another folder or on another machine"
        raise DatasetMismatchError(name, found.moved, path=run.path, reason=reason)
    if delete and 2 * status.strangers > status.rows:
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
    if not path.exists():
        return None
    with open_store(path, **run.options) as store:
        if new := new_fields_of(store, run.encoder):
            raise UnknownFieldError(new[0], store.fields, path=path)
        found = compare_samples(store, run.samples, workers=run.workers, compare=run.compare)
        _recheck(store, run, found)
        return replace(found, touched=[])  # a shard writes nothing but its part


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
        moved=[*whole.moved, *part.moved],
        unreadable=whole.unreadable | part.unreadable,
        touched=part.touched,
    )


def new_fields_of(store: EmbeddingStore, encoder: BaseEncoder) -> list[str]:
    """Return the encoder's fields that a store lacks.

    Raises
    ------
    FieldMismatchError
    """
    new = []
    for name, spec in (encoder.fields or {}).items():
        stored = store.fields.get(name)
        if stored is None:
            new.append(name)
        elif stored.meaning != spec.meaning:
            raise FieldMismatchError(name, path=store.path, expected=stored.meaning, found=spec.meaning)
    return new


def _gone(store: EmbeddingStore, samples: Samples, found: Coverage) -> tuple[list[str], int]:
    """Return the stored keys that the source lacks, and how many of their rows have another or no known origin."""
    if len(store) == len(samples) - len(found.missing):  # each row has its sample
        return [], 0
    view = store.select(rows=np.setdiff1d(store.rows, store.find(list(samples))))
    if IDENTITY_COLUMN not in store.columns:
        return view.keys, len(view)
    origins = {origin_of(sample.stamp.identity) for sample in samples.values()} - {origin_of(UNKNOWN.identity)}
    known = np.isin(origin_of(view.column(IDENTITY_COLUMN)), list(origins))
    return view.keys, len(view) - int(known.sum())


def stamp_anew(run: Run, touched: list[str]) -> None:
    """Store the new stamps of files that were only touched, so that the next run does not read them.

    Another process may replace a row at the same time, and the new row must not get the stamp of the old content. So
    the columns are written only if nothing was committed since they were read. Best effort: skipped for a read-only
    cache.
    """
    found_now = ((key, run.samples[key].stamp) for key in touched)
    stamps = {key: stamp for key, stamp in found_now if stamp.size >= 0 and settled(stamp.mtime, run.began)}
    if not stamps:
        return
    try:
        with open_store(run.path, "r+", **run.options) as store:
            view = store.select()
            keys = view.keys
            for place, column in enumerate(STAMP_COLUMNS):
                found = view.column(column).tolist() if column in store.columns else [-1] * len(keys)
                values = [stamps[key][place] if key in stamps else old for key, old in zip(keys, found, strict=True)]
                store.set_column(column, keys, values, commit_id=store.snapshot.record.commit_id)
    except (StoreChangedError, StoreReplacedError):
        logger.debug("%s: another process wrote meanwhile; the next run notes the stamps", run.path)
    except (ReadOnlyError, NetworkFileSystemError, StoreLockedError) as error:
        logger.info("%s: the stamps of %d touched files are not noted: %s", run.path, len(stamps), error)
