"""Chunks of one array that are read whole, checked and decoded. The last ones are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from embstore._engine.chunks.chunk_file import Chunk, fill_from_chunks, read_chunks, read_committed
from embstore._engine.format.record import STRING, ArrayState, Tail
from embstore._engine.io.folder import Folder, ReadableFolder
from embstore._engine.io.remote import RemoteFolder
from embstore._engine.read.column import Rows

_KEPT_NBYTES: Final = 64 * 2**20
_KEPT_STRING_CHUNKS: Final = 64


class DecodedChunks:
    """Reads chunks of an array, and keeps the last ones: up to 64 MiB of numbers, or 64 chunks of strings.

    Parameters
    ----------
    folder, array
    tail_after_erase : Tail, optional
        The last chunk's rows after an erase that is under way.
    salvage : bool
        Whether damage to the padding of the last chunk is ignored.
    """

    def __init__(
        self,
        folder: ReadableFolder,
        array: ArrayState,
        tail_after_erase: Tail | None = None,
        *,
        salvage: bool = False,
    ) -> None:
        self.folder = folder
        self._salvage = salvage
        self.array = array
        is_string = array.dtype == STRING
        self._most = _KEPT_STRING_CHUNKS if is_string else max(1, _KEPT_NBYTES // max(1, array.chunk_nbytes))
        self._kept: dict[int, Any] = {}
        # On this machine, each array's tail is checked when the store is opened.
        tails = () if isinstance(folder, Folder) else (array.tail, tail_after_erase)
        self._tails = [tail for tail in tails if tail is not None]

    def read(self, indices: Sequence[int], *, keep: bool = True) -> Iterator[Any]:
        """Yield chunks in turn. Those that are not kept are read, several at once where that helps."""
        kept = dict(self._kept)
        missing = (index for index in indices if index not in kept)
        fresh: Iterator[Chunk]
        if self._salvage and isinstance(folder := self.folder, Folder):
            fresh = (read_committed(folder, self.array, index) for index in missing)
        else:
            fresh = read_chunks(self.folder, self.array, missing, tails=self._tails)
        for index in indices:
            chunk = kept.get(index)
            if chunk is None:
                chunk = next(fresh)
                if keep:
                    self._keep(index, chunk)
            yield chunk

    def of_rows(self, rows: Rows) -> Iterator[tuple[Rows, Any, Rows]]:
        """Yield each chunk that has some of the rows, with their places in `rows` and their places in the chunk."""
        size = self.array.rows_per_chunk
        order = np.argsort(rows, kind="stable")
        indices = rows[order] // size
        starts = np.flatnonzero(np.diff(indices, prepend=-1))
        stops = [*starts[1:].tolist(), len(rows)]
        for start, stop, chunk in zip(starts.tolist(), stops, self.read(indices[starts].tolist()), strict=False):
            places = order[start:stop]
            yield places, chunk, rows[places] % size

    def land_in_place(self, count: int) -> bool:
        """Return whether `read_into` reads so many chunks: more than are kept, at a URL, uncompressed."""
        return count > self._most + 1 and self.array.compression is None and isinstance(self.folder, RemoteFolder)

    def read_into(self, out: np.ndarray[Any, Any], first: int) -> None:
        """Read chunks from index `first` on into the rows of `out`, without another copy."""
        assert isinstance(self.folder, RemoteFolder), self.folder.path
        size = self.array.rows_per_chunk
        starts = range(0, len(out), size)
        parts = ((first + i, out[at : at + size].reshape(-1).view(np.uint8).data) for i, at in enumerate(starts))
        fill_from_chunks(self.folder, self.array, parts, tails=self._tails)

    def _keep(self, index: int, chunk: Any) -> None:
        """Keep a chunk in place of the oldest. Several threads may do so: each step is one operation on the dict."""
        for old in list(self._kept)[: max(0, len(self._kept) + 1 - self._most)]:
            self._kept.pop(old, None)
        self._kept[index] = chunk

    def grown(self, array: ArrayState, *, erased: bool) -> DecodedChunks:
        """Return the chunks of a later commit. Unless rows were erased, they keep the full chunks of this one."""
        chunks = DecodedChunks(self.folder, array)
        if not erased:
            full = self.array.length // self.array.rows_per_chunk
            chunks._kept = {index: chunk for index, chunk in list(self._kept.items()) if index < full}
        return chunks
