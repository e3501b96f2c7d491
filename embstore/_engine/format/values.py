"""Values as bytes: checksums, JSON, strings and numbers as chunks hold them. Pure."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import google_crc32c
import numpy as np

from embstore._engine.format.record import STRING, ArrayState

CHECKSUM_NBYTES: Final = 4
MAX_STRING_BYTES: Final = 2**16 - 1
_LENGTH = struct.Struct("<I")


def crc32c_extend(checksum: int, data: bytes | memoryview | np.ndarray[Any, Any]) -> int:
    """Extend a CRC-32C (RFC 3720, appendix B.4) by bytes, or by the bytes of a C-contiguous array."""
    if isinstance(data, memoryview):  # the C code takes arrays, but no memoryview
        data = np.frombuffer(data, np.uint8) if data.nbytes else b""
    elif isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)
    return int(google_crc32c.extend(checksum, data))


def crc32c(data: bytes | memoryview | np.ndarray[Any, Any]) -> int:
    """Return the CRC-32C of bytes, or of the bytes of a C-contiguous array."""
    return crc32c_extend(0, data)


def dump_json(value: Any) -> bytes:
    """Write JSON for a ``zarr.json``: compact, with names in the order given."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def encode_strings(values: Sequence[str]) -> bytes:
    """Encode strings as ``vlen-utf8`` without its leading count: each a uint32 length and its UTF-8."""
    raw = [value.encode() for value in values]
    lengths = np.fromiter(map(len, raw), dtype="<u4", count=len(raw)).tobytes()
    parts = [b""] * (2 * len(raw))
    parts[0::2] = [lengths[start : start + 4] for start in range(0, len(lengths), 4)]
    parts[1::2] = raw
    return b"".join(parts)


def payload(array: ArrayState, values: Sequence[str] | np.ndarray[Any, Any]) -> bytes | memoryview:
    """Return the bytes of rows in a chunk."""
    if array.dtype == STRING:
        return encode_strings(values)  # type: ignore[arg-type]
    numbers = np.ascontiguousarray(values, dtype=np.dtype(array.dtype).newbyteorder("<"))
    return numbers.reshape(-1).view(np.uint8).data


def decode_strings(data: bytes | memoryview, count: int) -> list[str]:
    """Decode `count` strings, the inverse of `encode_strings`.

    Raises
    ------
    ValueError
        The lengths do not fit the bytes. Each length is checked before memory is allocated for it.
    """
    data = bytes(data)
    if (alike := _of_one_length(data, count)) is not None:
        return alike
    unpack, end, position = _LENGTH.unpack_from, len(data), 0
    padding = len(data.rstrip(b"\0"))  # from there on strings are empty: nearly all, in the chunk of a small store
    values: list[str] = []
    while len(values) < count and position < padding:
        if position + 4 > end:
            raise ValueError(f"{len(values)} of {count} strings fit the chunk's {end} bytes")
        start = position + 4
        position = start + unpack(data, position)[0]
        if position > end:
            raise ValueError(f"string {len(values)} ends at {position}, the chunk has {end} bytes")
        values.append(data[start:position].decode())
    empty = min(count - len(values), (end - position) // 4)
    if len(values) + empty < count:
        raise ValueError(f"{len(values) + empty} of {count} strings fit the chunk's {end} bytes")
    if position + 4 * empty != end:
        raise ValueError(f"{end - position - 4 * empty} bytes follow the last of {count} strings")
    return values + [""] * empty


def _of_one_length(data: bytes, count: int) -> list[str] | None:
    """Decode ASCII strings that all have one length, as digests have, in half the time. Return None for others."""
    nbytes = int.from_bytes(data[:4], "little")
    if not nbytes or (4 + nbytes) * count != len(data):
        return None
    table = np.frombuffer(data, np.uint8).reshape(count, 4 + nbytes)
    if not (table[:, :4] == table[0, :4]).all() or not (text := table[:, 4:].tobytes()).isascii():
        return None
    joined = text.decode()
    return [joined[start : start + nbytes] for start in range(0, len(joined), nbytes)]


def chunk_digest(index: int, checksum: int) -> int:
    """Return the part of a full chunk in the digest of its array, from the CRC-32C at the end of its file."""
    return int.from_bytes(blake2b(struct.pack("<QI", index, checksum), digest_size=8).digest(), "big")


def checksum(record: Mapping[str, Any]) -> str:
    """Return the checksum of a record: `digest` of all but `config`, which has the fingerprint as its checksum."""
    return digest({name: value for name, value in record.items() if name not in ("config", "checksum")})


def digest(value: Mapping[str, Any]) -> str:
    """Return BLAKE2b-128 of the canonical JSON of a record without its config, or of consolidated metadata.

    Both hold no fractions, and names of ASCII alone. For such values sorted compact JSON *is* the canonical form, and
    C code writes it.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
