"""Many keys as one text in a manifest: the JSON of their list, deflated, in base64."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

_MOST_NBYTES: Final = 2**30
"""Of a client's keys, unpacked: some ten million of them. A file that claims more is not believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Many keys, as they stand in a manifest.

    Attributes
    ----------
    count : int
    nbytes : int
        Of the JSON of their list, in UTF-8.
    deflated : str
        That, deflated (RFC 1950), in base64.

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
        """Unpack the keys, in their order.

        Raises
        ------
        ValueError
            They are not what they are said to be.
        """
        if not 0 <= self.nbytes <= _MOST_NBYTES:
            raise ValueError(f"{self.nbytes:,} bytes of keys, at most {_MOST_NBYTES:,} are allowed")
        try:
            data = base64.b64decode(self.deflated, validate=True)
            # Never more than was announced: a few kilobytes can be made to unpack to gigabytes.
            found = zlib.decompressobj().decompress(data, self.nbytes + 1)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"packed keys can't be unpacked: {error}") from error
        if len(found) != self.nbytes:
            raise ValueError(f"expected {self.nbytes:,} bytes of keys, found {len(found):,} or more")
        return checked_keys(json.loads(found), self.count)


def checked_keys(keys: Any, count: int | None = None) -> list[str]:
    """Return a list of keys, once it is known to be one."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("expected a list of keys")
    if count is not None and len(keys) != count:
        raise ValueError(f"expected {count:,} keys, found {len(keys):,}")
    return keys
