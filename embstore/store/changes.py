"""Plans over all live rows of a store: a column with a value for each, and fields copied from another store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embstore._engine.format.keys import Key, hash_keys
from embstore._engine.format.record import FieldSpec
from embstore._engine.read.column import Rows
from embstore._engine.read.key_index import KeyIndex
from embstore._engine.read.read_rows import column_of
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.check_input import column_values, filled_column
from embstore._engine.write.erase import (
    EraseReceipt,
    erase_dead,
    keep_keys,
    keys_without_receipt,
    plan_erase,
    unfinished,
)
from embstore._engine.write.plans import Plan, plan_column, plan_fields
from embstore._engine.write.session import Session
from embstore.errors import MissingKeysError
from embstore.store.same_content import computed_digests, rows_of_content


def check_all_live(snapshot: Snapshot, rows: Rows, what: str) -> None:
    """Raise `MissingKeysError` with the keys of the live rows that are not among `rows`."""
    left_out = np.setdiff1d(snapshot.live_rows, rows)
    if len(left_out):
        raise MissingKeysError(snapshot.keys_of(left_out), path=snapshot.folder.path, what=what)


def plan_filled_column(snapshot: Snapshot, name: str, rows: Rows, values: Any, fill: Any) -> Plan:
    """Plan a column with `values` in `rows` and `fill` in all other live rows. See `EmbeddingStore.set_column`."""
    if fill is None:
        check_all_live(snapshot, rows, f"given a value for {name!r}")
        return plan_column(snapshot, name, rows, *column_values(name, None, values, len(rows)))
    left_out = np.setdiff1d(snapshot.live_rows, rows)
    filled = filled_column(name, values, len(rows), fill, len(left_out))
    return plan_column(snapshot, name, np.concatenate([rows, left_out]), *filled)


def plan_copied_fields(
    snapshot: Snapshot, other: KeyIndex, specs: Mapping[str, FieldSpec], *, same: Sequence[str]
) -> Plan:
    """Plan fields copied from another store, whose index is `other`. See `EmbeddingStore.copy_fields`."""
    live, theirs = snapshot.live_rows, other.snapshot
    found = other.find(snapshot.take("key_hash", live))
    there = np.flatnonzero(found >= 0)
    for column in same:
        there = there[column_of(snapshot, column, live[there]) == column_of(theirs, column, found[there])]
    if len(there) < len(live):
        missing = snapshot.keys_of(np.delete(live, there))
        raise MissingKeysError(missing, path=theirs.folder.path, what="current there")
    rows = np.full(snapshot.record.rows, -1, dtype=np.int64)
    rows[live] = found
    return plan_fields(snapshot, theirs.checked(), specs, rows)


def erase_keys(session: Session, keys: Sequence[str | Key], *, copies: bool) -> EraseReceipt:
    """Delete the rows of keys, and blank all deleted rows. Call it inside `writing`, after recovery.

    With `copies`, all rows that were made from the same content are erased too.

    Keys that an earlier erase deleted without giving its receipt count as erased by this one.
    """
    snapshot, hashes = session.snapshot, hash_keys(keys)
    rows = session.index.find(hashes)
    alike = np.setdiff1d(rows_of_content(snapshot, computed_digests(snapshot, rows[rows >= 0])), rows)
    same_content = snapshot.keys_of(alike)
    if copies:
        keys, same_content = [*keys, *same_content], []
        hashes = hash_keys(keys)
    folder, digests = snapshot.local_folder, [digest.tobytes() for digest in hashes]
    earlier, found = keys_without_receipt(folder), session.index.find(hashes)
    pairs = list(zip(digests, found.tolist(), strict=True))
    missing = [
        str(Key.parse(key)) for key, (digest, row) in zip(keys, pairs, strict=True) if row < 0 and digest not in earlier
    ]
    if missing:
        raise MissingKeysError(missing, path=session.path, others=session.index.others_of(missing))
    erased = {digest: earlier[digest] if row < 0 else row for digest, row in pairs}
    rows = np.unique(found[found >= 0])
    dead, new = np.concatenate([snapshot.dead_rows, rows]), {"dead_rows": rows} if len(rows) else {}
    tails = plan_erase(folder, snapshot.record, dead)
    if erased:
        keep_keys(folder, earlier | erased)
        folder.sync()
    committed, files = erase_dead(folder, snapshot.record, dead, new, tails)
    session.moved_to(committed)
    session.tidy_index()
    if erased:
        with unfinished(session.path):  # not synced: after a power cut the keys may only get a second receipt
            keep_keys(folder, {digest: row for digest, row in earlier.items() if digest not in erased})
    return EraseReceipt(
        path=session.path,
        key_hashes=tuple(digest.hex() for digest in digests),
        rows=tuple(sorted(set(erased.values()))),
        files_rewritten=files,
        same_content=tuple(same_content),
    )
