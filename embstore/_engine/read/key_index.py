"""The index from key hashes to row numbers. It is derived from ``key_hash`` alone, which takes precedence.

Like a log-structured merge tree it is a few sorted runs of (hash, row). One run is mapped from ``index/`` and covers
the store's first rows. The others are in memory and cover the later rows. A hit counts only if ``key_hash`` at that row
agrees. A miss counts only if the mapped run's checksum matched. A run that does not match ``key_hash`` is dropped, and
the index is rebuilt from ``key_hash``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore._engine.chunks.chunk_file import stored_checksum
from embstore._engine.format.keys import Hashes, Key, hash_keys, key_text
from embstore._engine.format.record import ArrayState
from embstore._engine.format.values import CHECKSUM_NBYTES, crc32c, crc32c_extend
from embstore._engine.io.folder import Folder, read_exactly
from embstore._engine.io.mapping import PAGE_NBYTES, Region, available
from embstore._engine.read.column import Rows
from embstore._engine.read.snapshot import Snapshot
from embstore.errors import CorruptStoreError

logger = logging.getLogger("embstore")

FOLDER: Final = "index"
_SAMPLED: Final = 256
_EXPLAINED: Final = 10
_MOST_TRIED: Final = 100_000
"""Keys with another class that are looked up to explain a miss: 0.1 s."""
RUN_NAME = re.compile(r"keys\.([0-9a-f]{16})\.([1-9][0-9]{0,14})")
Found = NDArray[np.int64]
Mask = NDArray[np.bool_]


class IndexMismatchError(Exception):
    """A sorted run does not match ``key_hash``. It never leaves this module."""


class SortedRun:
    """Row numbers, sorted by the first half of their key hash, then by number."""

    __slots__ = ("_checksum", "hashes", "rows", "verified")

    def __init__(self, hashes: NDArray[np.uint64], rows: Any, *, checksum: int | None = None) -> None:
        self.hashes = hashes
        self.rows = rows
        self._checksum = checksum
        self.verified = checksum is None

    @classmethod
    def over(cls, hashes: NDArray[np.uint64], first_row: int) -> SortedRun:
        """Sort the hashes of neighbouring rows."""
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], (order + first_row).astype(np.uint64))

    def __len__(self) -> int:
        return len(self.hashes)

    def merged(self, other: SortedRun) -> SortedRun:
        """Return this run merged with a run over later rows."""
        hashes = np.concatenate([self.hashes, other.hashes])
        order = np.argsort(hashes, kind="stable")
        return SortedRun(hashes[order], np.concatenate([self.rows, other.rows])[order])

    def verify(self, snapshot: Snapshot) -> None:
        """Check a stored run's checksum, and a sample of its rows, once."""
        if not self.verified:
            if crc32c_extend(crc32c(self.hashes), self.rows) != self._checksum:
                raise IndexMismatchError("its checksum does not match")
            # The last rows too: of an earlier copy of the store that was put back, they alone may differ.
            newest = np.flatnonzero(self.rows >= max(0, len(self) - _SAMPLED))
            places = np.append(np.linspace(0, len(self) - 1, _SAMPLED).astype(np.int64), newest)
            rows = self.rows[places]
            known = rows < snapshot.record.rows
            stored = snapshot.take("key_hash", rows[known].astype(np.int64))[:, 0]
            if (stored != self.hashes[places[known]]).any():
                raise IndexMismatchError("its hashes differ")
            self.verified = True

    def find(self, wanted: Hashes, found: Found, snapshot: Snapshot) -> None:
        """Set `found`, where it is -1, to the newest live row of the wanted key in this run."""
        open_ = np.flatnonzero(found < 0)
        place = self.hashes.searchsorted(wanted[open_, 0], side="right") - 1
        while len(open_):
            same = (self.hashes[place] == wanted[open_, 0]) & (place >= 0)
            if not same.all():
                open_, place = open_[same], place[same]
                if not len(open_):
                    return
            rows = self.rows[place].astype(np.int64)
            hit = _confirmed(snapshot, rows, wanted[open_])
            if hit.all():
                found[open_] = rows
                return
            found[open_[hit]] = rows[hit]
            open_, place = open_[~hit], place[~hit] - 1  # an older row of the same key, or its first half

    def find_all(self, wanted: Hashes, snapshot: Snapshot) -> Found | None:
        """Return the newest rows of all keys at once, or None if a key is not here or its newest row is deleted."""
        # In ascending order, neighbouring searches take the same branches and use the same cache lines.
        order = wanted[:, 0].argsort()
        place = np.empty(len(wanted), dtype=np.int64)
        place[order] = self.hashes.searchsorted(wanted[order, 0], side="right") - 1
        if not (self.hashes[place] == wanted[:, 0]).all():  # a place of -1 is the last entry, whose hash differs
            return None
        rows: Found = self.rows[place].astype(np.int64)
        try:
            stored = snapshot.take("key_hash", rows)
        except IndexError:
            return None  # a row of a later commit, or a wrong run
        if not (stored == wanted).all() or (snapshot.record.dead and snapshot.is_dead(rows).any()):
            return None
        return rows


