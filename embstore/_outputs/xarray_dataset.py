"""Rows as an xarray.Dataset that reads values when they are used. Importing this module imports xarray."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from embstore._engine.format.record import BFLOAT16, STRING, FieldSpec
from embstore._engine.read.column import Array, Rows
from embstore._engine.read.dtypes import as_numbers
from embstore._engine.read.read_rows import KEY_COLUMNS, column_of, consecutive, read_field, read_ragged, row_bounds
from embstore._engine.read.snapshot import Snapshot

_BLOCK_BYTES: Final = 16 * 2**20
"""Bytes read at a time if only parts of rows are used: one number of each of 28,000 AST clips then needs no 105 GB."""

Place = int | slice | Array


class _Lazy(BackendArray):
    """One variable of the Dataset, which reads rows when they are used.

    Parameters
    ----------
    snapshot : callable
        `View.snapshot`, which raises once the row numbers are no longer valid.
    read : callable
        Takes a snapshot, row numbers ``(n,)`` and True if whole rows are used. Returns values ``(n, *shape)``.
    rows : ndarray, (n,) int64
    shape : tuple of int
        The shape of one row.
    dtype : dtype
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        read: Callable[[Snapshot, Rows, bool], Array],
        rows: Rows,
        shape: tuple[int, ...],
        dtype: Any,
    ) -> None:
        self.shape = (len(rows), *shape)
        self.dtype = np.dtype(dtype)
        self._snapshot = snapshot
        self._read = read
        self._rows = rows

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._part)

    def _part(self, key: tuple[Place, ...]) -> Array:
        """Read the values at an outer index: a place, a slice or an array of places for each dimension."""
        first, *rest = key
        rows = np.atleast_1d(self._rows[first])
        whole = all(isinstance(k, slice) and k == slice(None) for k in rest)
        row_nbytes = self.dtype.itemsize * math.prod(self.shape[1:])
        step = max(1, len(rows) if whole else _BLOCK_BYTES // max(1, row_nbytes))
        snapshot = self._snapshot()
        blocks = [rows[start : start + step] for start in range(0, max(1, len(rows)), step)]
        parts = [_picked(self._read(snapshot, block, whole), rest) for block in blocks]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        values = values if values.flags.writeable else values.copy()  # xarray may change it
        return values[0] if isinstance(first, int | np.integer) else values


def _picked(values: Array, rest: Sequence[Place]) -> Array:
    """Apply an outer index to all dimensions but the first."""
    for axis in reversed(range(len(rest))):  # from the last axis, because a single place removes its axis
        values = values[(slice(None),) * (axis + 1) + (rest[axis],)]
    return values


def _read_rows(name: str, snapshot: Snapshot, rows: Rows, whole: bool) -> Array:
    """Read rows of a field. Of consecutive mapped rows, only the pages of the used parts are read."""
    if not whole and consecutive(rows):
        values: Any = snapshot.span(name, int(rows[0]), int(rows[-1]) + 1)
    else:
        values = read_field(snapshot, name, rows)
    numbers: Array = as_numbers(values, snapshot.record.fields[name])
    return numbers


def _read_padded(name: str, longest: int, snapshot: Snapshot, rows: Rows, whole: bool) -> Array:
    """Read rows of a ragged field, padded with zeros: ``(n, longest, *shape)``."""
    spec = snapshot.record.fields[name]
    out = np.zeros((len(rows), longest, *spec.shape), _dtype(spec))
    for place, row in enumerate(as_numbers(read_ragged(snapshot, name, rows), spec)):
        out[place, : len(row)] = row
    return out


def _read_column(name: str, snapshot: Snapshot, rows: Rows, whole: bool) -> Array:
    return column_of(snapshot, name, rows)


def _dtype(spec: FieldSpec) -> np.dtype[Any]:
    return np.dtype(np.float32 if spec.dtype == BFLOAT16 else spec.dtype)


def as_dataset(
    snapshot: Callable[[], Snapshot],
    rows: Rows,
    fields: Sequence[str],
    columns: Sequence[str],
    index: Literal["key", "file_id"] | None = None,
) -> xr.Dataset:
    """Return rows as a Dataset. See `View.to_xarray`.

    Parameters
    ----------
    snapshot : callable
        `View.snapshot`. It is called again at each read.
    rows : ndarray, (n,) int64
    fields, columns : sequence of str
    index : {"key", "file_id"}, optional
        The labels of the dimension ``sample``, which are read at once.

    Raises
    ------
    ValueError
        Two variables have one name, or a variable is named like a dimension.
    """
    record = snapshot().record

    def variable(dims: Sequence[str], read: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        return xr.Variable(("sample", *dims), indexing.LazilyIndexedArray(_Lazy(snapshot, read, rows, shape, dtype)))

    coords: dict[str, Any] = {}
    for name in (*KEY_COLUMNS, *columns):
        dtype = STRING if name in KEY_COLUMNS else record.columns[name].dtype
        coords[name] = variable((), partial(_read_column, name), (), object if dtype == STRING else dtype)
    data: dict[str, Any] = {}
    for name in fields:
        spec, dims = record.fields[name], record.arrays[name].dims[1:]
        if not spec.ragged:
            data[name] = variable(dims, partial(_read_rows, name), spec.shape, _dtype(spec))
            continue
        starts, stops = row_bounds(snapshot(), name, rows)
        lengths, longest = stops - starts, int((stops - starts).max(initial=0))
        if (length_name := f"{name}_length") in (*record.columns, *record.fields):
            raise ValueError(f"{length_name!r} is the lengths of {name!r}: leave that field out with fields=")
        coords[length_name] = xr.Variable(("sample",), lengths)
        padded = partial(_read_padded, name, longest)
        data[name] = variable((f"{name}_token", *dims), padded, (longest, *spec.shape), _dtype(spec))
    used = {dim for value in data.values() for dim in value.dims}
    for clash in used & {*coords, *data}:
        raise ValueError(f"{clash!r} is both a dimension and a field or column: xarray can't tell them apart")
    dataset = xr.Dataset(data, coords, {"store": str(snapshot().folder.path), "fingerprint": record.fingerprint})
    return dataset if index is None else dataset.assign_coords(sample=dataset[index].values)
