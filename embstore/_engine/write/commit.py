"""The commit: rows are added to the ends of arrays, then one rename makes them part of the store.

The caller holds the lock of the store and chooses the rows. `publish` has the order of the steps, which section 11 of
``docs/format.md`` specifies. `recover` removes the files of a killed writer.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embstore._engine.chunks.chunk_file import Put, read_tail, write_chunk
from embstore._engine.format.parse_record import record_from_json
from embstore._engine.format.record import ArrayState, Record, check_array_name, offsets_name
from embstore._engine.format.values import chunk_digest, dump_json, payload
from embstore._engine.format.zarr_layout import MAX_METADATA_BYTES, METADATA_NAME, group_document, is_chunk
from embstore._engine.io.durable import Buffer, PendingFile, WriteBatch, remove_tree, sibling
from embstore._engine.io.filesystem import move_into_place
from embstore._engine.io.folder import Folder, is_partial
from embstore._engine.write.record_edits import new_id
from embstore.errors import CommitUncertainError, ConfigError, CorruptStoreError, NameRefusedError, StoreExistsError

logger = logging.getLogger("embstore")

BACKUP_ARRAY = "key_hash"
"""The array whose own metadata has a copy of the record, for a salvage without ``zarr.json``."""
Values = np.ndarray[Any, Any] | Sequence[str]
Blocks = Values | Iterator[Values]
"""Rows, or an iterator over blocks of rows if they are too many to be in memory at once."""


class Committed(NamedTuple):
    """The committed record, and whether the metadata of all arrays was brought up to it (`tidy`)."""

    record: Record
    tidy: bool


def append_rows(batch: WriteBatch, folder: Folder, array: ArrayState, values: Blocks) -> ArrayState:
    """Write rows past the end of an array. They are not part of the store before a commit names them."""
    for block in values if isinstance(values, Iterator) else [values]:
        array = _append_block(batch, folder, array, block)
    return array


def _append_block(batch: WriteBatch, folder: Folder, array: ArrayState, values: Values) -> ArrayState:
    used = array.length % array.rows_per_chunk
    if used:
        batch.publish(batch.pending(folder))  # the last chunk may be among them
    # The old rows are checked as they are read: a new checksum must not cover up a flipped bit.
    head = [read_tail(folder, array)] if used else []
    return write_rows(partial(batch.write, folder), array, values, head)


def write_rows(put: Put, array: ArrayState, values: Values, head: list[bytes]) -> ArrayState:
    """Write rows past the end of an array. `head` has the rows of its last chunk, if that has room."""
    count, size = len(values), array.rows_per_chunk
    used = array.length % size
    tail, start, digest = array.tail, 0, int(array.digest or "0", 16)
    for index in range(array.length // size, -(-(array.length + count) // size)):
        stop = min(start + size - used, count)
        parts: list[Buffer] = [*head, payload(array, values[start:stop])]
        tail, checksum = write_chunk(put, array, index, parts, used + stop - start)
        if used + stop - start == size:
            digest ^= chunk_digest(index, checksum)
        head, used, start = [], 0, stop
    array = replace(array, length=array.length + count, tail=tail)
    return replace(array, digest=f"{digest:016x}" if array.full_chunks else None)


def commit(folder: Folder, old: Record, new: Record, appends: Mapping[str, Blocks]) -> Committed:
    """Add rows to arrays and make `new` the store's record.

    Parameters
    ----------
    folder : Folder
        Of the store. The caller holds its lock.
    old : Record
        The newest commit.
    new : Record
        The record to commit, with the old lengths of the arrays in `appends`. Arrays that are not in `old` are made.
    appends : mapping of array names to rows, or to an iterator over blocks of rows

    Returns
    -------
    Committed

    Raises
    ------
    CommitUncertainError
        The record is in place, but may not be on disk.
    StoreExistsError
        A folder of other files has the name of a new array.
    SchemaError
        The record breaks the format. Nothing was committed.
    OSError
        Nothing was committed.
    """
    made = new.arrays.keys() - old.arrays.keys()
    for name in made:
        _make_array_folder(folder, name)
    if made:
        folder.sync()
    with WriteBatch() as batch:
        grown = {name: append_rows(batch, folder.child(name), new.arrays[name], v) for name, v in appends.items()}
        dropped = () if new.dropped == old.dropped else new.dropped  # those of the last commit are removed by now
        record = replace(new.with_arrays(**grown), dropped=dropped, commit_id=new_id())
        if made:  # otherwise only numbers changed, and an append saves this check (0.5 of 18 ms)
            refuse_unreadable(record)
        return publish(batch, folder, old, record)


def publish(batch: WriteBatch, folder: Folder, old: Record | None, record: Record) -> Committed:
    """Commit a record, and the chunks that a batch has written for it, to the store in `folder`.

    All files are synced under temporary names. Then the chunks are renamed, then the ``zarr.json`` of the group, whose
    rename is the commit. The ``zarr.json`` of the arrays are renamed last. Only other readers need them, so they may
    lag after a power cut. Their content is synced too, since other readers can't open an array whose metadata is torn.
    A folder with a ``zarr.json`` is therefore never one of a killed writer, which `recover` may remove.

    Raises
    ------
    CommitUncertainError
        The record is in place, but may not be on disk.
    OSError
        Nothing was committed.
    """
    chunks = batch.pending()
    own: list[PendingFile] = []
    known = old.arrays if old else {}
    document = group_document(record)
    for name, array in record.arrays.items():
        if name not in known or known[name].length != array.length or name == BACKUP_ARRAY:
            own.append(batch.write(folder.child(name), METADATA_NAME, [own_metadata(name, document)]))
    group = batch.write(folder, METADATA_NAME, [_dump_group(document)])
    batch.sync()
    batch.publish(chunks)
    batch.rename([group])  # the commit itself
    try:
        folder.sync()
    except OSError as error:
        raise CommitUncertainError(folder.path, record.commit_id) from error
    try:
        batch.rename(own)
        for name in record.arrays.keys() - known.keys():
            folder.child(name).sync()
        remove_dropped(folder, record)
    except OSError as error:
        # The commit is on disk. Only the metadata for readers that ignore consolidated metadata lags.
        batch.discard()
        logger.warning(
            "%s: committed, but the metadata of some arrays lags (%s); the next commit updates it", folder.path, error
        )
        return Committed(record, tidy=False)
    return Committed(record, tidy=True)


def _make_array_folder(folder: Folder, name: str) -> None:
    try:
        folder.make_child(name)
    except FileExistsError as error:
        if not unfinished_array(folder, name):
            raise StoreExistsError(folder.path / name) from error
        folder.remove(name)
        folder.make_child(name)


def unfinished_array(folder: Folder, name: str) -> bool:
    """Return whether `name` is a folder of chunk files and temporary files alone, from a commit that was never made.

    A killed writer may leave it empty. An empty folder whose name no array can have belongs to others.
    """
    try:
        check_array_name(name, ())
        inside = folder.child(name).names()
    except (CorruptStoreError, OSError, NameRefusedError):
        return False  # not a folder, or not of an array
    return all(is_partial(entry) or is_chunk(entry) for entry in inside)


def remove_dropped(folder: Folder, record: Record) -> None:
    """Remove the arrays that a commit gave up. Files of others in their folders stay."""
    for name in record.dropped:
        try:
            child = folder.child(name)
            inside = child.names()
        except (FileNotFoundError, CorruptStoreError):  # it is removed already, or others use the name
            continue
        own = [entry for entry in inside if entry == METADATA_NAME or is_partial(entry) or is_chunk(entry)]
        if len(own) == len(inside):
            folder.remove(name)
        else:
            for entry in own:
                child.remove(entry)
            child.sync()
        folder.sync()


def refuse_unreadable(record: Record) -> None:
    """Raise if readers would refuse a record. Once such a record is in place, the store can't be opened.

    Raises
    ------
    SchemaError
    """
    record_from_json(record.to_json())


def _dump_group(document: dict[str, Any]) -> bytes:
    data = dump_json(document)
    if len(data) > MAX_METADATA_BYTES:
        raise ConfigError("", f"{len(data):,} bytes", f"zarr.json may have {MAX_METADATA_BYTES:,} bytes")
    return data


def own_metadata(name: str, document: dict[str, Any]) -> bytes:
    """Return the ``zarr.json`` of one array, for readers that ignore consolidated metadata."""
    metadata = document["consolidated_metadata"]["metadata"][name]
    if name == BACKUP_ARRAY:
        metadata = {**metadata, "attributes": {"embstore_backup": document["attributes"]["embstore"]}}
    return dump_json(metadata)


def create(path: Path, record: Record) -> None:
    """Make a new store at `path`: build it beside the path, then rename it.

    Raises
    ------
    StoreExistsError
        Something is at `path`.
    """
    with building(path):
        folder, _ = build_beside(path, record)
        move_into_place(folder.path, path)


@contextlib.contextmanager
def building(path: Path) -> Iterator[None]:
    """Remove the sibling of `path` if the block raises, so that a full disk does not stay full."""
    try:
        yield
    except OSError:  # embstore's own errors here are OSErrors too
        with contextlib.suppress(OSError):  # the next writer removes it otherwise
            remove_tree(sibling(path), first=METADATA_NAME)
        raise


def build_beside(path: Path, record: Record, appends: Mapping[str, Blocks] | None = None) -> tuple[Folder, Record]:
    """Make a new store in the sibling of `path`, empty or with rows. Return its folder and its record.

    Offsets of a ragged field without rows begin with a 0. Those in `appends` have that 0 already.
    """
    beside = sibling(path)
    parent = Folder.open(path.parent)
    parent.remove(beside.name)
    folder = parent.make_child(beside.name)
    for name in record.arrays:
        folder.make_child(name)
    zeros: dict[str, Blocks] = dict.fromkeys(map(offsets_name, record.ragged), np.zeros(1, dtype=np.int64))
    with WriteBatch() as batch:
        grown = {
            name: append_rows(batch, folder.child(name), record.arrays[name], values)
            for name, values in (zeros | dict(appends or {})).items()
        }
        record = replace(record.with_arrays(**grown), commit_id=new_id())
        refuse_unreadable(record)
        publish(batch, folder, None, record)
    return folder, record
