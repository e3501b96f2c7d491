"""A column whose chunk files are mapped side by side: one C-contiguous array over a chunked Zarr array."""

from __future__ import annotations

import contextlib
import enum
import logging
from functools import partial
from typing import Final

import numpy as np

from embstore._engine.chunks.chunk_file import check_digest, open_chunks, read_chunk, stored_checksum
from embstore._engine.format.record import ArrayState
from embstore._engine.format.values import crc32c
from embstore._engine.format.zarr_layout import chunk_name
from embstore._engine.io.buffers import aligned_empty
from embstore._engine.io.folder import Folder
from embstore._engine.io.mapping import HUGE_PAGE_NBYTES, Region, available
from embstore._engine.io.threads import in_parts
from embstore._engine.read.column import Array, Check, Rows, check_rows
from embstore._engine.read.file_column import ChunkedColumn, FileColumn, read_by_chunk
from embstore._engine.read.prefetch import Prefetcher
from embstore.errors import CorruptStoreError

logger = logging.getLogger("embstore")

_WORTH_READING: Final = 16 * 2**20  # bytes
_FEW_ROWS: Final = 1024
"""Rows of a batch that may be read one by one, before a column is mapped."""


class State(enum.Enum):
    """How the rows of a `MappedColumn` are read. The states follow each other, except `UNMAPPABLE`."""

    FRESH = enum.auto()
    """No row was read. The first small batch is read from the files: mapping millions of rows takes longer."""
    UNMAPPED = enum.auto()
    """The next read maps all chunks."""
    MAPPED = enum.auto()
    """All chunks are mapped. An erase may have changed them before, because the record was not re-read since."""
    SETTLED = enum.auto()
    """All chunks are mapped, and the record was re-read afterwards. Reads no longer touch the files."""
    UNMAPPABLE = enum.auto()
    """The kernel refused: the rows are read chunk by chunk."""


