"""Plans: a call turned into a new record and the rows to add to each array.

Each function reads one snapshot and writes nothing. `Session` carries the plan out under the same lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.keys import hash_keys
from embstore._engine.format.ragged import Ragged, offsets_of
from embstore._engine.format.record import (
    DEFAULT_FIELD,
    STRING,
    ArrayState,
    ColumnSpec,
    FieldSpec,
    Record,
    check_name,
    offsets_name,
)
from embstore._engine.format.source_columns import is_source_column
from embstore._engine.format.zarr_layout import blank
from embstore._engine.pickles import PickledByName
from embstore._engine.read.column import Rows
from embstore._engine.read.key_index import KeyIndex
from embstore._engine.read.read_rows import check_ends, column_of, read_field, row_bounds
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.check_input import (
    Casting,
    KeyBatch,
    Stored,
    column_values,
    field_values,
    infer_field,
    named_rows,
)
from embstore._engine.write.commit import Blocks, Values
from embstore._engine.write.record_edits import successor, with_column, with_field
from embstore.errors import KeysExistError, UnknownColumnError, UnknownFieldError

IfExists = Literal["error", "skip", "replace"]
_BLOCK_BYTES: Final = 64 * 2**20
_BLOCK_ROWS: Final = 65_536
NEW_ROW: Final = np.array([-1])
NO_FILL: Final = "integers and bools have no fill unless one is given: store.set_columns({}, fill={name: value})"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendResult(PickledByName):
    """Result of an append, in rows."""

    appended: int = 0
    skipped: int = 0
    replaced: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A record to commit, and the rows to add, by the name of the array."""

    record: Record
    appends: Mapping[str, Blocks]


def plan_append(
    snapshot: Snapshot,
    index: KeyIndex,
    keys: KeyBatch,
    fields: Mapping[str | None, Any],
    columns: Mapping[str, Any],
    *,
    if_exists: IfExists,
    casting: Casting,
    checked: Mapping[str, FieldSpec] | None = None,
) -> tuple[Plan | None, AppendResult]:
    """Plan the append of rows. Without rows to add, return None as the plan.

    Parameters
    ----------
    snapshot, index
    keys : KeyBatch
    fields : mapping of field names to rows
        The name None stands for the only field.
    columns : mapping of column names to values
    if_exists : {"error", "skip", "replace"}
    casting : {"no", "same_kind"}
    checked : mapping of field names to FieldSpec, optional
        The specs by which `field_values` made the rows. Rows of a field that still has this spec are not checked again.

    Raises
    ------
    KeysExistError, ShapeError, DtypeError, NonFiniteError, UnknownFieldError, UnknownColumnError
    """
    record, path = snapshot.record, snapshot.folder.path
    check_ends(snapshot)
    named = name_fields(record, fields, path)
    specs = dict(checked or {})
    if not record.fields:  # the first rows decide the fields and columns of the store
        for name, values in named.items():
            record = with_field(record, name, specs.get(name) or infer_field(name, values))
        for name, values in columns.items():
            if name not in record.columns:
                record = with_column(record, name, column_values(name, None, values, len(keys))[0])
    stored: dict[str, Stored] = dict(named)
    for name, spec in record.fields.items():
        if specs.get(name) != spec:
            stored_as = specs[name].dtype if name in specs else None
            stored[name] = field_values(name, spec, named[name], keys.texts, casting=casting, stored_as=stored_as)
    hashes = hash_keys(keys.texts) if snapshot.record.rows else None
    rows = index.find(hashes) if hashes is not None else np.full(len(keys), -1, dtype=np.int64)
    kept = rows if if_exists == "replace" else np.full(len(keys), -1, dtype=np.int64)
    described = {
        record.columns[name].array: column_values(name, record.columns[name].dtype, values, len(keys))[1]
        for name, values in check_columns(record, columns, path, kept).items()
    }
    described |= {
        record.columns[name].array: kept_values(snapshot, name, record.columns[name], kept)
        for name in record.columns.keys() - columns.keys()
    }
    present = np.flatnonzero(rows >= 0)
    dead = np.empty(0, dtype=np.int64)
    chosen: NDArray[np.int64] | None = None
    if len(present) and if_exists == "error":
        raise KeysExistError([keys.texts[i] for i in present.tolist()], path=path)
    if len(present) and if_exists == "skip":
        chosen = np.flatnonzero(rows < 0)
        keys = keys.at(chosen)
    if if_exists == "replace":
        dead = rows[present]
    result = AppendResult(appended=len(keys), skipped=len(rows) - len(keys), replaced=len(dead))
    if not len(keys) and record.arrays.keys() == snapshot.record.arrays.keys():
        return None, result
    codes, new_names = class_codes(snapshot.class_names, keys.class_names)
    appends: dict[str, Blocks] = nonempty(
        {
            **field_appends(record, {name: pick(values, chosen) for name, values in stored.items()}),
            **{name: pick(values, chosen) for name, values in described.items()},
            "file_id": keys.file_ids,
            "class_code": codes,
            "class_names": new_names,
            "dead_rows": dead,
        }
    )
    if len(keys):
        appends["key_hash"] = _hashed(keys.texts) if hashes is None else pick(hashes, chosen)
    return Plan(replace(record, rows=record.rows + len(keys)), appends), result


