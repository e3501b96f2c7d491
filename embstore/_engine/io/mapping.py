"""Address space: many chunk files mapped side by side, so that they are one NumPy array.

A `Region` reserves one range of addresses and maps files into it with ``MAP_FIXED``. Its arrays keep it alive, and it
is unmapped after the last of them. This module knows nothing about chunks, rows or stores.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import math
import mmap
import os
import resource
import weakref
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.io.threads import ThreadLock

logger = logging.getLogger("embstore")

PAGE_NBYTES: Final = mmap.PAGESIZE
_LEAST_RESERVE: Final = 64 * 2**30
HUGE_PAGE_NBYTES: Final = 2 * 2**20
_MAP_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0)
_MAP_FIXED: Final = 0x10  # the same on Linux (except Alpha and HP-PA) and macOS. The module mmap lacks it
_FAILED: Final = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _map_limit() -> int:
    """Return the most maps to use: a quarter of the kernel's limit for a process."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text()) // 4
    except OSError:  # macOS has no such limit
        return 16_384


class _Budget:
    """Counter of the maps, and of the bytes of address space, that the regions of this process hold."""

    def __init__(self) -> None:
        self.used = 0
        self.reserved = 0
        self.limit = _map_limit()
        self._lock = ThreadLock()

    def take(self, maps: int) -> bool:
        with self._lock():
            if self.used + maps > self.limit:
                return False
            self.used += maps
            return True

    def reserve(self, nbytes: int) -> None:
        with self._lock():
            self.reserved += nbytes

    def give_back(self, maps: int, nbytes: int) -> None:
        with self._lock():
            self.used -= maps
            self.reserved -= nbytes


budget = _Budget()


def _mmap(address: int | None, nbytes: int, protection: int, flags: int, descriptor: int) -> int:
    result = _libc.mmap(address, nbytes, protection, flags, descriptor, 0)
    if result == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def available(nbytes: int, maps: int) -> str:
    """Return the reason why a column of `nbytes` in `maps` files can't be mapped, or "" if it can."""
    if budget.used + maps > budget.limit:
        return f"it takes {maps:,} maps, and {budget.used:,} of {budget.limit:,} are in use"
    room = _room()
    if room is not None and nbytes + HUGE_PAGE_NBYTES > room // 2:
        return f"it takes {nbytes:,} bytes of address space, which is limited (ulimit -v)"
    return ""


def _room() -> int | None:
    """Return the number of bytes of address space that may still be reserved, or None without a limit.

    All regions together may take a quarter of the limit. The rest is for the other code of the process.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else max(0, limit // 4 - budget.reserved)


class Region:
    """A range of address space into which files are mapped.

    Parameters
    ----------
    nbytes : int
        Least size. More is reserved, so that the region can grow in place: 64 GiB, or four times `nbytes` if that
        is more. This is halved until the kernel (or ``ulimit -v``) agrees.
    writable : bool
        Whether the maps are copy-on-write: writable, and private to this process. Else they are read-only.

    Raises
    ------
    OSError
        The kernel refuses even `nbytes`.
    """

    __slots__ = ("__weakref__", "_finalizer", "_maps", "address", "nbytes", "writable")

    def __init__(self, nbytes: int, *, writable: bool = False) -> None:
        nbytes = max(PAGE_NBYTES, -(-nbytes // PAGE_NBYTES) * PAGE_NBYTES) + HUGE_PAGE_NBYTES
        room = _room()
        wanted = nbytes if writable else max(_LEAST_RESERVE, 4 * nbytes)
        if room is not None:
            wanted = max(nbytes, min(wanted, room // 16))
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        while True:
            try:
                start = _mmap(None, wanted, 0, flags, -1)
                break
            except OSError:
                if wanted == nbytes:
                    raise
                wanted = max(nbytes, wanted // 2 // PAGE_NBYTES * PAGE_NBYTES)
        # A huge page of a file can be mapped whole only where its offset and its address agree.
        self.address = -(-start // HUGE_PAGE_NBYTES) * HUGE_PAGE_NBYTES
        self.nbytes = start + wanted - self.address
        self.writable = writable
        self._maps = [0]
        budget.reserve(wanted)
        self._finalizer = weakref.finalize(self, _unmap, start, wanted, self._maps)
        # At exit the arrays may still be read, by a thread or another finalizer.
        self._finalizer.atexit = False

    def charge(self, maps: int) -> None:
        """Count `maps` more maps of this process.

        Raises
        ------
        OSError
            The limit is reached (``ENOMEM``).
        """
        if not budget.take(maps):
            raise OSError(errno.ENOMEM, "the process has used up its share of maps")
        self._maps[0] += maps

    def map_file(self, descriptor: int, offset: int, nbytes: int) -> None:
        """Map the first `nbytes` of a file at `offset` in the region, in place of earlier maps.

        The caller has checked that the file is that long. A read past a file's end is a SIGBUS, which ends the
        process.

        Raises
        ------
        OSError
            The kernel refuses.
        """
        if offset % PAGE_NBYTES or nbytes % PAGE_NBYTES or not 0 <= offset <= self.nbytes - nbytes:
            raise ValueError(f"{nbytes} bytes at {offset} do not lie on the region's pages")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if self.writable else 0)
        flags = (mmap.MAP_PRIVATE | _MAP_NORESERVE if self.writable else mmap.MAP_SHARED) | _MAP_FIXED
        _mmap(self.address + offset, nbytes, protection, flags, descriptor)

    def advise(self, advice: str, offset: int, nbytes: int) -> None:
        """Advise the kernel how a part will be read: ``"RANDOM"``, ``"NORMAL"`` or ``"WILLNEED"``."""
        value = getattr(mmap, f"MADV_{advice}", None)
        if value is not None and nbytes > 0:
            start = offset // PAGE_NBYTES * PAGE_NBYTES
            _libc.madvise(self.address + start, offset + nbytes - start, value)  # advice may fail

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Return the start of the region as one array, which keeps the region alive."""
        if math.prod(shape) * dtype.itemsize > self.nbytes:
            raise ValueError(f"{shape} of {dtype} does not fit {self.nbytes} bytes")
        return shown(self, self.address, shape, dtype, writable=self.writable)


def map_memory(nbytes: int) -> int:
    """Map fresh memory of zeros. Return its address, which is the start of a page."""
    return _mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)


def advise_huge(address: int, nbytes: int) -> None:
    """Request huge pages, where the kernel grants them on request. Each takes one fault instead of 512."""
    if (value := getattr(mmap, "MADV_HUGEPAGE", None)) is not None:
        _libc.madvise(address, nbytes, value)


def unmap_memory(address: int, nbytes: int) -> None:
    """Unmap memory of `map_memory`."""
    _libc.munmap(address, nbytes)


def shown(
    owner: object, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], *, writable: bool
) -> np.ndarray[Any, Any]:
    """Return memory as an array. The array and its views keep the owner alive."""
    return np.asarray(_Window(owner, address, shape, dtype, writable))


class _Window:
    """Memory with NumPy's array interface, version 3. It keeps its owner alive."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(
        self, owner: object, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], writable: bool
    ) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": (address, not writable),
        }


def _unmap(address: int, nbytes: int, maps: list[int]) -> None:
    _libc.munmap(address, nbytes)
    budget.give_back(maps[0], nbytes)
