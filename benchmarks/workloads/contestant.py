"""One system at work, in a process of its own: takes a line of JSON at a time, and answers with one.

All measurements are taken here, between two readings of the clock around calls of the system alone; whose turn it is
decides `players`. A process of its own, so that no system's threads, caches or heap are another's burden.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.systems import Rows, System, load
from benchmarks.workloads.source import LARGE_CLASS, Source


class Contestant:
    """Answers requests; each method is one."""

    def __init__(self) -> None:
        self.system: System
        self.source: Source
        self._again: Callable[[], System]
        self._loaders: dict[tuple[int, int], Any] = {}

    def start(self, module: str, name: str, source: str) -> dict[str, Any]:
        """Import the system's libraries; gives seconds."""
        began = time.perf_counter()
        self._again = partial(load, module, name)
        self.system = self._again()
        took = time.perf_counter() - began
        self.source = Source(Path(source))
        self.system.classes = self.source.codes
        return {"seconds": took}

    # -- writing ------------------------------------------------------------------------------

    def write(self, folder: str, sync: bool = True) -> dict[str, Any]:
        """Write all rows, which are in RAM by then unless they are too large for it."""
        self.system.sync = sync
        Path(folder).mkdir(parents=True)
        return {"seconds": self._written(Path(folder), self.source.rows())}

    def _written(self, folder: Path, rows: Rows) -> float:
        return timed(lambda: self.system.write(folder, rows))

    def append(self, count: int, times: int, first: int) -> dict[str, Any]:
        """Append rows several times; gives the seconds of each."""
        batches = [self.source.more(count, turn) for turn in range(first, first + times)]
        return {"seconds": [timed(lambda batch=batch: self.system.append(batch)) for batch in batches]}

    # -- opening and reading --------------------------------------------------------------------

    def open(self, folder: str, mode: str = "r", sync: bool = True) -> dict[str, Any]:
        self.system.sync = sync
        return {"seconds": timed(lambda: self.system.open(Path(folder), mode))}

    def close(self) -> dict[str, Any]:
        self._loaders.clear()
        self.system.close()
        self.system.__dict__.pop("_rows_of", None)
        gc.collect()
        return {}

    def check(self, size: int, by: str) -> dict[str, Any]:
        """Compare a random batch with what was written."""
        numbers = self.source.draw(size, 0)
        found = self._read(by, 0, size)()
        self._same(found, self.source.values[numbers])
        return {}

    def check_whole(self) -> dict[str, Any]:
        """Compare all rows, and all rows of some classes, with what was written."""
        self._same(self.system.read_all(), self.source.values)
        return {}

    def check_classes(self) -> dict[str, Any]:
        for wanted in ([LARGE_CLASS], self.source.classes(0)):
            mask = [code in wanted for code in self.source.codes.tolist()]
            self._same(self.system.of_classes(wanted), self.source.values[mask])
        return {}

    def check_last(self, count: int, turn: int) -> dict[str, Any]:
        """Compare rows that were appended last with what they were."""
        wanted = self.source.more(count, turn)
        self._same(self.system.fetch(wanted.keys), wanted.values)
        return {}

    def _same(self, found: Any, wanted: Any) -> None:
        step = max(1, 2**28 // (wanted[:1].nbytes or 1))
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise AssertionError(f"gives {found.dtype} {found.shape}, expected {wanted.dtype} {wanted.shape}")
        for start in range(0, len(wanted), step):
            part = slice(start, start + step)
            if not (found[part] == self.system.kept(wanted[part])).all():
                raise AssertionError("gives other rows than it was given: nothing else is worth measuring")

    def batches(self, size: int, by: str, first: int, count: int) -> dict[str, Any]:
        """Read random batches, each freed before the next; gives seconds of all."""
        reads = [self._read(by, turn, size) for turn in range(first, first + count)]
        return {"seconds": timed(lambda: [read() and None for read in map(_quiet, reads)])}

    def _read(self, by: str, turn: int, size: int) -> Callable[[], Any]:
        return self._reading(self.source.draw(size, turn), by)

    def _reading(self, numbers: Any, by: str) -> Callable[[], Any]:
        if by == "row" or (by == "native" and self.system.natively == "row"):
            return lambda: self.system.take(numbers)
        keys = [self.source.key(number) for number in numbers.tolist()]
        return lambda: self.system.find(keys) if by == "find" else self.system.fetch(keys)

    def all_rows(self) -> dict[str, Any]:
        return {"seconds": timed(self.system.read_all)}

    def one_class(self) -> dict[str, Any]:
        return {"seconds": timed(lambda: self.system.of_classes([LARGE_CLASS]))}

    def ten_classes(self, turn: int) -> dict[str, Any]:
        wanted = self.source.classes(turn)
        return {"seconds": timed(lambda: self.system.of_classes(wanted))}

    def epoch(self, size: int, workers: int, batches: int) -> dict[str, Any]:
        """Go through a shuffled DataLoader, whose workers stay for the next epoch; gives seconds and batches."""
        key = (workers, batches)
        if key not in self._loaders:
            self._loaders[key] = self._loader(size, workers, batches * size)
        began, done = time.perf_counter(), 0
        for _ in self._loaders[key]:
            done += 1
            if done == batches:
                break
        return {"seconds": time.perf_counter() - began, "batches": done}

    def _loader(self, size: int, workers: int, limit: int) -> Any:
        own = self.system.loader(size, workers, limit)
        if own is not None:
            return own
        from benchmarks.systems.loading import batched_loader  # torch, for this workload alone

        return batched_loader(self.system, self._again, size, workers, limit)

    # -- memory -------------------------------------------------------------------------------

    def memory(self) -> dict[str, Any]:
        return {"anonymous": resident("RssAnon"), "file": resident("RssFile")}

    def pass_through(self, size: int, batches: int, seconds: float) -> dict[str, Any]:
        """Read rows in a shuffled order, once, without torch; stops early when time is up. Gives the rows read."""
        order, done, end = self.source.shuffled(0), 0, time.perf_counter() + seconds
        for start in range(0, min(len(order), size * batches), size):
            done += len(self._reading(order[start : start + size], "native")())
            if time.perf_counter() > end:
                break
        return {"rows": done}

    # -- side by side ---------------------------------------------------------------------------

    def spin(self, size: int, seconds: float, seed: int) -> dict[str, Any]:
        """Read random batches for some seconds; gives rows and seconds."""
        reads = [self._read("native", 10_000 * seed + turn, size) for turn in range(64)]
        began, done = time.perf_counter(), 0
        while (now := time.perf_counter()) < began + seconds:
            reads[done % len(reads)]()
            done += 1
        return {"rows": done * size, "seconds": now - began}

    def keep_appending(self, count: int, seconds: float, first: int) -> dict[str, Any]:
        """Append for some seconds; gives the number of commits."""
        began, done = time.perf_counter(), 0
        while time.perf_counter() < began + seconds:
            self.system.append(self.source.more(count, first + done))
            done += 1
        return {"commits": done, "seconds": time.perf_counter() - began}


def _quiet(read: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        read()

    return run


def timed(action: Callable[[], Any]) -> float:
    """Time an action; what it gives is freed afterwards, unmeasured."""
    gc.collect()
    began = time.perf_counter()
    result = action()
    took = time.perf_counter() - began
    del result
    return took


def resident(kind: str) -> float:
    """Return this process's resident memory of a kind, in MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(kind)) * 1024e-6


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # some libraries print
    contestant = Contestant()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(contestant, request.pop("do"))(**request)
        except Exception as error:  # told to the one who asked, who goes on with the others
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
