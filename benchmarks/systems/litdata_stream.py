"""LitData: chunks made for streaming; samples are read one by one.

https://github.com/Lightning-AI/litData, README: `optimize` writes chunks of 64 MB, `mode="append"` adds some,
`StreamingDataset` reads, `StreamingDataLoader` shuffles. It has no keys and no bulk read, and syncs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize

from benchmarks.systems.base import Floats, Numbers, Rows, System, Written


class _Given:
    """Gives row by number, in the process that writes; what is mapped is mapped there as well, not sent."""

    def __init__(self, values: Floats) -> None:
        self.values = values

    def __getstate__(self) -> Any:
        return self.values.filename if isinstance(self.values, np.memmap) else self.values

    def __setstate__(self, state: Any) -> None:
        self.values = state if isinstance(state, np.ndarray) else np.load(state, mmap_mode="r")

    def __call__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.values[number]).reshape(-1))  # 1-d ones are stored without a header


class LitData(System):
    name = "LitData"
    forks = False

    def write(self, folder: Path, rows: Rows) -> None:
        np.save(folder / "shape.npy", np.array(rows.shape))
        self._written = Written(folder)
        self._put(folder, rows, None)
        self.write_keys(folder, rows.keys)

    def _put(self, folder: Path, rows: Rows, mode: Any) -> None:
        optimize(
            _Given(rows.values),
            list(range(len(rows))),
            str(folder / "rows"),
            chunk_bytes="64MB",
            num_workers=1,  # more would change the order of rows
            mode=mode,
            verbose=False,
        )
        if self.sync:
            self._written.sync()

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        self.folder = folder
        self._shape = tuple(np.load(folder / "shape.npy").tolist())
        self._rows = StreamingDataset(str(folder / "rows"), shuffle=True)
        if mode == "a":
            self._written = Written(folder)
            self._written.look()

    def append(self, rows: Rows) -> None:
        self._put(self.folder, rows, "append")
        self.write_keys(self.folder, rows.keys, append=True)

    def take(self, numbers: Numbers) -> Floats:
        return torch.stack([self._rows[number] for number in numbers.tolist()]).numpy().reshape(-1, *self._shape)

    def read_all(self) -> Floats:
        return self.take(np.arange(len(self._rows)))

    def loader(self, batch_size: int, workers: int, limit: int) -> Any:
        return StreamingDataLoader(
            self._rows, batch_size=batch_size, num_workers=workers, shuffle=True, persistent_workers=workers > 0
        )


SYSTEMS = [LitData()]
