"""Packs many keys into one text of a manifest: the JSON of their list, deflated, in base64."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

_MOST_NBYTES: Final = 2**30
"""Largest unpacked size of a client's keys, some ten million keys. A file that claims more is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Packed keys of a manifest.

    Attributes
    ----------
    count : int
        Number of keys.
    nbytes : int
        Bytes of the JSON of their list, in UTF-8.
    deflated : str
        This JSON, deflated (RFC 1950), in base64.

    Examples
    --------
    >>> packed = Packed.of([f"video_{i:05d}:dog" for i in range(10_000)])
    >>> len(packed.deflated) < packed.nbytes / 4
    True
    >>> packed.keys()[7]
    'video_00007:dog'
    """

    count: int
    nbytes: int
    deflated: str

    @classmethod
    def of(cls, keys: Sequence[str]) -> Packed:
        """Pack keys."""
        data = json.dumps(list(keys), ensure_ascii=False, separators=(",", ":")).encode()
        return cls(count=len(keys), nbytes=len(data), deflated=base64.b64encode(zlib.compress(data)).decode())

    def keys(self) -> list[str]:
        """Return the unpacked keys in order.

        Raises
        ------
        ValueError
            The text does not decode to `count` keys in `nbytes` bytes.
        """
        if not 0 <= self.nbytes <= _MOST_NBYTES:
            raise ValueError(f"{self.nbytes:,} bytes of keys, at most {_MOST_NBYTES:,} are allowed")
        try:
            data = base64.b64decode(self.deflated, validate=True)
            # Limit the output to the stated size: a few crafted kilobytes can unpack to gigabytes.
            found = zlib.decompressobj().decompress(data, self.nbytes + 1)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"packed keys can't be unpacked: {error}") from error
        if len(found) != self.nbytes:
            raise ValueError(f"expected {self.nbytes:,} bytes of keys, found {len(found):,} or more")
        return checked_keys(json.loads(found), self.count)


def checked_keys(keys: Any, count: int | None = None) -> list[str]:
    """Return `keys`. Raise ValueError if it is not a list of texts, or not of length `count`."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("expected a list of keys")
    if count is not None and len(keys) != count:
        raise ValueError(f"expected {count:,} keys, found {len(keys):,}")
    return keys
