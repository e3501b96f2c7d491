"""Locks between processes: an exclusive ``flock``, which the kernel releases when the process ends.

A lock that outlives a killed process is never used instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from embstore._engine.io.filesystem import explained
from embstore.errors import StoreLockedError

_POLL_SECONDS: Final = 0.002

_held: set[int] = set()
"""Descriptors of the locks that this process holds. A forked process closes its copies: they would keep the lock after
its parent is killed."""


def _close_copies() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_copies)


class FileLock:
    """An exclusive lock on the file at `place`, which is made if it is missing. It excludes other threads too."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._descriptor: int | None = None
        self._process = 0

    def acquire(self, *, timeout: float = 0.0) -> bool:
        """Take the lock, and wait up to `timeout` seconds for it. Return whether the lock is held now.

        Raises
        ------
        ReadOnlyError
            The file can't be made or opened for writing.
        """
        deadline = time.monotonic() + timeout
        with explained(self.place):
            while True:
                descriptor = os.open(self.place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
                if self._try(descriptor):
                    return True
                os.close(descriptor)
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_POLL_SECONDS)

    def _try(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not _is_at(self.place, descriptor):  # the file was removed since, so its lock excludes no process
            return False
        self._descriptor, self._process = descriptor, os.getpid()
        _held.add(descriptor)
        return True

    def release(self) -> None:
        """Release the lock. In a forked process, do nothing: its parent holds the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None and self._process == os.getpid():
            _held.discard(descriptor)
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the file, then release the lock. A process that opens the name finds a free lock, or no file."""
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


def _is_at(place: Path, descriptor: int) -> bool:
    try:
        found = os.stat(place, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


@contextlib.contextmanager
def lock(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold the writers' lock of the store at `path`. Its file is ``<store>.lock`` and stays beside the store.

    Raises
    ------
    StoreLockedError
        The lock was not free within `timeout` seconds. The error names the holder.
    ReadOnlyError
        The folder can't be written to.
    """
    held = FileLock(path.with_name(path.name + ".lock"))
    if not held.acquire(timeout=timeout):
        raise StoreLockedError(path, holder=_holder(held.place), timeout=timeout)
    try:
        held.sign()
        yield
    finally:
        held.release()


def _holder(place: Path) -> str:
    try:
        return place.read_text().strip()
    except OSError:
        return ""
