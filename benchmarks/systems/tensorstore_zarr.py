"""tensorstore over Zarr v3, with a cache of decoded chunks.

https://google.github.io/tensorstore/python/tutorial.html: `cache_pool` in the context, `recheck_cached_data`;
https://google.github.io/tensorstore/kvstore/file/: `file_io_sync` is true unless told otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import tensorstore as ts

from benchmarks.systems.base import CACHE_NBYTES, Floats, Numbers, Rows, System, chunk_rows


class Tensorstore(System):
    name = "tensorstore"
    syncs = "itself"
    forks = False  # its threads do not survive a fork

    def _spec(self, folder: Path) -> dict[str, Any]:
        return {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{folder}/rows.zarr/"},
            "context": {"cache_pool": {"total_bytes_limit": CACHE_NBYTES}, "file_io_sync": self.sync},
            "recheck_cached_data": "open",
        }

    def write(self, folder: Path, rows: Rows) -> None:
        chunks = [chunk_rows(rows.shape), *rows.shape]
        metadata = {
            "data_type": "float32",
            "shape": list(rows.values.shape),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        }
        store = ts.open({**self._spec(folder), "metadata": metadata, "create": True}).result()
        store.write(rows.values, can_reference_source_data_indefinitely=True).result()
        self.write_keys(folder, rows.keys)

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        self.folder = folder
        self._rows = ts.open(self._spec(folder), read=True, write=mode == "a").result()

    def append(self, rows: Rows) -> None:
        start = self._rows.shape[0]
        self._rows = self._rows.resize(exclusive_max=[start + len(rows), *rows.shape]).result()
        self._rows[start:].write(rows.values).result()
        self.write_keys(self.folder, rows.keys, append=True)

    def take(self, numbers: Numbers) -> Floats:
        return self._rows[numbers].read().result()

    def read_all(self) -> Floats:
        return self._rows.read().result()


SYSTEMS = [Tensorstore()]
