"""Arrays of a file as keys, fields and columns: by an export's metadata, else by names and shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import (
    BFLOAT16,
    COLUMN_DTYPES,
    FIELD_DTYPES,
    STRING,
    FieldSpec,
    check_name,
    stored_dtype,
)
from embstore.errors import FileFormatError, NameRefusedError
from embstore.exchange.file_contents import Array, ArrayFile, ArrayInfo, Block, RowName, Table, Unreadable, is_text
from embstore.exchange.import_options import ImportOptions, chosen_columns, chosen_fields
from embstore.exchange.naming import row_name
from embstore.exchange.pt_entries import EMBEDDING, Unread, entries_table
from embstore.exchange.store_metadata import StoreMetadata

KEYS: Final = ("keys", "key", "ids", "id", "file_id")
_LABELS: Final = "class_name"
_KEY_PARTS: Final = ("file_id", "class_name")
_SHOWN: Final = 20


@dataclass(kw_only=True)
class ArrayTable(Table):
    """The rows of a file of arrays.

    Attributes
    ----------
    file : ArrayFile
    sources : dict of str to str
        Names of the fields in the file.
    names : str
        The array of keys or file_ids.
    labels : str or None
        The array of classes.
    options : ImportOptions
    """

    file: ArrayFile
    sources: dict[str, str]
    names: str
    labels: str | None
    options: ImportOptions

    def row_names(self) -> Iterator[list[RowName]]:
        """Yield the names of rows."""
        labels = iter(itertools.repeat(None)) if self.labels is None else self._texts(self.labels)
        for block in self._blocks_of_text(self.names):
            pairs = zip(block, labels, strict=False)
            yield [row_name(found, label, self.options, self.path) for found, label in pairs]

    def _texts(self, name: str) -> Iterator[Any]:
        return itertools.chain.from_iterable(self._blocks_of_text(name))

    def _blocks_of_text(self, name: str) -> Iterator[list[Any]]:
        if is_text(self.file.arrays[name]):
            yield from self.file.strings(name)
        else:  # numbers: of rows, of recordings
            for values, _ in self.file.numbers(name):
                yield [str(value) for value in np.asarray(values).tolist()]

    def field(self, name: str) -> Iterator[Block]:
        """Yield the rows of a field."""
        source, spec = self.sources[name], self.fields[name]
        ragged = self.file.arrays[source].ragged
        width = spec.shape[0] if ragged and not spec.ragged else None
        for values, bad in self.file.ragged(source) if spec.ragged else self.file.numbers(source, width):
            if isinstance(values, Ragged):
                yield Block(Ragged(_as_stored(values.values, spec), values.offsets), bad)
            else:
                yield Block(_as_stored(values, spec), bad)

    def column(self, name: str) -> Iterator[Array | list[str]]:
        """Yield the values of a column."""
        if self.columns[name] == STRING:
            yield from self.file.strings(name)
        else:
            for values, _ in self.file.numbers(name):
                yield np.asarray(values)


def _as_stored(values: Any, spec: FieldSpec) -> Array:
    """Return rows in the field's shape, and bfloat16, where NumPy has it from elsewhere, as its bits."""
    array = np.ascontiguousarray(values)
    return (array.view(np.uint16) if array.dtype.name == BFLOAT16 else array).reshape(-1, *spec.shape)


def table_of(file: ArrayFile, options: ImportOptions) -> Table:
    """Return the rows of a file of arrays, by its metadata if an export wrote it, else by names and shapes of arrays.

    Raises
    ------
    FileFormatError
        The file is not understood. The message lists its arrays and the expected ones.
    UnknownFieldError, UnknownColumnError, NameRefusedError
    """
    file.check_size()
    return _foreign_table(file, options) if file.metadata is None else _exported_table(file, file.metadata, options)


def _exported_table(file: ArrayFile, metadata: StoreMetadata, options: ImportOptions) -> Table:
    """Return the rows of a file that `export_file` wrote."""
    sources = chosen_fields(list(metadata.fields), options.field, file.path)
    columns = chosen_columns(list(metadata.columns), options.columns, file.path)
    fields = {name: metadata.fields[source] for name, source in sources.items()}
    dtypes = {name: metadata.columns[name] for name in columns}
    texts = [*_KEY_PARTS, *(name for name, dtype in dtypes.items() if dtype == STRING)]
    for name in (*texts, *(source for name, source in sources.items() if fields[name].ragged)):
        file.join_offsets(name)
    rows = next((file.arrays[name].rows for name in _KEY_PARTS if name in file.arrays), 0)
    for name in texts:
        if not is_text(found := _array(file, name, rows)):
            raise file.wrong(f"{name!r}: expected texts, found {found}")
    for name, dtype in dtypes.items():
        found = _array(file, name, rows)
        if dtype != STRING and (found.dtype != dtype or found.shape or found.ragged):
            raise file.wrong(f"{name!r}: expected a column of {dtype}, found {found}")
    for name, source in sources.items():
        spec, found = fields[name], _array(file, source, rows)
        fits = math.prod(found.shape) == math.prod(spec.shape) and found.ragged == spec.ragged
        if not fits or found.dtype not in (spec.dtype, spec.zarr_dtype):
            raise file.wrong(f"{source!r}: expected {spec}, found {found}")
    return ArrayTable(
        path=file.path,
        config=metadata.config,
        fields=fields,
        columns=dtypes,
        rows=rows,
        declared=True,
        file=file,
        sources=sources,
        names=_KEY_PARTS[0],
        labels=_KEY_PARTS[1],
        options=replace(options, keys="file_id"),
    )


