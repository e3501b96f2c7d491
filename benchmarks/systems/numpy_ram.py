"""NumPy in RAM: the physical limit of reading, and of writing without keys; the same through torch's TensorDataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.systems.base import Floats, Numbers, Rows, System, Unsupported, synced


class NumpyInRam(System):
    name = "NumPy in RAM"
    syncs = "when told"
    beside_writer = True  # nobody can write into another process's RAM

    def write(self, folder: Path, rows: Rows) -> None:
        with (folder / "rows.npy").open("wb") as file:
            np.save(file, rows.values)
            if self.sync:
                synced(file)
        self.write_keys(folder, rows.keys)

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        self.folder = folder
        self.values = np.load(folder / "rows.npy")

    def take(self, numbers: Numbers) -> Floats:
        # "clip" is the documented way to skip take's buffer: https://numpy.org/doc/stable/reference/generated/numpy.take
        return self.values.take(numbers, axis=0, mode="clip")

    def read_all(self) -> Floats:
        return self.values.copy()


class InTensorDataset(NumpyInRam):
    """Samples one by one, stacked by the default collate.

    https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.TensorDataset
    """

    name = "TensorDataset in RAM"
    takes_part = ("epoch",)

    def loader(self, batch_size: int, workers: int, limit: int) -> Any:
        import torch
        from torch.utils.data import TensorDataset

        from benchmarks.systems.loading import dataloader

        dataset = TensorDataset(torch.from_numpy(self.values), torch.from_numpy(self.classes))
        return dataloader(dataset, batch_size, workers, limit)


class SavedAlone(NumpyInRam):
    """`np.save` and fsync: what the disk takes for the bytes alone."""

    name = "np.save"
    takes_part = ("bulk-write",)

    def write_keys(self, folder: Path, keys: list[str], *, append: bool = False) -> None:
        pass


class Memcpy(NumpyInRam):
    """Copies of long rows, one by one, into memory that is there already: the bandwidth that NumPy copies with."""

    name = "memcpy"
    takes_part = ("row-batches",)

    def take(self, numbers: Numbers) -> Floats:
        if self.values[:1].nbytes < 2**20:
            raise Unsupported("only for long rows: for short ones, it would measure the loop")
        if not hasattr(self, "_kept") or len(self._kept) != len(numbers):
            self._kept = np.zeros((len(numbers), *self.values.shape[1:]), np.float32)
        for place, number in enumerate(numbers.tolist()):
            self._kept[place] = self.values[number]
        return self._kept


SYSTEMS = [NumpyInRam(), InTensorDataset(), SavedAlone(), Memcpy()]
