"""Reading ahead for random batches: whether the rows of a batch are asked for at once, or faulted in one by one.

A cold page that is touched is one read, and the next begins when it is done; the kernel reads a batch's pages side by
side once it is told of them all. Telling it costs a system call a row, as much as copying a row that is in memory. So
it is told only after a row turned out not to be.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Final

import numpy as np

from embstore._engine.io.mapping import PAGE_NBYTES, Region
from embstore._engine.read.column import Array, Rows

_PROBES: Final = 8
"""Rows touched to see whether a batch is in memory. Asking for all pays where an eighth or more is not."""
_WHO: Final = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)


def _major_faults() -> int:
    """Return how often this thread has waited for a page that had to be read."""
    return resource.getrusage(_WHO).ru_majflt


class Prefetcher:
    """Asks the kernel for the rows of a batch, where they are not in memory.

    Parameters
    ----------
    region : Region
        With the rows from its start on, one after the other.
    row_nbytes : int
    """

    def __init__(self, region: Region, row_nbytes: int) -> None:
        self._region = region
        self._row_nbytes = row_nbytes
        self._waited = True  # in the batch before, or there was none
        self._faults: int | None = None  # before the batch that is under way, unless it was asked for

    def before(self, values: Array, rows: Rows) -> None:
        """Ask for the rows of a batch, if some of the batch before were not in memory, and some of these are not."""
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
        """Look whether the batch was in memory."""
        if self._faults is not None and _major_faults() > self._faults:
            self._waited = True

    def _pages(self, rows: Rows) -> Iterator[tuple[int, int]]:
        """Yield the stretches of pages that the rows lie on, from and to which byte."""
        rows = np.sort(rows)
        starts = rows * self._row_nbytes // PAGE_NBYTES
        stops = ((rows + 1) * self._row_nbytes - 1) // PAGE_NBYTES + 1
        apart = np.flatnonzero(starts[1:] > stops[:-1]) + 1
        firsts = starts[np.concatenate([[0], apart])] * PAGE_NBYTES
        lasts = stops[np.concatenate([apart - 1, [-1]])] * PAGE_NBYTES
        yield from zip(firsts.tolist(), lasts.tolist(), strict=True)
