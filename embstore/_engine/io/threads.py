"""Work in several threads: large copies, because one thread can't use all of the memory's bandwidth, and decompression.

Threads live as long as one read, so a process that forks later inherits no threads. No threads are started in a process
that was itself started to share the work (a `DataLoader`'s worker). No threads are started where address space is
limited: Python waits for ever for a thread that finds no memory for its first steps (seen under ulimit -v, Python
3.11).
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import chain, islice, pairwise
from typing import Final, TypeVar

T = TypeVar("T")
Item = TypeVar("Item")

_WORTH_A_THREAD: Final = 8 * 2**20
"""Least size of a part in bytes. A copy of it takes one or two milliseconds, the start of a thread a tenth of one."""
_MOST: Final = 4
"""Most parts. More parts are not faster: the memory's bandwidth is used up."""
_AHEAD_NBYTES: Final = 256 * 2**20
"""Most memory of the results that are made ahead, in bytes."""


def may_start_threads() -> bool:
    """Return whether a started thread is sure to run."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def _cores() -> int:
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parts(work: Callable[[int, int], None], count: int, nbytes: int) -> None:
    """Run `work` on ``range(0, count)``, as a whole or in parallel parts.

    Parameters
    ----------
    work : callable
        Takes the start and stop of a part. It must release Python's global lock while it copies.
    count : int
    nbytes : int
        Bytes to copy in all.
    """
    parts = min(nbytes // _WORTH_A_THREAD, _MOST, count)
    if parts < 2 or not may_start_threads() or (parts := min(parts, _cores())) < 2:
        work(0, count)
        return
    bounds = [count * part // parts for part in range(parts + 1)]
    first, *others = pairwise(bounds)
    with ThreadPoolExecutor(parts - 1, thread_name_prefix="embstore-copy") as pool:
        futures = [_submitted(pool, work, start, stop) for start, stop in others]
        work(*first)
        for future in futures:
            future.result()


def in_turn(work: Callable[[Item], T], items: Iterable[Item], *, held: int, threads: int | None = None) -> Iterator[T]:
    """Yield the results of `work` for each item, in order. Threads compute a few items ahead.

    Parameters
    ----------
    work : callable
        Must release Python's global lock for most of its time.
    items : iterable
        Consumed as needed.
    held : int
        Memory of one item in bytes. The items under way together have at most 256 MiB.
    threads : int, optional
        Most threads, for work that waits. By default the number of cores.
    """
    rest = iter(items)
    some = list(islice(rest, 2))
    many = len(some) > 1 and may_start_threads()
    threads = min(threads or _cores(), _AHEAD_NBYTES // max(1, held)) if many else 1
    if threads < 2:
        yield from map(work, chain(some, rest))
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="embstore-decode")
    try:
        under_way: deque[Future[T]] = deque()
        for item in chain(some, rest):
            under_way.append(_submitted(pool, work, item))
            if len(under_way) > threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submitted(pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: object) -> Future[T]:
    try:
        return pool.submit(work, *arguments)
    except RuntimeError:  # the interpreter is shutting down and starts no threads
        done: Future[T] = Future()
        done.set_result(work(*arguments))
        return done


_forks = 0
"""Forks between the first process and this one. A process id may come back, and this number can't."""


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


def forks() -> int:
    """Return the number of forks between the first process and this one."""
    return _forks


class ThreadLock:
    """A lock between the threads of one process. It is free in a forked process. Use it as ``with lock():``.

    A plain lock would stay locked for ever in a process that is forked while another thread holds it. The thread that
    holds the lock may take it again: a finalizer or a signal handler may run inside the block. This class has no
    ``__enter__`` of its own: a signal could interrupt that after it took the lock and before the block.
    """

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[int, AbstractContextManager[bool]] = {}

    def __call__(self) -> AbstractContextManager[bool]:
        """Return this process's lock."""
        return self._locks.setdefault(_forks, threading.RLock())
