"""Usage of a cached store: when it was last used, hits, misses, rows served and seconds saved.

Each store has one JSON file, ``.usage/<store>.json`` in the folder of the stores. A process reads it, adds to it and
replaces it whole under a lock, so concurrent counts are not lost. Counting is best effort: a failure is logged and
stops no run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Final

from embstore._engine.io.durable import replace_file
from embstore._engine.io.folder import Folder
from embstore._engine.io.locks import lock
from embstore._engine.pickles import PickledByName
from embstore.errors import CorruptStoreError

logger = logging.getLogger("embstore")

_FOLDER: Final = ".usage"
_HOUR: Final = 3600.0
_WAIT: Final = 10.0
"""Seconds to wait for the lock, which a process holds for some milliseconds."""
_MOST_NBYTES: Final = 4096
_MOST: Final = 2.0**53
_LATEST: Final = 253_402_214_400.0
"""Year 9999. Later times can't be formatted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage(PickledByName):
    """Usage of a store.

    Attributes
    ----------
    runs : int
    hits : int
        Wanted samples that were stored and current.
    misses : int
        Wanted samples that were missing or stale.
    served : int
        Rows that runs returned or stored.
    encoded : int
        Rows that were encoded.
    seconds : float
        Duration of the runs that encoded them.
    last_used : float
        Time of the last run, or of the last opening through the cache, which is recorded at most once an hour. Seconds
        since the epoch, or 0 if no use was recorded.
    """

    runs: int = 0
    hits: int = 0
    misses: int = 0
    served: int = 0
    encoded: int = 0
    seconds: float = 0.0
    last_used: float = 0.0

    @property
    def seconds_saved(self) -> float:
        """Estimated seconds that encoding the hits would have taken: hits times the mean time of a row."""
        return self.hits * self.seconds / self.encoded if self.encoded else 0.0


def count(path: PurePath, *, hits: int, misses: int, served: int, encoded: int, seconds: float) -> None:
    """Add a run to the usage of the store at `path`.

    Parameters
    ----------
    path : PurePath
        At a URL nothing is counted.
    hits, misses, served, encoded, seconds
        See `Usage`.
    """
    if isinstance(path, Path):
        _add(path, Usage(runs=1, hits=hits, misses=misses, served=served, encoded=encoded, seconds=seconds))


def mark_used(path: PurePath) -> None:
    """Set the time of last use of the store at `path`, unless it is less than an hour old.

    A time more than an hour ahead, from a wrong clock, is replaced too.
    """
    if isinstance(path, Path) and abs(time.time() - usage_of(path).last_used) >= _HOUR:
        _add(path, Usage())


def usage_of(path: PurePath) -> Usage:
    """Return the usage of the store at `path`. It is empty without a readable file."""
    try:
        return _read(path) if isinstance(path, Path) else Usage()
    except OSError:
        return Usage()


def forget(path: Path) -> None:
    """Remove the usage of a store that was removed."""
    with contextlib.suppress(OSError):
        Folder.open(path.parent).child(_FOLDER).remove(_name(path))


def _add(path: Path, more: Usage) -> None:
    """Add to the counts of a store, and set its time of last use."""
    place = path.parent / _FOLDER
    if not os.access(place if place.exists() else path.parent, os.W_OK):
        logger.debug("%s: this use is not counted: the folder is read-only", path)
        return
    try:
        place.mkdir(exist_ok=True)
        folder = Folder.open(path.parent).child(_FOLDER)
        with lock(place / "counting", timeout=_WAIT):
            sums = {name: round(number + getattr(more, name), 3) for name, number in asdict(_read(path)).items()}
            sums["last_used"] = round(time.time(), 3)
            replace_file(folder, _name(path), [json.dumps(sums).encode()])
    except OSError as error:  # embstore's own errors here are OSErrors too
        logger.info("%s: this use is not counted: %s", path, error)


def _read(path: Path) -> Usage:
    """Read the usage of a store. It is empty without a file.

    Raises
    ------
    OSError
        The file can't be read. Its counts must then not be replaced.
    """
    try:
        data = Folder.open(path.parent).child(_FOLDER).read(_name(path), most=_MOST_NBYTES)
    except FileNotFoundError:
        return Usage()
    except CorruptStoreError:  # too large, or a link. The next count replaces it.
        data = b""
    usage = _parsed(data)
    if usage is None:
        logger.info("%s: it is not valid; counting starts again", path.parent / _FOLDER / _name(path))
    return usage or Usage()


def _parsed(data: bytes) -> Usage | None:
    """Return the usage in a file's content, or None if this module did not write it."""
    try:
        found = json.loads(data)
        numbers = {name: type(zero)(found[name]) for name, zero in asdict(Usage()).items()}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    if not all(0 <= number < _MOST for number in numbers.values()) or numbers["last_used"] > _LATEST:
        return None
    return Usage(**numbers)


def _name(path: Path) -> str:
    return f"{path.name}.json"
