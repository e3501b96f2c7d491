"""Locks between processes: an exclusive ``flock``, which the kernel releases when the process ends.

A lock that outlives a killed process is never used instead. The lock of a store is two locks. The file beside it also
excludes others while the store is made. The folder itself is locked too: two paths may lead to it (a bind mount), and
the file may be removed.

Readers wait for no writer. While they have a store open they share another lock, on a folder that every store has in it
(`OPEN_MARK`). The removal of stores finds open ones by it. A reader needs no right to write for it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from embstore._engine.io.filesystem import explained
from embstore.errors import ReadOnlyError, StoreLockedError

OPEN_MARK: Final = "key_hash"
"""The folder in a store that readers lock: every store has it from the start, and only a compaction replaces it."""

_POLL_SECONDS: Final = 0.002
_MOST_SIGN: Final = 400

_held: set[int] = set()
"""Descriptors of the locks that this process holds. A forked process closes its copies: they would keep the lock after
its parent is killed."""


def _close_copies() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_copies)


class FileLock:
    """An exclusive lock on the file at `place`, which is made if it is missing. It excludes other threads too.

    Parameters
    ----------
    place : Path
    folder : bool
        Lock the folder at `place` instead. It must exist.
    """

    def __init__(self, place: Path, *, folder: bool = False) -> None:
        self.place = place
        # Never the descriptor of an open `Folder`: a forked process has the same one, and would hold the same lock.
        own = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT | os.O_NONBLOCK
        self._folder = folder
        self._flags = own | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor: int | None = None
        self._process = 0

    def acquire(self, *, timeout: float = 0.0) -> bool:
        """Take the lock, and wait up to `timeout` seconds for it. Return whether the lock is held now.

        Raises
        ------
        ReadOnlyError
            The file can't be made or opened for writing, or is a link.
        """
        deadline = time.monotonic() + timeout
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _try(self) -> bool:
        with explained(self.place):
            try:
                descriptor = os.open(self.place, self._flags, 0o666)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.EISDIR):
                    raise self._odd() from error
                raise
        self._descriptor, self._process = descriptor, os.getpid()
        _held.add(descriptor)
        if not self._folder and not stat.S_ISREG(os.fstat(descriptor).st_mode):
            self.release()
            raise self._odd()
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self.identity() == _identity_at(self.place):  # otherwise its lock excludes no process: it was replaced
                return True
        self.release()
        return False

    def _odd(self) -> ReadOnlyError:
        return ReadOnlyError(self.place, "expected a regular file to lock, found a link or something else; remove it")

    def identity(self) -> tuple[int, int]:
        """Return device and inode of the locked file or folder."""
        assert self._descriptor is not None
        found = os.fstat(self._descriptor)
        return found.st_dev, found.st_ino

    def release(self) -> None:
        """Release the lock. In a forked process, do nothing: its parent holds the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None and self._process == os.getpid():
            # A process that was forked before the descriptor was listed has a copy, which would keep the lock.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            _held.discard(descriptor)
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the file, then release the lock. A process that opens the name finds a free lock, or no file."""
        if self._process == os.getpid():
            self.place.unlink(missing_ok=True)
        self.release()

    def sign(self) -> None:
        """Write the process and the host into the file, for the error of other writers."""
        assert self._descriptor is not None
        text = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
        if os.pread(self._descriptor, len(text) + 1, 0) != text:
            with contextlib.suppress(OSError):  # a full disk does not affect the lock
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, text, 0)


def share(descriptor: int) -> None:
    """Share the lock of an open folder, for as long as any copy of the descriptor is open. Wait for its removal.

    Does nothing where the file system has no such locks: the store is read all the same.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def is_open(path: Path) -> bool:
    """Return whether a process of this machine has the store at `path` open, this process included."""
    mark = FileLock(path / OPEN_MARK, folder=True)
    with contextlib.suppress(FileNotFoundError):
        if not mark.acquire():
            return True
        mark.release()
    return False


def _identity_at(place: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(place, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def lock(path: Path, *, timeout: float) -> Iterator[tuple[int, int] | None]:
    """Hold the writers' lock of the store at `path`: ``<store>.lock``, which stays beside it, and its folder.

    Yields
    ------
    (int, int) or None
        Device and inode of the folder, or None while the store is not made yet.

    Raises
    ------
    StoreLockedError
        The lock was not free within `timeout` seconds. The error names the holder.
    ReadOnlyError
        The folder can't be written to.
    """
    deadline = time.monotonic() + timeout
    file, folder = FileLock(path.with_name(path.name + ".lock")), FileLock(path, folder=True)
    try:
        if not file.acquire(timeout=timeout):
            raise StoreLockedError(path, holder=_holder(file.place), timeout=timeout)
        file.sign()
        found = None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not folder.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise StoreLockedError(path, holder="a process that reached it by another path", timeout=timeout)
            found = folder.identity()
        yield found
    finally:
        folder.release()
        file.release()


def _holder(place: Path) -> str:
    try:
        with place.open("rb") as file:
            return file.read(_MOST_SIGN).decode(errors="replace").strip()
    except OSError:
        return ""
