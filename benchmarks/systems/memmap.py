"""np.memmap and a file of JSON keys: the practical limit.

https://numpy.org/doc/stable/reference/generated/numpy.memmap.html. Appending writes behind the last row; nothing makes
rows and keys one commit, and a process that is killed between the two leaves them apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.systems.base import Floats, Numbers, Rows, System, synced


class Memmap(System):
    name = "memmap + JSON"
    syncs = "when told"

    def write(self, folder: Path, rows: Rows) -> None:
        (folder / "shape.json").write_text(json.dumps(rows.shape))
        self._put(folder, rows, "wb")
        self.write_keys(folder, rows.keys)

    def _put(self, folder: Path, rows: Rows, mode: Literal["wb", "ab"]) -> None:
        with (folder / "rows.f32").open(mode) as file:
            rows.values.tofile(file)
            if self.sync:
                synced(file)

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        self.folder = folder
        shape = tuple(json.loads((folder / "shape.json").read_text()))
        path = folder / "rows.f32"
        count = path.stat().st_size // (4 * int(np.prod(shape)))
        # As a plain array over the same map: memmap's own indexing makes a subclass of each batch.
        self.values = np.memmap(path, np.float32, "r", shape=(count, *shape)).view(np.ndarray)

    def append(self, rows: Rows) -> None:
        self._put(self.folder, rows, "ab")
        self.write_keys(self.folder, rows.keys, append=True)

    def take(self, numbers: Numbers) -> Floats:
        return self.values.take(numbers, axis=0, mode="clip")

    def read_all(self) -> Floats:
        return np.array(self.values)


SYSTEMS = [Memmap()]
