"""Copy the undamaged rows of a damaged store into a new store."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.keys import hash_keys
from embstore._engine.format.zarr_layout import METADATA_NAME
from embstore._engine.io.locks import lock
from embstore._engine.io.urls import local_path
from embstore._engine.notebook import ShownAsText
from embstore._engine.pickles import PickledByName
from embstore._engine.read.column import Rows
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.compact import write_copy
from embstore.errors import CorruptStoreError, StoreExistsError
from embstore.store.verify import (
    NOT_THE_HASH,
    Damaged,
    Problem,
    Report,
    examine,
    live_rows_of,
    local_place,
    readable_keys,
)

logger = logging.getLogger("embstore")

_KEYS_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class SalvageReport(ShownAsText, PickledByName):
    """The result of `salvage`.

    Attributes
    ----------
    path : Path
        The new store.
    rows_kept : int
    rows_lost : ndarray, (n,) int64
        Row numbers in the damaged store.
    keys_lost : tuple of str
        Their keys, as far as they can be read.
    problems : tuple of Problem
    """

    path: Path
    rows_kept: int
    rows_lost: Rows
    keys_lost: tuple[str, ...]
    problems: tuple[Problem, ...]

    def __str__(self) -> str:
        head = f"{self.path}: {self.rows_kept:,} rows kept, {len(self.rows_lost):,} lost"
        keys = [*self.keys_lost[:_KEYS_SHOWN], *(["…"] if len(self.keys_lost) > _KEYS_SHOWN else [])]
        lost = [f"  lost: {', '.join(keys)}"] if keys else []
        return "\n".join([head, *lost, *(f"  {problem}" for problem in self.problems)])


def salvage(path: str | PathLike[str], dest: str | PathLike[str]) -> SalvageReport:
    """Copy the undamaged rows of a damaged store into a new store. The damaged store is not changed.

    Hashes of keys and class codes are made again where they are damaged.

    Raises
    ------
    NotAStoreError
        `path` is a URL, or has neither a store nor the remains of one.
    CorruptStoreError
        Neither the record nor its copy can be read.
    StoreExistsError
        `dest` exists.
    ReadOnlyError
        `dest` is a URL.
    """
    place, target = local_place(path), local_path(dest).resolve()
    snapshot, report = examine(place)
    if snapshot is None:
        raise CorruptStoreError(place / METADATA_NAME, report.problems[-1].detail)
    codes, lost = _recovered(snapshot, report)
    kept = np.setdiff1d(live_rows_of(snapshot), lost)
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock(target, timeout=60.0):
        if target.exists():
            raise StoreExistsError(target)
        write_copy(_Recovered(snapshot, codes), kept, target)
    keys = tuple(readable_keys(snapshot, lost))
    return SalvageReport(target, len(kept), lost, keys, report.problems)


class _Recovered(Damaged):
    """A damaged commit with class codes that were found again, or -1. Key hashes are made from the keys."""

    def __init__(self, damaged: Snapshot, codes: NDArray[np.int32]) -> None:
        super().__init__(damaged.folder, damaged.record, (0, 0, 0), mapping="never", check="touched")
        self._codes = codes

    def class_codes_of(self, rows: Rows) -> NDArray[np.int32]:
        codes = self._codes[rows]
        if (stored := codes < 0).any():
            codes[stored] = super().class_codes_of(rows[stored])
        return codes

    def take(self, name: str, rows: Rows) -> np.ndarray[Any, Any]:
        return hash_keys(self.keys_of(rows)) if name == "key_hash" else super().take(name, rows)


def _recovered(snapshot: Snapshot, report: Report) -> tuple[NDArray[np.int32], Rows]:
    """Return the class codes of rows that were found again, -1 for other rows, and the rows that are lost.

    Key hashes follow from the keys. A damaged class code is that of the class whose key has the row's hash.
    """
    affected: dict[str, list[Rows]] = {"key_hash": [], "class_code": [], "": []}
    for problem in report.problems:
        name = problem.path.relative_to(report.path).parts[0]
        affected[name if name in affected and problem.detail != NOT_THE_HASH else ""].append(problem.rows)
    empty = np.empty(0, dtype=np.int64)
    hashes, coded, lost = (np.unique(np.concatenate([empty, *parts])) for parts in affected.values())
    codes = np.full(snapshot.record.rows, -1, dtype=np.int32)
    if len(unknown := np.setdiff1d(coded, np.union1d(lost, hashes))):
        wanted, file_ids = snapshot.take("key_hash", unknown), snapshot.file_ids_of(unknown)
        for code, name in enumerate(snapshot.class_names):
            same = (hash_keys([f"{file_id}:{name}" for file_id in file_ids]) == wanted).all(axis=1)
            codes[unknown[same]] = code
    return codes, np.union1d(lost, coded[codes[coded] < 0])
