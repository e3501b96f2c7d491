"""Plans over all live rows of a store: columns with a value for each, and fields copied from another store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from embstore._engine.format.keys import Key, hash_keys
from embstore._engine.format.record import STRING, ColumnSpec, FieldSpec, check_name, fill_text
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
from embstore._engine.write.fold_parts import erase_rows
from embstore._engine.write.parts_session import PartsSession
from embstore._engine.write.plans import NO_FILL, Plan, nonempty, plan_fields, with_values
from embstore._engine.write.session import Session
from embstore.errors import DtypeError, MissingKeysError
from embstore.store.same_content import computed_digests, rows_of_content


def check_all_live(snapshot: Snapshot, rows: Rows, what: str, hint: str = "") -> None:
    """Raise `MissingKeysError` with the keys of the live rows that are not among `rows`."""
    left_out = np.setdiff1d(snapshot.live_rows, rows)
    if len(left_out):
        raise MissingKeysError(snapshot.keys_of(left_out), path=snapshot.folder.path, what=what, hint=hint)


def plan_columns(
    snapshot: Snapshot, rows: Rows, columns: Mapping[str, Any], fills: Mapping[str, Any]
) -> tuple[Plan | None, tuple[str, ...]]:
    """Plan new values of columns in some live rows. See `EmbeddingStore.set_columns`.

    Returns
    -------
    Plan or None
        None if all values and fills are stored already.
    tuple of str
        The columns that change.
    """
    left_out = np.empty(0, np.int64)
    if len(rows) != len(snapshot.live_rows) or not (rows == snapshot.live_rows).all():
        # Not setdiff1d, which took 0.9 s for one row of a million: it hashes both.
        left_out = snapshot.live_rows[~np.isin(snapshot.live_rows, rows)]
    record, changed = replace(snapshot.record, dropped=()), list[str]()
    appends: dict[str, Any] = {}
    for name in dict.fromkeys([*columns, *fills]):
        check_name(name)
        old = record.columns.get(name)
        if old is None:
            dtype, values, fill = _new_values(snapshot, name, rows, left_out, columns.get(name), fills.get(name))
        else:
            dtype, values, fill = _other_values(snapshot, name, rows, left_out, columns.get(name), fills.get(name))
        if values is not None:
            places = np.concatenate([rows, left_out])
            record, values = with_values(snapshot, record, name, places, dtype, values, fill=fill)
            appends |= values
        elif old is not None and fill != old.fill:
            record = replace(record, columns={**record.columns, name: replace(old, fill=fill)})
        else:
            continue
        changed.append(name)
    return (Plan(record, nonempty(appends)) if changed else None), tuple(changed)


def _new_values(
    snapshot: Snapshot, name: str, rows: Rows, left_out: Rows, given: Any, fill: Any
) -> tuple[str, Any, str | None]:
    """Return the dtype, the values of all live rows, and the fill of a new column."""
    count = len(rows)
    if fill is None:
        dtype, values = column_values(name, None, given, count)
        fill = ColumnSpec(dtype=dtype, array=name).fill_value
        if fill is None:
            check_all_live(snapshot, rows, f"given a value for {name!r}", NO_FILL)
            return dtype, values, None
        return dtype, _joined(values, column_values(name, dtype, fill, len(left_out))[1]), None
    blanks = len(left_out)
    if given is None:
        given, count, blanks = [], 0, blanks + count
    dtype, values = filled_column(name, given, count, fill, blanks)
    return dtype, values, _checked_fill(name, dtype, fill)


def _other_values(
    snapshot: Snapshot, name: str, rows: Rows, left_out: Rows, given: Any, fill: Any
) -> tuple[str, Any, str | None]:
    """Return the dtype, the values of all live rows (None if they are the stored ones), and the fill of a column."""
    old = snapshot.record.columns[name]
    dtype, kept = old.dtype, old.fill
    values = None
    if given is not None:
        try:
            dtype, values = column_values(name, old.dtype, given, len(rows))
        except DtypeError:
            if len(left_out):
                raise
            dtype, values = column_values(name, None, given, len(rows))
            kept = None
    if values is not None and dtype == old.dtype:
        same = _same(column_of(snapshot, name, rows), values)
        values = None if same else _joined(values, column_of(snapshot, name, left_out))
    return dtype, values, kept if fill is None else _checked_fill(name, dtype, fill)


def _checked_fill(name: str, dtype: str, fill: Any) -> str | None:
    value = column_values(name, dtype, fill, 1)[1][0]
    return fill_text(value if dtype == STRING else value.item())


def _same(stored: Any, values: Any) -> bool:
    if isinstance(values, list):
        return bool(stored.tolist() == values)
    return bool(np.array_equal(stored, values, equal_nan=stored.dtype.kind == "f"))


def _joined(values: Any, others: Any) -> Any:
    return [*values, *others] if isinstance(values, list) else np.concatenate([values, others])


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


def erase_from_parts(session: PartsSession, keys: Sequence[str | Key], *, copies: bool) -> EraseReceipt:
    """Write the parts with rows of keys anew without them, and delete the old objects."""
    hashes = hash_keys(keys)
    same_content: list[str] = []
    chosen = hashes

    def rows_to_erase(snapshot: Snapshot, index: KeyIndex) -> Rows:
        nonlocal same_content, chosen
        rows = index.find(hashes)
        if missing := [str(Key.parse(key)) for key, row in zip(keys, rows.tolist(), strict=True) if row < 0]:
            raise MissingKeysError(missing, path=session.path, others=index.others_of(missing))
        alike = np.setdiff1d(rows_of_content(snapshot, computed_digests(snapshot, rows)), rows)
        same_content, chosen = snapshot.keys_of(alike), hashes
        if copies:
            chosen, same_content = np.concatenate([hashes, hash_keys(same_content)]), []
            rows = np.union1d(rows, alike)
        return np.unique(rows)

    rows, written = erase_rows(session, rows_to_erase)
    return EraseReceipt(
        path=session.path,
        key_hashes=tuple(digest.tobytes().hex() for digest in chosen),
        rows=tuple(rows.tolist()),
        files_rewritten=written,
        same_content=tuple(same_content),
    )
