"""Conversions between the dtypes of tensors, NumPy arrays and stored rows. No I/O.

Takes NumPy arrays, lists, and torch tensors of any device (without importing torch).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import refuse_hidden
from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import BFLOAT16, FieldSpec
from embstore._engine.io.buffers import aligned_empty
from embstore._engine.io.threads import in_parts
from embstore.errors import DtypeError, ShapeError


def is_torch(values: Any) -> bool:
    """Return whether a value is a torch tensor, or of a subclass of it, without importing torch."""
    return isinstance(values, getattr(sys.modules.get("torch"), "Tensor", ()))


def _from_torch(name: str, values: Any) -> tuple[np.ndarray[Any, Any], str]:
    if str(values.layout) != "torch.strided" or values.is_quantized or values.is_meta or values.is_nested:
        form = "quantized" if values.is_quantized else "meta" if values.is_meta else values.layout
        raise ShapeError(name, expected="a dense tensor of plain numbers, as of to_dense() or dequantize()", found=form)
    tensor = values.detach().cpu().resolve_conj().resolve_neg()
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype == BFLOAT16:
        import torch

        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16), BFLOAT16
    try:
        array: np.ndarray[Any, Any] = tensor.numpy()
    except (TypeError, RuntimeError) as error:  # float8, or a class of tensors with a mask
        found = f"{type(values).__name__} of {dtype}"
        raise DtypeError(name, expected="one that NumPy has", found=found, hint="cast it") from error
    return array, array.dtype.name


def as_rows(values: Any, name: str = "values") -> tuple[np.ndarray[Any, Any], str]:
    """Return rows as a NumPy array, and the name of their dtype. The array of bfloat16 is its uint16 bits.

    Rows that make no array of one shape and dtype are an array of objects, and the name describes them.

    Parameters
    ----------
    values
    name : str, optional
        Name of the field, for messages.

    Raises
    ------
    ShapeError
        Values are masked or missing, or the tensor is sparse, quantized or without data.
    DtypeError
        NumPy does not have the dtype of the tensor.
    """
    if is_torch(values):
        return _from_torch(name, values)
    refuse_hidden(name, values)
    array = None if isinstance(values, list | tuple) else np.asarray(values)
    if array is None or (array.dtype == object and array.ndim == 1 and len(array) and np.ndim(array[0])):
        return _joined_rows(name, list(values))
    if array.dtype.name == BFLOAT16:  # from ml_dtypes
        return array.view(np.uint16), BFLOAT16
    if array.dtype == object:
        return array, "objects" if array.ndim else type(values).__name__
    return array, array.dtype.name


def _joined_rows(name: str, rows: list[Any]) -> tuple[np.ndarray[Any, Any], str]:
    """Return a list of rows as one array, and the name of their dtype, as `as_rows` does."""
    if any(map(is_torch, rows)):
        parts = [as_rows(row, name) for row in rows]
        dtypes = {dtype for _, dtype in parts}
        if len(dtypes) > 1 or len({part.shape for part, _ in parts}) > 1:
            # np.stack would treat the bits of bfloat16 as numbers. The callers refuse the dtype object.
            return np.empty(len(parts), dtype=object), " and ".join(sorted(dtypes))
        return np.stack([part for part, _ in parts]), parts[0][1]
    for row in rows:
        refuse_hidden(name, row)
    try:
        shapes = {np.shape(row) for row in rows}
    except ValueError:  # the parts of one row have different shapes
        shapes = {(), (0,)}
    if len(shapes) > 1:
        return np.empty(len(rows), dtype=object), "rows of different shapes"
    array = np.asarray(rows)
    return (array, "objects") if array.dtype == object else as_rows(array, name)  # sparse matrices are objects


def converted(rows: np.ndarray[Any, Any], found: str, wanted: str) -> np.ndarray[Any, Any]:
    """Convert rows to another dtype, bfloat16 as its bits. Rows of that dtype are returned as they are."""
    if found == wanted:
        return rows
    if found == BFLOAT16:
        rows = widen_bfloat16(rows)
    with np.errstate(over="ignore"):  # overflow becomes infinity, which a later check reports
        return narrow_bfloat16(rows.astype(np.float32)) if wanted == BFLOAT16 else rows.astype(wanted)


def widen_bfloat16(bits: np.ndarray[Any, Any]) -> NDArray[np.float32]:
    """Convert bfloat16 bits (uint16) to float32 numbers, exactly."""
    out = aligned_empty(bits.shape, np.dtype(np.uint32))
    rows, wide = np.atleast_1d(bits), np.atleast_1d(out)

    def shift(start: int, stop: int) -> None:
        np.left_shift(rows[start:stop], 16, out=wide[start:stop], dtype=np.uint32)  # without a temporary array

    in_parts(shift, len(rows), out.nbytes)
    return out.view(np.float32)


def as_numbers(values: Any, spec: FieldSpec) -> Any:
    """Return stored rows, an array or ragged, as NumPy numbers: bfloat16 as float32, others as they are."""
    if isinstance(values, Ragged):
        return Ragged(as_numbers(values.values, spec), values.offsets)
    return widen_bfloat16(values) if spec.dtype == BFLOAT16 else values


def narrow_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16 bits, to nearest with ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)
