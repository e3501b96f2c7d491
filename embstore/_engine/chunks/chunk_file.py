"""Read and check one chunk file, and write one. The caller decides which rows go where.

A missing file raises a plain `FileNotFoundError` here. Only the snapshot knows whether the file was lost or is of an
earlier commit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, Final, Protocol

import numpy as np

from embstore._engine.chunks.compression import compress, decompress
from embstore._engine.format.record import STRING, ArrayState, Tail
from embstore._engine.format.values import (
    CHECKSUM_NBYTES,
    MAX_STRING_BYTES,
    chunk_digest,
    crc32c,
    crc32c_extend,
    decode_strings,
)
from embstore._engine.format.zarr_layout import chunk_name
from embstore._engine.io.durable import Buffer, Trailer
from embstore._engine.io.folder import Folder, OpenFile, ReadableFolder, read_exactly, read_into
from embstore._engine.io.remote import RemoteFolder
from embstore._engine.io.threads import in_turn
from embstore.errors import CorruptStoreError

Chunk = np.ndarray[Any, Any] | list[str]

_COUNT_NBYTES: Final = 4  # vlen-utf8 begins with the number of strings
_MAX_STRING_CHUNK: Final = 2**32
_USUAL_STRING_CHUNK: Final = 16 * 2**20
_CHECKSUM = struct.Struct("<I")
_CHECK_BLOCK: Final = 128 * 2**10
_ZEROS: Final = bytes(2**20)
PLACES_DIFFER: Final = "its full chunks are not those committed, or not in their places"


def sizes(array: ArrayState) -> tuple[int, int]:
    """Return the least and the largest size of a chunk's file in bytes."""
    if array.dtype == STRING:
        return _COUNT_NBYTES + 4 * array.rows_per_chunk + CHECKSUM_NBYTES, _MAX_STRING_CHUNK
    nbytes = array.chunk_nbytes + CHECKSUM_NBYTES
    if array.compression is not None:
        return 1 + CHECKSUM_NBYTES, nbytes + nbytes // 128 + 4096  # incompressible data grow a little
    return nbytes, nbytes


def _size_problem(size: int, allowed: tuple[int, int]) -> str:
    """Return the message for a chunk's file of the wrong size, or ""."""
    least, most = allowed
    if least <= size <= most:
        return ""
    return f"expected {least:,}{f' to {most:,}' if least != most else ''} bytes, found {size:,}"


def open_chunk(folder: Folder, array: ArrayState, index: int) -> OpenFile:
    """Open a chunk's file, for a ``with`` block that gets its descriptor and size. The size is checked.

    Raises
    ------
    CorruptStoreError
        Its size is not that of a chunk.
    """
    return next(open_chunks(folder, array, [index]))


def open_chunks(folder: Folder, array: ArrayState, indices: Iterable[int]) -> Iterator[OpenFile]:
    """Open the files of chunks in turn, each as `open_chunk` does. Mapping a column opens thousands."""
    allowed = sizes(array)  # computed once: it takes as long as opening a file
    for index in indices:
        name = chunk_name(array, index)
        file = folder.opened(name)
        if problem := _size_problem(file.size, allowed):
            with file:
                raise CorruptStoreError(folder.path / name, problem)
        yield file


def stored_checksum(descriptor: int, size: int) -> int:
    """Read the CRC-32C at a chunk file's end."""
    return int(_CHECKSUM.unpack(read_exactly(descriptor, CHECKSUM_NBYTES, size - CHECKSUM_NBYTES))[0])


def digest_of(folder: Folder, array: ArrayState) -> str | None:
    """Return the digest of an array's full chunks by the checksums at the ends of their files.

    Raises
    ------
    CorruptStoreError
        A chunk has the wrong size.
    """
    checksums = []
    for file in open_chunks(folder, array, range(array.full_chunks)):
        with file as (descriptor, size):
            checksums.append(stored_checksum(descriptor, size))
    return digest_by(checksums)


def digest_by(checksums: Sequence[int]) -> str | None:
    """Return the digest of an array's full chunks by their checksums."""
    digest = 0
    for index, checksum in enumerate(checksums):
        digest ^= chunk_digest(index, checksum)
    return f"{digest:016x}" if checksums else None


def check_digest(folder: Folder, array: ArrayState, checksums: Sequence[int] | None = None) -> None:
    """Raise CorruptStoreError if a full chunk is another than the committed one, or not in its place.

    Such a chunk may be whole: its own checksum does not cover its place.

    Parameters
    ----------
    folder, array
    checksums : sequence of int, optional
        At the ends of the full chunks' files. By default they are read.
    """
    if (digest_of(folder, array) if checksums is None else digest_by(checksums)) != array.digest:
        for _ in read_chunks(folder, array, range(array.full_chunks)):
            pass  # a chunk that is damaged itself is named
        raise CorruptStoreError(folder.path, PLACES_DIFFER)


