"""Icechunk on local disk: zarr-python over its transactions.

https://icechunk.io/en/latest/quickstart/ and https://icechunk.io/en/latest/storage/ (local storage is for development:
not safe for concurrent commits). It syncs nothing to a local disk (strace shows renames alone).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import icechunk
import zarr

from benchmarks.systems.base import Floats, Numbers, Rows, System, Written
from benchmarks.systems.zarr_python import options


class Icechunk(System):
    name = "Icechunk"
    forks = False

    def write(self, folder: Path, rows: Rows) -> None:
        written = Written(folder)
        repository = icechunk.Repository.create(_storage(folder))
        session = repository.writable_session("main")
        zarr.create_array(session.store, name="rows", data=rows.values, **options(rows, best=True))
        session.commit("written")
        self.write_keys(folder, rows.keys)
        if self.sync:
            written.sync()

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        self.folder = folder
        self._repository = icechunk.Repository.open(_storage(folder))
        session = self._repository.readonly_session("main")
        self._rows = zarr.open_array(session.store, path="rows", mode="r")
        if mode == "a":
            self._written = Written(folder)
            self._written.look()

    def append(self, rows: Rows) -> None:
        session = self._repository.writable_session("main")
        zarr.open_array(session.store, path="rows", mode="r+").append(rows.values)
        session.commit("appended")
        self.write_keys(self.folder, rows.keys, append=True)
        if self.sync:
            self._written.sync()

    def take(self, numbers: Numbers) -> Floats:
        return self._rows.oindex[numbers]

    def read_all(self) -> Floats:
        return self._rows[:]


def _storage(folder: Path) -> Any:
    return icechunk.local_filesystem_storage(str(folder / "rows.icechunk"))


SYSTEMS = [Icechunk()]
