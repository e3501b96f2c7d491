"""Build a part: the rows that a plan adds to a store of parts, as a store of format 1 in a temporary folder."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embstore._engine.format.parts import Part, fitted
from embstore._engine.format.record import Record, offsets_name
from embstore._engine.format.values import dump_json
from embstore._engine.format.zarr_layout import METADATA_NAME, group_document
from embstore._engine.io.durable import Buffer, Trailer
from embstore._engine.io.filesystem import unsynced
from embstore._engine.read.column import Rows
from embstore._engine.read.key_index import FOLDER as INDEX_FOLDER
from embstore._engine.read.parts_snapshot import MOST_ZIPPED, PartsSnapshot, digest_of
from embstore._engine.write.commit import Blocks, Values, build_beside, own_metadata, refuse_unreadable, write_rows
from embstore._engine.write.compact import copy_rows, emptied
from embstore._engine.write.plans import Plan, class_codes
from embstore._engine.write.record_edits import new_id


@dataclass(frozen=True, slots=True)
class BuiltPart:
    """A part on this machine.

    Attributes
    ----------
    part : Part
    content : Path or mapping
        The folder, or the files by their paths in it.
    """

    part: Part
    content: Path | Mapping[str, bytes]

    def objects(self) -> list[tuple[str, Callable[[], bytes]]]:
        """Return the name of each object of a part that is no archive, and a function that returns its bytes."""
        if not isinstance(self.content, Path):
            return [(f"{self.part.name}/{name}", partial(bytes, data)) for name, data in self.content.items()]
        path = self.content
        return [(f"{self.part.name}/{file.relative_to(path)}", file.read_bytes) for file in _files(path)]

    def files(self) -> Mapping[str, bytes]:
        """Return the files by their paths in the part."""
        if not isinstance(self.content, Path):
            return self.content
        return {str(file.relative_to(self.content)): file.read_bytes() for file in _files(self.content)}


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file() and INDEX_FOLDER not in file.relative_to(path).parts[:1]]


def additions(snapshot: PartsSnapshot, plan: Plan) -> dict[str, Blocks]:
    """Return the rows that a plan adds, as those of a store of their own, with its own offsets and class codes."""
    found = {name: rows for name, rows in plan.appends.items() if name not in ("dead_rows", "class_names")}
    for name in ("key_hash", "class_code"):
        if isinstance(blocks := found.get(name), Iterator):
            found[name] = np.concatenate([np.asarray(block) for block in blocks])
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
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        same_kind = first.dtype == second.dtype and first.shape == second.shape
        return same_kind and (first is second or first.tobytes() == second.tobytes())
    return type(first) is type(second) and bool(list(first) == list(second))


def build_part(
    new_folder: Callable[[], Path], seq: int, record: Record, rows: int, added: Mapping[str, Blocks]
) -> BuiltPart:
    """Build a part of rows that `additions` returned, in memory if it becomes an archive.

    Parameters
    ----------
    new_folder : callable
        Returns a temporary, empty folder.
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
    start = replace(empty, rows=rows, arrays=arrays)
    plain = {name: values for name, values in added.items() if not isinstance(values, Iterator)}
    if len(plain) == len(added) and sum(map(_nbytes, plain.values())) <= MOST_ZIPPED // 2:
        return _in_memory(seq, start, plain)
    with unsynced():
        made, done = build_beside(new_folder() / "part", start, added)
    return _built(seq, made.path, done)


def _nbytes(values: Values) -> int:
    return values.nbytes if isinstance(values, np.ndarray) else sum(map(len, values))


def _in_memory(seq: int, record: Record, added: Mapping[str, Values]) -> BuiltPart:
    """Build a part as `build_beside` does, without files: their creation took two thirds of a small commit."""
    files: dict[str, bytes] = {}

    def put(array: str, name: str, parts: Sequence[Buffer], *, trailer: Trailer | None = None) -> None:
        data = b"".join(parts)
        end, last = trailer or (len(data), b"")
        files[f"{array}/{name}"] = data + bytes(end - len(data)) + last

    zeros: dict[str, Values] = dict.fromkeys(map(offsets_name, record.ragged), np.zeros(1, dtype=np.int64))
    grown = {
        name: write_rows(partial(put, name), record.arrays[name], values, [])
        for name, values in (zeros | dict(added)).items()
    }
    record = replace(record.with_arrays(**grown), commit_id=new_id())
    refuse_unreadable(record)
    group = group_document(record)
    files |= {f"{name}/{METADATA_NAME}": own_metadata(name, group) for name in record.arrays}
    files[METADATA_NAME] = dump_json(group)
    return BuiltPart(_part(seq, record, sum(map(len, files.values())), files[METADATA_NAME]), files)


def copy_part(folder: Path, seq: int, snapshot: PartsSnapshot, rows: Rows) -> BuiltPart:
    """Build a part with some rows of a store. Each chunk is checked as it is read."""
    with unsynced():
        record = copy_rows(snapshot.checked(), rows, folder / "part", fit=True)
    return _built(seq, folder / ".part.partial", record)


def _built(seq: int, path: Path, record: Record) -> BuiltPart:
    nbytes = sum(file.stat().st_size for file in _files(path))
    return BuiltPart(_part(seq, record, nbytes, (path / METADATA_NAME).read_bytes()), path)


def _part(seq: int, record: Record, nbytes: int, metadata: bytes) -> Part:
    return Part(
        name=f"{seq:08}-{secrets.token_hex(8)}" + (".zip" if nbytes <= MOST_ZIPPED else ""),
        rows=record.rows,
        nbytes=nbytes,
        digest=digest_of(metadata),
        tokens={name: record.arrays[name].length for name in record.ragged},
    )


def renamed(built: BuiltPart, seq: int) -> BuiltPart:
    """Return a part under a new name."""
    ending = ".zip" if built.part.zipped else ""
    return replace(built, part=replace(built.part, name=f"{seq:08}-{secrets.token_hex(8)}{ending}"))


def temporary() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder for parts. A killed process leaves it to the system."""
    return tempfile.TemporaryDirectory(prefix=f"embstore-{os.getpid()}-")
