"""Columns with rows behind those in their chunk files: those of the journal. The rest is the files' column's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from embstore.column import Array, NumericColumn, Rows, joined
from embstore.reader import StringColumn
from embstore.schema import ArrayState

__all__ = ["JournalledColumn", "JournalledStrings"]


class JournalledColumn(NumericColumn):
    """A column of numbers: first those in the files, then those in memory.

    Parameters
    ----------
    files : NumericColumn
    array : ArrayState
        With the length of both.
    behind : ndarray, (n, *shape)
    """

    def __init__(self, files: NumericColumn, array: ArrayState, behind: Array) -> None:
        super().__init__(files.folder, array, "tail")  # what is checked, the files' column checks
        self.files = files
        self.behind = behind
        self.complete = files.complete
        self.in_place = files.in_place

    def take(self, rows: Rows) -> Array:
        self._check_rows(rows)
        late = rows >= len(self.files)
        if not late.any():
            return self.files.take(rows)
        out = np.empty((len(rows), *self.array.shape), self.dtype)
        out[late] = self.behind[rows[late] - len(self.files)]
        if not late.all():
            out[~late] = self.files.take(rows[~late])
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
        return np.concatenate([copy(start, first), behind]) if start < first else behind.copy()

    def read_ahead(self, start: int, stop: int) -> None:
        self.files.read_ahead(start, min(stop, len(self.files)))

    def private(self, behind: Array | None = None) -> Array:
        return self.files.private(joined(self.behind, behind))


class JournalledStrings(StringColumn):
    """A column of strings: first those in the files, then those in memory."""

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
        found = iter(self.files.take(rows[early]) if early.any() else [])
        return [next(found) if row < first else self.behind[row - first] for row in rows.tolist()]
