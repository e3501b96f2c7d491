"""Conversions between the dtypes of tensors, NumPy arrays and stored rows. No I/O.

Takes NumPy arrays, lists, and torch tensors of any device (without importing torch).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import BFLOAT16, FieldSpec
from embstore._engine.io.buffers import aligned_empty
from embstore._engine.io.threads import in_parts


def is_torch(values: Any) -> bool:
    """Return whether a value is a torch tensor, without importing torch."""
    return type(values).__module__.partition(".")[0] == "torch"


def _from_torch(values: Any) -> tuple[np.ndarray[Any, Any], str]:
    tensor = values.detach().cpu().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if name == BFLOAT16:
        import torch

        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16), BFLOAT16
    array: np.ndarray[Any, Any] = tensor.numpy()
    return array, array.dtype.name


def as_rows(values: Any) -> tuple[np.ndarray[Any, Any], str]:
    """Return rows as a NumPy array, and the name of their dtype. The array of bfloat16 is its uint16 bits."""
    if is_torch(values):
        return _from_torch(values)
    if isinstance(values, list | tuple) and values and is_torch(values[0]):
        parts = [_from_torch(value) for value in values]
        dtypes = {dtype for _, dtype in parts}
        if len(dtypes) > 1 or len({part.shape for part, _ in parts}) > 1:
            # np.stack would treat the bits of bfloat16 as numbers. The callers refuse the dtype object.
            return np.empty(len(parts), dtype=object), " and ".join(sorted(dtypes))
        return np.stack([part for part, _ in parts]), parts[0][1]
    if isinstance(values, list | tuple) and len({np.shape(value) for value in values}) > 1:
        return np.empty(len(values), dtype=object), "rows of different shapes"
    array = np.asarray(values)
    if array.dtype.name == BFLOAT16:  # from ml_dtypes
        return array.view(np.uint16), BFLOAT16
    return array, array.dtype.name


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
