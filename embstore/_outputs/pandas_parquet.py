"""Rows as tables: a pandas DataFrame, or a Parquet file that embedding-atlas and others open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import check_choice
from embstore._engine.io.durable import replacing
from embstore._engine.lazy import imported
from embstore._engine.read.column import Rows
from embstore._engine.read.dtypes import as_numbers
from embstore._engine.read.read_rows import read_field
from embstore._engine.read.snapshot import Snapshot
from embstore._outputs.arrow import GROUP_BYTES, GROUP_ROWS, described, described_types
from embstore._outputs.vectors import Vectors
from embstore.errors import NameRefusedError, ShapeError

if TYPE_CHECKING:
    import pandas as pd

_VECTOR, _X, _Y = "vector", "x", "y"


def as_frame(
    snapshot: Snapshot,
    rows: Rows,
    *,
    columns: Sequence[str],
    fields: Sequence[str] = (),
    index: Literal["key", "file_id"] = "key",
) -> pd.DataFrame:
    """Return keys, columns and the given fields as a DataFrame. See `View.to_pandas`."""
    check_choice("index", index, ("key", "file_id"))
    pandas = imported("pandas", "analysis", "for a DataFrame")
    data = described(snapshot, rows, columns)
    ids = pandas.Index(data.pop(index), name=index, dtype=None if len(rows) else object)
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


def write_parquet(
    path: Path, vectors: Vectors, columns: Sequence[str], points: NDArray[np.float32] | None = None
) -> None:
    """Write keys, columns and vectors, a row group at a time. See `View.to_parquet`.

    Parameters
    ----------
    path : Path
    vectors : Vectors
    columns : sequence of str
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
    snapshot = vectors.snapshot
    own = {_VECTOR: pa.list_(pa.float32())} | ({} if points is None else {_X: pa.float32(), _Y: pa.float32()})
    for name in columns:
        if name.casefold() in own:  # these files are read by SQL, which ignores case
            raise NameRefusedError(name, f"the file has a column {name.casefold()!r} of its own")
    schema = pa.schema({**described_types(snapshot.record, columns), **own})
    step = max(1, min(GROUP_ROWS, GROUP_BYTES // (4 * vectors.dim)))
    with replacing(path) as partial, parquet.ParquetWriter(partial, schema) as writer:
        for start, block in vectors.blocks(step):
            rows = vectors.rows[start : start + len(block)]
            data = described(snapshot, rows, columns)
            offsets = np.arange(len(block) + 1, dtype=np.int32) * np.int32(vectors.dim)
            data[_VECTOR] = pa.ListArray.from_arrays(offsets, pa.array(block.reshape(-1)))
            if points is not None:
                data[_X], data[_Y] = points[start : start + len(block)].T
            writer.write_table(pa.table(data, schema=schema))
