"""Read-ahead for random batches: request the rows of a batch from the kernel at once, or fault them in one by one.

Each touch of a cold page is one read, and the next read begins after it. The kernel reads the pages of a batch in
parallel if all are requested first. A request costs a system call for each row, as much as the copy of a row that is in
memory. So rows are requested only after a row was found not to be in memory.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Final

import numpy as np

from embstore._engine.io.mapping import PAGE_NBYTES, Region
from embstore._engine.read.column import Array, Rows

_PROBES: Final = 8
"""Rows touched to see whether a batch is in memory. Requests pay off where an eighth or more of the rows is not."""
_WHO: Final = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)


def _major_faults() -> int:
    """Return how many times this thread waited for a page to be read."""
    return resource.getrusage(_WHO).ru_majflt


class Prefetcher:
    """Requests the rows of a batch from the kernel, where they are not in memory.

    Parameters
    ----------
    region : Region
        Holds the rows from its start on, one after the other.
    row_nbytes : int
    """

    def __init__(self, region: Region, row_nbytes: int) -> None:
        self._region = region
        self._row_nbytes = row_nbytes
        self._waited = True  # in the batch before. True before the first batch
        self._faults: int | None = None  # count before the current batch, or None if its rows were requested

    def before(self, values: Array, rows: Rows) -> None:
        """Request the rows of a batch, if rows of the batch before were not in memory and some of these are not."""
        self._faults = _major_faults()
        if not self._waited or len(rows) < _PROBES:
            return
        values.reshape(len(values), -1)[rows[:: len(rows) // _PROBES], 0]
        if _major_faults() == self._faults:
            self._waited = False
            return
        self._faults = None
        for start, stop in self._pages(rows):
            self._region.advise("WILLNEED", start, stop - start)

    def after(self) -> None:
        """Note whether the batch was in memory."""
        if self._faults is not None and _major_faults() > self._faults:
            self._waited = True

    def _pages(self, rows: Rows) -> Iterator[tuple[int, int]]:
        """Yield the ranges of pages of the rows, as start and stop bytes."""
        rows = np.sort(rows)
        starts = rows * self._row_nbytes // PAGE_NBYTES
        stops = ((rows + 1) * self._row_nbytes - 1) // PAGE_NBYTES + 1
        apart = np.flatnonzero(starts[1:] > stops[:-1]) + 1
        firsts = starts[np.concatenate([[0], apart])] * PAGE_NBYTES
        lasts = stops[np.concatenate([apart - 1, [-1]])] * PAGE_NBYTES
        yield from zip(firsts.tolist(), lasts.tolist(), strict=True)
