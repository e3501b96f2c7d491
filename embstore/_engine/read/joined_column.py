"""Columns of a store of parts: those of its parts, one behind the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np

from embstore._engine.format.record import ArrayState
from embstore._engine.io.buffers import aligned_empty
from embstore._engine.read.column import Array, Check, NumericColumn, Rows, check_rows
from embstore._engine.read.open_column import AnyColumn
from embstore._engine.read.string_column import StringColumn

_Kind = TypeVar("_Kind", NumericColumn, StringColumn)

Open = Callable[[Sequence[int]], Iterator[AnyColumn]]
"""Opens the columns of some parts in turn, by their places. Objects of several parts are fetched together."""


class Piece(NamedTuple):
    """The rows of one part: their number, and the change of their values, if any."""

    rows: int
    changed: Callable[[Array], Array] | None = None


class JoinedColumn(NumericColumn):
    """Rows of numbers of several parts.

    Parameters
    ----------
    array : ArrayState
        With the rows of all parts.
    pieces : sequence of Piece
    open_columns : callable
    folder, check
    """

    def __init__(
        self, folder: object, array: ArrayState, pieces: Sequence[Piece], open_columns: Open, check: Check
    ) -> None:
        # The pieces have their own folders and chunks.
        self.folder = folder  # type: ignore[assignment]
        self.array = array
        self.dtype = np.dtype(array.dtype)
        self.check = check
        self._pieces = pieces
        self._open = open_columns
        self._starts = np.cumsum([0, *(piece.rows for piece in pieces)])

    def take(self, rows: Rows) -> Array:
        check_rows(rows, self.array.length)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        if not len(rows):
            return np.empty((0, *self.array.shape), self.dtype)
        if which[0] == which[-1] and (which == which[0]).all():  # of one part: nothing is sorted
            place = int(which[0])
            return self._values(place, next(self._columns([place])).take(rows - self._starts[place]))
        out = aligned_empty((len(rows), *self.array.shape), self.dtype)
        order = np.argsort(which, kind="stable")
        starts = np.flatnonzero(np.diff(which[order], prepend=-1))
        places = which[order][starts].tolist()
        for place, column, (start, stop) in zip(
            places, self._columns(places), pairwise([*starts.tolist(), len(rows)]), strict=True
        ):
            chosen = order[start:stop]
            out[chosen] = self._values(place, column.take(rows[chosen] - self._starts[place]))
        return out

    def span(self, start: int, stop: int) -> Array:
        places = self._places(start, stop)
        if len(places) != 1:
            return super().span(start, stop)
        first = int(self._starts[places[0]])
        found = self._values(places[0], next(self._columns(places)).span(start - first, stop - first))
        found.flags.writeable = False
        return found

    def copy(self, start: int, stop: int) -> Array:
        places = self._places(start, stop)
        columns = self._columns(places)
        if len(places) == 1:
            first = int(self._starts[places[0]])
            return self._values(places[0], next(columns).copy(start - first, stop - first))
        out = aligned_empty((max(0, stop - start), *self.array.shape), self.dtype)
        for place, column in zip(places, columns, strict=True):
            first, last = self._starts[place], self._starts[place + 1]
            low, high = int(max(start, first)), int(min(stop, last))
            out[low - start : high - start] = self._values(place, column.span(low - int(first), high - int(first)))
        return out

    def _places(self, start: int, stop: int) -> list[int]:
        """Return the places of the parts with rows of a span."""
        if stop <= start:
            return []
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        return list(range(int(first), int(last) + 1))

    def _columns(self, places: Sequence[int]) -> Iterator[NumericColumn]:
        return _of_kind(NumericColumn, self._open(places))

    def _values(self, place: int, values: Array) -> Array:
        changed = self._pieces[place].changed
        return values if changed is None else changed(values)


class JoinedStrings(StringColumn):
    """Strings of several parts. The parameters are those of `JoinedColumn`."""

    def __init__(self, array: ArrayState, pieces: Sequence[Piece], open_columns: Open) -> None:
        self.array = array
        self._open = open_columns
        self._starts = np.cumsum([0, *(piece.rows for piece in pieces)])

    def _columns(self, places: Sequence[int]) -> Iterator[StringColumn]:
        return _of_kind(StringColumn, self._open(places))

    def chunks(self) -> Iterator[list[str]]:
        for column in self._columns(range(len(self._starts) - 1)):
            yield from column.chunks()

    def take(self, rows: Rows) -> list[str]:
        out = [""] * len(rows)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        places = sorted(set(which.tolist()))
        for place, column in zip(places, self._columns(places), strict=True):
            chosen = np.flatnonzero(which == place)
            for at, text in zip(chosen.tolist(), column.take(rows[chosen] - self._starts[place]), strict=True):
                out[at] = text
        return out


def _of_kind(kind: type[_Kind], columns: Iterator[AnyColumn]) -> Iterator[_Kind]:
    for column in columns:
        assert isinstance(column, kind), column
        yield column
