"""Columns of numbers whose chunks are decoded whole: compressed ones, and those at a URL."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embstore._engine.format.record import ArrayState
from embstore._engine.read.column import Array, Check, NumericColumn, Rows, check_rows
from embstore._engine.read.decoded_chunks import DecodedChunks


class DecodedColumn(NumericColumn):
    """Rows out of chunks that are read and checked whole."""

    def __init__(self, chunks: DecodedChunks, check: Check) -> None:
        super().__init__(chunks.folder, chunks.array, check)
        self._chunks = chunks

    def read_all(self) -> None:
        """Read all chunks, which checks them."""
        for _ in self._chunks.read(range(self.array.chunks)):
            pass

    def take(self, rows: Rows) -> Array:
        check_rows(rows, self.array.length)
        out = np.empty((len(rows), *self.array.shape), self.dtype)
        for places, chunk, within in self._chunks.of_rows(rows):
            out[places] = chunk[within]
        return out

    def copy(self, start: int, stop: int) -> Array:
        size = self.array.rows_per_chunk
        indices = self._chunks_of_span(start, stop)
        if self._chunks.land_in_place(len(indices)):
            return self._landed(start, stop, indices)
        out: Array | None = None
        for index, chunk in zip(indices, self._chunks.read(indices), strict=True):
            if out is None:  # allocated only once a chunk was read: a forged record may claim any number of rows
                out = np.empty((stop - start, *self.array.shape), self.dtype)
            low, high = max(start, index * size), min(stop, (index + 1) * size)
            out[low - start : high - start] = chunk[low - index * size : high - index * size]
        return np.empty((0, *self.array.shape), self.dtype) if out is None else out

    def _landed(self, start: int, stop: int, indices: Sequence[int]) -> Array:
        """Copy a span of more chunks than are kept: all chunks but the first land in the result."""
        (first,) = self._chunks.read(indices[:1])
        rest = (indices[0] + 1) * self.array.rows_per_chunk
        out = np.empty((stop - start, *self.array.shape), self.dtype)
        out[: rest - start] = first[start - rest :]
        self._chunks.read_into(out[rest - start :], indices[1])
        return out

    def grown(self, array: ArrayState, *, erased: bool) -> DecodedColumn:
        return DecodedColumn(self._chunks.grown(array, erased=erased), self.check)
