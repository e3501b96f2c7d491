"""Copy the undamaged rows of a damaged store into a new store."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from embstore._engine.format.zarr_layout import METADATA_NAME
from embstore._engine.io.locks import lock
from embstore._engine.io.remote import local_path
from embstore._engine.pickles import PickledByName
from embstore._engine.read.column import Rows
from embstore._engine.write.compact import write_copy
from embstore.errors import CorruptStoreError, StoreExistsError
from embstore.store.verify import Problem, examine, live_rows_of, local_place

logger = logging.getLogger("embstore")


@dataclass(frozen=True, slots=True)
class SalvageReport(PickledByName):
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


def salvage(path: str | PathLike[str], dest: str | PathLike[str]) -> SalvageReport:
    """Copy the undamaged rows of a damaged store into a new store. The damaged store is not changed.

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
        raise CorruptStoreError(place / METADATA_NAME, "neither the record nor its copy can be read")
    kept = np.setdiff1d(live_rows_of(snapshot), report.rows_affected)
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock(target, timeout=60.0):
        if target.exists():
            raise StoreExistsError(target)
        write_copy(snapshot, kept, target)
    return SalvageReport(target, len(kept), report.rows_affected, report.keys_affected, report.problems)
