"""Lance: a column of fixed-size lists, and a scalar index over the keys.

https://lance.org/guide/read_and_write/ (`take` for random access, `append` mode) and
https://lance.org/guide/performance/. File version 2.2 takes random rows three times as fast as the default of this
release. Lance syncs nothing to a local disk (strace shows renames alone): each file is synced here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lance
import numpy as np
import pyarrow as pa

from benchmarks.systems.base import Floats, Numbers, Rows, System, Written

_VERSION = "2.2"


class Lance(System):
    name = "Lance"
    forks = False  # threads of its runtime; its documentation says to spawn
    beside_writer = True

    def write(self, folder: Path, rows: Rows) -> None:
        written = Written(folder)
        dataset = lance.write_dataset(_table(rows), folder / "rows.lance", data_storage_version=_VERSION)
        dataset.create_scalar_index("key", "BTREE")
        if self.sync:
            written.sync()

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        self.folder = folder
        self._rows = lance.dataset(folder / "rows.lance")
        self._shape = tuple(json.loads(self._rows.schema.metadata[b"row_shape"]))
        if mode == "a":
            self._written = Written(folder)
            self._written.look()

    def append(self, rows: Rows) -> None:
        self._rows = lance.write_dataset(_table(rows), self._rows, mode="append")
        if self.sync:
            self._written.sync()

    def take(self, numbers: Numbers) -> Floats:
        return self._array(self._rows.take(numbers.tolist(), columns=["values"]))

    def fetch(self, keys: Sequence[str]) -> Floats:
        table = self._rows.scanner(columns=["key", "values"], filter=_among(keys)).to_table()
        places = {key: place for place, key in enumerate(table["key"].to_pylist())}
        return self._array(table).take([places[key] for key in keys], axis=0)

    def find(self, keys: Sequence[str]) -> Numbers:
        table = self._rows.scanner(columns=["key"], filter=_among(keys), with_row_address=True).to_table()
        rows = dict(zip(table["key"].to_pylist(), table["_rowaddr"].to_pylist(), strict=True))
        return np.array([rows[key] for key in keys])

    def read_all(self) -> Floats:
        return self._array(self._rows.to_table(columns=["values"]))

    def _array(self, table: pa.Table) -> Floats:
        chunks = [chunk.flatten().to_numpy().reshape(-1, *self._shape) for chunk in table["values"].chunks]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _table(rows: Rows) -> pa.Table:
    size = int(np.prod(rows.shape))
    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.values.reshape(-1)), size)
    table = pa.table({"key": rows.keys, "values": values})
    return table.replace_schema_metadata({"row_shape": json.dumps(rows.shape)})


def _among(keys: Sequence[str]) -> str:
    return f"key IN ({','.join(repr(key) for key in set(keys))})"


SYSTEMS = [Lance()]
