"""Erase: blank deleted rows in the files themselves, so that a withdrawn sample is gone.

An erase is the only operation that rewrites committed chunks under their names. So a first commit raises the epoch of
the record, which readers of earlier commits notice. That commit also has the checksums that the last chunks will have.
So a store in the middle of an erase can be opened, and the next writer finishes the erase of a killed one.

The keys of an erase are in a file of their own until its receipt is given. So an erase that failed halfway can be
repeated, although its keys are deleted by then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore._engine.chunks.chunk_file import check_digest, digest_of, read_committed, tail_rows, write_chunk
from embstore._engine.format.ragged import offsets_message, sound, token_rows
from embstore._engine.format.record import STRING, ArrayState, Record, Tail, offsets_name
from embstore._engine.format.values import crc32c, payload
from embstore._engine.format.zarr_layout import blank
from embstore._engine.io.durable import replace_file
from embstore._engine.io.folder import Folder
from embstore._engine.pickles import PickledByName
from embstore._engine.write.commit import Committed, Values, commit
from embstore._engine.write.index_file import drop_runs
from embstore.errors import CorruptStoreError, EraseUnfinishedError, StorageFullError

KEYS_FILE: Final = "erase-keys"
"""Not a name that an array can have."""
_ENTRY: Final = np.dtype([("hash", "V16"), ("row", "<i8")])
_MOST_KEYS: Final = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseReceipt(PickledByName):
    """Result of an erase, with the copies that it can't reach.

    Attributes
    ----------
    path : Path
    key_hashes : tuple of str
        BLAKE2b-128 of the keys, 32 hexadecimal digits each. The keys themselves are gone.
    rows : tuple of int
    files_rewritten : int
    same_content : tuple of str
        Keys of rows that were made from the same content, and stay.
    not_reached : tuple of str
    """

    path: Path
    key_hashes: tuple[str, ...]
    rows: tuple[int, ...]
    files_rewritten: int
    same_content: tuple[str, ...] = ()
    not_reached: tuple[str, ...] = (
        "arrays and processes that map the old files, until they are closed or refreshed",
        "file system snapshots and the freed blocks of the disk",
        "backups and other copies of the store",
        "rows that a run of embed gathers beside the store for a new field, until it has added the field",
        "the names of classes",
    )


def plan_erase(folder: Folder, old: Record, dead: Values) -> dict[str, Tail]:
    """Check each chunk that the erase will read, and return the last chunks of its arrays. Nothing is written.

    After the first commit damage would be too late: the keys are deleted by then, and each writer has to finish the
    erase first.

    Parameters
    ----------
    folder, old
    dead : ndarray, (n,) int64
        All rows deleted by the end of the erase.

    Raises
    ------
    CorruptStoreError
    """
    tails = {}
    for name, gone in _rows_to_blank(folder, old, np.sort(np.asarray(dead, dtype=np.int64))).items():
        array, child = old.arrays[name], folder.child(name)
        last = (array.chunks - 1) * array.rows_per_chunk
        if len(gone):
            check_digest(child, array)  # a new digest must not cover up a chunk in a wrong place
        for index in _chunks_to_read(array, gone):
            read_committed(child, array, index)
        if len(gone) and gone[-1] >= last:
            tails[name] = _blanked_tail(child, array, gone[gone >= last] - last)
    return tails


def _chunks_to_read(array: ArrayState, gone: NDArray[np.int64]) -> list[int]:
    """Return the chunks that hold dead rows, and the last one: a killed writer may have left rows there."""
    last = [array.chunks - 1] if array.chunks else []
    return sorted({*(gone // array.rows_per_chunk).tolist(), *last})


def erase_dead(
    folder: Folder, old: Record, dead: Values, appends: Mapping[str, Values], tails: Mapping[str, Tail]
) -> tuple[Committed, int]:
    """Blank all deleted rows in the chunks that hold them.

    Parameters
    ----------
    folder, old, dead
    appends : mapping
        The rows that this commit deletes.
    tails : mapping
        The result of `plan_erase`.

    Returns
    -------
    Committed, int
        The last commit, and the number of files that were rewritten.
    """
    # From here on a reader of an earlier commit does not use bytes that it reads by name, and a reader of this
    # commit accepts the last chunks before and after the erase.
    record, _ = commit(folder, old, replace(old, epoch=old.epoch + 1, erasing=dict(tails)), appends)
    with unfinished(folder.path):
        return _blank_all(folder, record, np.sort(np.asarray(dead, dtype=np.int64)))


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """Turn errors of the disk after the first commit of an erase into EraseUnfinishedError. Damage stays damage."""
    try:
        yield
    except CorruptStoreError:
        raise
    except OSError as error:
        reason = error.reason if isinstance(error, StorageFullError) else None
        raise EraseUnfinishedError(path, reason or str(error)) from error


def keys_without_receipt(folder: Folder) -> dict[bytes, int]:
    """Return the key hashes of erases that have given no receipt yet, with the numbers of their rows."""
    try:
        data = folder.read(KEYS_FILE, most=_MOST_KEYS * _ENTRY.itemsize)
    except (FileNotFoundError, CorruptStoreError):  # a link, or a file of others
        return {}
    entries = np.frombuffer(data[: len(data) - len(data) % _ENTRY.itemsize], _ENTRY)
    return dict(zip(map(bytes, entries["hash"]), entries["row"].tolist(), strict=True))


def keep_keys(folder: Folder, keys: Mapping[bytes, int]) -> None:
    """Set the keys that `keys_without_receipt` returns. They survive a power cut once the folder is synced."""
    if keys:
        entries = np.array(list(keys.items()), _ENTRY)
        replace_file(folder, KEYS_FILE, [entries.view(np.uint8).data])
    else:
        folder.remove(KEYS_FILE)


def finish_erase(folder: Folder, record: Record) -> Record:
    """Finish the erase of a killed writer."""
    with unfinished(folder.path):
        return _blank_all(folder, record, np.sort(_numbers(folder, record, "dead_rows")))[0].record


def _numbers(folder: Folder, record: Record, name: str) -> NDArray[np.int64]:
    """Read a whole array of row numbers."""
    array = record.arrays[name]
    parts = [np.asarray(read_committed(folder.child(name), array, i)) for i in range(array.chunks)]
    return np.concatenate(parts)[: array.length] if parts else np.empty(0, np.int64)


def _rows_to_blank(folder: Folder, record: Record, dead: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return the rows of deleted samples for each array, ascending. For a ragged field these are tokens."""
    rows = dict.fromkeys(record.sample_arrays, dead)
    for name in record.ragged:
        offsets = _numbers(folder, record, offsets_name(name))
        tokens = record.arrays[name].length
        # All offsets are checked: where they fall, a row seems to have the tokens of its neighbours, which must stay.
        if not sound(offsets, tokens):
            raise CorruptStoreError(folder.path / offsets_name(name), offsets_message(tokens))
        rows[name] = token_rows(offsets[dead], offsets[dead + 1] - offsets[dead])
    return rows


