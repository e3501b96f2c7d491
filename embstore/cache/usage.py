"""What a cache is worth: hits, misses, rows served and seconds saved, counted by those who write to it.

Each run appends one line to ``.usage/<store>.jsonl``. One short write at a file's end is whole or absent, so that
no lock is needed; a line that can't be read is left out. Nothing depends on these figures.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embstore._engine.io.durable import append_line

__all__ = ["Usage", "count", "forget", "usage_of"]

logger = logging.getLogger("embstore")

_FOLDER: Final = ".usage"
_COUNTS: Final = ("hits", "misses", "served", "encoded", "seconds")
_MOST: Final = 2.0**53
_LATEST: Final = 253_402_214_400.0  # the year 9999, and the last that there are words for


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How a store was used.

    Attributes
    ----------
    runs : int
    hits, misses : int
        Samples that were asked for and found; and not found, or stale.
    served : int
        Rows handed on.
    encoded : int
        Rows encoded.
    seconds : float
        That took.
    last_used : float
        Seconds since the epoch; 0, if it was never counted.
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
        """What the hits would have taken to encode, at the mean of the rows that were encoded."""
        return self.hits * self.seconds / self.encoded if self.encoded else 0.0


def count(path: Path, *, hits: int, misses: int, served: int, encoded: int, seconds: float) -> None:
    """Note a run on the store at `path`; where that can't be written, nothing is noted.

    Parameters
    ----------
    path : Path
    hits, misses, served, encoded, seconds
        See `Usage`.
    """
    event = dict(zip(_COUNTS, (hits, misses, served, encoded, round(seconds, 3)), strict=True))
    line = json.dumps({"at": round(time.time(), 3), **event}) + "\n"
    place = _place(path)
    try:
        append_line(place, "\n" + line if _torn(place) else line)
    except OSError as error:  # ours are OSErrors too; whatever it is, the run itself is done
        logger.info("%s: this run is not counted: %s", path, error)


def _torn(place: Path) -> bool:
    """Tell whether the last line has no end, as a full disk leaves it: the next one must not be lost with it."""
    try:
        with place.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # there is none yet, or it is empty
        return False


def usage_of(path: Path) -> Usage:
    """Add up the runs on the store at `path`."""
    totals: dict[str, float] = dict.fromkeys(_COUNTS, 0)
    runs, last = 0, 0.0
    try:
        lines = _place(path).read_bytes().split(b"\n")
    except OSError:
        return Usage()
    for line in lines:
        if event := _parsed(line):
            runs += 1
            last = max(last, event["at"])
            for name in _COUNTS:
                totals[name] += event[name]
    counts: dict[str, Any] = {name: totals[name] if name == "seconds" else int(totals[name]) for name in _COUNTS}
    return Usage(runs=runs, last_used=last, **counts)


def _parsed(line: bytes) -> dict[str, float] | None:
    """Return a line's numbers; None for one that was torn, or that this module did not write."""
    try:
        event = json.loads(line)
        numbers = {name: float(event[name]) for name in ("at", *_COUNTS)}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    sound = all(0 <= number < _MOST for number in numbers.values()) and numbers["at"] <= _LATEST
    return numbers if sound else None


def forget(path: Path) -> None:
    """Forget the runs on a store that was removed."""
    with contextlib.suppress(OSError):
        _place(path).unlink()


def _place(path: Path) -> Path:
    return path.parent / _FOLDER / f"{path.name}.jsonl"
