"""The base of all columns of numbers, and the types of their rows. The subclasses read the rows."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.record import ArrayState
from embstore._engine.io.folder import ReadableFolder

Check = Literal["tail", "touched", "all"]
"""Which checksums a reader checks. `tests/interop/test_several_chunks.py` tries these rules of all columns:

1. The last chunk of each array is checked at every open and refresh, at a URL when it is fetched.
2. A chunk that is read whole is checked at each read: strings, compressed chunks, chunks at a URL, and all chunks that
   a writer rewrites.
3. The other chunks are mapped, or read in part. "touched" checks each of them before its first row is returned, "all"
   when the column is opened, "tail" never.
4. `merge`, `compact`, `copy_fields` and exports read with "touched", however the store was opened: a new checksum must
   not hide a flipped bit. `salvage` and `verify` read every byte.
5. A private map (`writable_copy`) has the checksums of its files and the rule of its column.
"""
Rows = NDArray[np.int64]
Array = np.ndarray[Any, Any]


def check_rows(rows: Rows, count: int) -> None:
    """Raise IndexError unless all row numbers are from 0 to `count` - 1."""
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        raise IndexError(f"rows go from 0 to {count - 1}, found {rows.min()} to {rows.max()}")


class NumericColumn:
    """Base of the columns of numbers.

    Attributes
    ----------
    in_place : bool
        Whether `span` returns rows without a copy.
    """

    in_place = False

    def __init__(self, folder: ReadableFolder, array: ArrayState, check: Check) -> None:
        self.folder = folder
        self.array = array
        self.dtype = np.dtype(array.dtype)
        self.check = check
        self._sound = np.zeros(array.chunks, dtype=bool)  # chunks whose checksum matched

    @property
    def complete(self) -> bool:
        """True if reads no longer touch the files."""
        return False

    @property
    def checks_places(self) -> bool:
        """Whether to check that each full chunk is in its place. The digest is None in the middle of an erase."""
        return self.check != "tail" and self.array.digest is not None

    def __len__(self) -> int:
        return self.array.length

    def take(self, rows: Rows) -> Array:
        """Copy rows, in the order given: ``(n, *shape)``, fresh and writable."""
        raise NotImplementedError

    def span(self, start: int, stop: int) -> Array:
        """Return neighbouring rows: ``(stop - start, *shape)``, read-only, without a copy where mapped."""
        out = self.copy(start, stop)
        out.flags.writeable = False
        return out

    def copy(self, start: int, stop: int) -> Array:
        """Copy neighbouring rows: ``(stop - start, *shape)``, fresh and writable."""
        raise NotImplementedError

    def read_ahead(self, start: int, stop: int) -> None:
        """Advise the kernel, where that helps, that these rows will be read in order."""

    def writable_copy(self) -> Array:
        """Return all rows as a writable array that only the caller holds: ``(len(self), *shape)``."""
        return self.copy(0, len(self))

    def _touch(self, chunks: NDArray[np.int64] | range) -> None:
        """Check the chunks that were not checked before, unless `check` is "tail"."""
        if self.check != "tail":
            for index in chunks:
                if not self._sound[index]:
                    self._check_chunk(int(index))
                    self._sound[index] = True

    def _check_chunk(self, index: int) -> None:
        raise NotImplementedError

    def _chunk_of(self, rows: Rows) -> NDArray[np.int64]:
        touched = np.zeros(self.array.chunks, dtype=bool)
        touched[rows // self.array.rows_per_chunk] = True
        return np.flatnonzero(touched)  # np.unique would load numpy.ma, which takes 15 ms

    def _chunks_of_span(self, start: int, stop: int) -> range:
        size = self.array.rows_per_chunk
        return range(start // size, -(-stop // size)) if stop > start else range(0)
