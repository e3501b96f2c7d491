"""Stamps of files: a cheap check whether a file changed since it was read."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

_SETTLED_NS: Final = 2 * 10**9
"""A file changed within this time may change again and keep its stamp: clocks of file systems tick."""


class Stamp(NamedTuple):
    """Size in bytes and mtime in ns of a file. If both are the same, the file is taken to be unchanged."""

    size: int
    mtime: int


UNKNOWN: Final = Stamp(-1, -1)
"""The stamp of content that is not a file, or of a file that was changed too recently."""


def stamp_of(found: os.stat_result) -> Stamp:
    """Return the stamp of a file from its status."""
    return Stamp(found.st_size, found.st_mtime_ns)


def settled(stamp: Stamp, now: int) -> bool:
    """Return whether any change of a file after `now` will change its stamp.

    Parameters
    ----------
    stamp : Stamp
    now : int
        Time of the check, in ns since the epoch.
    """
    return stamp.mtime < now - _SETTLED_NS
