"""The lengths that frames of sound state themselves: MP3's count of frames, and the sizes of MPEG audio and AC-3."""

from __future__ import annotations

from typing import Final, NamedTuple

from embstore.encoders.content import FilePart


class _Head(NamedTuple):
    """The head of a frame of MPEG audio: 1 or 2 for later versions, the layer, the code of the bit rate, and Hz."""

    version: int
    layer: int
    bits: int
    rate: int


def _mpeg_head(frame: bytes) -> _Head | None:
    """Read the first three bytes of a frame. Return None if it is no frame of MPEG audio."""
    version, layer, bits, rate = frame[1] >> 3 & 3, 4 - (frame[1] >> 1 & 3), frame[2] >> 4, frame[2] >> 2 & 3
    if frame[0] != 0xFF or frame[1] < 0xE0 or layer == 4 or version == 1 or bits == 15 or rate == 3:
        return None
    hertz = (44_100, 48_000, 32_000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    return _Head(1 if version == 3 else 2, layer, bits, hertz)


_MP3_HEAD: Final = 2048
"""Bytes that hold an MP3 file's first frame. It may state the number of frames, as Xing's encoder first did."""


def mp3_seconds(data: FilePart) -> list[float]:
    """Return the lengths that the first frames of an MP3 file state, the encoder's padding included, in seconds.

    Joined files state a length each. Without a count FFmpeg guesses from the bit rate of the first frames, and is wrong
    for a variable bit rate.
    """
    start = _after_tags(data)
    head = data[start : start + _MP3_HEAD]
    found = [(start, at + start) for at in (head.find(b"Xing"), head.find(b"Info"), head.find(b"VBRI")) if at >= 0][:1]
    for mark in (b"Xing", b"Info", b"VBRI"):
        at = start + _MP3_HEAD
        while (at := data.find(mark, at)) >= 0:
            # The frame's head of 4 bytes comes before, and its side information, or 32 bytes for VBRI.
            frames = (at - 4 - side for side in ((32,) if mark == b"VBRI" else (32, 17, 9)))
            found += [(frame, at) for frame in frames if data[frame : frame + 1] == b"\xff"][:1]
            at += 4
    lengths = (_counted(data[frame : frame + 4], data[at : at + 18]) for frame, at in found)
    return [seconds for seconds in lengths if seconds]


def _counted(frame: bytes, count: bytes) -> float:
    """Return the seconds that a frame of MP3 states. 0 if it is no frame of MP3, or has no count.

    Parameters
    ----------
    frame : bytes
        Its head.
    count : bytes
        Begins with "Xing", "Info" or "VBRI".
    """
    if len(count) < 18 or not (count.startswith(b"VBRI") or count[7] & 1):
        return 0.0
    head = _mpeg_head(frame)
    if head is None or head.layer != 3:
        return 0.0
    at = 14 if count.startswith(b"VBRI") else 8
    return int.from_bytes(count[at : at + 4], "big") * (1152 if head.version == 1 else 576) / head.rate


_BIT_RATES: Final = {  # kbit/s, by version 1 of MPEG audio or later ones, and by layer. ISO 11172-3, ISO 13818-3
    (1, 1): range(32, 449, 32),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_AC3_BIT_RATES: Final = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
"""kbit/s. ETSI TS 102 366, table 4.13."""


def frame_size(head: bytes) -> int:
    """Return the bytes of a frame of MPEG audio, AC-3 or E-AC-3 that its first six bytes state. 0 for other bytes."""
    if len(head) < 6:
        return 0
    if head.startswith(b"\x0b\x77"):
        if head[5] >> 3 > 10:  # E-AC-3
            return 2 * ((head[2] & 7) << 8 | head[3]) + 2
        rate, code = head[4] >> 6, head[4] & 0x3F
        if rate == 3 or code // 2 >= len(_AC3_BIT_RATES):
            return 0
        bits = _AC3_BIT_RATES[code // 2]
        return 2 * (bits * 1536 * 1000 // (44_100 * 16) + code % 2) if rate == 1 else bits * (4, 0, 6)[rate]
    found = _mpeg_head(head)
    if found is None or not found.bits:
        return 0
    version, layer, bits, rate = found
    kbits = _BIT_RATES[version, layer][bits - 1]
    padding = head[2] >> 1 & 1
    if layer == 1:
        return 4 * (12 * 1000 * kbits // rate + padding)
    return (72 if (version, layer) == (2, 3) else 144) * 1000 * kbits // rate + padding


def _after_tags(data: FilePart) -> int:
    """Return where an MP3 file's first frame begins, after its ID3 tags. Their sizes are four times seven bits."""
    start = 0
    while data[start : start + 3] == b"ID3" and len(data) >= start + 10:
        size = 0
        for byte in data[start + 6 : start + 10]:
            size = size << 7 | byte & 0x7F
        start += 10 + size
    return start
