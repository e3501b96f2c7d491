"""embstore: raw (the default, mapped), zstd, and bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.systems.base import Floats, Numbers, Rows, System
from embstore import FieldSpec
from embstore import open as open_store  # by name, now: the package imports what is asked for when it is asked for
from embstore._engine.read.dtypes import as_numbers

_MOST_ROWS = 1_000_000  # of one append: twice the keys of ten million rows would be gigabytes


class Embstore(System):
    syncs = "always"
    beside_writer = True

    def __init__(self, name: str, *, dtype: str = "float32", compression: Any = None) -> None:
        self.name = name
        self._dtype = dtype
        self._compression = compression

    def write(self, folder: Path, rows: Rows) -> None:
        with open_store(
            folder / "rows.zarr",
            "w-",
            config={"benchmark": "rows"},
            fields={"embedding": FieldSpec(shape=rows.shape, dtype=self._dtype)},
            expected_rows=len(rows),
            compression=self._compression,
        ) as store:
            for part in rows.parts(_MOST_ROWS):
                store.append(part.keys, self._given(part.values))

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        self.folder = folder
        self._store = open_store(folder / "rows.zarr", "r" if mode == "r" else "r+")

    def append(self, rows: Rows) -> None:
        self._store.append(rows.keys, self._given(rows.values))

    def take(self, numbers: Numbers) -> Floats:
        return self._store.take(numbers)

    def fetch(self, keys: Sequence[str]) -> Floats:
        return self._store.fetch(keys)

    def find(self, keys: Sequence[str]) -> Numbers:
        return self._store.rows_of(keys)

    def of_classes(self, wanted: Sequence[int]) -> Floats:
        return self._store.select(classes=[f"class_{code}" for code in wanted]).to_numpy()

    def read_all(self) -> Floats:
        return self._store.select().to_numpy()

    def kept(self, values: Floats) -> Floats:
        if self._dtype == "float32":
            return values
        return as_numbers(_bfloat16(values).view(np.uint16), FieldSpec(shape=values.shape[1:], dtype=self._dtype))

    def _given(self, values: Floats) -> Any:
        """Give bfloat16 as a model does that computes in it: as a tensor."""
        return values if self._dtype == "float32" else _tensor(values)

    def loader(self, batch_size: int, workers: int, limit: int) -> Any:
        # README, "Use what is stored": a view is the dataset, and the default collate takes its batches whole.
        from benchmarks.systems.loading import dataloader
        from embstore.torch import EmbeddingDataset

        classes = sorted(self._store.classes)
        return dataloader(EmbeddingDataset(self._store.select(), classes=classes), batch_size, workers, limit)

    def close(self) -> None:
        self._store.close()


def _tensor(values: Floats) -> Any:
    import torch

    return torch.from_numpy(np.array(values)).to(torch.bfloat16)


def _bfloat16(values: Floats) -> Any:
    import torch

    return _tensor(values).view(torch.int16).numpy()


SYSTEMS = [
    Embstore("embstore"),
    Embstore("embstore, zstd", compression="zstd"),
    Embstore("embstore, bfloat16", dtype="bfloat16"),
]