def _confirmed(snapshot: Snapshot, rows: Rows, wanted: Hashes) -> Mask:
    """Return a mask of the rows that are committed, live, and have the wanted key hash."""
    usable = rows < snapshot.record.rows  # a run may cover rows of a later commit
    if snapshot.record.dead:
        usable &= ~snapshot.is_dead(rows)
    if len(rows) and rows.min() < 0:
        raise IndexMismatchError("it has negative row numbers")
    if not usable.any():
        return usable
    stored = snapshot.take("key_hash", rows if usable.all() else np.where(usable, rows, 0))
    same = stored == wanted
    if not (same[:, 0] | ~usable).all():
        raise IndexMismatchError("its hashes differ")
    usable &= same[:, 1]
    return usable


class KeyIndex:
    """The index of one snapshot.

    Parameters
    ----------
    snapshot : Snapshot
    previous : KeyIndex, optional
        Index of an earlier commit of the same store. Its runs are reused.
    """

    def __init__(self, snapshot: Snapshot, previous: KeyIndex | None = None) -> None:
        self.snapshot = snapshot
        self._runs: list[SortedRun] = []
        self._covered = 0
        if previous is not None and previous.snapshot.record.epoch == snapshot.record.epoch:
            self._runs, self._covered = list(previous._runs), previous._covered
        elif run := _stored_run(snapshot):
            self._runs, self._covered = [run], len(run)
        self._cover()

    @property
    def in_memory(self) -> int:
        """Number of rows that are indexed in memory only."""
        mapped = sum(len(run) for run in self._runs[:1] if run._checksum is not None)
        return max(0, self.snapshot.record.rows - mapped)

    def find_keys(self, keys: Iterable[str | Key]) -> Found:
        """Return the newest live row of each key, or -1: ``(len(keys),) int64``.

        Raises
        ------
        KeyFormatError
            Not text, or not valid Unicode.
        """
        return self.find(hash_keys(keys))

    def others_of(self, keys: Sequence[str]) -> list[str]:
        """Return the live keys that have the file_id of one of the first ten keys, and another class."""
        classes = self.snapshot.class_names
        count = min(_EXPLAINED, max(1, _MOST_TRIED // max(1, len(classes))))
        tried = [key_text(Key.parse(key).file_id, name) for key in keys[:count] for name in classes]
        return [key for key, row in zip(tried, self.find_keys(tried).tolist(), strict=True) if row >= 0]

    def find(self, wanted: Hashes) -> Found:
        """Return the newest live row of each key hash, or -1.

        Parameters
        ----------
        wanted : ndarray, (n, 2) uint64

        Returns
        -------
        ndarray, (n,) int64
        """
        while True:
            try:
                return self._find(wanted)
            except IndexMismatchError as error:
                path = self.snapshot.folder.path
                logger.warning("%s: index does not match key_hash (%s); rebuilding it", path, error)
                self._runs, self._covered = [], 0
                self._cover()

    def _find(self, wanted: Hashes) -> Found:
        # The oldest run is the largest. A live row in it is the newest: a row that was replaced is dead.
        if len(wanted) and self._runs:
            rows = self._runs[0].find_all(wanted, self.snapshot)
            if rows is not None:
                return rows
        found = np.full(len(wanted), -1, dtype=np.int64)
        for run in reversed(self._runs):
            run.find(wanted, found, self.snapshot)
            if found.min(initial=0) >= 0:
                return found
        for run in self._runs:
            run.verify(self.snapshot)
        return found

    def _cover(self) -> None:
        """Index in memory the rows that no run covers yet."""
        rows = self.snapshot.record.rows
        if self._covered >= rows:
            return
        hashes = self.snapshot.span("key_hash", self._covered, rows)[:, 0]
        run = SortedRun.over(np.ascontiguousarray(hashes), self._covered)
        # Each run has more than eight times the rows of the next newer one, so there are few to look into, and
        # appending one row after the other merges each row a logarithmic number of times.
        while self._runs and self._runs[-1]._checksum is None and len(self._runs[-1]) <= 8 * len(run):
            run = self._runs.pop().merged(run)
        self._runs.append(run)
        self._covered = rows


def _stored_runs(snapshot: Snapshot) -> Iterator[tuple[int, Folder, str]]:
    """Yield the stored runs of this generation and epoch, the longest first: rows, parent folder, name."""
    if not isinstance(snapshot.folder, Folder):
        return  # a web server does not list names, and readers work without an index
    try:
        folder = snapshot.folder.child(FOLDER)
        names = folder.names()
    except FileNotFoundError:
        return
    except CorruptStoreError as error:
        logger.warning("%s: index is broken (%s); rebuilding it", snapshot.folder.path, error)
        return
    tag = run_tag(snapshot)
    matches = [match for name in names if (match := RUN_NAME.fullmatch(name)) and match[1] == tag]
    for rows, name in sorted(((int(m[2]), m[0]) for m in matches), reverse=True):
        yield rows, folder, name


def run_tag(snapshot: Snapshot) -> str:
    """Return the tag in a run's name, which binds it to the store's generation and epoch."""
    record = snapshot.record
    return f"{(int(record.generation[:16], 16) + record.epoch) % 2**64:016x}"


def run_array(rows: int) -> ArrayState:
    return ArrayState(dtype="uint64", shape=(rows,), dims=("hash_or_row", "run"), rows_per_chunk=2, length=2)


def _stored_run(snapshot: Snapshot) -> SortedRun | None:
    """Return the longest run in ``index/``, mapped where possible."""
    for rows, folder, name in _stored_runs(snapshot):
        try:
            return _open_run(folder.child(name), rows, snapshot.mapping)
        except FileNotFoundError:
            continue  # a writer has just replaced it by a longer run
        except (CorruptStoreError, IndexMismatchError) as error:
            logger.warning("%s: index is broken (%s); rebuilding it", snapshot.folder.path, error)
    return None


def _open_run(folder: Folder, rows: int, mapping: str) -> SortedRun:
    nbytes = 16 * rows
    with folder.opened("c.0.0") as (descriptor, size):
        if size != nbytes + CHECKSUM_NBYTES:
            raise IndexMismatchError(f"{folder.path} has {size:,} bytes, expected {nbytes + CHECKSUM_NBYTES:,}")
        checksum = stored_checksum(descriptor, size)
        values = None if mapping == "never" else _mapped_run(folder, descriptor, rows)
        if values is None:
            values = np.frombuffer(read_exactly(descriptor, nbytes, 0), "<u8").reshape(2, rows)
    return SortedRun(values[0], values[1], checksum=checksum)


def _mapped_run(folder: Folder, descriptor: int, rows: int) -> NDArray[np.uint64] | None:
    """Map a run. Log a warning and return None where that is not possible."""
    nbytes = -(-16 * rows // PAGE_NBYTES) * PAGE_NBYTES
    reason = available(nbytes, 1)
    if not reason:
        try:
            region = Region(nbytes)
            region.charge(1)
            region.map_file(descriptor, 0, nbytes)
            region.advise("RANDOM", 0, nbytes)
            return region.array((2, rows), np.dtype("<u8"))
        except OSError as error:
            reason = str(error)
    logger.warning("%s: not mapped but read into memory: %s", folder.path, reason)
    return None


def run_problems(snapshot: Snapshot) -> Iterator[tuple[Path, str]]:
    """Compare each stored run with ``key_hash``. Yield the files that differ, with a message each."""
    for rows, folder, name in _stored_runs(snapshot):
        path = folder.path / name / "c.0.0"
        try:
            run = _open_run(folder.child(name), rows, snapshot.mapping)
            run.verify(snapshot)
        except FileNotFoundError:
            continue  # never finished, and so never used
        except (CorruptStoreError, IndexMismatchError) as error:
            yield path, f"index is broken ({error}); readers rebuild it in memory"
            continue
        committed = min(rows, snapshot.record.rows)
        found = np.asarray(run.rows, dtype=np.uint64)
        known = found < committed
        hashes = snapshot.span("key_hash")[:, 0]
        sound = (
            (np.sort(found) == np.arange(rows, dtype=np.uint64)).all()
            and (run.hashes[:-1] <= run.hashes[1:]).all()
            and (run.hashes[known] == hashes[found[known].astype(np.int64)]).all()
        )
        if not sound:
            yield path, "index does not match key_hash; readers rebuild it in memory"