def _array(file: ArrayFile, name: str, rows: int) -> ArrayInfo:
    """Return an array that the metadata names.

    Raises
    ------
    FileFormatError
    """
    found = file.arrays.get(name)
    if found is None:
        raise file.wrong(f"its metadata names an array {name!r}, which is missing")
    if found.rows != rows:
        raise file.wrong(f"{name!r} has {found.rows:,} rows, expected {rows:,}")
    return found


def _foreign_table(file: ArrayFile, options: ImportOptions) -> Table:
    """Return the rows of a file of others. Names and shapes of its arrays decide which are keys, fields and columns."""
    names = next((name for name in KEYS if _can_name(file.arrays.get(name))), None)
    if names is None:
        return _one_a_key(file, options)
    rows = file.arrays[names].rows
    labels = _LABELS if _can_name(file.arrays.get(_LABELS)) else None
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
        elif (refused := _refusal(name)) is not None:
            left_out.append(Unreadable(name, refused))
        else:
            columns[name] = found.dtype
    if not fields:
        raise _not_understood(file)
    sources = chosen_fields(list(fields), options.field, file.path)
    for name in sources:
        check_name(name, columns)
    return ArrayTable(
        path=file.path,
        config=None,
        fields={name: fields[source] for name, source in sources.items()},
        columns={name: columns[name] for name in chosen_columns(list(columns), options.columns, file.path)},
        rows=rows,
        left_out=left_out,
        file=file,
        sources=sources,
        names=names,
        labels=labels,
        options=replace(options, keys="file_id") if names == "file_id" and options.keys is None else options,
    )


def _one_a_key(file: ArrayFile, options: ImportOptions) -> Table:
    """Return the rows of a file with an array for each key, as ``save_file({"v1:dog": tensor, …})`` makes it.

    Without a class in each name, an array may as well be a matrix without keys: then `keys` must say that names are
    keys. "embeddings" is the name of a matrix all the same.
    """
    stated = options.keys is not None
    matrix = any(name in file.arrays and file.arrays[name].shape for name in EMBEDDING)
    if matrix or not file.arrays or any(f.ragged or not (stated or ":" in n) for n, f in file.arrays.items()):
        raise _not_understood(file)
    entries = {name: _unread(file, name, found) for name, found in file.arrays.items()}
    return entries_table(file.path, entries, options, [], [])


def _unread(file: ArrayFile, name: str, found: ArrayInfo) -> Unread:
    def read() -> Array:
        blocks = [np.asarray(block.values) for block in file.numbers(name)]
        return np.concatenate(blocks) if found.rows else np.empty((0, *found.shape), stored_dtype(found.dtype))

    return Unread((found.rows, *found.shape), found.dtype, read)


def _can_name(found: ArrayInfo | None) -> bool:
    return (
        found is not None and not found.shape and not found.ragged and found.dtype.startswith((STRING, "int", "uint"))
    )


def _field_of(
    file: ArrayFile, name: str, found: ArrayInfo, ragged: bool, left_out: list[Unreadable]
) -> dict[str, FieldSpec]:
    """Describe the field that an array makes, if it can."""
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


def _refusal(name: str) -> str | None:
    try:
        check_name(name)
    except NameRefusedError as error:
        return error.reason
    return None


def _not_understood(file: ArrayFile) -> FileFormatError:
    listed = [f"{name}: {found}" for name, found in itertools.islice(file.arrays.items(), _SHOWN)]
    more = len(file.arrays) - len(listed)
    return file.wrong(
        f"it holds {'; '.join(listed) or 'no arrays'}{f' and {more} more' if more > 0 else ''}. Expected keys (an "
        f"array 'keys', 'key', 'ids' or 'id', or 'file_id' with or without 'class_name') and as many rows in one or "
        f"more arrays of numbers, each (rows, …); one number a row is a field if field= names it. Or an array for each "
        f"key, named 'file_id:class'"
    )
