"""Plans over all live rows of a store: a column with a value for each, and fields copied from another store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embstore._engine.format.record import FieldSpec
from embstore._engine.read.column import Rows
from embstore._engine.read.key_index import KeyIndex
from embstore._engine.read.read_rows import column_of
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.check_input import column_values, filled_column
from embstore._engine.write.erase import erase_dead
from embstore._engine.write.plans import Plan, plan_column, plan_fields
from embstore._engine.write.session import Session
from embstore.errors import MissingKeysError


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


def erase_rows(session: Session, rows: Rows) -> int:
    """Delete live rows, blank all deleted rows, and return the number of rewritten files. Call it inside `writing`."""
    snapshot = session.snapshot
    dead, new = np.concatenate([snapshot.dead_rows, rows]), {"dead_rows": rows} if len(rows) else {}
    committed, files = erase_dead(snapshot.local_folder, snapshot.record, dead, new)
    session.moved_to(committed)
    session.tidy_index()
    return files