def _blanked_tail(folder: Folder, array: ArrayState, places: Any) -> Tail:
    blanked = payload(array, _blanked(array, tail_rows(folder, array), places))
    return Tail(nbytes=len(blanked), crc32c=crc32c(blanked))


def _blanked(array: ArrayState, rows: Any, places: Any) -> Any:
    if array.dtype == STRING:
        gone = set(places.tolist())
        return ["" if i in gone else value for i, value in enumerate(rows)]
    rows = rows.copy()
    rows[places] = blank(array)
    return rows


def _blank_all(folder: Folder, record: Record, dead: Any) -> tuple[Committed, int]:
    """Rewrite the chunks that hold dead rows with these rows blanked, then commit the end of the erase."""
    files, arrays = 0, {}
    for name, gone in _rows_to_blank(folder, record, dead).items():
        array, child, after = record.arrays[name], folder.child(name), (record.erasing or {}).get(name)
        for index in _chunks_to_read(array, gone):
            first = index * array.rows_per_chunk
            count = min(array.rows_per_chunk, array.length - first)
            low, high = np.searchsorted(gone, (first, first + count))
            places = gone[low:high] - first
            chunk: Any = read_committed(child, array, index, tail_after_erase=after)
            rows, past, whole = chunk[:count], chunk[count:], len(chunk) == array.rows_per_chunk
            blanked = payload(array, _blanked(array, rows, places))
            if whole and bytes(blanked) == bytes(payload(array, rows)) and not any(bytes(payload(array, past))):
                tail = None if index < array.chunks - 1 else after
            else:
                tail, _ = write_chunk(partial(replace_file, child), array, index, [blanked], count)
                files += 1
            if index == array.chunks - 1 and tail is not None:
                array = replace(array, tail=tail)
        child.sync()
        if len(gone):
            arrays[name] = replace(array, digest=digest_of(child, array))
    drop_runs(folder)
    final = commit(folder, record, replace(record.with_arrays(**arrays), erasing=None), {})
    return final, files
