"""MemoryFile: arrays, tensors and lists of as many rows each, read like the arrays of a file. Imports no torch."""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.ragged import Ragged, offsets_of
from embstore._engine.format.record import BFLOAT16, FIELD_DTYPES, STRING, FieldSpec, dtype_name, stored_dtype
from embstore._engine.read.dtypes import converted
from embstore.exchange.file_contents import (
    Array,
    ArrayFile,
    ArrayInfo,
    Block,
    Unreadable,
    check_claim,
    even_cuts,
    rising_cuts,
)
from embstore.exchange.scalars import column_of, plain, text_of

NAMES: Final = "key"
"""The array of the names of entries. No field or column can have this name."""
KEYS: Final = (NAMES, "keys", "ids", "id", "file_id")
"""Names of the array of keys."""
LABELS: Final = "class_name"
"""The array of classes."""
EMBEDDING: Final = ("embedding", "embeddings")

_TEXTS_AT_ONCE: Final = 256
"""So few that they are freed before the garbage collector moves them to an older generation, and then scans all tensors
too. With 65,536, naming 200,000 entries took three times as long."""

short_dtype = functools.lru_cache(dtype_name)


@dataclass(frozen=True, slots=True)
class Unread:
    """An array that was not read from its file yet.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
    read : callable
        Returns the array, bfloat16 as its bits.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array]


class MemoryFile(ArrayFile):
    """Arrays in memory, or mapped: of a ``.pt``, or an entry for each row.

    Attributes
    ----------
    values : dict of str to (array or tensor, list of texts, or list of tensors)
        A list of tensors has one for each row.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.values: dict[str, Any] = {}

    @classmethod
    def of_columns(cls, path: Path, found: Mapping[Any, Any], key_column: str | None = None) -> MemoryFile:
        """Take the arrays, tensors and lists of a dictionary: ``{"ids": […], "embeddings": matrix}``."""
        file, torch = cls(path), sys.modules.get("torch")
        names = next((name for name in (key_column, *KEYS) if name in found), None)
        for key, values in found.items():
            name = str(key)
            if isinstance(values, np.ndarray) and values.dtype.kind in "UO":
                values = values.tolist()
            if name in file.arrays:
                file.left_out.append(Unreadable(key, "another array has this name"))
            elif isinstance(values, list | tuple):
                texts = [text_of(plain(value)) for value in values] if name in (names, LABELS) else [0]
                named = all(isinstance(text, str | None) for text in texts)
                file.add_column(name, texts if named else column_of(name, values))
            elif reason := refusal(values, torch) or ("" if len(values.shape) else "it is a single value"):
                file.left_out.append(Unreadable(key, reason))
            else:
                shape = tuple(values.shape)
                file.values[name] = values
                file.arrays[name] = ArrayInfo(dtype=dtype_name(values.dtype), shape=shape[1:], rows=shape[0])
        return file

    def add_column(self, name: str, values: Array | list[Any] | Unreadable) -> None:
        """Add a value for each row: numbers, texts, or names of any type."""
        if isinstance(values, Unreadable):
            self.left_out.append(values)
            return
        dtype = STRING if isinstance(values, list) else values.dtype.name
        self.values[name], self.arrays[name] = values, ArrayInfo(dtype=dtype, shape=(), rows=len(values))

    def add_field(self, name: str, tensors: list[Any], spec: FieldSpec) -> None:
        """Add a tensor or array for each row. Their shapes are that of the field, but for axes of one."""
        check_claim(self.path, sum(math.prod(tensor.shape) for tensor in tensors))
        found = ArrayInfo(dtype=spec.dtype, shape=spec.shape, rows=len(tensors), ragged=spec.ragged)
        self.values[name], self.arrays[name] = tensors, found

    def numbers(self, name: str) -> Iterator[Block]:
        """Yield rows of numbers: ``(n, *shape)``."""
        found, values = self.arrays[name], self.values[name]
        if isinstance(values, list):
            for rows in self._joined(name, np.arange(found.rows + 1)):
                yield Block(rows.values)
            return
        for start, stop in itertools.pairwise(even_cuts(found.rows, found.row_nbytes)):
            yield Block(numbers_of(values[start:stop], found.dtype))

    def strings(self, name: str) -> Iterator[list[Any]]:
        """Yield rows of text."""
        for start in range(0, self.arrays[name].rows, _TEXTS_AT_ONCE):
            yield self.values[name][start : start + _TEXTS_AT_ONCE]

    def ragged(self, name: str) -> Iterator[Block]:
        """Yield rows of different lengths, as `Ragged`."""
        token = math.prod(self.arrays[name].shape)
        lengths = [math.prod(tensor.shape) // token for tensor in self.values[name]]
        for rows in self._joined(name, offsets_of(np.array(lengths, np.int64))):
            yield Block(rows)

    def _joined(self, name: str, offsets: NDArray[np.int64]) -> Iterator[Ragged]:
        """Yield tensors copied into one array a block, straight to their places.

        `torch.stack` takes as long, and memory for a view of each.
        """
        found, tensors = self.arrays[name], self.values[name]
        for start, stop in itertools.pairwise(rising_cuts(offsets, found.row_nbytes)):
            ends = offsets[start : stop + 1] - offsets[start]
            out = np.empty((int(ends[-1]), *found.shape), stored_dtype(found.dtype))
            for tensor, (first, last) in zip(tensors[start:stop], itertools.pairwise(ends.tolist()), strict=True):
                out[first:last] = numbers_of(tensor, found.dtype).reshape(-1, *found.shape)
            yield Ragged(out, ends)


def numbers_of(tensor: Any, dtype: str) -> Array:
    """Return the numbers of a tensor, bfloat16 as its bits. Numbers of this dtype are not copied."""
    if isinstance(tensor, Unread):
        return converted(tensor.read(), tensor.dtype, dtype)
    if isinstance(tensor, np.ndarray):
        return converted(tensor, tensor.dtype.name, dtype)
    if short_dtype(tensor.dtype) == dtype != BFLOAT16 and not tensor.requires_grad:
        numbers: Array = tensor.numpy(force=tensor.is_neg())
        return numbers
    import torch

    tensor = tensor.detach().to(getattr(torch, dtype))
    if dtype == BFLOAT16:
        tensor = tensor.contiguous().view(torch.int16)
    numbers = tensor.resolve_neg().numpy()
    return numbers.view(np.uint16) if dtype == BFLOAT16 else numbers


def refusal(value: Any, torch: Any) -> str:
    """Return why a value can't be a row, or "". `torch` is the module, or None if it is not imported."""
    if not isinstance(value, np.ndarray | Unread):
        if torch is None or type(value) not in (torch.Tensor, torch.nn.Parameter):
            return f"expected a tensor or an array, found {type(value).__name__}"
        if value.layout is not torch.strided or not value.is_cpu or value.is_nested:
            return "expected a plain tensor, found a sparse or nested one, or one without values"
    return "" if short_dtype(value.dtype) in FIELD_DTYPES else f"{short_dtype(value.dtype)} is not stored"
