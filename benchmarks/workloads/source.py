"""The rows that all systems are given: random float32, keys in 301 classes; and the draws of the workloads.

Everything follows from the folder's `values.npy` and from seeds, so that each process can make it for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.systems import Rows

LARGE_CLASS = 0
"""It has a tenth of the rows; the others are shared evenly by 300 classes."""
SMALL_CLASSES = 300
MOST_IN_RAM = 2 * 2**30
"""Bytes of values that are read into RAM before they are written; larger ones are mapped."""


def key_of(number: int, code: int) -> str:
    return f"sample_{number:08d}:class_{code}"


@dataclass(frozen=True)
class Source:
    """Rows in a folder, the same for all systems."""

    folder: Path

    @cached_property
    def values(self) -> NDArray[np.float32]:
        return np.load(self.folder / "values.npy", mmap_mode="r")

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        return np.load(self.folder / "codes.npy")

    @cached_property
    def keys(self) -> list[str]:
        return [key_of(number, code) for number, code in enumerate(self.codes.tolist())]

    def key(self, number: int) -> str:
        """Make one key, without all the others."""
        return key_of(number, int(self.codes[number]))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape[1:]

    @property
    def label(self) -> str:
        return " x ".join(f"{n:,}" for n in self.values.shape)

    def rows(self) -> Rows:
        values = self.values
        return Rows(keys=self.keys, values=np.array(values) if values.nbytes <= MOST_IN_RAM else values)

    def more(self, count: int, turn: int) -> Rows:
        """Make rows that come after those there are, others in each turn; their keys sort behind."""
        values = np.random.default_rng(turn).standard_normal((count, *self.shape), dtype=np.float32)
        start = len(self) + turn * count
        return Rows(keys=[key_of(start + i, 1 + i % SMALL_CLASSES) for i in range(count)], values=values)

    def draw(self, size: int, turn: int) -> NDArray[np.int64]:
        """Draw the rows of one random batch."""
        return np.random.default_rng([1, turn]).integers(len(self), size=size)

    def shuffled(self, turn: int) -> NDArray[np.int64]:
        return np.random.default_rng([2, turn]).permutation(len(self))

    def classes(self, turn: int, count: int = 10) -> list[int]:
        """Draw some of the 300 classes."""
        there = np.unique(self.codes)[1:]  # of few rows, not all classes have one
        return sorted(np.random.default_rng([3, turn]).choice(there, min(count, len(there)), replace=False).tolist())


def make_source(folder: Path, shape: tuple[int, ...]) -> Source:
    """Write values and classes; a part at a time, since they may be larger than memory."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    values = np.lib.format.open_memmap(folder / "values.npy", "w+", np.float32, shape)
    step = max(1, 2**28 // (4 * int(np.prod(shape[1:]))))
    for start in range(0, shape[0], step):
        part = values[start : start + step]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
    values.flush()
    codes = np.where(rng.random(shape[0]) < 0.1, LARGE_CLASS, 1 + rng.integers(SMALL_CLASSES, size=shape[0]))
    codes[0] = LARGE_CLASS
    np.save(folder / "codes.npy", codes)
    return Source(folder)
