"""Table: the keys, fields and columns that the arrays of a file make, read in blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.format.config import Config
from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import BFLOAT16, STRING, FieldSpec
from embstore.exchange.file_contents import Array, ArrayFile, ArrayInfo, Block, Unreadable, is_text
from embstore.exchange.import_options import ImportOptions, KeyOrder, chosen_columns, chosen_fields
from embstore.exchange.naming import RowName, row_name
from embstore.exchange.store_metadata import StoreMetadata

LABELS: Final = "class_name"
"""The array of classes."""


@dataclass(kw_only=True)
class Table:
    """The rows of a file, in one order for keys, fields and columns.

    Attributes
    ----------
    file : ArrayFile
    options : ImportOptions
    fields : dict of str to FieldSpec
        As the file has them.
    sources : dict of str to str
        The name of each field in the file.
    columns : dict of str to str
        Their dtypes.
    rows : int
    names : str
        The array of keys or file_ids.
    labels : str or None
        The array of classes.
    config : Config or None
    declared : bool
        True if the file states its fields: `export_file` wrote it.
    unreadable : list of Unreadable
        Entries that are not among the rows.
    left_out : list of Unreadable
        Arrays that are neither field nor column, and metadata that a config can't hold.
    """

    file: ArrayFile
    options: ImportOptions
    fields: dict[str, FieldSpec]
    sources: dict[str, str]
    columns: dict[str, str]
    rows: int
    names: str
    labels: str | None
    config: Config | None = None
    declared: bool = False
    unreadable: list[Unreadable] = field(default_factory=list)
    left_out: list[Unreadable] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.file.path

    def row_names(self) -> Iterator[list[RowName]]:
        """Yield the names and keys of the rows."""
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
            for block in self.file.numbers(name):
                yield [str(value) for value in np.asarray(block.values).tolist()]

    def field(self, name: str) -> Iterator[Block]:
        """Yield the rows of a field: bfloat16 as its bits, ragged ones as `Ragged`."""
        source, spec = self.sources[name], self.fields[name]
        width = spec.shape[0] if self.file.arrays[source].ragged and not spec.ragged else None
        for block in self.file.ragged(source) if spec.ragged else self.file.numbers(source, width):
            values = block.values
            if isinstance(values, Ragged):
                yield Block(Ragged(_as_stored(values.values, spec), values.offsets), block.bad)
            else:
                yield Block(_as_stored(values, spec), block.bad)

    def column(self, name: str) -> Iterator[Array | list[str]]:
        """Yield the values of a column."""
        if self.columns[name] == STRING:
            yield from self.file.strings(name)
        else:
            for block in self.file.numbers(name):
                yield np.asarray(block.values)


def _as_stored(values: Any, spec: FieldSpec) -> Array:
    """Return rows in the field's shape. bfloat16 of NumPy (an extension type of others) becomes its bits."""
    array = np.ascontiguousarray(values)
    return (array.view(np.uint16) if array.dtype.name == BFLOAT16 else array).reshape(-1, *spec.shape)


def exported_table(
    file: ArrayFile,
    metadata: StoreMetadata,
    options: ImportOptions,
    *,
    names: str = "file_id",
    order: KeyOrder = "file_id",
) -> Table:
    """Return the rows of a file that `export_file` wrote.

    Parameters
    ----------
    file : ArrayFile
    metadata : StoreMetadata
    options : ImportOptions
    names : str
        The array of file_ids or keys.
    order : KeyOrder
        How to read its names.

    Raises
    ------
    FileFormatError
        An array is not as the metadata says.
    UnknownFieldError, UnknownColumnError
    """
    sources = chosen_fields(list(metadata.fields), options.field, file.path)
    columns = chosen_columns(list(metadata.columns), options.columns, file.path)
    fields = {name: metadata.fields[source] for name, source in sources.items()}
    dtypes = {name: metadata.columns[name] for name in columns}
    texts = [names, LABELS, *(name for name, dtype in dtypes.items() if dtype == STRING)]
    for name in (*texts, *(source for name, source in sources.items() if fields[name].ragged)):
        file.join_offsets(name)
    rows = next((file.arrays[name].rows for name in (names, LABELS) if name in file.arrays), 0)
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
    return Table(
        file=file,
        options=replace(options, keys=order),
        fields=fields,
        sources=sources,
        columns=dtypes,
        rows=rows,
        names=names,
        labels=LABELS,
        config=metadata.config,
        declared=True,
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