def read_chunk(folder: ReadableFolder, array: ArrayState, index: int) -> Chunk:
    """Read a whole chunk and check it.

    Returns
    -------
    ndarray, (rows_per_chunk, *shape), read-only, or list of str
        All rows of the chunk, including those past the committed ones.

    Raises
    ------
    CorruptStoreError
        Its checksum does not match, or its strings are malformed.
    """
    return next(read_chunks(folder, array, [index]))


def read_committed(folder: Folder, array: ArrayState, index: int, *, tail_after_erase: Tail | None = None) -> Chunk:
    """Read a chunk as `read_chunk` does. Of a last chunk whose padding or checksum is damaged, read the committed rows.

    Raises
    ------
    CorruptStoreError
        The committed rows are damaged too.
    """
    try:
        return read_chunk(folder, array, index)
    except CorruptStoreError:
        if index != array.chunks - 1:
            raise
    return tail_rows(folder, array, tail_after_erase=tail_after_erase)


def tail_rows(folder: Folder, array: ArrayState, *, tail_after_erase: Tail | None = None) -> Chunk:
    """Read the committed rows of the last chunk and check them, as `read_tail` does."""
    data = read_tail(folder, array, tail_after_erase=tail_after_erase)
    count = array.length - (array.chunks - 1) * array.rows_per_chunk
    if array.dtype == STRING:
        return decode_strings(data, count)
    return np.frombuffer(data, array.dtype).reshape(count, *array.shape)


def read_chunks(
    folder: ReadableFolder, array: ArrayState, indices: Iterable[int], *, tails: Sequence[Tail] = ()
) -> Iterator[Chunk]:
    """Read whole chunks in turn as `read_chunk` does, several at once where that helps.

    Parameters
    ----------
    folder, array, indices
    tails : sequence of Tail
        The array's last chunk must begin with the rows of one of them, unless the sequence is empty.
    """
    last = chunk_name(array, array.chunks - 1)
    names = (chunk_name(array, index) for index in indices)  # lazy: a forged record may claim billions
    most, held = _most_nbytes(folder, array), _held_nbytes(array)

    def decode(path: PurePath, data: bytes | memoryview) -> Chunk:
        return _decoded(path, array, data, tails if path.name == last else ())

    if isinstance(folder, Folder) and array.compression is not None:
        return in_turn(lambda name: decode(folder.path / name, folder.read(name, most=most)), names, held=held)
    return folder.contents(names, decode, most=most, held=held)


def fill_from_chunks(
    folder: RemoteFolder, array: ArrayState, parts: Iterable[tuple[int, memoryview]], *, tails: Sequence[Tail]
) -> None:
    """Fill buffers with the first rows of uncompressed chunks at a URL, several at once, and check each chunk whole.

    Parameters
    ----------
    folder, array
    parts : iterable of (int, memoryview)
        Index of a chunk, and the buffer in bytes. It is at most as long as the committed rows of the chunk.
    tails : sequence of Tail
        As for `read_chunks`.
    """
    last, nbytes = chunk_name(array, array.chunks - 1), sizes(array)[1]

    def check(path: PurePath, rows: memoryview, rest: memoryview) -> None:
        if problem := _size_problem(len(rows) + len(rest), sizes(array)):
            raise CorruptStoreError(path, problem)
        start, stored = crc32c(rows), _CHECKSUM.unpack(rest[-CHECKSUM_NBYTES:])[0]
        if crc32c_extend(start, rest[:-CHECKSUM_NBYTES]) != stored:
            raise CorruptStoreError(path, "its checksum does not match")
        if path.name == last and tails:
            found = [crc32c_extend(start, rest[: tail.nbytes - len(rows)]) == tail.crc32c for tail in tails]
            if not any(found):
                raise tail_differs(path)

    folder.fill(((chunk_name(array, index), buffer) for index, buffer in parts), check, nbytes=nbytes)


def _most_nbytes(folder: ReadableFolder, array: ArrayState) -> int:
    """Return the largest size of a chunk's file in bytes. At a URL it is the most that a writer can put into it."""
    most = sizes(array)[1]
    if array.dtype == STRING and not isinstance(folder, Folder):
        return min(most, _COUNT_NBYTES + array.rows_per_chunk * (4 + MAX_STRING_BYTES) + CHECKSUM_NBYTES)
    return most


def _held_nbytes(array: ArrayState) -> int:
    """Return the memory in bytes that a chunk takes while it is read. For strings it is a size that few exceed."""
    if array.dtype == STRING:
        return _USUAL_STRING_CHUNK
    return sizes(array)[1] + (array.chunk_nbytes if array.compression is not None else 0)


