"""Freshness: which of the wanted samples a store has, and whether their rows are of the present content.

Samples are compared by the stamps of their files, and by their content if the stamps differ, or always on request.
`embstore.cache.coverage` compares with digests that are known.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

import numpy as np

from embstore._engine.format.source_columns import STAMP_COLUMNS, without_kind
from embstore._engine.io.stamps import FileStamp, place_of
from embstore.cache.coverage import Coverage, Rows, sort_keys, stored_digests
from embstore.errors import SampleError, StoreChangedError
from embstore.sources.base import AnySample, sample_error
from embstore.store.embedding_store import EmbeddingStore

Compare = Literal["stamp", "content"]

_AT_ONCE: Final = 256
"""Most samples that a thread reads at a time. For texts in memory, handing them over took longer than their digests."""

_Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


def compare_samples(
    store: EmbeddingStore, samples: Mapping[str, AnySample], *, workers: int = 8, compare: Compare = "stamp"
) -> Coverage:
    """Compare a store with samples.

    Parameters
    ----------
    store : EmbeddingStore
    samples : mapping of str to Sample
        Samples by key.
    workers : int
        Threads that read files.
    compare : {"stamp", "content"}
        Whether to read only the files whose stamp differs, or all files.
    """
    while True:
        try:
            return _compare(store, samples, workers, compare)
        except StoreChangedError:  # another process replaced a column before it was read
            if not store.refresh():
                raise


def _compare(store: EmbeddingStore, samples: Mapping[str, AnySample], workers: int, compare: Compare) -> Coverage:
    keys = list(samples)
    rows = store.find(keys)
    there = np.flatnonzero(rows >= 0)
    doubtful = _doubtful(store, rows[there], [samples[keys[i]].stamp for i in there.tolist()])
    chosen = np.flatnonzero(doubtful | (compare == "content"))
    coverage = Coverage()
    stale: set[str] = set()
    if len(chosen):
        suspects = [keys[i] for i in there[chosen].tolist()]
        known = stored_digests(store, rows[there[chosen]])
        size = max(1, min(_AT_ONCE, len(suspects) // (4 * workers)))
        parts = [suspects[start : start + size] for start in range(0, len(suspects), size)]
        with ThreadPoolExecutor(workers) as pool:
            found = itertools.chain.from_iterable(
                pool.map(lambda part: [_digest_or_error(samples[key]) for key in part], parts)
            )
            for place, key, stored, digest in zip(chosen.tolist(), suspects, known, found, strict=True):
                if isinstance(digest, SampleError):
                    coverage.unreadable[key] = digest
                elif digest != without_kind(stored):
                    stale.add(key)
                elif doubtful[place]:
                    coverage.touched.append(key)
    return sort_keys(keys, rows, stale, coverage)


def _doubtful(store: EmbeddingStore, rows: Rows, stamps: Sequence[FileStamp]) -> _Mask:
    """Return a mask of the rows whose stamp does not prove that the content is the stored one."""
    view, unknown = store.select(rows=rows), np.full(len(rows), -1)
    stored = np.stack([view.column(name) if name in store.columns else unknown for name in STAMP_COLUMNS])
    found = np.fromiter(itertools.chain.from_iterable(stamps), np.int64, 3 * len(stamps)).reshape(-1, 3).T
    was, now = stored[2], found[2]
    replaced = (was >= 0) & (now >= 0) & (place_of(was) == place_of(now)) & (was != now)
    doubtful: _Mask = (stored[:2] != found[:2]).any(axis=0) | (found[0] < 0) | replaced
    return doubtful


def _digest_or_error(sample: AnySample) -> str | SampleError:
    try:
        return sample.current_digest()
    except Exception as error:
        return sample_error(error, sample)
