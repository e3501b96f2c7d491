"""What a system is: five verbs over rows that have keys.

A system gets an empty folder of its own, and `write` puts rows there. After `open` it answers `take` (rows by number),
`fetch` (rows by key), `read_all`, and, if it was opened with mode "a", `append`. Values are float32, and what comes
back is a fresh or a read-only array of the same shape and order. Each file beside this one holds a list `SYSTEMS`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]

CACHE_NBYTES = 2**30
"""For the systems that have a cache of their own, and ask to be told its size: 200,000 pooled rows fit."""
CHUNK_NBYTES = 256 * 768 * 4
"""Of a chunk, in the chunked formats: the best of 16, 64, 256 and 2,048 pooled rows for random batches and writing."""


class Unsupported(Exception):
    """The system can't do this, or nobody would have it do this; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows to be stored: keys ``file_id:class``, and values ``(n, *shape) float32``."""

    keys: list[str]
    values: Floats

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.values.shape[1:]

    def parts(self, size: int) -> Iterator[Rows]:
        """Yield the rows in parts, for what should not hold all of them twice."""
        for start in range(0, len(self), size):
            yield Rows(keys=self.keys[start : start + size], values=self.values[start : start + size])


class System:
    """A way to keep rows. Subclasses are made once, at import, and used in a process of their own."""

    name = ""
    syncs: Literal["always", "itself", "when told", "not at all"] = "not at all"
    """Who makes rows durable: the library, always; the library, unless told not to; the library offers it, or it is one
    file that the caller syncs; nobody, and the benchmark syncs each file that was written."""
    sync = True
    """Whether to be durable; the harness turns it off for the runs that are not."""
    forks = True
    """Whether it works in a forked worker process, opened there; else workers are spawned."""
    natively: Literal["row", "key"] = "row"
    """How it is read where a workload leaves that open: what has only keys should not have to list them all first."""
    takes_part: tuple[str, ...] | None = None
    """Workloads that this one is for; None for all."""
    beside_writer = False
    """Whether it may be read while another process appends, and what a reader then sees is whole."""

    folder: Path
    classes: NDArray[np.int64]
    """The class of each row, which the user of a system without classes would hold as an array."""
    _rows_of: dict[str, int] | None = None

    # -- the five verbs -----------------------------------------------------------------------

    def write(self, folder: Path, rows: Rows) -> None:
        raise Unsupported("it is not a store")

    def open(self, folder: Path, mode: Literal["r", "a"] = "r") -> None:
        raise Unsupported("it is not a store")

    def append(self, rows: Rows) -> None:
        raise Unsupported("it is written once")

    def take(self, numbers: Numbers) -> Any:
        raise Unsupported("it has no row numbers")

    def read_all(self) -> Any:
        raise Unsupported("it has no order of rows")

    # -- what follows from them, unless a system has a better way -------------------------------

    def fetch(self, keys: Sequence[str]) -> Any:
        """Return rows by key: by a dictionary from keys that lie beside the values, where a system has no keys."""
        return self.take(np.array([self.rows_of[key] for key in keys]))

    def find(self, keys: Sequence[str]) -> Numbers:
        """Return the rows of some keys without their values, for the scaling of lookups alone."""
        return np.array([self.rows_of[key] for key in keys])

    def of_classes(self, wanted: Sequence[int]) -> Any:
        """Return all rows of some classes, in order."""
        return self.take(np.flatnonzero(np.isin(self.classes, wanted)))

    def kept(self, values: Floats) -> Floats:
        """Return what becomes of values that are stored: the same, unless they are rounded."""
        return values

    def close(self) -> None:
        """Let go of what is open."""

    def loader(self, batch_size: int, workers: int, limit: int) -> Any:
        """Return an iterable over shuffled batches ``(values, labels)``, of `limit` rows at most.

        None for a system without a loader of its own: `loading.batched_loader` then reads a batch at once.
        """
        return None

    # -- keys that lie beside -------------------------------------------------------------------

    @property
    def rows_of(self) -> dict[str, int]:
        """Row numbers by key, read when the first key is looked up."""
        if self._rows_of is None:
            lines = (self.folder / "keys.jsonl").read_text().splitlines()
            self._rows_of = {key: row for row, key in enumerate(key for line in lines for key in json.loads(line))}
        return self._rows_of

    def write_keys(self, folder: Path, keys: list[str], *, append: bool = False) -> None:
        """Write keys as a line of JSON: appending is adding a line."""
        with (folder / "keys.jsonl").open("a" if append else "w") as file:
            file.write(json.dumps(keys) + "\n")
            if self.sync:
                synced(file)

    def made_durable(self, *paths: Path) -> None:
        """Sync files that a library wrote and closed, and the folder that names them."""
        if self.sync:
            for path in (*paths, *{path.parent for path in paths}):
                sync_path(path)


def synced(file: Any) -> None:
    """Flush a file, and wait until it is on disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Written:
    """Which files of a folder were written since it last looked, to sync what a library leaves unsynced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[int, int]] = {}

    def look(self) -> list[Path]:
        """Return the files and folders that are new or were changed."""
        changed = []
        for place, _, names in os.walk(self.folder):
            for path in [place, *(os.path.join(place, name) for name in names)]:
                status = os.stat(path)
                mark = (status.st_mtime_ns, status.st_size)
                if self._seen.get(path) != mark:
                    self._seen[path] = mark
                    changed.append(Path(path))
        return changed

    def sync(self) -> None:
        """Sync them."""
        for path in self.look():
            sync_path(path)


def chunk_rows(shape: tuple[int, ...]) -> int:
    """Rows of a chunk in the chunked formats."""
    return max(1, CHUNK_NBYTES // (4 * int(np.prod(shape))))
