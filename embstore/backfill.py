"""Backfill: a field that a store does not have yet, encoded for the rows that are there, and committed whole.

The new rows gather in a store of their own beside the first, so that a run that is killed goes on where it was, and
several processes can share the work. When all are there, they are copied over in one commit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from embstore.encoding import Job, Samples
from embstore.errors import MissingKeysError, SampleError
from embstore.freshness import DIGEST_COLUMN, SOURCE_COLUMNS
from embstore.fsio import remove_tree
from embstore.keys import Key
from embstore.opening import open as open_store
from embstore.schema import FieldSpec
from embstore.sources.base import UNKNOWN, AnySample, Content, Stamp, digest_of
from embstore.store import EmbeddingStore

__all__ = ["backfill"]

logger = logging.getLogger("embstore")


def backfill(store: EmbeddingStore, names: list[str], samples: Samples, job: Job) -> tuple[str, ...]:
    """Add fields to a store, for all of its live rows.

    Parameters
    ----------
    store : EmbeddingStore
        Open for writing.
    names : list of str
        Of fields that the job's encoder has.
    samples : mapping of str to Sample
        Of the whole source, by key.
    job : Job

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
    own = replace(job, encoder=job.encoder.with_fields(names), columns=None, encoded=0, failures={})
    path = _place(store, specs)
    logger.info("%s: adding %s for %d rows", store.path, ", ".join(names), len(store))
    added = False
    while not (added or own.failures):
        with open_store(path, "a", config=store.config, fields=specs, columns=SOURCE_COLUMNS) as gathered:
            own.fill(gathered, _as_stored(store, samples, names))
            if not own.failures:
                added = _copied_over(store, gathered, names)
    if added:
        remove_tree(path)
    job.encoded += own.encoded
    job.failures |= own.failures
    job.batch_size = own.batch_size
    return tuple(names) if added else ()


def _place(store: EmbeddingStore, specs: dict[str, FieldSpec]) -> Path:
    """Say where the rows of just these fields gather; no cache takes it for a store of its own."""
    told = digest_of(repr(sorted(specs.items())))[:8]
    return store.path.with_name(f".{store.path.name}.{told}.backfill")


@dataclass(frozen=True, slots=True)
class _Unchanged:
    """A sample that is read only as long as its content is that of the row that is stored."""

    sample: AnySample
    digest: str

    @property
    def key(self) -> str | Key:
        return self.sample.key

    @property
    def stamp(self) -> Stamp:
        return UNKNOWN  # only the digest tells whether a row that gathers is of the row that is stored

    @property
    def where(self) -> str:
        return self.sample.where

    def current_digest(self) -> str:
        return self.digest

    def read(self) -> Content:
        content = self.sample.read()
        if content.digest != self.digest:
            raise SampleError(Path(self.where), "it changed during the run: the next one encodes it again")
        return content


def _as_stored(store: EmbeddingStore, samples: Samples, names: list[str]) -> dict[str, _Unchanged]:
    """Return the samples of all rows that are there."""
    keys = list(store)
    if gone := [key for key in keys if key not in samples]:
        raise MissingKeysError(gone, path=store.path, what=f"in the source, so that {', '.join(names)} can't be added")
    digests = store.select(keys=keys).column(DIGEST_COLUMN).tolist()
    return {key: _Unchanged(samples[key], digest) for key, digest in zip(keys, digests, strict=True)}


def _copied_over(store: EmbeddingStore, gathered: EmbeddingStore, names: list[str]) -> bool:
    """Copy the fields over; tell whether all rows were there, none added or renewed by another process meanwhile."""
    try:
        store.copy_fields(gathered, names, same=[DIGEST_COLUMN])
    except MissingKeysError:
        store.refresh()
        return False
    return True
