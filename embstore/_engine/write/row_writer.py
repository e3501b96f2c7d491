"""The row writer: it gathers rows and commits them in batches, so that a kill loses little work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from embstore._engine.format.arguments import check_choice, mapping_of, whole_number
from embstore._engine.format.keys import Key, hash_keys
from embstore._engine.format.ragged import Ragged, joined
from embstore._engine.format.record import FieldSpec, Record
from embstore._engine.io.threads import ThreadLock
from embstore._engine.write.check_input import (
    Casting,
    Stored,
    column_values,
    field_values,
    infer_field,
    named_rows,
    no_rows,
    read_keys,
)
from embstore._engine.write.plans import NEW_ROW, AppendResult, IfExists, check_columns, name_fields, pick, plan_append
from embstore._engine.write.session import Session
from embstore.errors import DuplicateKeysError, KeysExistError, UnknownColumnError, UnknownFieldError


class RowWriter:
    """Gathers rows and commits them: on `flush`, every `interval` seconds, and when its block ends.

    `add` commits if the last commit is `interval` seconds old. So rows that took longer than that to make are on disk
    at once. A block that ends by an exception is committed as well: the rows that were added are whole. Made by
    `EmbeddingStore.writer`.

    A key that is added again before its row is committed is treated as one that is stored. With "skip" its first row is
    kept, with "replace" its last one, and with "error" `add` raises and the rows before stay gathered. Several threads
    may add rows to one writer.

    A forked process leaves the rows that were gathered before the fork to its parent.
    """

    def __init__(
        self, session: Session, *, interval: float, max_bytes: int, if_exists: IfExists, casting: Casting
    ) -> None:
        check_choice("if_exists", if_exists, get_args(IfExists))
        check_choice("casting", casting, get_args(Casting))
        if not isinstance(interval, int | float | np.number) or not interval >= 0:
            raise TypeError(f"expected a number of seconds as interval, found {interval!r:.200}")
        self._session = session
        self._interval = float(interval)
        self._max_bytes = whole_number("max_bytes", max_bytes, 0)
        self._if_exists: IfExists = if_exists
        self._casting: Casting = casting
        self._pending: list[tuple[list[str], dict[str, Stored], dict[str, list[Any]]]] = []
        self._keys: set[str] = set()  # of the rows in `_pending`
        self._lock = ThreadLock()  # rows that a thread adds while another commits would be lost
        self._ended = False
        self._specs: dict[str, FieldSpec] = {}
        self._columns: dict[str, str] | None = None
        self._pending_bytes = 0
        self._process = os.getpid()
        self._last = time.monotonic()

    def add(self, key: str | Key, value: Any, *, columns: Mapping[str, Any] | None = None) -> None:
        """Add one row: a `value` of the shape of the field, or a mapping of field names to values."""
        one = {name: [row] for name, row in named_rows(value).items()}
        self.append(
            [key],
            one,
            columns={name: [v] for name, v in mapping_of("columns", columns, "column names to values").items()},
        )

    def append(self, keys: Iterable[str | Key], values: Any, *, columns: Mapping[str, Any] | None = None) -> None:
        """Add several rows at once, as `EmbeddingStore.append` takes them.

        Rows are checked and copied here. So refused rows don't block the rows before them, and an encoder may use its
        buffer again.

        Raises
        ------
        DuplicateKeysError
            A key occurs twice, or it was added before and `if_exists` is "error".
        ValueError
            The block of the writer has ended.
        """
        with self._lock():
            self._gather(keys, values, columns)

    def _gather(self, keys: Iterable[str | Key], values: Any, columns: Mapping[str, Any] | None) -> None:
        if self._ended:
            raise ValueError("expected rows inside the block of the writer, which has ended; call store.writer() again")
        self._leave_to_parent()
        given = named_rows(values)
        described = named_rows(mapping_of("columns", columns, "column names to values"))
        texts = read_keys(keys).texts
        if no_rows(texts, given):
            return
        if self._if_exists == "error" and (twice := [text for text in texts if text in self._keys]):
            raise DuplicateKeysError(twice, path=self._session.path)
        record = self._session.snapshot.record
        named = name_fields(record, given, self._session.path)
        columns = self._checked_columns(record, described, texts)
        specs = dict(record.fields) or self._specs or {name: infer_field(name, v) for name, v in named.items()}
        if self._pending and specs != self._specs:
            self.flush()  # rows of two specs can't be joined
        self._specs = specs
        if self._pending and self._pending[0][2].keys() != columns.keys():
            self.flush()  # nor can rows with values of other columns
        fields: dict[str, Stored] = {}
        for name, rows in named.items():
            if name not in self._specs:
                raise UnknownFieldError(name, self._specs, path=self._session.path)
            fields[name] = _copied(field_values(name, self._specs[name], rows, texts, casting=self._casting))
        self._pending.append((texts, fields, columns))
        self._keys.update(texts)
        self._pending_bytes += sum(rows.nbytes for rows in fields.values())
        if self._pending_bytes >= self._max_bytes:
            self.flush()
        self.flush_if_due()

    def _checked_columns(self, record: Record, columns: dict[str, Any], texts: list[str]) -> dict[str, list[Any]]:
        """Check column values against the columns of the store, or against those of the first rows."""
        count = len(texts)
        if record.fields:
            kept = self._session.index.find(hash_keys(texts)) if self._if_exists == "replace" else NEW_ROW
            check_columns(record, columns, self._session.path, kept)
            if self._if_exists != "replace":  # a row that is replaced hands on its values
                columns = {name: spec.fill_value for name, spec in record.columns.items()} | columns
            self._columns = {name: record.columns[name].dtype for name in columns}
        elif self._columns is None:
            self._columns = {name: column_values(name, None, values, count)[0] for name, values in columns.items()}
        assert self._columns is not None
        if odd := sorted(columns.keys() ^ self._columns.keys()):
            raise UnknownColumnError(odd[0], self._columns, path=self._session.path, what="rows differ in column")
        return {
            name: list(column_values(name, self._columns[name], values, count)[1]) for name, values in columns.items()
        }

    def flush_if_due(self) -> None:
        """Commit the gathered rows if the last commit is `interval` seconds old."""
        if time.monotonic() - self._last >= self._interval:
            self.flush()

    def flush(self) -> AppendResult:
        """Commit the gathered rows. On failure they stay gathered.

        Raises
        ------
        KeysExistError
            Some keys are stored. The rows of all other keys were committed, and the rows of these keys were discarded.
        """
        with self._lock():
            self._leave_to_parent()
            result = AppendResult()
            if self._pending:
                try:
                    result = self._commit(self._if_exists)
                except KeysExistError:
                    self._commit("skip")
                    raise
            self._last = time.monotonic()
            return result

    def _commit(self, if_exists: IfExists) -> AppendResult:
        keys = [key for batch, _, _ in self._pending for key in batch]
        chosen = None
        if len(self._keys) < len(keys):  # some keys were added twice
            places = {key: place for place, key in enumerate(keys)}
            if if_exists == "skip":
                places = {key: place for place, key in reversed(list(enumerate(keys)))}
            chosen = np.sort(np.fromiter(places.values(), np.int64, len(places)))
        batch = read_keys(pick(keys, chosen))
        fields: dict[str | None, Stored] = {
            name: pick(_joined([fields[name] for _, fields, _ in self._pending]), chosen)
            for name in self._pending[0][1]
        }
        columns = {
            name: pick([v for _, _, columns in self._pending for v in columns[name]], chosen)
            for name in self._pending[0][2]
        }
        result = self._session.apply(
            lambda snapshot, index: plan_append(
                snapshot, index, batch, fields, columns, if_exists=if_exists, casting="no", checked=self._specs
            )
        )
        self._discard()
        again = len(keys) - len(batch) if if_exists == "skip" else 0
        return replace(result, skipped=result.skipped + again)

    def _discard(self) -> None:
        self._pending, self._pending_bytes = [], 0
        self._keys.clear()

    def _leave_to_parent(self) -> None:
        if self._process != os.getpid():
            self._process = os.getpid()
            self._discard()

    def __enter__(self) -> RowWriter:
        self._last = time.monotonic()
        self._ended = False
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self.flush()


def _copied(rows: Stored) -> Stored:
    if isinstance(rows, Ragged):
        return Ragged(np.array(rows.values), np.array(rows.offsets))
    return np.array(rows)


def _joined(parts: list[Any]) -> Stored:
    if len(parts) == 1:
        return parts[0]  # type: ignore[no-any-return]
    return joined(parts) if isinstance(parts[0], Ragged) else np.concatenate(parts)
