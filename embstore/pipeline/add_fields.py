"""Backfill: a new field of a store, encoded for all stored rows and committed whole.

The new rows gather in a separate store beside the first. So a killed run resumes, and several processes can share the
work. Once all rows have gathered, one commit copies them.
"""

from __future__ import annotations

import contextlib
import glob
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from embstore._engine.format.keys import Key
from embstore._engine.format.record import FieldSpec
from embstore._engine.format.source_columns import DIGEST_COLUMN, SOURCE_COLUMNS, without_kind
from embstore._engine.format.zarr_layout import METADATA_NAME
from embstore._engine.io.durable import remove_tree
from embstore._engine.io.stamps import UNKNOWN, FileStamp
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
from embstore.pipeline.columns import SampleColumns
from embstore.pipeline.fill import Job
from embstore.pipeline.run import Samples
from embstore.sources.base import AnySample, Content, digest_of, open_sample
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
        Fields of the job's encoder.
    job : Job
        Job of a run on the whole source.

    Returns
    -------
    tuple of str
        Added fields. Empty if samples failed: the next run encodes only these.

    Raises
    ------
    MissingKeysError
        Stored rows have no sample in the source, so their field can't be encoded.
    """
    specs = {name: spec for name, spec in (job.encoder.fields or {}).items() if name in names}
    samples, options = job.run.samples, job.run.options
    run = replace(job.run, columns=SampleColumns({}))
    own = replace(job, run=run, encoder=job.encoder.with_fields(names), gone=[], encoded=0, failures={}, done=set())
    path = _place(store, specs)
    if path.is_symlink():  # rows must not gather in another store
        remove_tree(path)
    logger.info("%s: adding %s for %d rows", store.path, ", ".join(names), len(store))
    while not own.failures and not _added(store, names):
        check_backfill(store, names, samples)
        own.done.clear()  # rows encoded before may have been replaced since
        try:
            with open_store(path, "a", config=store.config, fields=specs, columns=SOURCE_COLUMNS, **options) as rows:
                if not _added(store, names):  # otherwise the gathered rows were removed before they were opened
                    own.fill(rows, _as_stored(store, samples))
                    if not own.failures:
                        _copy_over(store, rows, names)
        except (StoreReplacedError, StoreChangedError, CorruptStoreError, FileNotFoundError):
            if not _added(store, names) and path.exists():
                raise  # no other process has added the fields
    if added := _added(store, names):
        remove_tree(path, first=METADATA_NAME)
    job.encoded += own.encoded
    job.failures = own.failures | job.failures
    job.batch_size = own.batch_size
    return tuple(names) if added else ()


def check_backfill(store: EmbeddingStore, names: list[str], samples: Samples) -> None:
    """Check that every row has a sample.

    Raises
    ------
    MissingKeysError
    """
    if gone := [key for key in store if key not in samples]:
        raise MissingKeysError(gone, path=store.path, what=f"in the source, so that {', '.join(names)} can't be added")


def remove_backfill_leftovers(store: EmbeddingStore) -> None:
    """Remove gathered rows of a process that was killed between its commit and their removal."""
    for path in gathered_for(store.path):
        try:
            with open_store(path) as rows:
                done = rows.fields.keys() <= store.fields.keys()
        except (NotAStoreError, CorruptStoreError) as error:
            # The record is removed first. Without it, a killed or a running process has removed a part.
            if isinstance(error, CorruptStoreError) and (path / METADATA_NAME).exists():
                raise
            done = True
        if done:
            remove_tree(path, first=METADATA_NAME)


def gathered_for(path: PurePath) -> list[Path]:
    """Return the paths of the stores in which rows of new fields gather for the store at `path`."""
    if not isinstance(path, Path):
        return []
    return list(path.parent.glob(f".{glob.escape(path.name)}.*{BACKFILL}"))


def _added(store: EmbeddingStore, names: list[str]) -> bool:
    """Return whether the store has the fields, from this process or another."""
    store.refresh()
    return set(names) <= store.fields.keys()


def _place(store: EmbeddingStore, specs: dict[str, FieldSpec]) -> Path:
    """Return the path where the rows of these fields gather. Caches don't list it as a store."""
    told = digest_of(repr(sorted(specs.items())))[:8]
    return store.path.with_name(f".{store.path.name}.{told}{BACKFILL}")


@dataclass(frozen=True, slots=True)
class _Unchanged:
    """A sample that can be read only while its content is that of the stored row."""

    key: str | Key
    where: str
    sample: AnySample
    digest: str  # as it is stored
    stamp: FileStamp = UNKNOWN  # only the digest relates a gathered row to the stored one

    def _stored_digest(self, content: Content) -> str:
        return self.digest

    def current_digest(self) -> str:
        return without_kind(self.digest)

    def read(self) -> Content:
        return self._unchanged(self.sample.read())

    @contextlib.contextmanager
    def opened(self) -> Iterator[Content]:
        with open_sample(self.sample) as content:
            yield self._unchanged(content)

    def _unchanged(self, content: Content) -> Content:
        if content.digest != without_kind(self.digest):
            raise SampleError(None, "it changed during the run: the next one encodes it again")
        return content


def _as_stored(store: EmbeddingStore, samples: Samples) -> dict[str, _Unchanged]:
    """Return the samples of all stored rows. Rows that other processes add later follow on the next call."""
    view = store.select()
    pairs = zip(view.keys, view.column(DIGEST_COLUMN).tolist(), strict=True)
    found = [(samples[key], key, digest) for key, digest in pairs if key in samples]
    return {key: _Unchanged(key, sample.where, sample, digest) for sample, key, digest in found}


def _copy_over(store: EmbeddingStore, rows: EmbeddingStore, names: list[str]) -> None:
    """Copy the fields, unless another process added or replaced rows or added the fields."""
    with contextlib.suppress(MissingKeysError, NameRefusedError):
        store.copy_fields(rows, names, same=[DIGEST_COLUMN])
