"""Columns: rows out of one array's chunk files, mapped as one NumPy array or read chunk by chunk.

All numeric columns have the words of `column`; `open_column` chooses which it is. What a
column belongs to, and whether it is still current, is `snapshot`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Final, Literal

import numpy as np

from embstore._engine.chunks.chunk_file import open_chunk, open_chunks, read_chunk, read_chunks, stored_checksum
from embstore._engine.format.record import STRING, ArrayState, Tail
from embstore._engine.format.zarr_layout import chunk_name, crc32c
from embstore._engine.io.buffers import aligned_empty
from embstore._engine.io.folder import Folder, read_into
from embstore._engine.io.mapping import HUGE_PAGE_NBYTES, PAGE_NBYTES, Region, available
from embstore._engine.io.threads import in_parts
from embstore._engine.read.column import Array, Check, NumericColumn, Rows, keep
from embstore._engine.read.decoded_column import DecodedColumn, tails_of
from embstore._engine.read.prefetch import Prefetcher
from embstore.errors import CorruptStoreError

__all__ = ["ChunkedColumn", "MappedColumn", "NumericColumn", "StringColumn", "open_column"]

logger = logging.getLogger("embstore")

Mapping = Literal["auto", "never"]

_KEPT_STRING_CHUNKS: Final = 64
_WORTH_READING: Final = 16 * 2**20  # bytes
_FEW_ROWS: Final = 1024
"""Rows of a batch that may be read one by one, before a column is mapped."""


class FileColumn(NumericColumn):
    """A column whose chunk files hold the bytes of its rows as they are."""

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
                self.folder.path / chunk_name(self.array, index), "it became shorter while it was read"
            )


def _take(values: Array, rows: Rows, out: Array, start: int, stop: int) -> None:
    values.take(rows[start:stop], axis=0, out=out[start:stop], mode="clip")  # "raise" would copy twice


class MappedColumn(FileColumn):
    """All chunk files mapped side by side: one C-contiguous array over a chunked Zarr array.

    The first batch of rows is read from the files: in a store of millions of rows, mapping them all takes longer. The
    next read maps them, and what becomes of the files does not matter any more.

    Attributes
    ----------
    mapped : bool
        Whether all chunks are. They may be those of an erase that came before; that they are not, `complete` says.
    """

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
        """Map the chunks from `first` on: now, if `whole`. Those before it, `before` has mapped into the region."""
        super().__init__(folder, array, check)
        self.in_place = True
        self.region = region
        self._first = first
        self._checksums = np.zeros(array.chunks, dtype=np.uint32)
        if before is not None:
            self._checksums[:first] = before._checksums[:first]
        region.charge(max(0, array.chunks - (before.array.chunks if before is not None else 0)))
        self.mapped = False
        self._instead: NumericColumn | None = None  # reads, where the kernel maps no more
        self._may_read = check == "tail"  # the first batch
        self._asked = np.zeros(array.chunks, dtype=bool)  # chunks that the kernel was told to read ahead
        self._values = region.array((array.length, *array.shape), self.dtype)
        self._prefetcher = Prefetcher(region, array.row_nbytes)
        if whole or check == "all":
            self._map()
        self._touch(range(array.chunks) if check == "all" else range(0))

    def _map(self) -> None:
        """Map what is not mapped yet; over the same, if another thread was faster."""
        nbytes = self.array.chunk_nbytes
        indices = range(self._first, self.array.chunks)
        with self.region.mapping(self.array.length * self.array.row_nbytes) as wanted:
            for index, file in zip(indices, open_chunks(self.folder, self.array, indices), strict=True):
                with file as (descriptor, size):
                    if wanted:
                        self.region.map_file(descriptor, index * nbytes, nbytes)
                    if self.check != "tail":
                        self._checksums[index] = stored_checksum(descriptor, size)
            if wanted:  # without this a cold random batch reads a hundred times what it asks for
                self.region.advise("RANDOM", self._first * nbytes, (self.array.chunks - self._first) * nbytes)
        self.mapped = True

    def _unmapped(self) -> NumericColumn | None:
        """Map, unless that is done; gives what to read instead, if the kernel refuses.

        Raises
        ------
        FileNotFoundError, CorruptStoreError
        """
        if not self.mapped and self._instead is None:
            try:
                self._map()
            except (FileNotFoundError, CorruptStoreError):
                raise
            except OSError as error:  # the rows are there all the same
                self._instead = _read_by_chunk(self.folder, self.array, self.check, str(error))
        return self._instead

    def take(self, rows: Rows) -> Array:
        self._check_rows(rows)
        if not self.mapped:
            if self._may_read and len(rows) <= _FEW_ROWS:
                self._may_read = False
                return self._read_scattered(rows)
            if (instead := self._unmapped()) is not None:
                return instead.take(rows)
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
            # No huge page fits these chunks, and each small page is looked up by itself. The kernel has its own
            # map of all memory: reading copies a tenth faster.
            self._unmapped()  # so that another read is possible whatever becomes of the files
            return self._read_rows(start, stop)
        return self.copy_mapped(start, stop)

    def copy_mapped(self, start: int, stop: int) -> Array:
        """Copy neighbouring rows from what is mapped, whatever became of the files since."""
        rows = self.span(start, stop)
        self.read_ahead(start, stop)
        out = aligned_empty(rows.shape, self.dtype)
        in_parts(lambda first, last: np.copyto(out[first:last], rows[first:last]), len(rows), out.nbytes)
        return out

    def span(self, start: int, stop: int) -> Array:
        if (instead := self._unmapped()) is not None:
            return instead.span(start, stop)
        if self.check != "tail":
            self._touch(self._chunks_of_span(start, stop))
        return self._values[start:stop]

    def read_ahead(self, start: int, stop: int) -> None:
        """Tell the kernel that these rows will be read one after the other; once, since that costs as well."""
        chunks = self._chunks_of_span(start, stop)
        if not self._asked[chunks.start : chunks.stop].all():
            self._asked[chunks.start : chunks.stop] = True
            size = self.array.row_nbytes
            self.region.advise("NORMAL", start * size, (stop - start) * size)
            self.region.advise("WILLNEED", start * size, (stop - start) * size)

    def private_followed_by(self, behind: Array) -> Array:
        nbytes = max(self.array.chunks * self.array.chunk_nbytes, (len(self) + len(behind)) * self.array.row_nbytes)
        try:
            region = Region(nbytes, private=True)
            whole = MappedColumn(self.folder, self.array, self.check, region, whole=True).followed_by(behind)
            if whole is not None:
                return whole
        except (FileNotFoundError, CorruptStoreError):
            raise
        except OSError as error:
            logger.warning("%s: not mapped a second time but copied: %s", self.folder.path, error)
        return super().private_followed_by(behind)

    def followed_by(self, behind: Array) -> Array | None:
        if self._unmapped() is not None:
            return None
        if self.check != "tail":
            self._touch(range(self.array.chunks))
        start = self.array.length * self.array.row_nbytes
        if not self.region.put_behind(start, np.ascontiguousarray(behind).reshape(-1).view(np.uint8)):
            return None
        return self.region.array((self.array.length + len(behind), *self.array.shape), self.dtype)

    def grown(self, array: ArrayState, *, erased: bool) -> NumericColumn:
        needed = array.chunks * array.chunk_nbytes
        if needed > self.region.nbytes or available(0, array.chunks - self.array.chunks):
            return _numeric(self.folder, array, "auto", self.check)  # views keep the old region
        # Everything from the chunk that was the last: it was replaced by one with more rows. It goes
        # over the old one in one step, and the rows that views of the old commit see are the same.
        first = self.array.length // array.rows_per_chunk if self.mapped and not erased else 0
        whole = self.mapped or erased  # what was erased is to be let go of
        try:
            return MappedColumn(self.folder, array, self.check, self.region, whole=whole, before=self, first=first)
        except (FileNotFoundError, CorruptStoreError):
            raise
        except OSError as error:  # the rows are there all the same
            return _read_by_chunk(self.folder, array, self.check, str(error))

    def _check_chunk(self, index: int) -> None:
        size = self.array.rows_per_chunk
        if index == self.array.chunks - 1:
            # Read, not looked at through the map: on a full tmpfs the hole behind the rows can't be filled, and
            # touching it is a SIGBUS. The mapped rows themselves were checked when the commit was opened.
            read_chunk(self.folder, self.array, index)
            return
        chunk = self.region.array(((index + 1) * size, *self.array.shape), self.dtype)[index * size :]
        if crc32c(chunk) != self._checksums[index]:
            raise CorruptStoreError(self.folder.path / chunk_name(self.array, index), "its checksum does not match")


class ChunkedColumn(FileColumn):
    """Rows read from chunk files as they are asked for; where mapping is not possible or not wanted."""

    def __init__(self, folder: Folder, array: ArrayState, check: Check, *, mapping: Mapping) -> None:
        super().__init__(folder, array, check)
        self.mapping = mapping
        self._touch(range(array.chunks) if check == "all" else range(0))

    def take(self, rows: Rows) -> Array:
        self._check_rows(rows)
        if self.check != "tail":
            self._touch(self._chunk_of(rows))
        return self._read_scattered(rows)

    def span(self, start: int, stop: int) -> Array:
        out = self.copy(start, stop)
        out.flags.writeable = False
        return out

    def copy(self, start: int, stop: int) -> Array:
        self._touch(self._chunks_of_span(start, stop))
        return self._read_rows(start, stop)

    def grown(self, array: ArrayState, *, erased: bool) -> NumericColumn:
        return _numeric(self.folder, array, self.mapping if self.array.length == 0 else "never", self.check)

    def _check_chunk(self, index: int) -> None:
        read_chunk(self.folder, self.array, index)


class StringColumn:
    """Strings read and decoded chunk by chunk; the last few chunks are kept."""

    def __init__(self, folder: Folder, array: ArrayState, tails: Sequence[Tail]) -> None:
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


def _numeric(folder: Folder, array: ArrayState, mapping: Mapping, check: Check) -> NumericColumn:
    """Open a numeric column, mapped where that is wanted and possible."""
    nbytes = array.chunks * array.chunk_nbytes
    if mapping == "never" or array.length == 0:
        return ChunkedColumn(folder, array, check, mapping=mapping)
    if array.chunk_nbytes % PAGE_NBYTES:
        logger.info("%s: its rows don't fill pages, it is read chunk by chunk", folder.path)
        return ChunkedColumn(folder, array, check, mapping=mapping)
    reason = available(nbytes, array.chunks)
    if not reason:
        try:
            return MappedColumn(folder, array, check, Region(nbytes))
        except (FileNotFoundError, CorruptStoreError):
            raise
        except OSError as error:  # the address space or the maps ran out
            reason = str(error)
    return _read_by_chunk(folder, array, check, reason)


def _read_by_chunk(folder: Folder, array: ArrayState, check: Check, reason: str) -> NumericColumn:
    logger.warning("%s: not mapped but read chunk by chunk, which is slower: %s", folder.path, reason)
    return ChunkedColumn(folder, array, check, mapping="auto")


def open_column(
    folder: Folder,
    array: ArrayState,
    *,
    mapping: Mapping = "auto",
    check: Check = "tail",
    also: Tail | None = None,
) -> NumericColumn | StringColumn:
    """Open the column that lies in `folder`.

    Parameters
    ----------
    folder, array, mapping, check
    also : Tail, optional
        What an erase that is under way turns the last chunk into.

    Raises
    ------
    FileNotFoundError
        A chunk is not there.
    CorruptStoreError
        A chunk has another size than it must have.
    """
    if array.dtype == STRING:
        return StringColumn(folder, array, tails_of(folder, array, also))
    if array.compression is not None or not folder.local:
        return DecodedColumn(folder, array, check, tails_of(folder, array, also))
    return _numeric(folder, array, mapping, check)
