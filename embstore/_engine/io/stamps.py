"""Stamps of files: a cheap check whether a file changed since it was read."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

from embstore._engine.io.filesystem import filesystem_type

_SETTLED_NS: Final = 2 * 10**9
"""A file changed within this time may change again and keep its stamp: clocks of file systems tick."""

_FILE_BITS: Final = 40
"""Bits of `FileStamp.identity` for the file. The 23 bits above them are for its place."""


class Identity(NamedTuple):
    """A cheap sign that a file did not change. `cp -p` and `os.utime` can restore size and mtime, but not ctime.

    Size in bytes, mtime and ctime in ns, and inode. Compared on one mount only, as while a file is read.
    """

    size: int
    mtime: int
    ctime: int
    inode: int


def identity_of(found: os.stat_result) -> Identity:
    """Return the identity of a file from its status."""
    return Identity(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class FileStamp(NamedTuple):
    """Size in bytes, mtime in ns, and identity of a file.

    `identity` is a hash of the place (the machine, and the folder of the source), and a hash of the inode and ctime.
    ctime finds a file that was rewritten with its mtime put back, and the inode finds two folders that were swapped.
    Both differ on every mount and machine, so they are compared only within one place. -1 is unknown.
    """

    size: int
    mtime: int
    identity: int = -1

    def at_place_of(self, other: FileStamp) -> FileStamp:
        """Return this stamp with the place of another, if that is known."""
        if other.identity < 0:
            return self
        return self._replace(identity=place_of(other.identity) << _FILE_BITS | self.identity & ((1 << _FILE_BITS) - 1))


UNKNOWN: Final = FileStamp(-1, -1)
"""The stamp of content that is not a file, or of a file that was changed too recently."""


def file_stamp(folder: str, found: os.stat_result) -> FileStamp:
    """Return the stamp of a file, with its identity.

    Parameters
    ----------
    folder : str
        Absolute path of the folder of the source.
    found : os.stat_result
        Status of the file.
    """
    place, has_inodes = _place(platform.node(), folder, found.st_dev)
    one = _hashed(f"{found.st_ino if has_inodes else 0} {found.st_ctime_ns}", _FILE_BITS)
    return FileStamp(found.st_size, found.st_mtime_ns, place << _FILE_BITS | one)


def place_of(identity: Any) -> Any:
    """Return the part of an identity that the place gives. Works on arrays too."""
    return identity >> _FILE_BITS


@lru_cache(maxsize=4096)
def _place(machine: str, folder: str, device: int) -> tuple[int, bool]:
    """Return the place of a folder's files, and whether its file system keeps inode numbers. FUSE need not."""
    kind = "" if os.major(device) else filesystem_type(Path(folder))
    return _hashed(f"{machine}\0{folder}", 63 - _FILE_BITS), not kind.startswith("fuse")


def _hashed(text: str, bits: int) -> int:
    digest = blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - bits)


def settled(changed: int, now: int) -> bool:
    """Return whether any change of a file after `now` will change its stamp, or its identity.

    Parameters
    ----------
    changed : int
        Time of the file's last change, in ns since the epoch: mtime, or the later of mtime and ctime.
    now : int
        Time of the check.
    """
    return changed < now - _SETTLED_NS
