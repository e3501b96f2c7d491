"""One chunk file: reading it with its checks, and writing it. Which rows go where is the caller's.

A missing file is a plain `FileNotFoundError` here: whether it was lost or the store moved on, only
the snapshot can tell.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from embstore.errors import CorruptStoreError
from embstore.fsio import Buffer, Folder, OpenFile, read_exactly, read_into
from embstore.layout import CHECKSUM_NBYTES, chunk_name, crc32c, crc32c_extend, decode_strings
from embstore.schema import STRING, ArrayState, Tail

__all__ = ["check_tail", "open_chunk", "read_chunk", "read_tail", "write_chunk"]

_COUNT_NBYTES: Final = 4  # vlen-utf8 begins with the number of strings
_MAX_STRING_CHUNK: Final = 2**32
_CHECKSUM = struct.Struct("<I")
_CHECK_BLOCK: Final = 128 * 2**10
_ZEROS: Final = bytes(2**20)


def open_chunk(folder: Folder, array: ArrayState, index: int) -> OpenFile:
    """Open a chunk's file, for a ``with`` block that gets its descriptor and size, which has been checked.

    Raises
    ------
    CorruptStoreError
        Its size is not that of the chunk.
    """
    name = chunk_name(array, index)
    file = folder.opened(name)
    if array.dtype == STRING:
        least = _COUNT_NBYTES + 4 * array.rows_per_chunk + CHECKSUM_NBYTES
        if least <= file.size <= _MAX_STRING_CHUNK:
            return file
        expected = f"at least {least:,}"
    else:
        nbytes = array.chunk_nbytes + CHECKSUM_NBYTES
        if file.size == nbytes:
            return file
        expected = f"{nbytes:,}"
    with file:
        raise CorruptStoreError(folder.path / name, f"expected {expected} bytes, found {file.size:,}")


def stored_checksum(descriptor: int, size: int) -> int:
    """Read the CRC-32C at a chunk file's end."""
    return int(_CHECKSUM.unpack(read_exactly(descriptor, CHECKSUM_NBYTES, size - CHECKSUM_NBYTES))[0])


def read_chunk(folder: Folder, array: ArrayState, index: int) -> np.ndarray[Any, Any] | list[str]:
    """Read a whole chunk and check it.

    Returns
    -------
    ndarray, (rows_per_chunk, *shape), read-only; or list of str
        Rows past the committed ones included.

    Raises
    ------
    CorruptStoreError
        Its checksum does not match, or strings do not fit.
    """
    path = folder.path / chunk_name(array, index)
    with open_chunk(folder, array, index) as (descriptor, size):
        data = memoryview(read_exactly(descriptor, size, 0))
    payload = data[:-CHECKSUM_NBYTES]
    if len(data) != size or crc32c(payload) != _CHECKSUM.unpack(data[-CHECKSUM_NBYTES:])[0]:
        raise CorruptStoreError(path, "its checksum does not match")
    if array.dtype != STRING:
        return np.frombuffer(payload, array.dtype).reshape(array.rows_per_chunk, *array.shape)
    if _CHECKSUM.unpack(payload[:_COUNT_NBYTES])[0] != array.rows_per_chunk:
        raise CorruptStoreError(path, "it holds another number of strings than a chunk has rows")
    try:
        return decode_strings(payload[_COUNT_NBYTES:], array.rows_per_chunk)
    except ValueError as error:
        raise CorruptStoreError(path, str(error)) from error


def read_tail(folder: Folder, array: ArrayState, *, also: Tail | None = None) -> bytes:
    """Read the committed bytes of the last chunk and check them against the record.

    The file may hold more rows than were committed (a writer at work, or killed); its own checksum
    covers those too, so it is the record's that counts here.

    Parameters
    ----------
    folder, array
    also : Tail, optional
        What an erase that is under way turns the last chunk into.

    Raises
    ------
    CorruptStoreError
        The bytes are not those that were committed.
    """
    index = array.chunks - 1
    start = _COUNT_NBYTES if array.dtype == STRING else 0
    with open_chunk(folder, array, index) as (descriptor, size):
        for tail in (array.tail, also):
            if tail is not None and tail.nbytes <= size - start - CHECKSUM_NBYTES:
                data = read_exactly(descriptor, tail.nbytes, start)
                if len(data) == tail.nbytes and crc32c(data) == tail.crc32c:
                    return data
    raise _tail_differs(folder, array)


def check_tail(folder: Folder, array: ArrayState, *, also: Tail | None = None) -> None:
    """Check the last chunk's committed rows, if there are any; see `read_tail`, which also returns them."""
    if array.tail is None:
        return
    with open_chunk(folder, array, array.chunks - 1) as (descriptor, size):
        for tail in (array.tail, also):
            if tail is not None and _checksum_of(descriptor, size, array, tail.nbytes) == tail.crc32c:
                return
    raise _tail_differs(folder, array)


def _checksum_of(descriptor: int, size: int, array: ArrayState, nbytes: int) -> int | None:
    """Checksum a chunk's first rows through one small buffer: a large one costs page faults, not I/O."""
    position = _COUNT_NBYTES if array.dtype == STRING else 0
    if nbytes > size - position - CHECKSUM_NBYTES:
        return None
    buffer, checksum = memoryview(bytearray(min(nbytes, _CHECK_BLOCK))), 0
    while nbytes > 0:
        part = buffer[:nbytes]
        if read_into(descriptor, [part], position) != len(part):
            return None
        checksum = crc32c_extend(checksum, part)
        position += len(part)
        nbytes -= len(part)
    return checksum


def _tail_differs(folder: Folder, array: ArrayState) -> CorruptStoreError:
    path = folder.path / chunk_name(array, array.chunks - 1)
    return CorruptStoreError(path, "its rows are not those committed last")


def write_chunk(folder: Folder, array: ArrayState, index: int, parts: Sequence[Buffer], rows: int) -> Tail:
    """Write a chunk file whole and durably, its folder's entry apart.

    Parameters
    ----------
    folder, array, index
    parts : sequence of bytes-like
        The chunk's first rows, one part after the other.
    rows : int
        How many rows that is; the rest of the chunk is blanked (zeros, or empty strings).

    Returns
    -------
    Tail
        Of these rows.
    """
    is_string = array.dtype == STRING
    head = [_CHECKSUM.pack(array.rows_per_chunk)] if is_string else []
    nbytes = sum(len(memoryview(part).cast("B")) for part in parts)
    committed, whole = 0, crc32c(head[0]) if head else 0
    for part in parts:
        committed = crc32c_extend(committed, part)
        whole = crc32c_extend(whole, part) if head else committed
    # Each empty string is a length of 0.
    padding = 4 * (array.rows_per_chunk - rows) if is_string else array.chunk_nbytes - nbytes
    for start in range(0, padding, len(_ZEROS)):
        whole = crc32c_extend(whole, _ZEROS[: padding - start])
    end = sum(map(len, head)) + nbytes + padding
    folder.replace(chunk_name(array, index), [*head, *parts], trailer=(end, _CHECKSUM.pack(whole)))
    return Tail(nbytes=nbytes, crc32c=committed)
