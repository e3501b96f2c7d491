"""Freshness: which of the wanted samples a store has, and whether their rows are of the present content.

Samples are compared by the stamps of their files, and by their content only if the stamps differ.
`embstore.cache.coverage` compares with digests that are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from embstore._engine.io.stamps import Stamp
from embstore.cache.coverage import DIGEST_COLUMN, MTIME_COLUMN, SIZE_COLUMN, Coverage, Rows, sort_keys, stored_digests
from embstore.errors import SampleError, StoreChangedError
from embstore.sources.base import AnySample
from embstore.store.embedding_store import EmbeddingStore


def compare_samples(store: EmbeddingStore, samples: Mapping[str, AnySample], *, workers: int = 8) -> Coverage:
    """Compare a store with samples: by the stamps of their files, and by their content only if the stamps differ.

    Parameters
    ----------
    store : EmbeddingStore
    samples : mapping of str to Sample
        Samples by key.
    workers : int
        Threads that read files whose stamp differs.
    """
    while True:
        try:
            return _compare(store, samples, workers)
        except StoreChangedError:  # another process replaced a column before it was read
            if not store.refresh():
                raise


def _compare(store: EmbeddingStore, samples: Mapping[str, AnySample], workers: int) -> Coverage:
    keys = list(samples)
    rows = store.find(keys)
    there = np.flatnonzero(rows >= 0)
    doubtful = _doubtful(store, rows[there], [samples[keys[i]].stamp for i in there.tolist()])
    places = there[doubtful]
    stale: set[str] = set()
    touched: list[str] = []
    unreadable: dict[str, SampleError] = {}
    if len(places):
        suspects = [keys[i] for i in places.tolist()]
        with ThreadPoolExecutor(workers) as pool:
            found = pool.map(_digest_or_error, (samples[key] for key in suspects))
            for key, stored, digest in zip(suspects, stored_digests(store, rows[places]), found, strict=True):
                if isinstance(digest, SampleError):
                    unreadable[key] = digest
                elif digest != stored:
                    stale.add(key)
                else:
                    touched.append(key)
    return sort_keys(keys, rows, stale, unreadable, touched)


def _doubtful(store: EmbeddingStore, rows: Rows, stamps: Sequence[Stamp]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return a mask of the rows whose stamp does not prove that the content is the stored one."""
    if not {SIZE_COLUMN, MTIME_COLUMN, DIGEST_COLUMN} <= store.columns.keys():
        return np.ones(len(rows), dtype=bool)
    view = store.select(rows=rows)
    stored = np.stack([view.column(SIZE_COLUMN), view.column(MTIME_COLUMN)], axis=1)
    found = np.array(stamps, dtype=np.int64).reshape(-1, 2)
    same: np.ndarray[tuple[int], np.dtype[np.bool_]] = (stored == found).all(axis=1) & (found[:, 0] >= 0)
    return ~same


def _digest_or_error(sample: AnySample) -> str | SampleError:
    try:
        return sample.current_digest()
    except SampleError as error:
        return error
