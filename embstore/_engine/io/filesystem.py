"""Calls of the operating system that Python lacks or wraps too thinly: sync, atomic moves, the mount table, errors."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Final

from embstore._engine.io.steps import step
from embstore.errors import NetworkFileSystemError, ReadOnlyError, StorageFullError, StoreExistsError

logger = logging.getLogger("embstore")

_MOUNTS: Final = Path("/proc/self/mountinfo")
_warned: set[int] = set()
"""Devices that were warned of. One warning for each is enough."""
_synced: Final = ContextVar("synced", default=True)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_SYNC_FILE_RANGE_WRITE: Final = 2  # <linux/fs.h>
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # <linux/fs.h>
_RENAME_SWAP, _RENAME_EXCL = 2, 4  # macOS <sys/stdio.h>
_NETWORK: Final = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2"),
        *("orangefs", "panfs", "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs"),
    )
)


_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


@contextlib.contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Turn a full disk and missing permissions into embstore's errors."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(Path(path), error) from error
        if error.errno in _DENIED:
            raise ReadOnlyError(Path(path), error.strerror or "permission denied") from error
        raise


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    """Sync no files in a block, in this thread: for files that are sent elsewhere and removed."""
    token = _synced.set(False)
    try:
        yield
    finally:
        _synced.reset(token)


def sync_descriptor(descriptor: int) -> None:
    """Sync a file to the medium itself. The fsync of macOS stops at the drive's cache."""
    if not _synced.get():
        return
    if sys.platform == "darwin":  # pragma: no cover
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def start_writeback(descriptor: int) -> None:
    """Ask the kernel to write a file's dirty pages now, without waiting (Linux). Makes nothing durable.

    The disk then works while the next files are written. It also allocates the blocks of all files before the first
    ``fsync``, whose journal commit covers them all: nine files of a small commit took 8.6 ms instead of 24 on a busy
    ext4, and 5.3 with eight threads, which cost more of the processor than the whole commit.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)  # advice: may fail


def make_parents(path: Path) -> None:
    """Make the missing folders that lead to `path`."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def sync_path(path: Path) -> None:
    """Sync the folder at `path`."""
    with explained(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            step("sync_folder", path)
            sync_descriptor(descriptor)
        finally:
            os.close(descriptor)


def _renameat2(source: Path, target: Path, linux_flag: int, macos_flag: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(source), os.fsencode(target)
    if sys.platform == "darwin":  # pragma: no cover
        failed = library.renamex_np(old, new, ctypes.c_uint(macos_flag))
    else:
        at_cwd = -100
        failed = library.renameat2(at_cwd, old, at_cwd, new, ctypes.c_uint(linux_flag))
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(source), None, str(target))


def move_into_place(source: Path, target: Path) -> None:
    """Rename a finished folder to its place, durably, unless the place is taken.

    Raises
    ------
    StoreExistsError
        Something is at `target`. Nothing was changed.
    """
    with explained(target):
        step("move", source, str(target))
        try:
            _renameat2(source, target, _RENAME_NOREPLACE, _RENAME_EXCL)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise StoreExistsError(target) from error
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise
            if os.path.lexists(target):  # this file system lacks the flag, but the lock excludes other writers
                raise StoreExistsError(target) from error
            os.rename(source, target)
        sync_path(target.parent)


def swap_folders(source: Path, target: Path) -> None:
    """Exchange two folders in one step. This is durable once their parent is synced."""
    with explained(target):
        step("exchange", source, str(target))
        _renameat2(source, target, _RENAME_EXCHANGE, _RENAME_SWAP)


def filesystem_type(path: Path) -> str:
    """Return the type of the file system of `path`: "block" on a disk, else the mount table's name, "" if unknown."""
    try:
        device = os.stat(path).st_dev
    except OSError:
        return ""
    # A disk of this machine has a device. Network file systems have none, so their major number is 0.
    return "block" if os.major(device) else _mounted(device)[0]


def _mounted(device: int) -> tuple[str, str]:
    """Return the type and the options of a device's file system in the mount table, or two empty strings."""
    try:
        table = _MOUNTS.read_text()
    except OSError:
        return "", ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in table.splitlines():
        head, _, rest = line.partition(" - ")
        if head.split()[2] == wanted:
            fields = rest.split()
            return fields[0], fields[-1]
    return "", ""


def on_network(path: Path) -> str:
    """Return the file system's type if it is a network or FUSE one, else ""."""
    kind = filesystem_type(path)
    return kind if kind in _NETWORK or kind.startswith("fuse") else ""


def check_filesystem(path: Path) -> None:
    """Raise `NetworkFileSystemError` where locks and syncs are not reliable. Warn of ``data=writeback``.

    If nothing is at `path`, check the nearest folder above it.

    An ext3 or ext4 with that option may lose synced files: it destroyed a committed tail in one of 60 power cuts.
    """
    path = next(place for place in (path, *path.parents) if place.exists())
    if kind := on_network(path):
        raise NetworkFileSystemError(path, kind)
    device = os.stat(path).st_dev
    if "data=writeback" in _mounted(device)[1].split(",") and device not in _warned:
        _warned.add(device)
        logger.warning("%s: a power cut may destroy committed rows: it is mounted with data=writeback", path)
