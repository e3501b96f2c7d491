"""Random changes of a store beside a model of it, for the tests of torture and for the process with faults."""

import ctypes
import sys

import numpy as np

import embstore
from embstore.errors import (
    CommitUncertainError,
    EraseUnfinishedError,
    MissingKeysError,
    StoreChangedError,
    StoreReplacedError,
)
from tests._helpers.kinds import assert_rows, key, put, rows_of

KINDS_OF_FAULT = ("failed writes", "short writes", "syncs", "renames", "exchanges", "removals", "new folders")


class Writer:
    """A writer of its own range of rows, with a model of the rows that must be stored."""

    def __init__(self, store, first, rng, *, compacts=True):
        self.store = store
        self.model = set()
        self.doubtful = set()  # numbers whose last change may have been made or not
        self.erased = []  # keys of erases that gave no receipt yet
        self.rng = rng
        self.changes = 0
        self._first = first
        self._compacts = compacts

    def step(self):
        """Make a random change. On an error, rows that it may have changed are in `doubtful`."""
        self.changes += 1
        known = sorted(self.model - self.doubtful)
        some = self.rng.choice(known, min(len(known), 3), replace=False).tolist() if known else []
        change = self.rng.integers(20)
        if change < 9 or not some:
            self._try(lambda: self._put(), self._next(int(self.rng.integers(1, 40))), add=True)
        elif change < 12:
            self._try(lambda: put(self.store, some, if_exists="replace"), some, add=True)
        elif change < 15:
            self._try(lambda: self.store.delete(map(key, some)), some, add=False)
        elif change < 18:
            self._erase(some)
        elif self._compacts:
            self.store.compact()

    def _next(self, count):
        self._numbers = list(range(self._first, self._first + count))
        self._first += count
        return self._numbers

    def _put(self):
        put(self.store, self._numbers)

    def _try(self, work, numbers, *, add):
        try:
            work()
        except CommitUncertainError:
            self.doubtful |= set(numbers)
            raise
        self.model = self.model | set(numbers) if add else self.model - set(numbers)

    def _erase(self, numbers):
        try:
            self._try(lambda: self.store.erase(map(key, numbers)), numbers, add=False)
        except EraseUnfinishedError:
            self.model -= set(numbers)
            self.erased.append(numbers)
            raise
        except CommitUncertainError:
            self.erased.append(numbers)
            raise

    def check(self):
        """Compare the store with the model, and repeat the erases that failed."""
        for numbers in self.erased:
            receipt = self.store.erase([key(i) for i in numbers])
            assert len(receipt.key_hashes) == len(numbers)
            self.model -= set(numbers)
            self.doubtful -= set(numbers)
        self.erased = []
        for attempt in range(100):
            self.store.refresh()
            try:
                return self._compare()
            except (StoreChangedError, StoreReplacedError):  # another writer erased or compacted during the read
                if attempt == 99:
                    raise

    def _compare(self):
        found = {i for i in self.doubtful if key(i) in self.store}
        self.model, self.doubtful = (self.model - self.doubtful) | found, set()
        numbers = sorted(self.model)
        found = self.store.fetch([key(i) for i in numbers], "embedding")
        assert_rows(found, rows_of(self.store.fields["embedding"], numbers))


def with_faults(path, seed, rate, rounds):
    """Change a store while system calls fail, and check it after each change. Print the counts."""
    library = ctypes.CDLL(None)
    library.faults_arm.argtypes = (ctypes.c_uint64, ctypes.c_uint)
    library.faults_count.restype = ctypes.c_ulong
    rng = np.random.default_rng(seed)
    failed = 0
    with embstore.open(path, "r+") as store:
        writer = Writer(store, 10_000, rng)
        for turn in range(rounds):
            before = set(store)
            library.faults_arm(seed * 1000 + turn, rate)
            try:
                writer.step()
            except MissingKeysError:
                raise
            except OSError:
                failed += 1
            finally:
                library.faults_arm(0, 0)
            writer.check()
            assert {k for k in before if k.startswith("other")} <= set(store)
    report = embstore.verify(path)
    assert report.ok, str(report)
    counts = [library.faults_count(kind) for kind in range(len(KINDS_OF_FAULT))]
    print(writer.changes, failed, *counts)


if __name__ == "__main__":
    with_faults(sys.argv[1], *map(int, sys.argv[2:]))
