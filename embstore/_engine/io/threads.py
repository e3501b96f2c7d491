"""Work for several threads: large copies, since one of them can't take all that memory gives, and decompression.

Threads live as long as one read: a process that forks later inherits none. There are none in a process that was started
to share the work already (a `DataLoader`'s worker), and none where address space is limited: a thread that finds no
memory for its first steps is waited for for ever (seen under ulimit -v, Python 3.11).
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice, pairwise
from typing import Final, TypeVar

T = TypeVar("T")
Item = TypeVar("Item")

_WORTH_A_THREAD: Final = 8 * 2**20
"""Bytes of a part: copying them takes a millisecond or two, a thread a tenth of one."""
_MOST: Final = 4
"""Parts: by then memory has no more to give."""
_AHEAD_NBYTES: Final = 256 * 2**20
"""That work which is done ahead may hold."""


def may_start_threads() -> bool:
    """Tell whether a thread that is started will run."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def _cores() -> int:
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parts(work: Callable[[int, int], None], count: int, nbytes: int) -> None:
    """Have `work` done on ``range(0, count)``, as a whole or in parts side by side.

    Parameters
    ----------
    work : callable
        Takes where a part begins and ends; lets go of Python's global lock while it copies.
    count : int
    nbytes : int
        That are copied in all.
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


def in_turn(work: Callable[[Item], T], items: Iterable[Item], *, held: int) -> Iterator[T]:
    """Yield what `work` makes of each item, in their order; done side by side, a few items ahead.

    Parameters
    ----------
    work : callable
        Lets go of Python's global lock for most of its time.
    items : iterable
        Taken as they are needed.
    held : int
        Bytes of memory that one takes.
    """
    rest = iter(items)
    some = list(islice(rest, 2))
    threads = min(_cores(), _AHEAD_NBYTES // max(1, held)) if len(some) > 1 and may_start_threads() else 1
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
    except RuntimeError:  # the interpreter is shutting down, and starts no thread any more
        done: Future[T] = Future()
        done.set_result(work(*arguments))
        return done


class ThreadLock:
    """A lock among the threads of one process, free in a forked process. Call it in a ``with`` line: ``with lock():``.

    `threading.Lock` alone would be held for ever in a process that is forked while another thread holds it. This class
    has no ``__enter__`` of its own, which could be interrupted once it has the lock and before the block begins.
    """

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __call__(self) -> threading.Lock:
        """Return this process's lock."""
        return self._locks.setdefault(os.getpid(), threading.Lock())
