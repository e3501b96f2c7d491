"""LMDB: each row's bytes under its key.

https://lmdb.readthedocs.io/en/release/: `buffers=True` gives views of the map instead of bytes; `readahead=False` for
random reads (not of long rows: those are read ahead within themselves); `putmulti` with `append=True` for sorted keys;
`meminit=False`. A join of the views is the fastest way to one array (0.36 ms for 256 short rows; `getmulti` 0.47,
a loop of copies, which is faster for long ones, 0.75). LMDB syncs each commit, unless told not to.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import lmdb
import numpy as np

from benchmarks.systems.base import Floats, Numbers, Rows, System

_MAP_NBYTES = 2**38  # address space, not disk
_LONG = 2**17  # bytes of a row that are more than the kernel reads ahead


class Lmdb(System):
    name = "LMDB"
    syncs = "itself"
    natively = "key"
    forks = False  # an environment that is open in the parent can't be opened again by its child
    beside_writer = True

    def write(self, folder: Path, rows: Rows) -> None:
        np.save(folder / "shape.npy", np.array(rows.shape))
        environment = self._environment(folder, readonly=False)
        with environment.begin(write=True) as transaction:
            items = ((key.encode(), memoryview(row).cast("B")) for key, row in zip(rows.keys, rows.values, strict=True))
            transaction.cursor().putmulti(items, append=True)
        environment.close()

    def _environment(self, folder: Path, *, readonly: bool) -> lmdb.Environment:
        self._shape = tuple(np.load(folder / "shape.npy").tolist())
        return lmdb.open(
            str(folder),
            map_size=_MAP_NBYTES,
            readonly=readonly,
            sync=self.sync,
            readahead=4 * int(np.prod(self._shape)) > _LONG,
            meminit=False,
        )

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        self.folder = folder
        self._open = self._environment(folder, readonly=mode == "r")
        if mode == "r":  # an open reader keeps pages from being used again
            self._reading = self._open.begin(buffers=True)

    @cached_property
    def _keys(self) -> list[bytes]:
        """Keys by row: LMDB has no row numbers."""
        return [bytes(key) for key in self._reading.cursor().iternext(values=False)]

    def append(self, rows: Rows) -> None:
        with self._open.begin(write=True) as transaction:
            for key, row in zip(rows.keys, rows.values, strict=True):
                transaction.put(key.encode(), memoryview(row).cast("B"), append=True)

    def take(self, numbers: Numbers) -> Floats:
        keys = self._keys
        return self._joined([keys[number] for number in numbers.tolist()])

    def fetch(self, keys: Sequence[str]) -> Floats:
        return self._joined([key.encode() for key in keys])

    def find(self, keys: Sequence[str]) -> Numbers:
        get = self._reading.get
        return np.array([len(get(key.encode())) for key in keys])  # it has the value itself, not its row

    def _joined(self, keys: list[bytes]) -> Floats:
        get = self._reading.get
        return self._as_array([get(key) for key in keys])

    def _as_array(self, values: list[memoryview]) -> Floats:
        if not values or len(values[0]) <= _LONG:
            return np.frombuffer(bytearray().join(values), np.float32).reshape(-1, *self._shape)
        out = np.empty((len(values), *self._shape), np.float32)
        for place, value in enumerate(values):
            out[place] = np.frombuffer(value, np.float32).reshape(self._shape)
        return out

    def read_all(self) -> Floats:
        return self._as_array(list(self._reading.cursor().iternext(keys=False)))

    def close(self) -> None:
        for name in ("_reading", "_keys"):
            self.__dict__.pop(name, None)
        self._open.close()


SYSTEMS = [Lmdb()]
