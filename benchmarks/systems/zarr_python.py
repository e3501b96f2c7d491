"""zarr-python: as it comes (its own chunks, zstd), and with chunks of some hundred rows, uncompressed.

https://zarr.readthedocs.io/en/stable/user-guide/performance/ (chunk shapes, compression). With shards around chunks of
one row, the unit of reading is smallest, but each read fetches a shard's index: it was slower. zarr syncs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import zarr

from benchmarks.systems.base import Floats, Numbers, Rows, System, Written, chunk_rows


class ZarrPython(System):
    forks = False  # its event loop runs in a thread

    def __init__(self, name: str, *, best: bool) -> None:
        self.name = name
        self._best = best

    def write(self, folder: Path, rows: Rows) -> None:
        with self._configured():
            self._written = Written(folder)
            array = zarr.create_array(folder / "rows.zarr", data=rows.values, **options(rows, best=self._best))
            del array
            if self.sync:
                self._written.sync()
            self.write_keys(folder, rows.keys)

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        self.folder = folder
        with self._configured():
            self._rows = zarr.open_array(folder / "rows.zarr", mode="r" if mode == "r" else "r+")
        if mode == "a":
            self._written = Written(folder)
            self._written.look()

    def append(self, rows: Rows) -> None:
        with self._configured():
            self._rows.append(rows.values)
        self.write_keys(self.folder, rows.keys, append=True)
        if self.sync:
            self._written.sync()

    def take(self, numbers: Numbers) -> Floats:
        with self._configured():
            return self._rows.oindex[numbers]

    def read_all(self) -> Floats:
        with self._configured():
            return self._rows[:]

    def _configured(self) -> Any:
        return zarr.config.set({})


def options(rows: Rows, *, best: bool) -> dict[str, Any]:
    return {"chunks": (chunk_rows(rows.shape), *rows.shape), "compressors": None} if best else {}


SYSTEMS = [ZarrPython("zarr, default", best=False), ZarrPython("zarr, raw chunks", best=True)]
