"""A lock among the threads of one process, which a forked process finds free: whoever held it is not there."""

from __future__ import annotations

import os
import threading

__all__ = ["ThreadLock"]


class ThreadLock:
    """Gives a lock for a ``with`` block: ``with lock():``.

    `threading.Lock` alone would be held for ever in a process that is forked while another thread holds it. This class
    has no ``__enter__`` of its own, which could be interrupted once it has the lock and before the block begins.
    """

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __call__(self) -> threading.Lock:
        """Return this process's lock."""
        process = os.getpid()
        lock = self._locks.get(process)
        return lock if lock is not None else self._locks.setdefault(process, threading.Lock())
