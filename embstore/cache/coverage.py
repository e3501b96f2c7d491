"""Coverage: which of the wanted keys a store has, compared by the digests of their content.

`embstore.pipeline.freshness` compares with samples, and reads those whose stamp changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from embstore._engine.format.source_columns import DIGEST_COLUMN, STAMP_COLUMNS, without_kind
from embstore._engine.io.stamps import FileStamp
from embstore.errors import SampleError
from embstore.store.embedding_store import EmbeddingStore

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]
"""Row numbers; -1 for keys that are not stored."""


def stamp_values(stamps: Iterable[FileStamp]) -> dict[str, list[int]]:
    """Return the values of the columns of stamps."""
    found = list(stamps)
    return {name: [stamp[place] for stamp in found] for place, name in enumerate(STAMP_COLUMNS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Which of the wanted keys a store has.

    Attributes
    ----------
    stored : list of str
        Keys that are stored and current.
    missing : list of str
        Keys that are not stored.
    stale : list of str
        Keys that are stored, but were computed from other content.
    foreign : list of str
        Stale keys whose row is from another origin than the source.
    unreadable : dict of str to SampleError
        Stored keys whose content can't be read, and so can't be compared.
    touched : list of str
        Keys that are current, although the stamp of the file differs from the stored stamp.
    rows : ndarray, (number of wanted keys,) int64
        Row of each wanted key, in their order, and -1 for a missing one.
    """

    stored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    unreadable: dict[str, SampleError] = field(default_factory=dict)
    touched: list[str] = field(default_factory=list)
    rows: Rows = field(default_factory=lambda: np.empty(0, np.int64), compare=False, repr=False)

    @property
    def complete(self) -> bool:
        """Whether all wanted keys are stored and current."""
        return not (self.missing or self.stale or self.unreadable)

    @property
    def reason(self) -> str:
        """Hit, partial or miss, with the counts, as text."""
        counts = {"stored": self.stored, "missing": self.missing, "stale": self.stale}
        words = "hit" if self.complete else "partial" if self.stored else "miss"
        return f"{words}: " + ", ".join(f"{len(keys):,} {name}" for name, keys in counts.items())


def compare_digests(store: EmbeddingStore, keys: Sequence[str], digests: Mapping[str, str]) -> Coverage:
    """Compare the stored digests with those of the present content. A stored key without a digest is current."""
    rows = store.find(keys)
    there = np.flatnonzero(rows >= 0)
    stale: set[str] = set()
    if digests:
        for place, stored in zip(there.tolist(), stored_digests(store, rows[there]), strict=True):
            if without_kind(digests.get(keys[place], stored)) != without_kind(stored):
                stale.add(keys[place])
    return sort_keys(keys, rows, stale, Coverage())


def sort_keys(keys: Sequence[str], rows: Rows, stale: set[str], found: Coverage) -> Coverage:
    """Return the coverage of keys from their row numbers, the stale keys, and the other results of the comparison."""
    there = [key for key, row in zip(keys, rows.tolist(), strict=True) if row >= 0]
    return replace(
        found,
        stored=[key for key in there if key not in stale and key not in found.unreadable],
        missing=[keys[i] for i in np.flatnonzero(rows < 0).tolist()],
        stale=[key for key in keys if key in stale],
        rows=rows,
    )


def stored_digests(store: EmbeddingStore, rows: Rows) -> list[str]:
    """Return the stored digest of each row, or "" for all if the store has no digests."""
    if DIGEST_COLUMN not in store.columns:  # rows of unknown content never count as current
        return [""] * len(rows)
    digests: list[str] = store.select(rows=rows).column(DIGEST_COLUMN).tolist()
    return digests
