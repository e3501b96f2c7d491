"""The page cache: files dropped from it, what is left there, and reads that go around it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096  # O_DIRECT: offsets, lengths and addresses are multiples of this
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in [folder, *folder.rglob("*")] if path.is_file() and path.stat().st_size)


def drop(folder: Path) -> None:
    """Drop the files of a folder, which no process may have mapped; what is dirty is written first."""
    os.sync()
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def warm(folder: Path) -> None:
    """Read all files of a folder: some systems let go of files that nobody has read for some minutes."""
    buffer = bytearray(2**22)
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def cached(folder: Path) -> float:
    """Return which share of a folder's pages is in the page cache."""
    pages = here = 0
    for path in _files(folder):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = np.frombuffer(mapped, np.uint8)
            marks = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
            failed = _libc.mincore(view.ctypes.data, len(view), marks.ctypes.data)
            del view  # or the map can't be closed
            if failed:
                raise OSError(ctypes.get_errno(), "mincore")
            pages += len(marks)
            here += int((marks & 1).sum())
    return here / max(pages, 1)


def read_directly(path: Path, offset: int, row_nbytes: int, rows: Sequence[int] | NDArray[np.int64], depth: int) -> int:
    """Read rows around the page cache, `depth` at once: what the disk can do. Gives the bytes that were asked for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    end = -(-os.fstat(descriptor).st_size // _BLOCK) * _BLOCK
    buffer_nbytes = -(-row_nbytes // _BLOCK) * _BLOCK + _BLOCK

    def read(numbers: Sequence[int]) -> int:
        buffer, done = mmap.mmap(-1, buffer_nbytes), 0
        view = memoryview(buffer)
        for number in numbers:
            start = offset + number * row_nbytes
            first = start // _BLOCK * _BLOCK
            last = min(-(-(start + row_nbytes) // _BLOCK) * _BLOCK, end)
            done += os.preadv(descriptor, [view[: last - first]], first)
        view.release()
        buffer.close()
        return done

    try:
        numbers = [int(row) for row in rows]
        with ThreadPoolExecutor(depth) as pool:
            return sum(pool.map(read, [numbers[place::depth] for place in range(depth)]))
    finally:
        os.close(descriptor)
