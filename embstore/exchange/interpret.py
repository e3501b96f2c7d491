"""Read arrays of a file as keys, fields and columns: by the metadata of an export, else by names and shapes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Final

import numpy as np

from embstore._engine.format.record import (
    COLUMN_DTYPES,
    FIELD_DTYPES,
    STRING,
    FieldSpec,
    check_name,
    stored_dtype,
)
from embstore.errors import FileFormatError, NameRefusedError
from embstore.exchange.file_contents import Array, ArrayFile, ArrayInfo, Unreadable
from embstore.exchange.import_options import ImportOptions, chosen_columns, chosen_fields
from embstore.exchange.memory_file import Unread
from embstore.exchange.pt_entries import EMBEDDING, entries_table
from embstore.exchange.table import LABELS, Table, exported_table

KEYS: Final = ("keys", "key", "ids", "id", "file_id")
_SHOWN: Final = 20


def table_of(file: ArrayFile, options: ImportOptions) -> Table:
    """Return the rows of a file: by the metadata of an export, else by the names and shapes of its arrays.

    Raises
    ------
    FileFormatError
        The file is not understood. The message lists its arrays and the expected ones.
    UnknownFieldError, UnknownColumnError, NameRefusedError
    """
    file.check_size()
    return _foreign_table(file, options) if file.metadata is None else exported_table(file, file.metadata, options)


def _foreign_table(file: ArrayFile, options: ImportOptions) -> Table:
    """Return the rows of another program's file. Names and shapes decide which arrays are keys, fields and columns."""
    names = next((name for name in KEYS if _can_name(file.arrays.get(name))), None)
    if names is None:
        return _one_a_key(file, options)
    rows = file.arrays[names].rows
    labels = LABELS if _can_name(file.arrays.get(LABELS)) else None
    fields: dict[str, FieldSpec] = {}
    columns: dict[str, str] = {}
    left_out: list[Unreadable] = []
    for name, found in file.arrays.items():
        if name in (names, labels):
            continue
        if found.rows != rows:
            left_out.append(Unreadable(name, f"it has {found.rows:,} rows, {names!r} has {rows:,}"))
        elif found.dtype in FIELD_DTYPES and (found.shape or found.ragged or name == options.field):
            fields |= _field_of(file, name, found, options.ragged, left_out)
        elif found.shape or found.dtype not in COLUMN_DTYPES:
            left_out.append(Unreadable(name, f"{found} is neither a field nor a column"))
        else:
            try:
                columns[check_name(name)] = found.dtype
            except NameRefusedError as error:
                left_out.append(Unreadable(name, error.reason))
    if not fields:
        raise _not_understood(file)
    sources = chosen_fields(list(fields), options.field, file.path)
    for name in sources:
        check_name(name, columns)
    return Table(
        file=file,
        options=replace(options, keys="file_id") if names == "file_id" and options.keys is None else options,
        fields={name: fields[source] for name, source in sources.items()},
        sources=sources,
        columns={name: columns[name] for name in chosen_columns(list(columns), options.columns, file.path)},
        rows=rows,
        names=names,
        labels=labels,
        left_out=left_out,
    )


def _one_a_key(file: ArrayFile, options: ImportOptions) -> Table:
    """Return the rows of a file with an array for each key, as ``save_file({"v1:dog": tensor, …})`` makes it.

    An array whose name has no class may also be a matrix without keys. Then `keys` must state that names are keys.
    "embeddings" is always the name of a matrix.
    """
    stated = options.keys is not None
    matrix = any(name in file.arrays and file.arrays[name].shape for name in EMBEDDING)
    if matrix or not file.arrays or any(f.ragged or not (stated or ":" in n) for n, f in file.arrays.items()):
        raise _not_understood(file)
    entries = {name: _unread(file, name, found) for name, found in file.arrays.items()}
    return entries_table(file.path, entries, options)


def _unread(file: ArrayFile, name: str, found: ArrayInfo) -> Unread:
    def read() -> Array:
        empty = np.empty((0, *found.shape), stored_dtype(found.dtype))
        return np.concatenate([empty, *(np.asarray(block.values) for block in file.numbers(name))])

    return Unread((found.rows, *found.shape), found.dtype, read)


def _can_name(found: ArrayInfo | None) -> bool:
    return (
        found is not None and not found.shape and not found.ragged and found.dtype.startswith((STRING, "int", "uint"))
    )


def _field_of(
    file: ArrayFile, name: str, found: ArrayInfo, ragged: bool, left_out: list[Unreadable]
) -> dict[str, FieldSpec]:
    """Return the spec of the field that an array makes, by its name. Empty if it makes none."""
    if not found.ragged:
        if 0 in found.shape:
            left_out.append(Unreadable(name, f"a row is of the shape {found.shape}"))
            return {}
        return {name: FieldSpec(shape=found.shape, dtype=found.dtype)}
    if ragged:
        return {name: FieldSpec(shape=found.shape, dtype=found.dtype, ragged=True)}
    width = next((len(row) for block in file.ragged(name) for row in block.values if len(row)), 0)
    if not width:
        left_out.append(Unreadable(name, "all its rows are empty"))
        return {}
    return {name: FieldSpec(shape=(width,), dtype=found.dtype)}


def _not_understood(file: ArrayFile) -> FileFormatError:
    listed = [f"{name}: {found}" for name, found in itertools.islice(file.arrays.items(), _SHOWN)]
    more = len(file.arrays) - len(listed)
    return file.wrong(
        f"it holds {'; '.join(listed) or 'no arrays'}{f' and {more} more' if more > 0 else ''}. Expected keys (an "
        f"array 'keys', 'key', 'ids' or 'id', or 'file_id' with or without 'class_name') and as many rows in one or "
        f"more arrays of numbers, each (rows, …); one number a row is a field if field= names it. Or an array for each "
        f"key, named 'file_id:class'"
    )
