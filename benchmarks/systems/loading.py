"""A DataLoader over any system: one read a batch, the fastest way that torch has for map-style datasets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.systems.base import System


class Batched(Dataset[Any]):
    """Rows and labels, a batch at once; opened anew in each worker, since few systems' handles survive a fork."""

    def __init__(self, system: System, again: Callable[[], System]) -> None:
        self.labels = torch.from_numpy(system.classes)
        self._again, self._folder = again, system.folder
        self._opened: tuple[int, System] | None = (os.getpid(), system)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, places: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = np.asarray(places)
        values = self._system().take(numbers)
        if not values.flags.writeable:  # tensors are; a training step may write into its batch
            values = values.copy()
        return torch.from_numpy(values), self.labels[torch.from_numpy(numbers)]

    def _system(self) -> System:
        if self._opened is None or self._opened[0] != os.getpid():
            system = self._again()
            system.open(self._folder)
            self._opened = (os.getpid(), system)
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def batched_loader(
    system: System, again: Callable[[], System], batch_size: int, workers: int, limit: int
) -> DataLoader[Any]:
    """Make a loader of one read a batch (``__getitems__``), the fastest way that `DataLoader` has for any system.

    `again` makes the system anew in a worker process.
    """
    return dataloader(Batched(system, again), batch_size, workers, limit, forks=system.forks, whole=True)


def dataloader(
    dataset: Any, batch_size: int, workers: int, limit: int, *, forks: bool = True, whole: bool = False
) -> DataLoader[Any]:
    """Make a shuffling loader of at most `limit` rows; `whole` if batches come collated."""
    if limit >= len(dataset):
        chosen: dict[str, Any] = {"shuffle": True}
    else:
        chosen = {"sampler": RandomSampler(dataset, num_samples=limit)}
    if workers:
        chosen |= {"persistent_workers": True, "multiprocessing_context": "fork" if forks else "spawn"}
    if whole:
        chosen["collate_fn"] = _as_it_is
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers, **chosen)


def _as_it_is(batch: Any) -> Any:
    return batch
