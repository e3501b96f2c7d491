"""Compression of a chunk's bytes by numcodecs, as Zarr's codecs of the same names do. No I/O."""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np

from embstore._engine.format.record import ArrayState
from embstore._engine.format.zarr_layout import BLOSC, ZSTD_LEVEL

_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_BLOSC_HEAD: Final = struct.Struct("<4xIII")  # skips the flags. Sizes in bytes: content, block, compressed data


def compress(array: ArrayState, data: bytes) -> bytes:
    """Compress a chunk's bytes with the array's codec.

    Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/ (blosc), and the extension ``zstd`` of Zarr v3.
    """
    return bytes(_codec(array).encode(np.frombuffer(data, array.dtype)))


def decompress(array: ArrayState, data: memoryview) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a chunk's bytes, ``(chunk_nbytes,) uint8``.

    Raises
    ------
    ValueError
        The data are not of the array's codec, or don't have the size of a chunk.
    """
    # numcodecs fills only a part of `out`, without an error, where the data state a shorter size.
    expected, found = array.chunk_nbytes, _content_nbytes(array, data)
    if found != expected:
        raise ValueError(f"expected a content of {expected:,} bytes, its header states {found:,}")
    out = np.zeros(expected, np.uint8)
    try:
        _codec(array).decode(data, out=out)
    except (RuntimeError, ValueError) as error:  # numcodecs raises either
        raise ValueError(f"it can't be decompressed: {error}") from error
    return out


def _content_nbytes(array: ArrayState, data: memoryview) -> int:
    """Return the size of the content that compressed data state, in bytes, or -1 for data of another codec.

    Sources: RFC 8878, section 3.1.1 (the head of a frame); https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
    """
    if array.compression == "blosc":
        if len(data) < _BLOSC_HEAD.size:
            return -1
        content, _, compressed = _BLOSC_HEAD.unpack_from(data)
        return int(content) if compressed == len(data) else -1  # c-blosc reads as far as the header states
    if len(data) < 6 or bytes(data[:4]) != _ZSTD_MAGIC:
        return -1
    flags = data[4]
    single = flags >> 5 & 1
    start = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    width = (single, 2, 4, 8)[flags >> 6]
    if not width or len(data) < start + width:
        return -1
    return int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)


def _codec(array: ArrayState) -> Any:
    import numcodecs  # imported here, because its import takes as long as that of embstore and few stores need it

    if array.compression == "zstd":
        return numcodecs.Zstd(level=ZSTD_LEVEL)
    return numcodecs.Blosc(cname=BLOSC["cname"], clevel=BLOSC["clevel"], shuffle=numcodecs.Blosc.SHUFFLE)
