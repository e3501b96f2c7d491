"""``.parquet``: a column for each array, through pyarrow. Rows of a field are fixed-size lists, ragged rows are lists.

Row groups are half as large as a block. Vectors are neither compressed nor dictionary-encoded: that costs time, saves
no space, and a dictionary would replace one NaN by another.
Source: https://arrow.apache.org/docs/python/parquet.html
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.format.ragged import Ragged, offsets_of
from embstore._engine.format.record import FIELD_DTYPES, STRING
from embstore._engine.lazy import imported
from embstore.exchange.exporting import Outgoing
from embstore.exchange.file_contents import BLOCK_ROWS, Array, ArrayFile, ArrayInfo, Block, even_cuts, explained
from embstore.exchange.store_metadata import ENTRY, StoreMetadata

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
            rows = self._file.metadata.num_rows
            for field in self._file.schema_arrow:
                self.arrays[field.name] = self._found(field.type, rows)
            raw = (self._file.metadata.metadata or {}).get(ENTRY.encode())
            if raw is not None:
                self.metadata = StoreMetadata.parse(raw.decode(), path)

    def _found(self, kind: Any, rows: int) -> ArrayInfo:
        types = self._arrow.types
        if isinstance(kind, self._arrow.BaseExtensionType):
            kind = kind.storage_type
        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_fixed_size_list(kind) and _dtype(kind.value_type) in FIELD_DTYPES:
            return ArrayInfo(dtype=_dtype(kind.value_type), shape=(kind.list_size,), rows=rows)
        if types.is_list(kind) or types.is_large_list(kind):
            inner = self._found(kind.value_type, rows)
            if inner.dtype in FIELD_DTYPES and not inner.ragged:
                return ArrayInfo(dtype=inner.dtype, shape=inner.shape, rows=rows, ragged=True)
        if types.is_string(kind) or types.is_large_string(kind):
            return ArrayInfo(dtype=STRING, shape=(), rows=rows)
        return ArrayInfo(dtype=_dtype(kind), shape=(), rows=rows)

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
                if isinstance(array, self._arrow.ExtensionArray):
                    array = array.storage
                if self._arrow.types.is_dictionary(array.type):
                    array = array.dictionary_decode()
            yield array

    def numbers(self, name: str, width: int | None = None) -> Iterator[Block]:
        """Yield rows of numbers. Lists of another length than `width` are bad rows."""
        found = self.arrays[name]
        if found.ragged:
            assert width is not None
            yield from self._of_width(name, width)
            return
        cuts = even_cuts(found.rows, _EXPANDED * found.row_nbytes)
        for array in self._batches(name, max(1, cuts[min(1, len(cuts) - 1)])):
            with explained(self.path):
                bad = _nulls(array)
                values = _flat(array.flatten() if found.shape else array, found.dtype).reshape(-1, *found.shape)
                if found.shape and bad:  # a missing list has no numbers: zeros fill its row
                    there = np.ones(len(array), bool)
                    there[list(bad)] = False
                    values, given = np.zeros((len(array), *found.shape), found.dtype), values
                    values[there] = given
            yield Block(values, bad)

    def _of_width(self, name: str, width: int) -> Iterator[Block]:
        for block in self.ragged(name):
            rows = block.values
            assert isinstance(rows, Ragged)
            fits = rows.lengths == width
            values = np.zeros((len(rows), width), rows.values.dtype)
            values[fits] = rows.values[np.repeat(fits, rows.lengths)].reshape(-1, width)
            wrong = {int(i): f"it has {rows.lengths[i]} numbers, expected {width}; ragged=True takes all lengths"
                     for i in np.flatnonzero(~fits)}  # fmt: skip
            yield Block(values, {**wrong, **block.bad})

    def ragged(self, name: str) -> Iterator[Block]:
        """Yield rows of different lengths, as `Ragged`."""
        found = self.arrays[name]
        for array in self._batches(name, 1024):
            with explained(self.path):
                lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
                tokens = array.flatten()
                if found.shape:
                    if tokens.null_count:
                        raise ValueError("a token is missing")
                    tokens = tokens.flatten()
                values = _flat(tokens, found.dtype).reshape(-1, *found.shape)
                rows = Ragged(values, offsets_of(lengths))
                if rows.offsets[-1] != len(values):
                    raise ValueError("lists and their lengths differ")
            yield Block(rows, _nulls(array))

    def strings(self, name: str) -> Iterator[list[str]]:
        """Yield rows of text. A missing text is empty."""
        for array in self._batches(name, BLOCK_ROWS // 8):
            with explained(self.path):
                yield [text or "" for text in array.to_pylist()]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _dtype(kind: Any) -> str:
    return _NAMES.get(str(kind), str(kind))


def _nulls(array: Any) -> dict[int, str]:
    if not array.null_count:
        return {}
    return dict.fromkeys(
        np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)).tolist(), "its value is missing"
    )


def _flat(array: Any, dtype: str) -> Array:
    """Return numbers as a NumPy array. A missing float is NaN. Other dtypes have no NaN and raise."""
    if array.null_count and not dtype.startswith("float"):
        raise ValueError("a number is missing")
    if dtype == "bool" or array.null_count:
        values: Array = array.to_numpy(zero_copy_only=False)
        return values.astype(dtype)
    return np.asarray(array.to_numpy(zero_copy_only=True))


def write(path: Path, rows: Outgoing) -> None:
    """Write rows to a new file, two row groups for each block."""
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
    if name not in rows.fields:
        return arrow.array(rows.column(name, block), kind)
    values = rows.field(name, block)
    tokens = kind.value_type if isinstance(values, Ragged) else kind
    numbers = values.values if isinstance(values, Ragged) else values
    flat = arrow.array(np.ascontiguousarray(numbers).reshape(-1), tokens.value_type if numbers.ndim > 1 else tokens)
    if numbers.ndim > 1:
        flat = arrow.FixedSizeListArray.from_arrays(flat, type=tokens)
    if isinstance(values, Ragged):
        flat = arrow.LargeListArray.from_arrays(arrow.array(values.offsets), flat, type=kind)
    return flat
