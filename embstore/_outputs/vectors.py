"""Rows of a field as flat vectors, a block at a time. Consecutive rows of a mapped field are not copied."""

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
"""Default size of a block. Large enough to make the calls cheap, and small enough to copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Rows of a field that is not ragged, each flattened.

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
        """Shape and dtype of the field."""
        return self.snapshot.record.fields[self.field]

    @property
    def dim(self) -> int:
        """Number of elements of a row."""
        return math.prod(self.spec.shape)

    @property
    def step(self) -> int:
        """Number of rows in a block."""
        return max(1, _BLOCK_BYTES // (4 * self.dim))

    @property
    def copied(self) -> bool:
        """True if reading copies rows. Consecutive rows of a mapped float32 field are not copied."""
        return not (
            self.snapshot.numeric(self.field).in_place and self.spec.dtype == "float32" and consecutive(self.rows)
        )

    def read(self, start: int, stop: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
        """Return the vectors from place `start` to `stop`: ``(stop - start, dim)``, perhaps read-only.

        Consecutive rows of a mapped float32 field are not copied.
        """
        rows = self.rows[start:stop]
        if consecutive(rows):
            first, last = int(rows[0]), int(rows[-1]) + 1
            values = self.snapshot.span(self.field, first, last)
            self.snapshot.numeric(self.field).read_ahead(first, last)
        else:
            values = self.snapshot.take(self.field, rows)
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is reported as that
            numbers: np.ndarray[Any, Any] = as_numbers(values, self.spec).astype(dtype, copy=False)
        return numbers.reshape(len(rows), self.dim)

    def blocks(self, step: int | None = None, dtype: Any = np.float32) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Yield blocks of `step` rows ``(step, dim)``, each with the place of its first row."""
        step = step or self.step
        for start in range(0, len(self), step):
            yield start, self.read(start, min(start + step, len(self)), dtype)

    def finite_blocks(
        self, step: int | None = None, dtype: Any = np.float32
    ) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Yield blocks as `blocks` does, after a check that all values are finite.

        Raises
        ------
        NonFiniteError
            Some rows have NaN or infinity. The error lists the keys of all of them.
        """
        for start, block in self.blocks(step, dtype):
            with np.errstate(all="ignore"):  # a sum is a fraction of the cost of isfinite
                finite = np.isfinite(block.sum())
            if not finite and len(bad := self._nonfinite()):  # no row is bad if only the sum overflowed
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
