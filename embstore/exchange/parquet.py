"""``.parquet``: a column for each array, through pyarrow. Rows of a field are fixed-size lists, ragged rows are lists.

Row groups are half as large as a block. Vectors are neither compressed nor dictionary-encoded: that costs time, saves
no space, and a dictionary would replace one NaN by another.
Source: https://arrow.apache.org/docs/python/parquet.html
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.format.ragged import Ragged, offsets_of
from embstore._engine.format.record import FIELD_DTYPES, STRING
from embstore._engine.lazy import imported
from embstore.exchange.exporting import Outgoing
from embstore.exchange.file_contents import (
    BLOCK_ROWS,
    Array,
    ArrayFile,
    ArrayInfo,
    Block,
    Unreadable,
    even_cuts,
    explained,
    of_width,
)
from embstore.exchange.store_metadata import ENTRY

_BUFFER: Final = 8 * 2**20
_EXPANDED: Final = 8
"""Memory of a list while it is read, in multiples of its size: each number has two levels."""
_NAMES: Final = {"halffloat": "float16", "float": "float32", "double": "float64"}


def _library(name: str) -> Any:
    return imported(name, "exchange", "for Parquet files")


class File(ArrayFile):
    """A table, open for reading.

    Raises
    ------
    FileFormatError, MissingLibraryError
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._arrow = _library("pyarrow")
        with explained(path):
            # Without pre_buffer and with a buffer, a column is read page by page, however long its row groups are.
            self._file = _library("pyarrow.parquet").ParquetFile(
                path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
            )
            names = [field.name for field in self._file.schema_arrow]
            for field in self._file.schema_arrow:
                if names.count(field.name) == 1:
                    self.arrays[field.name] = self._found(field.type)
            twice = dict.fromkeys(name for name in names if name not in self.arrays)
            self.left_out += [Unreadable(name, "several columns have this name") for name in twice]
            for name, found in self.arrays.items():
                if found.ragged and found.shape == (0,):  # lists of lists
                    self.arrays[name] = replace(found, shape=(self._width(name),))
            raw = (self._file.metadata.metadata or {}).get(ENTRY.encode())
            if raw is not None:
                self.state(raw.decode())

    def _found(self, kind: Any) -> ArrayInfo:
        """Describe a column. The shape of lists of lists is (0,) until their width is known."""
        types, rows = self._arrow.types, self._file.metadata.num_rows
        if isinstance(kind, self._arrow.FixedShapeTensorType):
            shape, order = kind.shape, kind.permutation or range(len(kind.shape))
            return replace(self._found(kind.value_type), shape=tuple(shape[axis] for axis in order))
        if isinstance(kind, self._arrow.BaseExtensionType):
            return self._found(kind.storage_type)
        if types.is_dictionary(kind):
            return self._found(kind.value_type)
        if types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind):
            inner, fixed = self._found(kind.value_type), types.is_fixed_size_list(kind)
            if inner.dtype in FIELD_DTYPES and not inner.ragged:
                return replace(inner, shape=(kind.list_size, *inner.shape)) if fixed else replace(inner, ragged=True)
            if inner.dtype in FIELD_DTYPES and not inner.shape and not fixed:
                return replace(inner, shape=(0,))
        text = types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view"
        return ArrayInfo(dtype=STRING if text else _NAMES.get(str(kind), str(kind)), shape=(), rows=rows, nullable=True)

    def _width(self, name: str) -> int:
        """Return the length of the first list that is not empty in a column of lists of lists."""
        lists = (token for array in self._batches(name, 64) for row in array.to_pylist() for token in row or ())
        return next((len(token) for token in lists if token), 0)

    def _batches(self, name: str, rows: int) -> Iterator[Any]:
        """Yield the arrays of a column, each of at most `rows` rows."""
        with explained(self.path):
            batches = self._file.iter_batches(batch_size=rows, columns=[name], use_threads=False)
        while True:
            with explained(self.path):
                batch = next(batches, None)
                if batch is None:
                    return
                array = batch.column(batch.schema.get_field_index(name))
            yield array

    def numbers(self, name: str) -> Iterator[Block]:
        """Yield rows of numbers. Rows in which a number is missing are bad."""
        found, kind = self.arrays[name], self._file.schema_arrow.field(name).type
        cuts = even_cuts(found.rows, _EXPANDED * found.row_nbytes)
        for array in self._batches(name, max(1, cuts[min(1, len(cuts) - 1)])):
            with explained(self.path):
                values, _, bad = self._unpacked(array)
                if order := getattr(kind, "permutation", None):  # a tensor whose axes are stored in another order
                    values = values.reshape(-1, *kind.shape).transpose(0, *(axis + 1 for axis in order))
                values = values.reshape(-1, *found.shape)
            yield Block(values, bad)

    def ragged(self, name: str) -> Iterator[Block]:
        """Yield rows of different lengths, as `Ragged`."""
        found = self.arrays[name]
        for array in self._batches(name, 1024):
            with explained(self.path):
                values, levels, bad = self._unpacked(array)
                if len(levels) > 1 and not isinstance(levels[1], int):  # lists of lists
                    lists = of_width(Block(Ragged(values, levels[1])), found.shape[0])
                    values, odd = np.asarray(lists.values), np.array(list(lists.bad), np.int64)
                    rows = np.searchsorted(levels[0], odd, side="right") - 1
                    reason = f"a list in it does not have {found.shape[0]} numbers"
                    bad = {**dict.fromkeys(rows.tolist(), reason), **bad}
                rows_read = Ragged(values.reshape(-1, *found.shape), levels[0])
                if rows_read.offsets[-1] != len(rows_read.values):
                    raise ValueError("lists and their lengths differ")
            yield Block(rows_read, bad)

    def _unpacked(self, array: Any) -> tuple[Array, list[Any], dict[int, str]]:
        """Return the numbers of an array, its levels of lists (a size or offsets), and the reasons of bad rows."""
        arrow, levels, bad = self._arrow, list[Any](), dict[int, str]()
        while True:
            if isinstance(array, arrow.ExtensionArray):
                array = array.storage
            if arrow.types.is_dictionary(array.type):
                array = array.dictionary_decode()
            if array.null_count:
                places = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
                for level in reversed(levels):  # the rows of these numbers
                    fixed = isinstance(level, int)
                    places = places // level if fixed else np.searchsorted(level, places, side="right") - 1
                reason = "a number in it is missing" if levels else "its value is missing"
                bad = {**dict.fromkeys(places.tolist(), reason), **bad}
            if arrow.types.is_fixed_size_list(array.type):
                size = array.type.list_size
                levels.append(size)
                array = array.values.slice(array.offset * size, len(array) * size)
            elif arrow.types.is_list(array.type) or arrow.types.is_large_list(array.type):
                lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
                levels.append(offsets_of(lengths.astype(np.int64)))
                array = array.flatten()
            else:
                break
        if array.null_count:  # without the bits that mark missing numbers
            array = arrow.Array.from_buffers(array.type, len(array), [None, array.buffers()[1]], offset=array.offset)
        return np.asarray(array.to_numpy(zero_copy_only=False)), levels, bad

    def strings(self, name: str) -> Iterator[list[Any]]:
        """Yield rows of text. A missing text is None."""
        for array in self._batches(name, BLOCK_ROWS // 8):
            with explained(self.path):
                yield array.to_pylist()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write(path: Path, rows: Outgoing) -> None:
    """Write rows to a new file, two row groups for each block."""
    if rows.names is not None:
        raise rows.refused("Parquet has a row for each key; export to .npz, .h5, .safetensors or .pt")
    arrow, parquet = _library("pyarrow"), _library("pyarrow.parquet")
    schema = arrow.schema([arrow.field(name, kind, nullable=False) for name, kind in _types(arrow, rows)])
    schema = schema.with_metadata({ENTRY: rows.metadata.to_json()})
    with parquet.ParquetWriter(
        path,
        schema,
        compression="none",
        use_dictionary=rows.texts,
        write_statistics=["file_id", "class_name"],
        write_page_checksum=True,
        store_schema=True,
    ) as writer:
        # Halves, because a row group and its levels are in memory until it is written.
        for block in (half for whole in rows.blocks() for half in np.array_split(whole, 2) if len(half)):
            columns = [_values(arrow, rows, name, block, schema.field(name).type) for name in schema.names]
            writer.write_batch(arrow.record_batch(columns, schema=schema), row_group_size=len(block))


def _types(arrow: Any, rows: Outgoing) -> Iterator[tuple[str, Any]]:
    for name in ("file_id", "class_name"):
        yield name, arrow.large_string()
    for name, dtype in rows.columns.items():
        yield name, arrow.large_string() if dtype == STRING else arrow.from_numpy_dtype(dtype)
    for name, spec in rows.fields.items():
        kind = arrow.from_numpy_dtype(spec.zarr_dtype)
        if spec.shape:
            kind = arrow.list_(arrow.field("element", kind, nullable=False), math.prod(spec.shape))
        yield name, arrow.large_list(arrow.field("element", kind, nullable=False)) if spec.ragged else kind


def _values(arrow: Any, rows: Outgoing, name: str, block: Any, kind: Any) -> Any:
    """Return a block of a column as an Arrow array. Numbers are not copied."""
    values = rows.values(name, block)
    if name not in rows.fields:
        return arrow.array(values, kind)
    tokens = kind.value_type if isinstance(values, Ragged) else kind
    numbers = values.values if isinstance(values, Ragged) else values
    flat = arrow.array(np.ascontiguousarray(numbers).reshape(-1), tokens.value_type if numbers.ndim > 1 else tokens)
    if numbers.ndim > 1:
        flat = arrow.FixedSizeListArray.from_arrays(flat, type=tokens)
    if isinstance(values, Ragged):
        flat = arrow.LargeListArray.from_arrays(arrow.array(values.offsets), flat, type=kind)
    return flat
