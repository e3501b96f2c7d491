"""Read arrays of a file as keys, fields and columns: by the metadata of an export, else by names and shapes."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Final

import numpy as np

from embstore._engine.format.record import COLUMN_DTYPES, FIELD_DTYPES, STRING, FieldSpec, check_name, stored_dtype
from embstore.errors import FileFormatError, NameRefusedError, UnknownColumnError
from embstore.exchange.file_contents import Array, ArrayFile, ArrayInfo, Unreadable, is_text
from embstore.exchange.import_options import ImportOptions, chosen_columns, chosen_fields
from embstore.exchange.memory_file import EMBEDDING, KEYS, LABELS, NAMES, MemoryFile, Unread
from embstore.exchange.pt_entries import entries_file, exported_entries
from embstore.exchange.table import Table

_SHOWN: Final = 20


def table_of(file: ArrayFile, options: ImportOptions) -> Table:
    """Return the rows of a file: by the metadata of an export, else by the names and shapes of its arrays.

    Raises
    ------
    FileFormatError
        An array is not as the metadata states, or the file is not understood. The message lists its arrays and the
        expected ones.
    UnknownFieldError, UnknownColumnError, NameRefusedError
    """
    file.check_size()
    stated = file.metadata
    if stated is not None and stated.per_key and not isinstance(file, MemoryFile):
        ((field, _),) = stated.fields.items()
        entries = {name: {field: _unread(file, name, found)} for name, found in file.arrays.items()}
        made = exported_entries(file.path, entries, stated, options)
        made.left_out += file.left_out
        return table_of(made, options)
    if stated is not None:
        for name in list(file.arrays):
            file.join_offsets(name)
        names = NAMES if NAMES in file.arrays else "file_id"
        if names not in file.arrays:
            raise file.wrong(f"its metadata states an array {names!r}, which is missing")
        labels: str | None = LABELS
        fields, columns = stated.fields, stated.columns
        options = replace(options, keys=stated.per_key or ("file_id:class" if names == NAMES else "file_id"))
    else:
        usual = KEYS if options.key_column is None else (options.key_column,)
        found = next((name for name in usual if name in file.arrays and _can_name(file.arrays[name])), None)
        if found is None and options.key_column is not None:
            named = [name for name, array in file.arrays.items() if _can_name(array)]
            raise UnknownColumnError(options.key_column, named, path=file.path)
        if found is None:
            return _one_a_key(file, options)
        names, labels = found, _labels(file, found)
        fields, columns = _by_shape(file, names, options)
        if names == "file_id" and options.keys is None:
            options = replace(options, keys="file_id")
    sources = chosen_fields(list(fields), options.field, file.path)
    table = Table(
        file=file,
        options=options,
        fields={name: fields[source] for name, source in sources.items()},
        sources=sources,
        columns={name: columns[name] for name in chosen_columns(list(columns), options.columns, file.path)},
        names=names,
        labels=labels,
    )
    if stated is not None:
        _check_stated(table)
    return table


def _check_stated(table: Table) -> None:
    """Raise FileFormatError unless the arrays are as the metadata states."""
    expected: dict[str, FieldSpec | str] = {table.names: STRING, LABELS: STRING, **table.columns}
    expected |= {source: table.fields[name] for name, source in table.sources.items()}
    for name, wanted in expected.items():
        found = table.file.arrays.get(name)
        if found is None or found.rows != table.rows:
            fits = False
        elif isinstance(wanted, FieldSpec):
            fits = math.prod(found.shape) == math.prod(wanted.shape) and found.ragged == wanted.ragged
            fits = fits and found.dtype in (wanted.dtype, wanted.zarr_dtype)
        elif wanted == STRING:
            fits = is_text(found)
        else:
            fits = (found.dtype, found.shape, found.ragged) == (wanted, (), False)
        if not fits:
            what = f"{table.rows:,} rows of {wanted}"
            raise table.file.wrong(f"its metadata states {what} in {name!r}, found {found or 'no such array'}")


def _labels(file: ArrayFile, names: str) -> str | None:
    """Return the array of classes, if there is one.

    Raises
    ------
    FileFormatError
        It holds neither texts nor numbers, or has another number of rows. Leaving it out would drop all labels.
    """
    found = file.arrays.get(LABELS)
    if found is None or found.dtype == "null":  # the dtype of an Arrow column in which all values are missing
        return None
    rows = file.arrays[names].rows
    if not (_can_name(found) or (found.dtype == "bool" and not found.shape)) or found.rows != rows:
        raise file.wrong(f"{LABELS!r}: expected {rows:,} texts or whole numbers, found {found}; write them as texts")
    return LABELS


def _by_shape(file: ArrayFile, names: str, options: ImportOptions) -> tuple[dict[str, FieldSpec], dict[str, str]]:
    """Return the fields and columns of another program's file. Names and shapes decide."""
    fields: dict[str, FieldSpec] = {}
    columns: dict[str, str] = {}
    for name, found in file.arrays.items():
        if name in (names, LABELS):
            continue
        meaning = _meaning(file, name, found, file.arrays[names].rows, options)
        try:
            if options.field is None or not isinstance(meaning, FieldSpec):  # otherwise its name may be another
                check_name(name, (*fields, *columns))
        except NameRefusedError as error:
            meaning = Unreadable(name, error.reason)
        if isinstance(meaning, Unreadable):
            file.left_out.append(meaning)
        elif isinstance(meaning, FieldSpec):
            fields[name] = meaning
        else:
            columns[name] = meaning
    if not fields:
        raise _not_understood(file)
    if options.field is not None:
        check_name(options.field, columns)
    return fields, columns


