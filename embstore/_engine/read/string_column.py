"""A column of strings, read and decoded chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from embstore._engine.format.record import ArrayState
from embstore._engine.read.column import Rows
from embstore._engine.read.decoded_chunks import DecodedChunks


class StringColumn:
    """Strings out of chunks that are read and checked whole."""

    def __init__(self, chunks: DecodedChunks) -> None:
        self.array = chunks.array
        self._chunks = chunks

    def __len__(self) -> int:
        return self.array.length

    def chunks(self) -> Iterator[list[str]]:
        """Yield the committed strings, a chunk at a time. Keeps no chunk."""
        size = self.array.rows_per_chunk
        for index, chunk in enumerate(self._chunks.read(range(self.array.chunks), keep=False)):
            yield chunk[: self.array.length - index * size]

    def take(self, rows: Rows) -> list[str]:
        """Return the strings of some rows, in the order given."""
        out = np.empty(len(rows), object)
        for places, chunk, within in self._chunks.of_rows(rows):
            out[places] = [chunk[i] for i in within.tolist()]
        return out.tolist()

    def grown(self, array: ArrayState, *, erased: bool) -> StringColumn:
        """Return the column of a later commit of the same store."""
        return StringColumn(self._chunks.grown(array, erased=erased))
