"""Dictionaries of a matrix and the names of its rows, ``{"ids": […], "embeddings": matrix}``, as a file of arrays."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from embstore._engine.format.record import STRING, dtype_name
from embstore.exchange.file_contents import Array, ArrayFile, ArrayInfo, Block, even_cuts
from embstore.exchange.pt_entries import EMBEDDING, numbers_of, refusal
from embstore.exchange.scalars import plain
from embstore.exchange.tables import KEYS


def is_columnar(found: Mapping[Any, Any]) -> bool:
    """Return whether a dictionary holds arrays of rows, and not an entry for each row."""
    if any(len(getattr(found.get(name), "shape", ())) > 1 for name in EMBEDDING):
        return True  # "embeddings" is the name of a matrix, not the key of a row
    return any(isinstance(found.get(name), list | tuple) or _is_vector(found.get(name)) for name in KEYS)


def _is_vector(value: Any) -> bool:
    """Return whether a value can hold names, one for each row."""
    return len(getattr(value, "shape", ())) == 1 and dtype_name(value.dtype).startswith(("int", "uint", "str"))


class ColumnarFile(ArrayFile):
    """A dictionary of arrays, tensors and lists of as many rows each."""

    def __init__(self, path: Path, found: Mapping[Any, Any]) -> None:
        super().__init__(path)
        self._values: dict[str, Any] = {}
        for name, given in found.items():
            given = given.tolist() if isinstance(given, np.ndarray) and given.dtype.kind == "U" else given
            values: Any = _as_array(given) if isinstance(given, list | tuple) else given
            if isinstance(values, list):
                self.arrays[str(name)] = ArrayInfo(dtype=STRING, shape=(), rows=len(values))
            elif not refusal(values, sys.modules.get("torch")) and len(values.shape):
                shape, dtype = tuple(values.shape), dtype_name(values.dtype)
                self.arrays[str(name)] = ArrayInfo(dtype=dtype, shape=shape[1:], rows=shape[0])
            elif hasattr(given, "__len__"):
                self.arrays[str(name)] = ArrayInfo(dtype=type(given).__name__, shape=(), rows=len(given))
            self._values[str(name)] = values

    def numbers(self, name: str, width: int | None = None) -> Iterator[Block]:
        """Yield rows of numbers: ``(n, *shape)``."""
        found = self.arrays[name]
        for start, stop in pairwise(even_cuts(found.rows, found.row_nbytes)):
            yield Block(numbers_of(self._values[name][start:stop], found.dtype))

    def strings(self, name: str) -> Iterator[list[str]]:
        """Yield rows of text."""
        for start, stop in pairwise(even_cuts(self.arrays[name].rows, 1)):
            yield self._values[name][start:stop]


def _as_array(values: list[Any] | tuple[Any, ...]) -> Array | list[str] | None:
    """Return a list of texts as it is, numbers as an array, and None for other lists."""
    found = [plain(value) for value in values]
    kinds = set(map(type, found))
    if kinds == {str}:
        return found
    if kinds in ({int}, {float}, {bool}):
        try:
            return np.array(found, kinds.pop())
        except OverflowError:
            return None
    return None
