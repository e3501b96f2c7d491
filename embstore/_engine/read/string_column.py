"""A column of strings, read and decoded chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from embstore._engine.chunks.chunk_file import read_chunks
from embstore._engine.format.record import ArrayState, Tail
from embstore._engine.io.folder import ReadableFolder
from embstore._engine.read.column import Rows, keep
from embstore._engine.read.decoded_column import tails_of

_KEPT_STRING_CHUNKS: Final = 64


class StringColumn:
    """Strings read and decoded chunk by chunk; the last few chunks are kept."""

    def __init__(self, folder: ReadableFolder, array: ArrayState, tails: Sequence[Tail]) -> None:
        self.folder = folder
        self.array = array
        self._tails = tails
        self._kept: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return self.array.length

    def chunks(self) -> Iterator[list[str]]:
        """Yield the committed strings, a chunk at a time; keeps none."""
        size = self.array.rows_per_chunk
        for index, chunk in self._chunks(range(self.array.chunks), kept_after=False):
            yield chunk[: self.array.length - index * size]

    def take(self, rows: Rows) -> list[str]:
        """Return the strings of some rows, in the order given."""
        size = self.array.rows_per_chunk
        out = [""] * len(rows)
        order = np.argsort(rows, kind="stable")
        chunks = self._chunks(np.unique(rows // size).tolist(), kept_after=True)
        index = -1
        chunk: list[str] = []
        for place, row in zip(order.tolist(), rows[order].tolist(), strict=True):
            if row // size != index:
                index, chunk = next(chunks)
            out[place] = chunk[row % size]
        return out

    def _chunks(self, indices: Sequence[int], *, kept_after: bool) -> Iterator[tuple[int, list[str]]]:
        kept = dict(self._kept)
        missing = (index for index in indices if index not in kept)
        fresh = read_chunks(self.folder, self.array, missing, tails=self._tails)
        for index in indices:
            chunk = kept.get(index)
            if chunk is None:
                chunk = next(fresh)  # type: ignore[assignment]
                assert isinstance(chunk, list)
                if kept_after:
                    keep(self._kept, index, chunk, most=_KEPT_STRING_CHUNKS)
            yield index, chunk

    def grown(self, array: ArrayState, *, erased: bool) -> StringColumn:
        """Return the column of a later commit of the same store."""
        column = StringColumn(self.folder, array, tails_of(self.folder, array))
        if not erased:
            full = self.array.length // self.array.rows_per_chunk
            column._kept = {i: chunk for i, chunk in list(self._kept.items()) if i < full}
        return column
