"""Rows of different lengths: tokens one after the other, and offsets of the rows. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore._engine.pickles import PickledByName, by_name


class Padded(NamedTuple):
    """Rows of different lengths as one array.

    Attributes
    ----------
    values : ndarray or tensor, (n, longest, *shape)
        Zeros past a row's length.
    lengths : ndarray or tensor, (n,) int64
    """

    values: Any
    lengths: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return by_name(type(self), *self)


@dataclass(frozen=True, slots=True, eq=False)
class Ragged(PickledByName):
    """Rows of different lengths without padding.

    Attributes
    ----------
    values : ndarray or tensor, (tokens, *shape)
        The tokens of all rows, one row after the other.
    offsets : ndarray or tensor, (rows + 1,) int64
        Row `i` is ``values[offsets[i]:offsets[i + 1]]``.

    Examples
    --------
    >>> rows = Ragged(np.arange(6.0).reshape(3, 2), np.array([0, 1, 3]))
    >>> len(rows), rows[1].shape, rows.lengths.tolist()
    (2, (2, 2), [1, 2])
    >>> rows.padded().values.shape
    (2, 2, 2)
    """

    values: Any
    offsets: Any

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Any:
        """Return one row without a copy: ``(length, *shape)``."""
        row = range(len(self))[row]
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> Any:
        """The length of each row: ``(rows,) int64``."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tokens."""
        return int(self.values.nbytes)

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """Copy some rows, in the order given."""
        offsets = np.asarray(self.offsets)
        lengths = (offsets[1:] - offsets[:-1])[rows]
        taken = offsets_of(lengths)
        if not isinstance(self.offsets, np.ndarray):
            taken = self.offsets.new_tensor(taken)  # torch's
        return Ragged(self.values[token_rows(offsets[:-1][rows], lengths)], taken)

    def padded(self) -> Padded:
        """Copy the rows into one array, with zeros past the length of each row. A single row is a view, not a copy."""
        lengths = self.lengths
        if len(self) == 1:
            return Padded(self[0][None], lengths)
        longest = int(lengths.max()) if len(lengths) else 0
        shape = (len(self), longest, *self.values.shape[1:])
        is_numpy = isinstance(self.values, np.ndarray)
        out = np.zeros(shape, self.values.dtype) if is_numpy else self.values.new_zeros(shape)
        for row, values in enumerate(self):
            out[row, : len(values)] = values
        return Padded(out, lengths)


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the offsets of rows of these lengths: ``(rows + 1,) int64``."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def within_bounds(starts: NDArray[np.int64], stops: NDArray[np.int64], tokens: int) -> bool:
    """Return whether all rows begin and end within the tokens, and end where they begin or later."""
    return not len(starts) or bool(starts.min() >= 0 and stops.max() <= tokens and (starts <= stops).all())


def sound(offsets: NDArray[np.int64], tokens: int) -> bool:
    """Return whether the offsets of a field are valid: from 0 to the number of tokens, never falling."""
    return bool(offsets[0] == 0 and offsets[-1] == tokens) and within_bounds(offsets[:-1], offsets[1:], tokens)


def offsets_message(tokens: int) -> str:
    """Return the message for offsets that are not valid."""
    return f"its offsets do not rise from 0 to {tokens}"


def token_rows(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of the tokens of some rows, one row after the other.

    Examples
    --------
    >>> token_rows(np.array([10, 3]), np.array([2, 3])).tolist()
    [10, 11, 3, 4, 5]
    """
    offsets = offsets_of(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])


def joined(parts: list[Ragged]) -> Ragged:
    """Concatenate the rows of several parts."""
    return Ragged(np.concatenate([p.values for p in parts]), offsets_of(np.concatenate([p.lengths for p in parts])))
