"""Rows as Arrow: the columns of tables, and a stream of record batches for polars, DuckDB and others.

pyarrow is imported at the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from embstore._engine.format.keys import key_text
from embstore._engine.format.record import BFLOAT16, STRING, FieldSpec, Record
from embstore._engine.lazy import imported
from embstore._engine.read.column import Rows
from embstore._engine.read.dtypes import as_numbers
from embstore._engine.read.read_rows import column_of, consecutive
from embstore._engine.read.snapshot import Snapshot

GROUP_BYTES: Final = 64 * 2**20
GROUP_ROWS: Final = 65_536
"""Most bytes and rows of a record batch or a row group. One at a time is in RAM, and a reader skips whole groups."""


def described(snapshot: Snapshot, rows: Rows, columns: Sequence[str]) -> dict[str, Any]:
    """Return the keys, file_ids and classes of rows, each read once, and the values of columns."""
    file_ids, class_names = snapshot.file_ids_of(rows), snapshot.class_names_of(rows)
    texts = {"key": list(map(key_text, file_ids, class_names)), "file_id": file_ids, "class_name": class_names}
    return texts | {name: column_of(snapshot, name, rows) for name in columns}


def described_types(record: Record, columns: Sequence[str]) -> dict[str, Any]:
    """Return the Arrow types of `described`."""
    pa = imported("pyarrow", "tables", "for Arrow and Parquet")
    types = dict.fromkeys(("key", "file_id", "class_name"), pa.string())
    for name in columns:
        dtype = record.columns[name].dtype
        types[name] = pa.string() if dtype == STRING else pa.from_numpy_dtype(np.dtype(dtype))
    return types


def record_batches(snapshot: Callable[[], Snapshot], rows: Rows, fields: Sequence[str], columns: Sequence[str]) -> Any:
    """Return rows as a `pyarrow.RecordBatchReader`. See `View.__arrow_c_stream__`.

    Parameters
    ----------
    snapshot : callable
        `View.snapshot`. It is called for each batch, and raises once the row numbers are no longer valid.
    rows : ndarray, (n,) int64
    fields : sequence of str
        Fields that are not ragged.
    columns : sequence of str
    """
    pa = imported("pyarrow", "tables", "for Arrow")
    record = snapshot().record
    types = described_types(record, columns)
    for name in fields:
        spec, dims = record.fields[name], record.arrays[name].dims[1:]
        number = pa.from_numpy_dtype(_dtype(spec))
        types[name] = pa.fixed_shape_tensor(number, spec.shape, dim_names=dims) if spec.shape else number
    schema = pa.schema(types)
    row_nbytes = sum(record.arrays[name].row_nbytes for name in fields)
    step = max(1, min(GROUP_ROWS, GROUP_BYTES // max(1, row_nbytes)))

    def batches() -> Iterator[Any]:
        for start in range(0, len(rows), step):
            now, part = snapshot(), rows[start : start + step]
            data = described(now, part, columns)
            data |= {name: _array(now, name, part, schema.field(name).type) for name in fields}
            yield pa.record_batch(data, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _dtype(spec: FieldSpec) -> np.dtype[Any]:
    """Return the dtype of a field in Arrow, which has no bfloat16. DuckDB does not read float16."""
    return np.dtype(np.float32 if spec.dtype in (BFLOAT16, "float16") else spec.dtype)


def _array(snapshot: Snapshot, name: str, rows: Rows, arrow_type: Any) -> Any:
    """Return rows of a field as an Arrow array. Neighbouring rows of a mapped field are not copied."""
    import pyarrow as pa

    spec = snapshot.record.fields[name]
    values = snapshot.span(name, int(rows[0]), int(rows[-1]) + 1) if consecutive(rows) else snapshot.take(name, rows)
    numbers = pa.array(as_numbers(values, spec).astype(_dtype(spec), copy=False).reshape(-1))
    if not spec.shape:
        return numbers
    lists = pa.FixedSizeListArray.from_arrays(numbers, type=arrow_type.storage_type)
    return pa.ExtensionArray.from_storage(arrow_type, lists)
