"""Columns out of whole chunks, decoded: those that are compressed, and those that lie at a URL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from embstore._engine.chunks.chunk_file import read_chunks
from embstore._engine.format.record import ArrayState, Tail
from embstore._engine.io.folder import Folder, ReadableFolder
from embstore._engine.read.column import Array, Check, NumericColumn, Rows, keep

_KEPT_NBYTES: Final = 64 * 2**20


def tails_of(folder: ReadableFolder, array: ArrayState, also: Tail | None = None) -> list[Tail]:
    """Return what an array's last chunk must begin with; nothing, where that is checked when the store is opened."""
    if isinstance(folder, Folder):
        return []
    return [tail for tail in (array.tail, also) if tail is not None]


class DecodedColumn(NumericColumn):
    """Rows out of chunks that are read and checked whole; the last ones are kept, up to 64 MiB."""

    def __init__(self, folder: ReadableFolder, array: ArrayState, check: Check, tails: Sequence[Tail]) -> None:
        super().__init__(folder, array, check)
        self._tails = tails
        self._kept: dict[int, Array] = {}
        if check == "all":
            for _ in self._chunks(range(array.chunks)):
                pass

    def take(self, rows: Rows) -> Array:
        self._check_rows(rows)
        out = np.empty((len(rows), *self.array.shape), self.dtype)
        size = self.array.rows_per_chunk
        order = np.argsort(rows, kind="stable")
        chunks = rows[order] // size
        starts = np.flatnonzero(np.diff(chunks, prepend=-1))
        decoded = self._chunks(chunks[starts].tolist())
        for start, stop in pairwise([*starts.tolist(), len(rows)]):
            places = order[start:stop]
            out[places] = next(decoded)[rows[places] % size]
        return out

    def span(self, start: int, stop: int) -> Array:
        out = self.copy(start, stop)
        out.flags.writeable = False
        return out

    def copy(self, start: int, stop: int) -> Array:
        size = self.array.rows_per_chunk
        indices = self._chunks_of_span(start, stop)
        out: Array | None = None
        for index, chunk in zip(indices, self._chunks(indices), strict=True):
            if out is None:  # not before there is something to put into it
                out = np.empty((stop - start, *self.array.shape), self.dtype)
            low, high = max(start, index * size), min(stop, (index + 1) * size)
            out[low - start : high - start] = chunk[low - index * size : high - index * size]
        return np.empty((0, *self.array.shape), self.dtype) if out is None else out

    def grown(self, array: ArrayState, *, erased: bool) -> DecodedColumn:
        column = DecodedColumn(self.folder, array, "tail", tails_of(self.folder, array))
        column.check = self.check
        if not erased:
            full = self.array.length // self.array.rows_per_chunk
            column._kept = {index: chunk for index, chunk in list(self._kept.items()) if index < full}
        return column

    def _chunks(self, indices: Sequence[int]) -> Iterator[Array]:
        """Give chunks in turn; those that are not kept are read, several at once where that helps."""
        kept = dict(self._kept)
        missing = (index for index in indices if index not in kept)
        fresh = read_chunks(self.folder, self.array, missing, tails=self._tails)
        for index in indices:
            chunk = kept.get(index)
            if chunk is None:
                chunk = np.asarray(next(fresh))
                self._keep(index, chunk)
            yield chunk

    def _keep(self, index: int, chunk: Array) -> None:
        keep(self._kept, index, chunk, most=max(1, _KEPT_NBYTES // self.array.chunk_nbytes))
