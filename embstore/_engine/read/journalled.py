"""Columns with rows behind those in their chunk files: those of the journal. The rest is the files' column's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from embstore._engine.format.record import ArrayState
from embstore._engine.io.buffers import aligned_empty
from embstore._engine.read.column import Array, NumericColumn, Rows
from embstore._engine.read.mapped_column import StringColumn

__all__ = ["JournalledColumn", "JournalledStrings"]


class JournalledColumn(NumericColumn):
    """A column of numbers: first those in the files, then those in memory.

    Parameters
    ----------
    files : NumericColumn
        Checks what it reads; what is in memory was checked.
    array : ArrayState
        With the length of both.
    behind : ndarray, (n, *shape), read-only
    """

    def __init__(self, files: NumericColumn, array: ArrayState, behind: Array) -> None:
        super().__init__(files.folder, array, "tail")
        self.files = files
        self.in_place = files.in_place
        self.behind = behind

    @property
    def complete(self) -> bool:
        """Whether reads depend no longer on what becomes of the files."""
        return self.files.complete

    @complete.setter
    def complete(self, value: bool) -> None:
        self.files.complete = value

    def take(self, rows: Rows) -> Array:
        self._check_rows(rows)
        first = len(self.files)
        late = rows >= first
        if not late.any():
            return self.files.take(rows)
        if late.all():
            return self.behind[rows - first]
        out = self.files.take(np.where(late, 0, rows))
        out[late] = self.behind[rows[late] - first]
        return out

    def span(self, start: int, stop: int) -> Array:
        first = len(self.files)
        if stop <= first:
            return self.files.span(start, stop)
        if start >= first:
            return self.behind[start - first : stop - first]
        whole = self.files.followed_by(self.behind)
        rows = self.copy(start, stop) if whole is None else whole[start:stop]
        rows.flags.writeable = False
        return rows

    def copy(self, start: int, stop: int) -> Array:
        return self._copy(start, stop, self.files.copy)

    def copy_mapped(self, start: int, stop: int) -> Array:
        return self._copy(start, stop, self.files.copy_mapped)

    def _copy(self, start: int, stop: int, copy: Callable[[int, int], Array]) -> Array:
        first = len(self.files)
        if stop <= first:
            return copy(start, stop)
        behind = self.behind[max(0, start - first) : stop - first]
        if start >= first:
            return behind.copy()
        out = aligned_empty((stop - start, *self.array.shape), self.dtype)
        out[: first - start] = self.files.span(start, first) if self.in_place else copy(start, first)
        out[first - start :] = behind
        return out

    def read_ahead(self, start: int, stop: int) -> None:
        self.files.read_ahead(start, min(stop, len(self.files)))

    def private(self) -> Array:
        return self.files.private_followed_by(self.behind)


class JournalledStrings(StringColumn):
    """A column of strings: first those in the files, then those in memory.

    Parameters
    ----------
    files : StringColumn
    array : ArrayState
        With the length of both.
    behind : list of str
    """

    def __init__(self, files: StringColumn, array: ArrayState, behind: list[str]) -> None:
        super().__init__(files.folder, array, ())
        self.files = files
        self.behind = behind

    def chunks(self) -> Iterator[list[str]]:
        """Yield the committed strings, a chunk at a time; keeps none."""
        yield from self.files.chunks()
        yield self.behind

    def take(self, rows: Rows) -> list[str]:
        """Return the strings of some rows, in the order given."""
        first = len(self.files)
        early = rows < first
        if early.all():
            return self.files.take(rows)
        found = iter(self.files.take(rows[early]))
        return [next(found) if row < first else self.behind[row - first] for row in rows.tolist()]
