"""Files of others: which arrays are keys, fields and columns, as far as their names and shapes say it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from embstore._engine.format.record import COLUMN_DTYPES, FIELD_DTYPES, STRING, FieldSpec, check_name, stored_dtype
from embstore.errors import FileFormatError, NameRefusedError
from embstore.exchange.base import Array, ArrayFile, Block, Found, Named, Table, Unreadable
from embstore.exchange.naming import named
from embstore.exchange.pt_entries import EMBEDDING, Unread, entries_table
from embstore.exchange.wanted import Wanted, chosen_columns, chosen_fields

__all__ = ["foreign_table"]

KEYS: Final = ("keys", "key", "ids", "id", "file_id")
_LABELS: Final = "class_name"
_SHOWN: Final = 20


@dataclass(kw_only=True)
class ForeignTable(Table):
    """A file of others, as far as it is understood.

    Attributes
    ----------
    file : ArrayFile
    sources : dict of str to str
        What the file calls the fields.
    names : str
        The array of keys or file_ids.
    labels : str or None
        The array of classes.
    wanted : Wanted
    """

    file: ArrayFile
    sources: dict[str, str]
    names: str
    labels: str | None
    wanted: Wanted

    def called(self) -> Iterator[list[Named]]:
        """Yield what rows are called."""
        labels = itertools.repeat(None) if self.labels is None else itertools.chain.from_iterable(self._text("labels"))
        for block in self._text("names"):
            pairs = zip(block, labels, strict=False)
            yield [named(found, label, self.wanted, self.path) for found, label in pairs]

    def _text(self, which: str) -> Iterator[list[Any]]:
        name = self.names if which == "names" else self.labels
        assert name is not None
        if self.file.arrays[name].dtype == STRING:
            yield from self.file.strings(name)
        else:  # numbers: of rows, of recordings
            for values, _ in self.file.numbers(name):
                yield [str(value) for value in np.asarray(values).tolist()]

    def field(self, name: str) -> Iterator[Block]:
        """Yield the rows of a field."""
        source, spec = self.sources[name], self.fields[name]
        found = self.file.arrays[source]
        if spec.ragged:
            yield from self.file.ragged(source)
        else:
            yield from self.file.numbers(source, spec.shape[0] if found.ragged else None)

    def column(self, name: str) -> Iterator[Array | list[str]]:
        """Yield the values of a column."""
        if self.columns[name] == STRING:
            yield from self.file.strings(name)
        else:
            for values, _ in self.file.numbers(name):
                yield np.asarray(values)


def foreign_table(file: ArrayFile, wanted: Wanted) -> Table:
    """Say what a file without a manifest gives.

    Raises
    ------
    FileFormatError, UnknownFieldError, UnknownColumnError, NameRefusedError
    """
    names = next((name for name in KEYS if _can_name(file.arrays.get(name))), None)
    if names is None:
        return _one_a_key(file, wanted)
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
        elif found.dtype in FIELD_DTYPES and (found.shape or found.ragged or name == wanted.field):
            fields |= _field_of(file, name, found, wanted.ragged, left_out)
        elif found.shape or found.dtype not in COLUMN_DTYPES:
            left_out.append(Unreadable(name, f"{found} is neither a field nor a column"))
        elif (refused := _refusal(name)) is not None:
            left_out.append(Unreadable(name, refused))
        else:
            columns[name] = found.dtype
    if not fields:
        raise _not_understood(file)
    sources = chosen_fields(list(fields), wanted.field, file.path)
    for name in sources:
        check_name(name, columns)
    return ForeignTable(
        path=file.path,
        config=None,
        fields={name: fields[source] for name, source in sources.items()},
        columns={name: columns[name] for name in chosen_columns(list(columns), wanted.columns, file.path)},
        rows=rows,
        left_out=left_out,
        file=file,
        sources=sources,
        names=names,
        labels=labels,
        wanted=replace(wanted, keys="file_id") if names == "file_id" and wanted.keys is None else wanted,
    )


def _one_a_key(file: ArrayFile, wanted: Wanted) -> Table:
    """Say what a file gives that has an array for each key, as ``save_file({"v1:dog": tensor, …})`` makes it.

    Without a class in each name, an array may as well be a matrix without keys: then `keys` must say that names are
    keys. "embeddings" is the name of a matrix all the same.
    """
    stated = wanted.keys is not None
    matrix = any(name in file.arrays and file.arrays[name].shape for name in EMBEDDING)
    if matrix or not file.arrays or any(f.ragged or not (stated or ":" in n) for n, f in file.arrays.items()):
        raise _not_understood(file)
    entries = {name: _unread(file, name, found) for name, found in file.arrays.items()}
    return entries_table(file.path, entries, wanted, [], [])


def _unread(file: ArrayFile, name: str, found: Found) -> Unread:
    def read() -> Array:
        blocks = [np.asarray(block.values) for block in file.numbers(name)]
        return np.concatenate(blocks) if found.rows else np.empty((0, *found.shape), stored_dtype(found.dtype))

    return Unread((found.rows, *found.shape), found.dtype, read)


def _can_name(found: Found | None) -> bool:
    return (
        found is not None and not found.shape and not found.ragged and found.dtype.startswith((STRING, "int", "uint"))
    )


def _field_of(
    file: ArrayFile, name: str, found: Found, ragged: bool, left_out: list[Unreadable]
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
