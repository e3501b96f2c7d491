"""A dictionary of tensors in a .pt file, mapped: what most people do today.

https://docs.pytorch.org/docs/stable/generated/torch.load.html, `mmap=True`. The tensors are rows of one: a file of as
many storages takes twice as long to open.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.systems.base import Floats, Numbers, Rows, System


class TorchDict(System):
    name = "dict in .pt"
    syncs = "when told"

    def write(self, folder: Path, rows: Rows) -> None:
        self._save(folder, rows.keys, rows.values)

    def _save(self, folder: Path, keys: list[str], values: Floats) -> None:
        tensors = torch.from_numpy(np.asarray(values))
        torch.save(dict(zip(keys, tensors, strict=True)), folder / "rows.pt.new")
        self.made_durable(folder / "rows.pt.new")
        (folder / "rows.pt.new").replace(folder / "rows.pt")
        self.made_durable(folder / "rows.pt")

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        self.folder = folder
        self._tensors: dict[str, torch.Tensor] = torch.load(folder / "rows.pt", mmap=True)
        self._rows = list(self._tensors.values())

    def append(self, rows: Rows) -> None:
        # A .pt file can only be written whole.
        values = np.concatenate([self.read_all(), rows.values])
        self._save(self.folder, [*self._tensors, *rows.keys], values)
        self.open(self.folder)

    def take(self, numbers: Numbers) -> Floats:
        return torch.stack([self._rows[number] for number in numbers.tolist()]).numpy()

    def fetch(self, keys: Sequence[str]) -> Floats:
        return torch.stack([self._tensors[key] for key in keys]).numpy()

    def find(self, keys: Sequence[str]) -> Numbers:
        return np.array([len(self._tensors[key]) for key in keys])  # it has the value itself, not its row

    def read_all(self) -> Floats:
        return torch.stack(self._rows).numpy()


SYSTEMS = [TorchDict()]
