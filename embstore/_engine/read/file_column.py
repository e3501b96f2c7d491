"""Columns read from chunk files of plain, uncompressed rows. `mapped_column` maps such files instead."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np

from embstore._engine.chunks.chunk_file import check_digest, open_chunk, open_chunks, read_chunk, read_committed
from embstore._engine.format.record import ArrayState
from embstore._engine.format.zarr_layout import chunk_name
from embstore._engine.io.buffers import aligned_empty
from embstore._engine.io.folder import Folder, read_into
from embstore._engine.io.threads import in_parts
from embstore._engine.read.column import Array, Check, NumericColumn, Rows, check_rows
from embstore.errors import CorruptStoreError

logger = logging.getLogger("embstore")


class FileColumn(NumericColumn):
    """Base of the columns whose chunk files hold plain, uncompressed rows."""

    folder: Folder

    def _read_rows(self, start: int, stop: int) -> Array:
        """Read neighbouring rows from the chunk files."""
        out = aligned_empty((stop - start, *self.array.shape), self.dtype)
        size = self.array.rows_per_chunk
        chunks = self._chunks_of_span(start, stop)

        def read(first: int, last: int) -> None:
            for index in chunks[first:last]:
                low, high = max(start, index * size), min(stop, (index + 1) * size)
                with open_chunk(self.folder, self.array, index) as (descriptor, _):
                    part = out[low - start : high - start].reshape(-1).view(np.uint8).data
                    self._fill(descriptor, part, (low - index * size) * self.array.row_nbytes, index)

        in_parts(read, len(chunks), out.nbytes)
        return out

    def _read_scattered(self, rows: Rows) -> Array:
        """Read rows from the chunk files, in the order given."""
        out = aligned_empty((len(rows), *self.array.shape), self.dtype)
        data = out.reshape(-1).view(np.uint8).data
        nbytes = self.array.row_nbytes
        order = np.argsort(rows, kind="stable")
        chunks, within = np.divmod(rows[order], self.array.rows_per_chunk)
        starts = np.flatnonzero(np.diff(chunks, prepend=-1))
        indices, positions, places = chunks[starts].tolist(), (within * nbytes).tolist(), order.tolist()
        bounds = pairwise([*starts.tolist(), len(rows)])
        for index, file, (start, stop) in zip(
            indices, open_chunks(self.folder, self.array, indices), bounds, strict=True
        ):
            with file as (descriptor, _):
                for place, position in zip(places[start:stop], positions[start:stop], strict=True):
                    self._fill(descriptor, data[place * nbytes : (place + 1) * nbytes], position, index)
        return out

    def _fill(self, descriptor: int, part: memoryview, position: int, index: int) -> None:
        if read_into(descriptor, [part], position) != part.nbytes:
            raise CorruptStoreError(
                self.folder.path / chunk_name(self.array, index), "it became shorter during the read"
            )


class ChunkedColumn(FileColumn):
    """Rows read from chunk files on request, where the files can't or must not be mapped."""

    def __init__(self, folder: Folder, array: ArrayState, check: Check, *, salvage: bool = False) -> None:
        super().__init__(folder, array, check)
        self._read_chunk = read_committed if salvage else read_chunk
        if self.checks_places and not salvage:
            check_digest(folder, array)
        self._touch(range(array.chunks) if check == "all" else range(0))

    def take(self, rows: Rows) -> Array:
        check_rows(rows, self.array.length)
        if self.check != "tail":
            self._touch(self._chunk_of(rows))
        return self._read_scattered(rows)

    def copy(self, start: int, stop: int) -> Array:
        self._touch(self._chunks_of_span(start, stop))
        return self._read_rows(start, stop)

    def _check_chunk(self, index: int) -> None:
        self._read_chunk(self.folder, self.array, index)


def read_by_chunk(folder: Folder, array: ArrayState, check: Check, reason: str) -> ChunkedColumn:
    """Return a column that is read chunk by chunk, and log why it is not mapped."""
    logger.warning("%s: not mapped but read chunk by chunk, which is slower: %s", folder.path, reason)
    return ChunkedColumn(folder, array, check)
