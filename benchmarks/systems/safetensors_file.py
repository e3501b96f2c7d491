"""safetensors: one tensor of all rows, mapped.

https://huggingface.co/docs/safetensors/index (`safe_open`, `get_slice`). A file is immutable: what is appended is a
file of its own, as the shards of a large model are, and a batch is gathered from all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.systems.base import Floats, Numbers, Rows, System


class Safetensors(System):
    name = "safetensors"
    syncs = "when told"

    def write(self, folder: Path, rows: Rows) -> None:
        self._save(folder, 0, rows)
        self.write_keys(folder, rows.keys)

    def _save(self, folder: Path, part: int, rows: Rows) -> None:
        path = folder / f"part-{part:06d}.safetensors"
        save_file({"rows": torch.from_numpy(np.asarray(rows.values))}, path)
        self.made_durable(path)

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        self.folder = folder
        # A tensor that torch's side of the library maps, seen as an array: NumPy's side would copy it all.
        files = [safe_open(path, "pt") for path in sorted(folder.glob("part-*"))]
        self._parts = [file.get_tensor("rows").numpy() for file in files]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        self._count = len(files)

    def append(self, rows: Rows) -> None:
        self._save(self.folder, self._count, rows)
        self._count += 1
        self.write_keys(self.folder, rows.keys, append=True)

    def take(self, numbers: Numbers) -> Floats:
        if len(self._parts) == 1:
            return self._parts[0].take(numbers, axis=0, mode="clip")
        out = np.empty((len(numbers), *self._parts[0].shape[1:]), np.float32)
        part_of = np.searchsorted(self._starts, numbers, side="right") - 1
        for part in np.unique(part_of).tolist():
            places = part_of == part
            out[places] = self._parts[part][numbers[places] - self._starts[part]]
        return out

    def read_all(self) -> Floats:
        return np.concatenate(self._parts)


SYSTEMS = [Safetensors()]