def _hashed(keys: list[str]) -> Iterator[Values]:
    """Yield the hashes of keys that need no lookup: late, when the disk is busy with the fields."""
    yield hash_keys(keys)


def field_appends(record: Record, rows: Mapping[str, Stored]) -> dict[str, Values]:
    """Return the values to add to each array for rows of fields. Ragged fields have two arrays."""
    appends: dict[str, Values] = {}
    for name, values in rows.items():
        if isinstance(values, Ragged):
            offsets = record.arrays[offsets_name(name)]
            ends = values.offsets + record.arrays[name].length
            appends |= {name: values.values, offsets_name(name): ends[1:] if offsets.length else ends}
        else:
            appends[name] = values
    return appends


def pick(values: Any, chosen: NDArray[np.int64] | None) -> Any:
    """Return the values at the given positions. None returns all values, as they are."""
    if chosen is None:
        return values
    if isinstance(values, Ragged):
        return values.take(chosen)
    if isinstance(values, np.ndarray):
        return values[chosen]
    return [values[i] for i in chosen.tolist()]


def name_fields(record: Record, fields: Mapping[str | None, Any], path: Any) -> dict[str, Any]:
    """Name unnamed rows by the only field of the store, and check that no field is left out.

    Raises
    ------
    UnknownFieldError
    """
    if list(fields) == [None]:
        if len(record.fields) > 1:
            raise UnknownFieldError(None, record.fields, path=path)
        return {next(iter(record.fields), DEFAULT_FIELD): fields[None]}
    if not fields:
        raise UnknownFieldError(None, record.fields, path=path)
    named = {check_name(name): values for name, values in fields.items()}
    if record.fields and (odd := named.keys() ^ record.fields.keys()):
        raise UnknownFieldError(sorted(odd)[0], record.fields, path=path)
    return named


def check_columns(record: Record, columns: Mapping[str, Any], path: Any, kept: Rows = NEW_ROW) -> Mapping[str, Any]:
    """Return the columns that new rows are given. Check that the store has them, and values for all others.

    Parameters
    ----------
    record, columns, path
    kept : ndarray of int64
        See `kept_values`.

    Raises
    ------
    UnknownColumnError
    """
    for name in columns.keys() - record.columns.keys():
        raise UnknownColumnError(name, record.columns, path=path)
    for name in record.columns.keys() - columns.keys():
        column = record.columns[name]
        if column.fill_value is None and (_keeping(name, column, kept) < 0).any():
            raise UnknownColumnError(name, columns, path=path, what="these rows need a value for column", hint=NO_FILL)
    return columns


def _keeping(name: str, column: ColumnSpec, kept: Rows) -> Rows:
    """Return the rows whose values in a column are kept. The notes on content are not: a new row has other content."""
    return np.full_like(kept, -1) if is_source_column(name, column) else kept


def kept_values(snapshot: Snapshot, name: str, column: ColumnSpec, kept: Rows) -> Values:
    """Return the values of a column that new rows are not given: those of the rows that they succeed, or its fill.

    Parameters
    ----------
    snapshot : Snapshot
    name : str
    column : ColumnSpec
    kept : ndarray, (n,) int64
        The row whose value each new row keeps, or -1.
    """
    kept = _keeping(name, column, kept)
    there, new = np.flatnonzero(kept >= 0), np.flatnonzero(kept < 0)
    values = np.empty(len(kept), dtype=object if column.dtype == STRING else column.dtype)
    if len(new):  # otherwise there need be no fill
        values[new] = column.fill_value
    if len(there):  # otherwise the column may be a new one
        values[there] = column_of(snapshot, name, kept[there])
    return values


def class_codes(known: list[str], class_names: list[str]) -> tuple[NDArray[np.int32], list[str]]:
    """Return the class code of each row, and the new classes in order of appearance."""
    names = list(dict.fromkeys([*known, *class_names]))
    codes = {name: code for code, name in enumerate(names)}
    values = np.fromiter(map(codes.__getitem__, class_names), dtype=np.int32, count=len(class_names))
    return values, names[len(known) :]


