"""Copy the undamaged rows of a damaged store into a new store."""

from __future__ import annotations

import logging
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.keys import hash_keys
from embstore._engine.format.record import Record
from embstore._engine.io.filesystem import move_into_place
from embstore._engine.io.locks import lock
from embstore._engine.io.urls import local_path
from embstore._engine.notebook import ShownAsText
from embstore._engine.pickles import PickledByName
from embstore._engine.read.column import Rows
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.compact import write_copy
from embstore.errors import CorruptStoreError, StoreExistsError
from embstore.store.merge import merge
from embstore.store.open import open as open_store
from embstore.store.verify import NOT_THE_HASH, Damaged, Problem, Report, readable_keys
from embstore.store.verify_parts import Piece, examine_all

logger = logging.getLogger("embstore")

_KEYS_SHOWN: Final = 5
_NO_ROWS = np.empty(0, dtype=np.int64)


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


def salvage(
    path: str | PathLike[str], dest: str | PathLike[str], *, storage_options: Mapping[str, Any] | None = None
) -> SalvageReport:
    """Copy the undamaged rows of a damaged store into a new store. The damaged store is not changed.

    Hashes of keys and class codes are made again where they are damaged.

    Parameters
    ----------
    path : path_like
        Or a URL.
    dest : path_like
        On this machine.
    storage_options : mapping, optional
        Of the URL, as for `embstore.open`.

    Raises
    ------
    NotAStoreError
        `path` has neither a store nor the remains of one.
    CorruptStoreError
        Neither the record nor its copy can be read.
    StoreExistsError
        `dest` exists.
    ReadOnlyError
        `dest` is a URL.
    """
    target = local_path(dest).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise StoreExistsError(target)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
        saved: dict[int, _Saved] = {}

        def save(start: int, piece: Piece) -> None:
            if not start:
                saved.clear()
            saved[start] = _saved(piece, Path(work) / f"{len(saved)}-{secrets.token_hex(4)}.zarr")

        record, report = examine_all(path, storage_options, save)
        if record is None:
            raise CorruptStoreError(report.problems[-1].path, report.problems[-1].detail)
        with lock(target, timeout=60.0):
            if target.exists():
                raise StoreExistsError(target)
            made = [one.path for one in saved.values() if one.path is not None]
            if len(made) == 1:
                move_into_place(made[0], target)
        if len(made) != 1:
            _joined(record, made, target)
    lost = np.concatenate([_NO_ROWS, *(one.lost + start for start, one in saved.items())])
    keys = tuple(key for one in saved.values() for key in one.keys_lost)
    return SalvageReport(target, sum(one.kept for one in saved.values()), lost, keys, report.problems)


@dataclass(frozen=True, slots=True)
class _Saved:
    """The rows of a piece that were kept, and lost."""

    path: Path | None
    kept: int
    lost: Rows
    keys_lost: tuple[str, ...]


def _saved(piece: Piece, target: Path) -> _Saved:
    """Copy the undamaged live rows of a piece to a new store."""
    if piece.snapshot is None:
        return _Saved(None, 0, piece.live, ())
    codes, damaged = _recovered(piece.snapshot, piece.report)
    lost = np.intersect1d(damaged, piece.live)
    kept = np.setdiff1d(piece.live, damaged)
    write_copy(_Recovered(piece.snapshot, codes), kept, target)
    return _Saved(target, len(kept), lost, tuple(readable_keys(piece.snapshot, lost)))


def _joined(record: Record, parts: list[Path], target: Path) -> None:
    """Make a store of the rows of several, or an empty one."""
    columns = {name: column.dtype for name, column in record.columns.items()}
    if parts:
        merge(target, *parts, if_exists="skip")
    else:
        open_store(target, "w-", config=record.config, fields=record.fields, columns=columns).close()


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
