"""Build a part: the rows that a plan adds to a store of parts, as a store of format 1 in a temporary folder."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embstore._engine.format.parts import Part, fitted
from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import Record, offsets_name
from embstore._engine.format.zarr_layout import METADATA_NAME
from embstore._engine.io.filesystem import unsynced
from embstore._engine.read.column import Rows
from embstore._engine.read.key_index import FOLDER as INDEX_FOLDER
from embstore._engine.read.parts_snapshot import MOST_ZIPPED, PartsSnapshot, digest_of
from embstore._engine.write.commit import Blocks, build_beside
from embstore._engine.write.compact import copy_rows, emptied
from embstore._engine.write.plans import Plan, class_codes


@dataclass(frozen=True, slots=True)
class BuiltPart:
    """A part in a folder on this machine.

    Attributes
    ----------
    part : Part
    path : Path
    """

    part: Part
    path: Path

    def objects(self) -> list[tuple[str, Callable[[], bytes]]]:
        """Return the name of each object of a part that is no archive, and a function that returns its bytes."""
        return [(f"{self.part.name}/{file.relative_to(self.path)}", file.read_bytes) for file in _files(self.path)]

    def files(self) -> dict[str, bytes]:
        """Return the files by their paths in the part."""
        return {str(file.relative_to(self.path)): file.read_bytes() for file in _files(self.path)}


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file() and INDEX_FOLDER not in file.relative_to(path).parts[:1]]


def additions(snapshot: PartsSnapshot, plan: Plan) -> dict[str, Blocks]:
    """Return the rows that a plan adds, as those of a store of their own, with its own offsets and class codes."""
    found = {name: rows for name, rows in plan.appends.items() if name not in ("dead_rows", "class_names")}
    if isinstance(hashes := found.get("key_hash"), Iterator):
        found["key_hash"] = np.concatenate([np.asarray(block) for block in hashes])
    if "class_code" in found:
        names = [*snapshot.class_names, *plan.appends.get("class_names", [])]
        codes, own = class_codes([], [names[code] for code in np.asarray(found["class_code"]).tolist()])
        found |= {"class_code": codes, "class_names": own}
    for field in plan.record.ragged:
        name = offsets_name(field)
        if name in found:
            before = snapshot.record.arrays[field].length if field in snapshot.record.arrays else 0
            offsets = np.asarray(found[name]) - before
            # A plan for a store with rows leaves out the first 0.
            found[name] = np.concatenate([[0], offsets]) if plan.record.arrays[name].length else offsets
    return found


def same_additions(first: Mapping[str, Blocks], second: Mapping[str, Blocks]) -> bool:
    """Return whether two plans add the same rows. Rows that come in blocks can't be compared."""
    return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Iterator) or isinstance(second, Iterator):
        return False
    if isinstance(first, Ragged) or isinstance(second, Ragged):
        return False
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        same_kind = first.dtype == second.dtype and first.shape == second.shape
        return same_kind and (first is second or first.tobytes() == second.tobytes())
    return type(first) is type(second) and bool(list(first) == list(second))


def build_part(folder: Path, seq: int, record: Record, rows: int, added: Mapping[str, Blocks]) -> BuiltPart:
    """Build a part of rows that `additions` returned.

    Parameters
    ----------
    folder : Path
        Temporary, empty.
    seq : int
        The number in the part's name.
    record : Record
        Of the store, with the fields and columns of the rows.
    rows : int
    added : mapping of array names to rows, or to an iterator over blocks of rows
    """
    empty = emptied(record)
    lengths = {name: len(values) for name, values in added.items() if not isinstance(values, Iterator)}
    lengths = dict.fromkeys(empty.sample_arrays, rows) | lengths
    arrays = {name: fitted(array, lengths.get(name, 0)) for name, array in empty.arrays.items()}
    with unsynced():
        made, done = build_beside(folder / "part", replace(empty, rows=rows, arrays=arrays), added)
    return _built(seq, made.path, done)


def copy_part(folder: Path, seq: int, snapshot: PartsSnapshot, rows: Rows) -> BuiltPart:
    """Build a part with some rows of a store. Each chunk is checked as it is read."""
    with unsynced():
        record = copy_rows(snapshot.checked(), rows, folder / "part", fit=True)
    return _built(seq, folder / ".part.partial", record)


def _built(seq: int, path: Path, record: Record) -> BuiltPart:
    nbytes = sum(file.stat().st_size for file in _files(path))
    part = Part(
        name=f"{seq:08}-{secrets.token_hex(8)}" + (".zip" if nbytes <= MOST_ZIPPED else ""),
        rows=record.rows,
        nbytes=nbytes,
        digest=digest_of((path / METADATA_NAME).read_bytes()),
        tokens={name: record.arrays[name].length for name in record.ragged},
    )
    return BuiltPart(part, path)


def renamed(built: BuiltPart, seq: int) -> BuiltPart:
    """Return a part under a new name."""
    ending = ".zip" if built.part.zipped else ""
    return replace(built, part=replace(built.part, name=f"{seq:08}-{secrets.token_hex(8)}{ending}"))


def temporary() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder for parts. A killed process leaves it to the system."""
    return tempfile.TemporaryDirectory(prefix=f"embstore-{os.getpid()}-")