def _meaning(
    file: ArrayFile, name: str, found: ArrayInfo, rows: int, options: ImportOptions
) -> FieldSpec | str | Unreadable:
    """Return the field that an array makes, the dtype of the column, or the reason why it makes neither."""
    if found.rows != rows:
        return Unreadable(name, f"it has {found.rows:,} rows, expected {rows:,}, one for each key")
    if found.dtype in FIELD_DTYPES and (found.shape or found.ragged or name in (options.field, *EMBEDDING)):
        shape, ragged = found.shape, found.ragged and options.ragged
        if found.ragged and not ragged and 0 not in shape:
            lengths = (len(row) for block in file.ragged(name) for row in block.values)
            shape = (next(filter(None, lengths), 0), *shape)
        if 0 in shape:
            return Unreadable(name, f"its rows have no values: their shape is {shape}")
        return FieldSpec(shape=shape, dtype=found.dtype, ragged=ragged)
    if found.shape or found.dtype not in COLUMN_DTYPES:
        return Unreadable(name, f"{found} is neither a field nor a column")
    whole = found.nullable and not found.dtype.startswith((STRING, "float"))  # these have no value for a missing one
    if whole and (missing := sum(len(block.bad) for block in file.numbers(name))):
        return Unreadable(name, f"{missing:,} of its {rows:,} values are missing")
    return found.dtype


def _one_a_key(file: ArrayFile, options: ImportOptions) -> Table:
    """Return the rows of a file with an array for each key, as ``save_file({"P12345": tensor, …})`` makes it.

    Arrays without a class in their names may also be matrices and labels, as ``X_train`` and ``y_train``. They are rows
    if most have one shape, or if `keys` states that their names are keys. "embeddings" is always the name of a matrix.
    """
    by_key = _rows_by_key(file, options)
    named = options.keys is not None or all(":" in key for key in by_key)
    matrix = any(name in file.arrays and file.arrays[name].shape for name in EMBEDDING)
    lists = any(one.ragged for one in file.arrays.values())
    if matrix or lists or not by_key or not (named or _may_be_rows(file, options)):
        raise _not_understood(file)
    entries = {key: _unread(file, name, file.arrays[name]) for key, name in by_key.items()}
    made = entries_file(file.path, entries, options)
    made.left_out += file.left_out
    return table_of(made, options)


def _may_be_rows(file: ArrayFile, options: ImportOptions) -> bool:
    """Return False for columns of a table, and for a single matrix. `entries_file` compares the shapes of several."""
    found = [*file.arrays.values()]
    alone = len(found) == 1 and found[0].shape and not options.ragged
    return not alone and not any(name in file.arrays for name in (*KEYS, LABELS)) and not any(x.nullable for x in found)


def _rows_by_key(file: ArrayFile, options: ImportOptions) -> dict[str, str]:
    """Return the array of each key. A key may be a group with an array "embedding" or `field`: "v1:dog/embedding".

    Raises
    ------
    FileFormatError
        Such groups state classes. Leaving these out would drop all labels. Or two arrays state one id.
    """
    split = {name: name.rpartition("/") for name in file.arrays}
    chosen = [options.field] if any(group and last == options.field for group, _, last in split.values()) else EMBEDDING
    inside = {group: name for name, (group, _, last) in split.items() if group and last in chosen}
    if not inside:
        by_key = {file.ids.get(name, name): name for name in file.arrays}
        if len(by_key) < len(file.arrays):
            twice = Counter(file.ids.get(name, name) for name in file.arrays).most_common(1)[0][0]
            raise file.wrong(f"several of its arrays state the id {twice!r}")
        return by_key
    used = set(inside.values())
    beside = [name for name in file.arrays if name not in used]
    if any(name.endswith(f"/{LABELS}") for name in (*beside, *(str(one.key) for one in file.left_out))):
        raise file.wrong(
            f"its groups of keys have a {LABELS!r}, which is not read: write it into the names, as in 'v1:dog'"
        )
    if table := next((name for name in beside if name.rpartition("/")[2] in KEYS and file.arrays[name].rows > 1), None):
        raise file.wrong(f"its groups hold a table each, with keys in {table!r}; write one table into one file")
    file.left_out += [Unreadable(name, "it is beside the embedding of a key") for name in beside]
    return inside


def _unread(file: ArrayFile, name: str, found: ArrayInfo) -> Unread:
    def read() -> Array:
        empty = np.empty((0, *found.shape), stored_dtype(found.dtype))
        return np.concatenate([empty, *(np.asarray(block.values) for block in file.numbers(name))])

    return Unread((found.rows, *found.shape), found.dtype, read)


def _can_name(found: ArrayInfo) -> bool:
    return not found.shape and not found.ragged and found.dtype.startswith((STRING, "int", "uint", "float"))


def _not_understood(file: ArrayFile) -> FileFormatError:
    listed = [f"{name}: {found}" for name, found in itertools.islice(file.arrays.items(), _SHOWN)]
    more = len(file.arrays) - len(listed)
    reasons = [str(one) for one in itertools.islice(file.left_out, _SHOWN)]
    return file.wrong(
        f"it holds {'; '.join(listed) or 'no arrays'}{f' and {more} more' if more > 0 else ''}. Expected keys (an "
        f"array 'keys', 'key', 'ids' or 'id', or 'file_id' with or without 'class_name') and as many rows in one or "
        f"more arrays of numbers, each (rows, …); one number a row is a field if field= names it. Or an array for each "
        f"key, named 'file_id:class', or 'file_id' if most have one shape (with ragged=True, one but for the first "
        f"axis) or keys='file_id' is passed{'. Left out: ' if reasons else ''}{'; '.join(reasons)}"
    )
