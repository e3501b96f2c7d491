"""h5py: contiguous (the default; it can't grow), and chunked with a large chunk cache.

https://docs.h5py.org/en/stable/high/dataset.html (chunked storage, fancy indexing: lists must be increasing) and
https://docs.h5py.org/en/stable/high/file.html#chunk-cache. HDF5 syncs nothing: the file is synced here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from benchmarks.systems.base import CACHE_NBYTES, Floats, Numbers, Rows, System, chunk_rows


class Hdf5(System):
    syncs = "when told"

    def __init__(self, name: str, *, chunked: bool) -> None:
        self.name = name
        self._chunked = chunked

    def write(self, folder: Path, rows: Rows) -> None:
        options: dict[str, Any] = {}
        if self._chunked:
            options = {"chunks": (chunk_rows(rows.shape), *rows.shape), "maxshape": (None, *rows.shape)}
        with h5py.File(folder / "rows.h5", "w", libver="latest") as file:
            file.create_dataset("rows", data=rows.values, **options)
        self.made_durable(folder / "rows.h5")
        self.write_keys(folder, rows.keys)

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        self.folder = folder
        slots = 100_003  # a prime, a hundred times as many as there are chunks in the cache, as its page says
        self._file = h5py.File(
            folder / "rows.h5", "r" if mode == "r" else "r+", rdcc_nbytes=CACHE_NBYTES, rdcc_nslots=slots
        )
        self._rows = self._file["rows"]

    def append(self, rows: Rows) -> None:
        if not self._chunked:
            return super().append(rows)
        start = len(self._rows)
        self._rows.resize(start + len(rows), axis=0)
        self._rows[start:] = rows.values
        self._file.flush()
        if self.sync:
            os.fsync(self._file.id.get_vfd_handle())
        self.write_keys(self.folder, rows.keys, append=True)

    def take(self, numbers: Numbers) -> Floats:
        if self._chunked:  # row by row out of the cache: five times faster than a list
            out = np.empty((len(numbers), *self._rows.shape[1:]), np.float32)
            for place, number in enumerate(numbers.tolist()):
                out[place] = self._rows[number]
            return out
        wanted, places = np.unique(numbers, return_inverse=True)
        found = self._rows[wanted]
        return found if len(wanted) == len(numbers) and (np.diff(numbers) > 0).all() else found[places]

    def read_all(self) -> Floats:
        return self._rows[:]

    def close(self) -> None:
        self._file.close()


SYSTEMS = [Hdf5("h5py, contiguous", chunked=False), Hdf5("h5py, chunked", chunked=True)]