def plan_delete(snapshot: Snapshot, rows: Rows) -> Plan:
    """Plan the deletion of live rows."""
    return Plan(snapshot.record, {"dead_rows": rows})


def spread(array: ArrayState, snapshot: Snapshot, rows: Rows, values: Any) -> Any:
    """Spread the values of some rows over all rows. The other rows are blank, or without tokens."""
    count = snapshot.record.rows
    if isinstance(values, Ragged):
        lengths = np.zeros(count, dtype=np.int64)
        lengths[rows] = values.lengths
        return Ragged(values.take(np.argsort(rows)).values, offsets_of(lengths))
    if array.dtype == STRING:
        strings = [""] * count
        for row, value in zip(rows.tolist(), values, strict=True):
            strings[row] = value
        return strings
    assert isinstance(values, np.ndarray)
    if len(rows) == count and (rows == np.arange(count)).all():
        return values
    whole = np.full((count, *array.shape), blank(array), dtype=array.dtype)
    whole[rows] = values
    return whole


def plan_field(
    snapshot: Snapshot, name: str, rows: Rows, keys: list[str], values: Any, spec: FieldSpec | None, casting: Casting
) -> Plan:
    """Plan a new field, with values for all live rows.

    Raises
    ------
    NameRefusedError, ShapeError, DtypeError, NonFiniteError
    """
    name = check_name(name)
    values = named_rows({name: values})[name]
    spec = infer_field(name, values) if spec is None else spec
    record = with_field(snapshot.record, name, spec)
    stored = field_values(name, spec, values, keys, casting=casting)
    spread_out = spread(record.arrays[name], snapshot, rows, stored)
    return Plan(record, nonempty(field_appends(record, {name: spread_out})))


def plan_fields(snapshot: Snapshot, other: Snapshot, specs: Mapping[str, FieldSpec], rows: Rows) -> Plan:
    """Plan new fields, copied from another store in blocks.

    Parameters
    ----------
    snapshot, other
    specs : mapping of str to FieldSpec
        As `other` has them.
    rows : ndarray, (rows of snapshot,) int64
        The row of `other` for each row, or -1 for rows that are to be blank.

    Raises
    ------
    NameRefusedError, ShapeError
    """
    record = snapshot.record
    appends: dict[str, Blocks] = {}
    for name, spec in specs.items():
        record = with_field(record, name, spec)
        if len(rows):
            appends[name] = _field_blocks(record.arrays[name], other, name, rows)
        if spec.ragged:
            lengths = np.zeros(len(rows), dtype=np.int64)
            there = rows >= 0
            starts, stops = row_bounds(other, name, rows[there])
            lengths[there] = stops - starts
            appends[offsets_name(name)] = offsets_of(lengths)
    return Plan(record, appends)


def _field_blocks(array: ArrayState, other: Snapshot, name: str, rows: Rows) -> Iterator[Values]:
    """Yield rows of a field from another store. Rows that it lacks (-1) are blank, or without tokens."""
    for block in row_blocks(other, rows):
        there = np.flatnonzero(block >= 0)
        values = read_field(other, name, block[there])
        if isinstance(values, Ragged):
            yield values.values
        else:
            whole = np.full((len(block), *array.shape), blank(array), dtype=array.dtype)
            whole[there] = values
            yield whole


def row_blocks(snapshot: Snapshot, rows: Rows) -> Iterator[Rows]:
    """Yield rows in blocks of at most 64 MiB of the widest field, and 65,536 rows."""
    record = snapshot.record
    states = [record.arrays[name] for name in record.fields]
    # The rows of a ragged field are counted with their average number of tokens.
    widest = max((-(-state.row_nbytes * state.length // max(1, record.rows)) for state in states), default=1)
    step = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // max(1, widest)))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def with_values(
    snapshot: Snapshot, record: Record, name: str, rows: Rows, dtype: str, values: Any, *, fill: str | None
) -> tuple[Record, dict[str, Values]]:
    """Return the record with a column of checked values for all live rows, and the values of its array.

    The column is new, or replaces one of the same name. The array of the old column is not overwritten, since readers
    may use it. Its successor is an array of another name (``score.v2``), and the record names the array of the column.

    Raises
    ------
    NameRefusedError
    """
    old = record.columns.get(name)
    array_name = successor(old.array, record) if old else name
    record = with_column(record, name, dtype, array_name=array_name, fill=fill)
    whole = spread(record.arrays[array_name], snapshot, rows, values)
    if old:
        arrays = {n: state for n, state in record.arrays.items() if n != old.array}
        record = replace(record, arrays=arrays, dropped=(*record.dropped, old.array))
    return record, {array_name: whole}


def nonempty(appends: Mapping[str, Values]) -> dict[str, Blocks]:
    return {name: values for name, values in appends.items() if len(values)}
