"""Copy rows in blocks from one store into a new one, for a compaction and for a salvage."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace
from pathlib import Path
from typing import Final

from embstore._engine.format.parts import fitted, without_rows
from embstore._engine.format.record import ArrayState, Record
from embstore._engine.format.zarr_layout import METADATA_NAME, is_chunk
from embstore._engine.io.durable import WriteBatch, remove_tree, sibling
from embstore._engine.io.filesystem import move_into_place, swap_folders, sync_path
from embstore._engine.io.folder import Folder
from embstore._engine.read.column import Rows
from embstore._engine.read.key_index import FOLDER as INDEX_FOLDER
from embstore._engine.read.open_snapshot import open_snapshot
from embstore._engine.read.read_rows import read_field, read_rows
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.commit import Values, append_rows, build_beside, building, publish
from embstore._engine.write.index_file import wants_run, write_run
from embstore._engine.write.plans import class_codes, field_appends, row_blocks
from embstore._engine.write.record_edits import new_id
from embstore.errors import CommitUncertainError, CompactionRefusedError, StoreExistsError, StoreReplacedError

logger = logging.getLogger("embstore")

_REFUSED: Final = frozenset(
    (errno.EBUSY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EMLINK, errno.EPERM)
)
"""A mount point, a folder in a lower layer of an overlay, or a file system that lacks exchanges or hard links."""


def emptied(record: Record) -> Record:
    """Return the record of a store with the same fields and columns, without rows, and of a new generation."""
    return replace(without_rows(record), generation=new_id(), commit_id=new_id(), epoch=0)


def copy_rows(snapshot: Snapshot, rows: Rows, path: Path, *, fit: bool = False) -> Record:
    """Build a store with some rows of another, and its index, in the sibling of `path`. Return its record.

    With `fit`, chunks are no larger than the rows: nothing will be appended.
    """
    start = emptied(snapshot.record)
    if fit:
        sizes = dict.fromkeys(start.sample_arrays, len(rows))
        start = start.with_arrays(**{name: fitted(start.arrays[name], size) for name, size in sizes.items()})
    folder, empty = build_beside(path, start)
    arrays: dict[str, ArrayState] = dict(empty.arrays)
    sources = {"file_id": "file_id", "key_hash": "key_hash"}
    sources |= {name: spec.array for name, spec in snapshot.record.columns.items()}
    names: list[str] = []
    with WriteBatch() as batch:

        def add(name: str, values: Values) -> None:
            arrays[name] = append_rows(batch, folder.child(name), arrays[name], values)

        for block in row_blocks(snapshot, rows):
            codes, new_names = class_codes(names, snapshot.class_names_of(block))
            names += new_names
            add("class_code", codes)
            for name, source in sources.items():
                add(name, read_rows(snapshot, source, block))
            for field in empty.fields:
                grown = empty.with_arrays(**arrays)
                for name, values in field_appends(grown, {field: read_field(snapshot, field, block)}).items():
                    add(name, values)
        add("class_names", names)
        record = replace(empty.with_arrays(**arrays), rows=len(rows), commit_id=new_id())
        publish(batch, folder, empty, record)
    if wants_run(rows=record.rows, in_memory=record.rows):
        write_run(open_snapshot(folder.path))
    return record


def compact(snapshot: Snapshot) -> None:
    """Replace a store by a copy without its deleted rows. The caller holds the lock, and has recovered the store.

    Raises
    ------
    CompactionRefusedError
        The folders can't be exchanged here. Nothing was changed.
    StoreReplacedError
        Another folder was put at the path. Nothing was changed.
    """
    folder = snapshot.local_folder
    path = folder.path
    beside = sibling(path)
    # A new checksum must not cover up a flipped bit: each chunk is checked as it is copied.
    checked = open_snapshot(path, mapping=snapshot.mapping, check="touched")
    with building(path):
        record = copy_rows(checked, checked.live_rows, path)
        try:
            _keep_other_files(snapshot, Folder.open(beside), record)
            swap_folders(beside, path)
        except OSError as error:
            if error.errno in _REFUSED:
                raise CompactionRefusedError(path, error.strerror or "") from error
            raise
    if Folder.open(beside).identity() != folder.identity():  # the store was moved since its path was looked up
        swap_folders(beside, path)
        remove_tree(beside, first=METADATA_NAME)
        raise StoreReplacedError(path)
    try:
        sync_path(path.parent)
    except OSError as error:
        raise CommitUncertainError(path, record.commit_id) from error
    logger.info("%s: compacted, %d rows kept of %d", path, record.rows, snapshot.record.rows)
    # A reader that has just opened the old folder finds no record in it and starts again.
    remove_tree(beside, first=METADATA_NAME)


def _keep_other_files(snapshot: Snapshot, new: Folder, record: Record) -> None:
    """Link the files and folders that are not embstore's into the new folder of a store, in arrays' folders too."""
    old = snapshot.local_folder
    for name in set(old.names()) - snapshot.record.arrays.keys() - {METADATA_NAME, INDEX_FOLDER}:
        if name in record.arrays:  # a column's array gets the column's name again
            raise StoreExistsError(old.path / name)
        new.link_from(old, name)
    new.sync()
    renamed = {spec.array: name for name, spec in snapshot.record.columns.items()}
    for name, array in snapshot.record.arrays.items():
        source, target = old.child(name), new.child(renamed.get(name, name))
        others = [entry for entry in source.names() if entry != METADATA_NAME and not is_chunk(entry, array)]
        for entry in others:
            target.link_from(source, entry)
        if others:
            target.sync()


def write_copy(snapshot: Snapshot, rows: Rows, path: Path) -> Record:
    """Make a new store at `path` with some rows of another.

    Raises
    ------
    StoreExistsError
    """
    with building(path):
        record = copy_rows(snapshot, rows, path)
        move_into_place(sibling(path), path)
    return record
