"""Backfill: a field that a store does not have yet, encoded for the rows that are there, and committed whole.

The new rows gather in a store of their own beside the first, so that a run that is killed goes on where it was, and
several processes can share the work. When all are there, they are copied over in one commit.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from embstore._engine.format.keys import Key
from embstore._engine.format.record import FieldSpec
from embstore._engine.format.zarr_layout import METADATA_NAME
from embstore._engine.io.durable import remove_tree
from embstore._engine.io.stamps import UNKNOWN, Stamp
from embstore.cache.coverage import DIGEST_COLUMN, SOURCE_COLUMNS
from embstore.cache.prune import BACKFILL
from embstore.errors import (
    CorruptStoreError,
    MissingKeysError,
    NameRefusedError,
    NotAStoreError,
    SampleError,
    StoreChangedError,
    StoreReplacedError,
)
from embstore.pipeline.fill import Job
from embstore.pipeline.run import Samples
from embstore.sources.base import AnySample, Content, digest_of
from embstore.store.embedding_store import EmbeddingStore
from embstore.store.open import open as open_store

logger = logging.getLogger("embstore")


def backfill(store: EmbeddingStore, names: list[str], job: Job) -> tuple[str, ...]:
    """Add fields to a store, for all of its live rows.

    Parameters
    ----------
    store : EmbeddingStore
        Open for writing.
    names : list of str
        Of fields that the job's encoder has.
    job : Job
        Of a run on the whole source.

    Returns
    -------
    tuple of str
        The fields added; none, if samples failed: the next run tries these alone.

    Raises
    ------
    MissingKeysError
        Rows are stored whose samples are not in the source: nothing can be encoded for them.
    """
    specs = {name: spec for name, spec in (job.encoder.fields or {}).items() if name in names}
    samples, options = job.run.samples, job.run.cache.options
    run = replace(job.run, columns=None)
    own = replace(job, run=run, encoder=job.encoder.with_fields(names), encoded=0, failures={}, done=set())
    path = _place(store, specs)
    logger.info("%s: adding %s for %d rows", store.path, ", ".join(names), len(store))
    while not own.failures and not _added(store, names):
        check_backfill(store, names, samples)
        own.done.clear()  # what was encoded before may be of rows that were renewed since
        try:
            with open_store(path, "a", config=store.config, fields=specs, columns=SOURCE_COLUMNS, **options) as rows:
                if not _added(store, names):  # else the store in which rows gathered was gone already
                    own.fill(rows, _as_stored(store, samples))
                    if not own.failures:
                        _copy_over(store, rows, names)
        except (StoreReplacedError, StoreChangedError, CorruptStoreError, FileNotFoundError):
            if not _added(store, names) and path.exists():
                raise  # it was not another process, which was done first
    if added := _added(store, names):
        with contextlib.suppress(FileNotFoundError):  # another process removes it
            remove_tree(path, last_first=METADATA_NAME)
    job.encoded += own.encoded
    job.failures = own.failures | job.failures
    job.batch_size = own.batch_size
    return tuple(names) if added else ()


def check_backfill(store: EmbeddingStore, names: list[str], samples: Samples) -> None:
    """Check that there is a sample for every row.

    Raises
    ------
    MissingKeysError
    """
    if gone := [key for key in store if key not in samples]:
        raise MissingKeysError(gone, path=store.path, what=f"in the source, so that {', '.join(names)} can't be added")


def remove_backfill_leftovers(store: EmbeddingStore) -> None:
    """Remove the gathered rows of a process that was killed after its commit and before it removed them."""
    for path in store.path.parent.glob(f".{store.path.name}.*{BACKFILL}"):
        try:
            with open_store(path) as rows:
                done = rows.fields.keys() <= store.fields.keys()
        except (NotAStoreError, CorruptStoreError) as error:
            # The record goes first: without it, it is half removed, by one that was killed or is at it.
            if isinstance(error, CorruptStoreError) and (path / METADATA_NAME).exists():
                raise
            done = True
        if done:
            with contextlib.suppress(FileNotFoundError):
                remove_tree(path, last_first=METADATA_NAME)


def _added(store: EmbeddingStore, names: list[str]) -> bool:
    """Tell whether the store has the fields by now, from this process or another."""
    store.refresh()
    return set(names) <= store.fields.keys()


def _place(store: EmbeddingStore, specs: dict[str, FieldSpec]) -> Path:
    """Say where the rows of just these fields gather; no cache takes it for a store of its own."""
    told = digest_of(repr(sorted(specs.items())))[:8]
    return store.path.with_name(f".{store.path.name}.{told}{BACKFILL}")


@dataclass(frozen=True, slots=True)
class _Unchanged:
    """A sample that is read only as long as its content is that of the row that is stored."""

    key: str | Key
    where: str
    sample: AnySample
    digest: str
    stamp: Stamp = UNKNOWN  # only the digest tells whether a row that gathers is of the row that is stored

    def current_digest(self) -> str:
        return self.digest

    def read(self) -> Content:
        content = self.sample.read()
        if content.digest != self.digest:
            raise SampleError(None, "it changed during the run: the next one encodes it again")
        return content


def _as_stored(store: EmbeddingStore, samples: Samples) -> dict[str, _Unchanged]:
    """Return the samples of all rows that are there; of those that other processes add meanwhile, the next time."""
    view = store.select()
    pairs = zip(view.keys, view.column(DIGEST_COLUMN).tolist(), strict=True)
    found = [(samples[key], key, digest) for key, digest in pairs if key in samples]
    return {key: _Unchanged(key, sample.where, sample, digest) for sample, key, digest in found}


def _copy_over(store: EmbeddingStore, rows: EmbeddingStore, names: list[str]) -> None:
    """Copy the fields over, unless rows were added or renewed by another process, or it was first."""
    with contextlib.suppress(MissingKeysError, NameRefusedError):
        store.copy_fields(rows, names, same=[DIGEST_COLUMN])
