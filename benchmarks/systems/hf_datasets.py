"""Hugging Face `datasets`: Arrow files, mapped.

https://huggingface.co/docs/datasets/about_arrow and https://huggingface.co/docs/datasets/use_with_pytorch: an Arrow or
NumPy format instead of Python lists; Arrow's is the faster (1.8 against 4.6 ms for 256 rows). A dataset on disk is
immutable: what is appended is a dataset of its own, and they are concatenated when they are opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import pyarrow as pa

from benchmarks.systems.base import Floats, Numbers, Rows, System, Written

datasets.disable_progress_bars()

_PART_NBYTES = 2**30
"""Of one dataset that is built in RAM: a table of two million rows took more than 24 GB."""


class HfDatasets(System):
    name = "datasets (Arrow)"
    beside_writer = False

    def write(self, folder: Path, rows: Rows) -> None:
        self._written = Written(folder)
        for number, part in enumerate(rows.parts(max(1, _PART_NBYTES // rows.values[:1].nbytes))):
            self._save(folder, number, part)

    def _save(self, folder: Path, part: int, rows: Rows) -> None:
        size = int(np.prod(rows.shape))
        features = datasets.Features(
            {"key": datasets.Value("string"), "values": datasets.Sequence(datasets.Value("float32"), length=size)}
        )
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows.values.reshape(-1)), size)
        table = pa.table({"key": rows.keys, "values": values}, schema=features.arrow_schema)
        datasets.Dataset(table).save_to_disk(folder / f"part-{part:06d}")
        np.save(folder / "shape.npy", np.array(rows.shape))
        if self.sync:
            self._written.sync()

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        self.folder = folder
        self._shape = tuple(np.load(folder / "shape.npy").tolist())
        parts = sorted(folder.glob("part-*"))
        self._parts = len(parts)
        whole = datasets.concatenate_datasets([datasets.load_from_disk(part) for part in parts])
        self._all = whole.with_format("arrow")
        self._rows = self._all.select_columns(["values"])
        if mode == "a":
            self._written = Written(folder)
            self._written.look()

    def append(self, rows: Rows) -> None:
        self._save(self.folder, self._parts, rows)
        self._parts += 1

    @property
    def rows_of(self) -> dict[str, int]:
        if self._rows_of is None:
            keys: Iterable[str] = self._all.select_columns(["key"])[:]["key"].to_pylist()
            self._rows_of = {key: row for row, key in enumerate(keys)}
        return self._rows_of

    def take(self, numbers: Numbers) -> Floats:
        return self._array(self._rows[numbers])

    def read_all(self) -> Floats:
        return self._array(self._rows[:])

    def _array(self, table: pa.Table) -> Floats:
        chunks = [chunk.flatten().to_numpy().reshape(-1, *self._shape) for chunk in table["values"].chunks]
        return np.array(chunks[0]) if len(chunks) == 1 else np.concatenate(chunks)


SYSTEMS = [HfDatasets()]
