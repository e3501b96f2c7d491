"""Rows of a field as flat vectors, a block at a time: without a copy where rows lie side by side in a map."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from embstore._engine.format.record import FieldSpec
from embstore._engine.read.column import Rows
from embstore._engine.read.dtypes import as_numbers
from embstore._engine.read.read_rows import consecutive
from embstore._engine.read.snapshot import Snapshot
from embstore.errors import NonFiniteError, ShapeError

_BLOCK_BYTES: Final = 16 * 2**20
"""Of a block, unless told: large enough for the calls that each costs, small enough for copies of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Some rows of a field that is not ragged, each flattened.

    Attributes
    ----------
    snapshot : Snapshot
    field : str
    rows : ndarray, (n,) int64

    Raises
    ------
    ShapeError
        The field is ragged.
    """

    snapshot: Snapshot
    field: str
    rows: Rows

    def __post_init__(self) -> None:
        if self.spec.ragged:
            raise ShapeError(self.field, expected="rows of one shape", found="a ragged field: pool its tokens first")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def spec(self) -> FieldSpec:
        """What the field holds."""
        return self.snapshot.record.fields[self.field]

    @property
    def dim(self) -> int:
        """Numbers in a row."""
        return math.prod(self.spec.shape)

    @property
    def step(self) -> int:
        """Rows in a block."""
        return max(1, _BLOCK_BYTES // (4 * self.dim))

    @property
    def copied(self) -> bool:
        """Whether reading takes memory: not of neighbouring rows of a mapped float32 field."""
        return not (
            self.snapshot.numeric(self.field).in_place and self.spec.dtype == "float32" and consecutive(self.rows)
        )

    def read(self, start: int, stop: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
        """Return the vectors from place `start` to `stop`: ``(stop - start, dim)``, perhaps read-only.

        Neighbouring rows of a mapped float32 field are not copied.
        """
        rows = self.rows[start:stop]
        if consecutive(rows):
            first, last = int(rows[0]), int(rows[-1]) + 1
            values = self.snapshot.span(self.field, first, last)
            self.snapshot.numeric(self.field).read_ahead(first, last)
        else:
            values = self.snapshot.take(self.field, rows)
        with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite, and told as such
            numbers: np.ndarray[Any, Any] = as_numbers(values, self.spec).astype(dtype, copy=False)
        return numbers.reshape(len(rows), self.dim)

    def blocks(self, step: int | None = None, dtype: Any = np.float32) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Yield all vectors, `step` rows at a time, each block with the place of its first row."""
        step = step or self.step
        for start in range(0, len(self), step):
            yield start, self.read(start, min(start + step, len(self)), dtype)

    def finite_blocks(
        self, step: int | None = None, dtype: Any = np.float32
    ) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Yield as `blocks` does what can be calculated with.

        Raises
        ------
        NonFiniteError
            Lists the keys of all rows with NaN or infinity.
        """
        for start, block in self.blocks(step, dtype):
            with np.errstate(all="ignore"):  # a sum is a fraction of the cost of isfinite
                finite = np.isfinite(block.sum())
            if not finite and len(bad := self._nonfinite()):  # none are bad where it is the sum that overflowed
                keys = self.snapshot.keys_of(self.rows[bad])
                raise NonFiniteError(self.field, keys, hint="leave them out: view[np.isfinite(rows).all(axis=1)]")
            yield start, block

    def _nonfinite(self) -> Rows:
        bad = [start + np.flatnonzero(~np.isfinite(block).all(axis=1)) for start, block in self.blocks()]
        return np.concatenate(bad)


def class_places(snapshot: Snapshot, rows: Rows) -> tuple[list[str], Rows]:
    """Return the classes of rows, in the store's order, and each row's place among them: ``(len(rows),) int64``."""
    codes, places = np.unique(snapshot.class_codes_of(rows), return_inverse=True)
    return [snapshot.class_names[code] for code in codes.tolist()], places.astype(np.int64, copy=False)
