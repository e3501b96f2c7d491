"""Sizes in bytes as text."""

from __future__ import annotations


def size(nbytes: float) -> str:
    """Write a number of bytes with a unit, in powers of 1000.

    Examples
    --------
    >>> size(614_400_000)
    '614 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.1f} TB"
