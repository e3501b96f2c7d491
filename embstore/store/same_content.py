"""Rows that were made from the same content, by the digests that `embed` stored."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from embstore._engine.format.keys import Key, hash_keys
from embstore._engine.format.source_columns import DIGEST_COLUMN, is_computed, is_source_column
from embstore._engine.read.column import Rows
from embstore._engine.read.key_index import KeyIndex
from embstore._engine.read.read_rows import column_of
from embstore._engine.read.snapshot import Snapshot


def computed_digests(snapshot: Snapshot, rows: Rows) -> list[str]:
    """Return the digest of each row that embstore computed from its content, and "" for other rows."""
    if not is_source_column(DIGEST_COLUMN, snapshot.record.columns.get(DIGEST_COLUMN)):
        return [""] * len(rows)
    found: list[str] = column_of(snapshot, DIGEST_COLUMN, rows).tolist()
    return [digest if is_computed(digest) else "" for digest in found]


def digests_in_chunks(snapshot: Snapshot) -> Iterator[list[str]]:
    """Yield the stored digests of all rows, deleted ones included, a chunk at a time. A store may have none."""
    columns = snapshot.record.columns
    if is_source_column(DIGEST_COLUMN, columns.get(DIGEST_COLUMN)):
        with snapshot.reading():
            yield from snapshot.strings(columns[DIGEST_COLUMN].array).chunks()


def rows_of_content(snapshot: Snapshot, digests: Iterable[str]) -> Rows:
    """Return the live rows that were made from the content of these digests, ascending."""
    wanted = set(digests) - {""}
    if not wanted:
        return np.empty(0, dtype=np.int64)
    found = itertools.chain.from_iterable(digests_in_chunks(snapshot))
    rows = np.array([row for row, digest in enumerate(found) if digest in wanted], dtype=np.int64)
    live: Rows = rows[~snapshot.is_dead(rows)]
    return live


def moved_keys(index: KeyIndex, keys: Sequence[str | Key]) -> dict[str, str]:
    """Return where the content of keys without a live row is stored now: the new key of each that moved.

    Rows of the old keys are known until they are erased, or the store is compacted.
    """
    snapshot, hashes = index.snapshot, hash_keys(keys)
    dead = snapshot.dead_rows
    by_hash = dict(zip(map(bytes, snapshot.take("key_hash", dead)), dead.tolist(), strict=True))  # the newest is last
    gone = [bytes(one) if row < 0 else b"" for one, row in zip(hashes, index.find(hashes).tolist(), strict=True)]
    rows = {key: by_hash[one] for key, one in zip(keys, gone, strict=True) if one in by_hash}
    digests = dict(zip(rows, computed_digests(snapshot, np.array([*rows.values()], dtype=np.int64)), strict=True))
    live = rows_of_content(snapshot, digests.values())
    found: dict[str, list[str]] = {}
    for digest, new in zip(computed_digests(snapshot, live), snapshot.keys_of(live), strict=True):
        found.setdefault(digest, []).append(new)
    moved = {}
    for key, digest in digests.items():
        if candidates := found.get(digest):
            file_id = Key.parse(key).file_id
            alike = [new for new in candidates if Key.parse(new).file_id == file_id]
            moved[str(key)] = (alike or candidates)[0]
    return moved
