"""Freshness: which of the wanted samples a store has, and whether it has them of the content that they have now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from embstore._engine.format.record import STRING
from embstore.errors import SampleError, StoreChangedError
from embstore.sources.base import AnySample, Stamp
from embstore.store.embedding_store import EmbeddingStore

__all__ = ["Coverage", "compare_digests", "compare_samples"]

DIGEST_COLUMN: Final = "source_digest"
"""The column that holds the digest of what each row was computed from."""

SIZE_COLUMN: Final = "source_size"
MTIME_COLUMN: Final = "source_mtime"
"""The columns that hold the stamp of the file that each row was computed from: bytes, and ns since the epoch."""

SOURCE_COLUMNS: Final = {DIGEST_COLUMN: STRING, SIZE_COLUMN: "int64", MTIME_COLUMN: "int64"}
"""Dtypes of these columns."""

UNKNOWN_SOURCE: Final = {DIGEST_COLUMN: "", SIZE_COLUMN: -1, MTIME_COLUMN: -1}
"""What they say of a row whose content is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What a store has of what is wanted.

    Attributes
    ----------
    stored, missing, stale : list of str
        Keys: there and current; not there; there, but computed from other content.
    unreadable : dict of str to SampleError
        Of stored keys, whose content can't be compared since it can't be read.
    touched : list of str
        Keys that are current, though the stamp of the file is another than the one stored.
    """

    stored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    unreadable: dict[str, SampleError] = field(default_factory=dict)
    touched: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether everything wanted is stored and current."""
        return not (self.missing or self.stale or self.unreadable)

    @property
    def reason(self) -> str:
        """In words: hit, partial or miss, and the numbers."""
        counts = {"stored": self.stored, "missing": self.missing, "stale": self.stale}
        words = "hit" if self.complete else "partial" if self.stored else "miss"
        return f"{words}: " + ", ".join(f"{len(keys):,} {name}" for name, keys in counts.items())


def compare_digests(store: EmbeddingStore, keys: Sequence[str], digests: Mapping[str, str]) -> Coverage:
    """Compare with digests of the content as it is now; keys without one are current if they are stored."""
    rows = store.find(keys)
    there = np.flatnonzero(rows >= 0)
    stale: set[str] = set()
    if digests:
        for place, stored in zip(there.tolist(), _digests(store, rows[there]), strict=True):
            if digests.get(keys[place], stored) != stored:
                stale.add(keys[place])
    return _covered(keys, rows, stale, {}, [])


def compare_samples(store: EmbeddingStore, samples: Mapping[str, AnySample], *, workers: int = 8) -> Coverage:
    """Compare with samples: by the stamps of their files, and by their content only where these differ.

    Parameters
    ----------
    store : EmbeddingStore
    samples : mapping of str to Sample
        By key.
    workers : int
        Threads that read files whose stamp differs.
    """
    while True:
        try:
            return _compare(store, samples, workers)
        except StoreChangedError:  # another process renewed a column that was about to be read
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
            for key, stored, digest in zip(suspects, _digests(store, rows[places]), found, strict=True):
                if isinstance(digest, SampleError):
                    unreadable[key] = digest
                elif digest != stored:
                    stale.add(key)
                else:
                    touched.append(key)
    return _covered(keys, rows, stale, unreadable, touched)


def _covered(
    keys: Sequence[str],
    rows: np.ndarray[tuple[int], np.dtype[np.int64]],
    stale: set[str],
    unreadable: dict[str, SampleError],
    touched: list[str],
) -> Coverage:
    """Sort keys by what was found of them; `rows` is -1 for those that are not there."""
    there = [key for key, row in zip(keys, rows.tolist(), strict=True) if row >= 0]
    return Coverage(
        stored=[key for key in there if key not in stale and key not in unreadable],
        missing=[keys[i] for i in np.flatnonzero(rows < 0).tolist()],
        stale=[key for key in keys if key in stale],
        unreadable=unreadable,
        touched=touched,
    )


def _digests(store: EmbeddingStore, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Iterable[str]:
    if DIGEST_COLUMN not in store.columns:  # rows of unknown content can't be said to be current
        return [""] * len(rows)
    digests: list[str] = store.select(rows=rows).column(DIGEST_COLUMN).tolist()
    return digests


def _doubtful(
    store: EmbeddingStore, rows: np.ndarray[tuple[int], np.dtype[np.int64]], stamps: Sequence[Stamp]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Tell for which rows the stamp does not say that the content is the one stored."""
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