class MappedColumn(FileColumn):
    """All chunk files mapped side by side, at the first read that is large enough.

    Attributes
    ----------
    state : State
        The snapshot, which re-reads the record, turns ``MAPPED`` into ``SETTLED``.
    """

    in_place = True

    def __init__(
        self,
        folder: Folder,
        array: ArrayState,
        check: Check,
        region: Region,
        *,
        whole: bool = False,
        before: MappedColumn | None = None,
        first: int = 0,
    ) -> None:
        """Map the chunks from `first` on, at once if `whole`. `before` has mapped the earlier ones into the region."""
        super().__init__(folder, array, check)
        self.region = region
        self.state = State.FRESH if check == "tail" else State.UNMAPPED
        self._first = first
        self._checksums = np.zeros(array.chunks, dtype=np.uint32)
        if before is not None:
            self._checksums[:first] = before._checksums[:first]
        region.charge(max(0, array.chunks - (before.array.chunks if before is not None else 0)))
        self._by_chunk: ChunkedColumn | None = None  # in the state UNMAPPABLE
        self._asked = np.zeros(array.chunks, dtype=bool)  # chunks that the kernel was asked to read ahead
        self._values = region.array((array.length, *array.shape), self.dtype)
        self._prefetcher = Prefetcher(region, array.row_nbytes)
        if whole or check == "all":
            self._map()
        self._touch(range(array.chunks) if check == "all" else range(0))

    @property
    def complete(self) -> bool:
        """True once all chunks are mapped and the record was re-read since. Reads then no longer touch the files."""
        return self.state is State.SETTLED

    @property
    def mapped(self) -> bool:
        """Whether all chunks are mapped."""
        return self.state in (State.MAPPED, State.SETTLED)

    def settle(self) -> None:
        """Note that the record was re-read after all chunks were mapped."""
        self.state = State.SETTLED

    def _map(self) -> None:
        """Map the chunks that are not mapped yet. Two threads may do so at once, because they map the same files."""
        nbytes = self.array.chunk_nbytes
        indices = range(self._first, self.array.chunks)
        for index, file in zip(indices, open_chunks(self.folder, self.array, indices), strict=True):
            with file as (descriptor, size):
                self.region.map_file(descriptor, index * nbytes, nbytes)
                if self.check != "tail":
                    self._checksums[index] = stored_checksum(descriptor, size)
        if self.checks_places:
            check_digest(self.folder, self.array, self._checksums[: self.array.full_chunks].tolist())
        # Without this a cold random batch reads a hundred times its bytes.
        self.region.advise("RANDOM", self._first * nbytes, (self.array.chunks - self._first) * nbytes)
        self.state = State.MAPPED  # from SETTLED too: a second thread may have mapped files that an erase changed since

    def _by_chunk_if_unmappable(self) -> ChunkedColumn | None:
        """Map all chunks, unless that is done. Return the column to read instead where the kernel refuses.

        Raises
        ------
        FileNotFoundError, CorruptStoreError
        """
        if self.state in (State.FRESH, State.UNMAPPED):
            try:
                self._map()
            except (FileNotFoundError, CorruptStoreError):
                raise
            except OSError as error:
                self._by_chunk = read_by_chunk(self.folder, self.array, self.check, str(error))
                self.state = State.UNMAPPABLE
        return self._by_chunk

    def take(self, rows: Rows) -> Array:
        check_rows(rows, self.array.length)
        if self.state is State.FRESH and len(rows) <= _FEW_ROWS:
            self.state = State.UNMAPPED
            return self._read_scattered(rows)
        if not self.mapped and (by_chunk := self._by_chunk_if_unmappable()) is not None:
            return by_chunk.take(rows)
        if self.check != "tail":
            self._touch(self._chunk_of(rows))
        out = aligned_empty((len(rows), *self.array.shape), self.dtype)
        if len(rows):
            self._prefetcher.before(self._values, rows)
            in_parts(partial(_take, self._values, rows, out), len(rows), out.nbytes)
            self._prefetcher.after()
        return out

    def copy(self, start: int, stop: int) -> Array:
        large = (stop - start) * self.array.row_nbytes >= _WORTH_READING
        if large and self.array.chunk_nbytes % HUGE_PAGE_NBYTES and self.check == "tail":
            # No huge page fits these chunks, and the processor looks up each small page. A read call uses the
            # kernel's own map of all memory, and copies a tenth faster.
            self._by_chunk_if_unmappable()  # a later read must not depend on the files
            return self._read_rows(start, stop)
        return self.copy_mapped(start, stop)

    def copy_mapped(self, start: int, stop: int) -> Array:
        """Copy neighbouring rows from the map. The files may be gone."""
        rows = self.span(start, stop)
        self.read_ahead(start, stop)
        out = aligned_empty(rows.shape, self.dtype)
        in_parts(lambda first, last: np.copyto(out[first:last], rows[first:last]), len(rows), out.nbytes)
        return out

    def span(self, start: int, stop: int) -> Array:
        if (by_chunk := self._by_chunk_if_unmappable()) is not None:
            return by_chunk.span(start, stop)
        self._touch(self._chunks_of_span(start, stop))
        return self._values[start:stop]

    def read_ahead(self, start: int, stop: int) -> None:
        """Advise the kernel that these rows will be read in order. Done once for each chunk, because the call costs."""
        chunks = self._chunks_of_span(start, stop)
        if not self._asked[chunks.start : chunks.stop].all():
            self._asked[chunks.start : chunks.stop] = True
            size = self.array.row_nbytes
            self.region.advise("NORMAL", start * size, (stop - start) * size)
            self.region.advise("WILLNEED", start * size, (stop - start) * size)

    def writable_copy(self) -> Array:
        nbytes = self.array.chunks * self.array.chunk_nbytes
        try:
            region = Region(nbytes, writable=True)
            return MappedColumn(self.folder, self.array, self.check, region, whole=True).span(0, len(self))
        except (FileNotFoundError, CorruptStoreError):
            raise
        except OSError as error:
            logger.warning("%s: not mapped a second time but copied: %s", self.folder.path, error)
        return super().writable_copy()

    def grown(self, array: ArrayState, *, erased: bool) -> FileColumn | None:
        """Return the column of a later commit in the same region. None if the region or the maps don't suffice.

        Raises
        ------
        FileNotFoundError, CorruptStoreError
        """
        needed = array.chunks * array.chunk_nbytes
        if needed > self.region.nbytes or available(0, array.chunks - self.array.chunks):
            return None
        # From the chunk that was the last: a file with more rows replaced it. The new file is mapped over the old one
        # in one step, and views of the old commit see the same rows.
        first = self.array.length // array.rows_per_chunk if self.mapped and not erased else 0
        whole = self.mapped or erased  # the maps of erased rows must be replaced
        try:
            return MappedColumn(self.folder, array, self.check, self.region, whole=whole, before=self, first=first)
        except (FileNotFoundError, CorruptStoreError):
            raise
        except OSError as error:
            return read_by_chunk(self.folder, array, self.check, str(error))

    def _check_chunk(self, index: int) -> None:
        size = self.array.rows_per_chunk
        if index == self.array.chunks - 1:
            # Read, not checked through the map: a full tmpfs can't fill the hole after the rows, and touching it is a
            # SIGBUS. The mapped rows themselves were checked when the commit was opened.
            with contextlib.suppress(FileNotFoundError):  # a compaction removed it since
                read_chunk(self.folder, self.array, index)
            return
        chunk = self.region.array(((index + 1) * size, *self.array.shape), self.dtype)[index * size :]
        if crc32c(chunk) != self._checksums[index]:
            raise CorruptStoreError(self.folder.path / chunk_name(self.array, index), "its checksum does not match")


def _take(values: Array, rows: Rows, out: Array, start: int, stop: int) -> None:
    values.take(rows[start:stop], axis=0, out=out[start:stop], mode="clip")  # "raise" would copy twice
