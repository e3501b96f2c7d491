"""Rows as tables: a pandas DataFrame, or a Parquet file that embedding-atlas and others open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import check_choice
from embstore._engine.format.record import STRING
from embstore._engine.io.durable import replacing
from embstore._engine.lazy import imported
from embstore._engine.read.column import Rows
from embstore._engine.read.dtypes import as_numbers
from embstore._engine.read.read_rows import column_of, read_field
from embstore._engine.read.snapshot import Snapshot
from embstore._outputs.vectors import Vectors
from embstore.errors import NameRefusedError, ShapeError

if TYPE_CHECKING:
    import pandas as pd

_GROUP_BYTES: Final = 64 * 2**20
_GROUP_ROWS: Final = 65_536
"""Size of a row group: one is in RAM at a time, and a reader skips whole groups."""

_VECTOR, _X, _Y = "vector", "x", "y"


def as_frame(
    snapshot: Snapshot, rows: Rows, *, fields: Sequence[str] = (), index: Literal["key", "file_id"] = "key"
) -> pd.DataFrame:
    """Return keys, columns and the given fields as a DataFrame. See `View.to_pandas`."""
    check_choice("index", index, ("key", "file_id"))
    pandas = imported("pandas", "analysis", "for a DataFrame")
    data: dict[str, Any] = _texts(snapshot, rows)
    ids = pandas.Index(data.pop(index), name=index, dtype=None if len(rows) else object)
    data |= {name: column_of(snapshot, name, rows) for name in snapshot.record.columns}
    for name in fields:
        spec = snapshot.record.fields[name]
        values = as_numbers(read_field(snapshot, name, rows), spec)
        data[name] = _cells(values) if spec.shape or spec.ragged else values
    return pandas.DataFrame(data, index=ids)


def _cells(values: Any) -> NDArray[np.object_]:
    """Return rows as objects, one array in each cell. NumPy would take one assignment of all for more dimensions."""
    cells = np.empty(len(values), dtype=object)
    for place, row in enumerate(values):
        cells[place] = row
    return cells


def _texts(snapshot: Snapshot, rows: Rows) -> dict[str, list[str]]:
    """Return keys, file_ids and classes, each read once."""
    file_ids, class_names = snapshot.file_ids_of(rows), snapshot.class_names_of(rows)
    keys = [f"{file_id}:{name}" for file_id, name in zip(file_ids, class_names, strict=True)]
    return {"key": keys, "file_id": file_ids, "class_name": class_names}


def write_parquet(path: Path, vectors: Vectors, points: NDArray[np.float32] | None = None) -> None:
    """Write keys, columns and vectors, a row group at a time. See `View.to_parquet`.

    Parameters
    ----------
    path : Path
    vectors : Vectors
    points : ndarray, (n, 2) float32, optional
        The columns ``x`` and ``y``.

    Raises
    ------
    NameRefusedError
        A column of the store is named like one of the file's own columns.
    ShapeError
        The number of points differs from the number of vectors.
    """
    pa = imported("pyarrow", "analysis", "to write Parquet")
    parquet = imported("pyarrow.parquet", "analysis", "to write Parquet")
    if points is not None and points.shape != (expected := (len(vectors), 2)):
        raise ShapeError("projection", expected=expected, found=points.shape)
    snapshot, columns = vectors.snapshot, vectors.snapshot.record.columns
    own = {_VECTOR: pa.list_(pa.float32())} | ({} if points is None else {_X: pa.float32(), _Y: pa.float32()})
    for name in columns:
        if name.casefold() in own:  # these files are read by SQL, which ignores case
            raise NameRefusedError(name, f"the file has a column {name.casefold()!r} of its own")
    types = {name: pa.string() for name in ("key", "file_id", "class_name")}
    types |= {
        name: pa.string() if spec.dtype == STRING else pa.from_numpy_dtype(np.dtype(spec.dtype))
        for name, spec in columns.items()
    }
    schema = pa.schema({**types, **own})
    step = max(1, min(_GROUP_ROWS, _GROUP_BYTES // (4 * vectors.dim)))
    with replacing(path) as partial, parquet.ParquetWriter(partial, schema) as writer:
        for start, block in vectors.blocks(step):
            rows = vectors.rows[start : start + len(block)]
            data: dict[str, Any] = _texts(snapshot, rows)
            data |= {name: column_of(snapshot, name, rows) for name in columns}
            offsets = np.arange(len(block) + 1, dtype=np.int32) * np.int32(vectors.dim)
            data[_VECTOR] = pa.ListArray.from_arrays(offsets, pa.array(block.reshape(-1)))
            if points is not None:
                data[_X], data[_Y] = points[start : start + len(block)].T
            writer.write_table(pa.table(data, schema=schema))