def _decoded(path: PurePath, array: ArrayState, whole: bytes | memoryview, tails: Sequence[Tail]) -> Chunk:
    """Turn a chunk's file into its rows."""
    if problem := _size_problem(len(whole), sizes(array)):
        raise CorruptStoreError(path, problem)
    data = memoryview(whole)
    payload = data[:-CHECKSUM_NBYTES]
    if crc32c(payload) != _CHECKSUM.unpack(data[-CHECKSUM_NBYTES:])[0]:
        raise CorruptStoreError(path, "its checksum does not match")
    if array.dtype == STRING and _CHECKSUM.unpack(payload[:_COUNT_NBYTES])[0] != array.rows_per_chunk:
        raise CorruptStoreError(path, "it holds another number of strings than a chunk has rows")
    try:
        values = decompress(array, payload).data.toreadonly() if array.compression is not None else payload
        rows = values[_COUNT_NBYTES:] if array.dtype == STRING else values
        if tails and not any(crc32c(rows[: tail.nbytes]) == tail.crc32c for tail in tails):
            raise tail_differs(path)
        if array.dtype == STRING:
            return decode_strings(rows, array.rows_per_chunk)
        return np.frombuffer(rows, array.dtype).reshape(array.rows_per_chunk, *array.shape)
    except ValueError as error:
        raise CorruptStoreError(path, str(error)) from error


def read_tail(folder: Folder, array: ArrayState, *, tail_after_erase: Tail | None = None) -> bytes:
    """Read the committed bytes of the last chunk and check them against the record.

    The file may hold more rows than were committed, by a writer that is at work or was killed. The file's own checksum
    covers those rows too, so the record's checksum is used here.

    Parameters
    ----------
    folder, array
    tail_after_erase : Tail, optional
        The rows of the last chunk after an erase that is under way.

    Raises
    ------
    CorruptStoreError
        The bytes differ from the committed ones.
    """
    for data in _tails(folder, array, tail_after_erase):
        if data is not None:
            return data
    raise tail_differs(folder.path / chunk_name(array, array.chunks - 1))


def _tails(folder: Folder, array: ArrayState, tail_after_erase: Tail | None) -> Iterator[bytes | None]:
    tails = [tail for tail in (array.tail, tail_after_erase) if tail is not None]
    if array.compression is not None:
        rows = np.asarray(read_chunk(folder, array, array.chunks - 1)).reshape(-1).view(np.uint8).data
        for tail in tails:
            data = bytes(rows[: tail.nbytes])
            yield data if crc32c(data) == tail.crc32c else None
        return
    start = _COUNT_NBYTES if array.dtype == STRING else 0
    with open_chunk(folder, array, array.chunks - 1) as (descriptor, size):
        for tail in tails:
            if tail.nbytes <= size - start - CHECKSUM_NBYTES:
                data = read_exactly(descriptor, tail.nbytes, start)
                yield data if len(data) == tail.nbytes and crc32c(data) == tail.crc32c else None


def check_tail(folder: Folder, array: ArrayState, *, tail_after_erase: Tail | None = None) -> None:
    """Check the committed rows of the last chunk, if any. `read_tail` also returns them."""
    if array.tail is None:
        return
    if array.compression is not None:
        read_tail(folder, array, tail_after_erase=tail_after_erase)
        return
    with open_chunk(folder, array, array.chunks - 1) as (descriptor, size):
        for tail in (array.tail, tail_after_erase):
            if tail is not None and _checksum_of(descriptor, size, array, tail.nbytes) == tail.crc32c:
                return
    raise tail_differs(folder.path / chunk_name(array, array.chunks - 1))


def _checksum_of(descriptor: int, size: int, array: ArrayState, nbytes: int) -> int | None:
    """Return the checksum of a chunk's first rows. The buffer is small, because a large one costs page faults."""
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


def tail_differs(path: PurePath) -> CorruptStoreError:
    """Return the error for a last chunk whose rows differ from the committed ones."""
    return CorruptStoreError(path, "its rows are not those committed last")


class Put(Protocol):
    """Writes a file: `replace_file` and `WriteBatch.write` of some folder do."""

    def __call__(self, name: str, parts: Sequence[Buffer], *, trailer: Trailer | None = None) -> object:
        """Write the file `name` of some parts, with bytes at an offset past them."""


def write_chunk(put: Put, array: ArrayState, index: int, parts: Sequence[Buffer], rows: int) -> tuple[Tail, int]:
    """Write a chunk file whole.

    Parameters
    ----------
    put : callable
    array, index
    parts : sequence of bytes-like
        The chunk's first rows, one part after the other.
    rows : int
        Number of rows in `parts`. The rest of the chunk is zeros, or empty strings.

    Returns
    -------
    Tail, int
        Size and checksum of these rows, and the checksum at the end of the file.
    """
    name = chunk_name(array, index)
    if array.compression is not None:
        data = b"".join(parts)
        packed = compress(array, data + bytes(array.chunk_nbytes - len(data)))
        whole = crc32c(packed)
        put(name, [packed, _CHECKSUM.pack(whole)])
        return Tail(nbytes=len(data), crc32c=crc32c(data)), whole
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
    put(name, [*head, *parts], trailer=(end, _CHECKSUM.pack(whole)))
    return Tail(nbytes=nbytes, crc32c=committed), whole
