"""The length that a sound file states in its own header, for files cut short.

If a WAV, W64, CAF, MP4 or Matroska file (or one of some other formats) was cut, PyAV reads the rest, and returns the
length of the rest as its duration. So this module reads the stated sizes from the headers alone. `sound_files` compares
them with the decoded sound.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from embstore.encoders.content import FilePart

_W64: Final = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_ASF: Final = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA: Final = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES: Final = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_WTV: Final = bytes.fromhex("b7d800203749da11a64e0007e95ead8d")
_VOC: Final = b"Creative Voice File\x1a"
_EBML: Final = b"\x1a\x45\xdf\xa3"
_SEGMENT: Final = b"\x18\x53\x80\x67"
_MP4_BOXES: Final = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")

_HEADS: Final = (
    *((mark, 8, b"WAVE") for mark in (b"RIFF", b"RIFX")),
    (b"RIFF", 8, b"AVI "),
    *((b"FORM", 8, kind) for kind in (b"AIF", b"8SVX", b"16SV", b"MAUD")),
    *((mark, 8, b"WAVEds64") for mark in (b"RF64", b"BW64")),
    (b".snd\0\0", 12, b"\0\0\0"),
    (b"FLV\1", 5, b"\0\0\0\t"),
    (b"MMMD", 8, b"CNTI"),
    *((mark, 0, mark) for mark in (_W64, _ASF, _WTV, b"caff\0\1\0\0", b"TTA1\1\0", _VOC, b"\0\nSMJPEG\0")),
)
"""First bytes of files, and bytes of their kind at a distance: together too long to stand in sound by chance."""

_FLV_HEAD: Final = 4096
"""Bytes that hold the first tag of an FLV file."""

_TAGS: Final = 4096
"""Bytes that may follow the sound of VOC."""

_HEADER: Final = 64
"""Bytes of the stated sound that a file may lack: some writers count the header of 44 bytes in."""


class Extent(NamedTuple):
    """Bytes up to the end of the sound that a file states, and the bytes of these that are present."""

    stated: int
    present: int

    @property
    def cut(self) -> bool:
        """Whether bytes are missing."""
        return self.present < self.stated - _HEADER


class _Gap(NamedTuple):
    """A size that a writer left open: its place, its struct, and the size up to the end of the file."""

    at: int
    form: str
    size: int


def extent(data: FilePart) -> Extent | None:
    """Return the bytes of sound that a file states, and the bytes that are present.

    Parameters
    ----------
    data : FilePart
        A whole file: WAV, RF64, AVI, AIFF, 8SVX, W64, CAF, MP4, Matroska, WebM, ASF, VOC, .sox or another format.

    Returns
    -------
    Extent or None
        None for another format, and for a length that the writer left open, as in a file written to a pipe.
    """
    found = _read(data)
    return found if isinstance(found, Extent) else None


def filled(data: FilePart) -> FilePart:
    """Return a file with the size of its sound filled in, if the writer left it open in a form that FFmpeg refuses."""
    found = _read(data)
    if not isinstance(found, _Gap):
        return data
    changes = [(found.at, struct.pack(found.form, found.size))]
    if data.startswith(b"FORM"):
        changes.append((4, struct.pack(">I", len(data) - 8)))  # FFmpeg reads no chunk beyond this size
    return data.changed(*changes)


def _read(data: FilePart) -> Extent | _Gap | None:
    return next((read(data) for at, marks, read in _CONTAINERS if data.startswith(marks, at)), None)


class _Page(NamedTuple):
    """A page of an Ogg file: its place, its flags (2 begins a stream, 4 ends it), and its stream."""

    start: int
    end: int
    flags: int
    serial: bytes


def _ogg_pages(data: FilePart) -> Iterator[_Page]:
    """Yield the pages of an Ogg file. The end of a last page that was cut lies beyond the file."""
    at = 0
    while True:
        head = data[at : at + 27 + 255]
        if not head.startswith(b"OggS"):
            at = data.find(b"OggS", at)
            if at < 0:
                return
            continue
        end = at + 27 + (head[26] + sum(head[27 : 27 + head[26]]) if len(head) > 26 else 255)
        yield _Page(at, end, head[5] if len(head) > 5 else 0, head[14:18])
        at = end if end >= len(data) or data.startswith(b"OggS", end) else at + 4  # a page that was cut ends elsewhere


def ogg_links(data: FilePart) -> Iterator[FilePart]:
    """Yield the links of a chain of Ogg streams. A first page after other pages begins a link."""
    start, within = 0, False
    for page in _ogg_pages(data):
        begins = bool(page.flags & 2)
        if begins and within:
            yield data.part(start, page.start)
            start = page.start
        within = not begins
    yield data.part(start, len(data))


def ogg_ends(data: FilePart) -> bool:
    """Return False for an Ogg file with a stream that lacks its end: the flag on its last page, or part of that page.

    Streams side by side end one by one.
    """
    last: dict[bytes, _Page] = {page.serial: page for page in _ogg_pages(data)}
    return all(page.flags & 4 and page.end <= len(data) for page in last.values())


def is_joined(data: FilePart) -> bool:
    """Return whether another file of its format follows a sound file, of which FFmpeg reads the first only.

    Tags or zeros may stand between the two. The search begins behind the first file if it states its own size.
    """
    if data.startswith(_MP4_BOXES, 4):
        boxes = list(_boxes(data))
        names, end = [name for name, _ in boxes], max((end for _, end in boxes), default=len(data))
        return max(names.count(b"ftyp"), names.count(b"moov")) > 1 or _head_after(data, end, b"ftyp", -4, b"\0\0\0")
    for mark, kind_at, kind in _HEADS:
        if data.startswith(mark) and data.startswith(kind, kind_at):
            end = _whole_size(data)
            return _head_after(data, end if 0 < end <= len(data) else len(mark), mark, kind_at, kind)
    return False


def _head_after(data: FilePart, start: int, mark: bytes, kind_at: int, kind: bytes) -> bool:
    """Return whether a mark follows, with the bytes of its kind at a distance from it."""
    while (start := data.find(mark, start)) >= 0:
        if data.startswith(kind, start + kind_at):
            return True
        start += 1
    return False


def _whole_size(data: FilePart) -> int:
    """Return the size of a whole file as its head states it, without padding. 0 if the head states no size."""
    if data.startswith((b"RIFF", b"RIFX", b"FORM", b"MMMD")):
        return 8 + int(data.numbers("<I" if data.startswith(b"RIFF") else ">I", 4)[0])
    if data.startswith(b".snd"):
        return sum(data.numbers(">II", 4))
    found = _flv(data) if data.startswith(b"FLV") else None
    return found.stated if found is not None else 0


# -- one reader a container -------------------------------------------------------------------


def _unknown(size: int) -> bool:
    """Return True for a size of 32 bits that a writer left open because it could not seek back to the header.

    0 and 0xFFFFFFFF are usual. SoX and eSpeak write 0x7FFFF000 into WAV, less an incomplete block, and SoX 0x7F000000
    into AIFF. arecord writes 0x7FFFFFFF or 0x80000000, others 0xFFFFFFFF less the header.
    """
    return size in (0, 0x80000000) or size & 0x7FFF0000 in (0x7FFF0000, 0x7F000000)


def _extent(data: FilePart, start: int, size: int) -> Extent:
    return Extent(size, min(size, max(0, len(data) - start)))


def _chunks(
    data: FilePart, at: int, head: str, *, counted: int = 0, align: int = 1
) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each chunk, where its content begins, and the size of that.

    Parameters
    ----------
    data : FilePart
        A whole file.
    at : int
        Where the first chunk begins.
    head : str
        The struct of a chunk's head: a name and a size.
    counted : int
        Bytes of the head that the size counts.
    align : int
        Chunks begin at multiples of so many bytes.
    """
    while at + struct.calcsize(head) <= len(data):
        name, size = data.numbers(head, at)
        start, size = at + struct.calcsize(head), size - counted
        yield name, start, size
        at = start + max(0, size + -size % align)


def _iff(data: FilePart) -> Extent | _Gap | None:
    """Read WAV, RF64, AVI, AIFF and 8SVX: chunks named by 4 bytes, of even sizes."""
    order = ">" if data[:4] in (b"RIFX", b"FORM") else "<"
    long_at = None
    for name, start, size in _chunks(data, 12, f"{order}4sI", align=2):
        if name == b"ds64" and start + 16 <= len(data):
            long_at = start + 8
        elif name in (b"data", b"SSND", b"BODY") or (name == b"LIST" and data.startswith(b"movi", start)):
            if long_at is not None and size == 0xFFFFFFFF:
                (long,) = data.numbers("<Q", long_at)
                return _extent(data, start, long) if 0 < long < 2**63 - 1 else _Gap(long_at, "<Q", len(data) - start)
            if not _unknown(size):
                return _extent(data, start, size)
            return _Gap(start - 4, ">I", len(data) - start) if data.startswith(b"FORM") else None
    return None


def _guids(data: FilePart) -> Extent | _Gap | None:
    """Read W64 and ASF: chunks named by 16 bytes, whose sizes of 64 bits count their heads."""
    w64 = data.startswith(_W64)
    for name, start, size in _chunks(data, 40 if w64 else 0, "<16sQ", counted=24, align=8 if w64 else 1):
        if name.startswith(b"data" if w64 else _ASF_DATA):
            # FFmpeg leaves W64 at the largest number, ASF at 0 or at the 26 bytes before its first packet.
            if (0 if w64 else 26) < size < 2**63 - 25:
                return _extent(data, start, size)
            return _Gap(start - 8, "<Q", len(data) - start + 24) if w64 else None
    return None


def _caf(data: FilePart) -> Extent | None:
    for name, start, size in _chunks(data, 8, ">4sq"):
        if name == b"data":
            return _extent(data, start, size) if size > 0 else None
    return None


def _boxes(data: FilePart) -> Iterator[tuple[bytes, int]]:
    """Yield the name of each outermost box of an MP4 file, and where it ends."""
    at = 0
    while at + 16 <= len(data):
        size, name = data.numbers(">I4s", at)
        if size == 1:
            (size,) = data.numbers(">Q", at + 8)
        if size < 8 or not name.isalnum():
            return  # the box extends to the end of the file, or is no box
        at += size
        yield name, at


def _mp4(data: FilePart) -> Extent | None:
    return next((Extent(end, len(data)) for _, end in _boxes(data) if end > len(data)), None)


def _smaf(data: FilePart) -> Extent | None:
    return _extent(data, 8, data.numbers(">I", 4)[0]) if len(data) >= 8 else None


def _flv(data: FilePart) -> Extent | None:
    """Read the size of the whole file, which writers put into its first tag (`onMetaData`)."""
    at = data[:_FLV_HEAD].find(b"filesize\0")
    if at < 0 or at + 17 > len(data):
        return None
    (size,) = data.numbers(">d", at + 9)
    return Extent(int(size), min(int(size), len(data))) if 13 < size < 2**53 else None


def _matroska(data: FilePart) -> Extent | None:
    at = 0
    while at + 5 <= len(data):
        name, length = data[at : at + 4], 9 - data[at + 4 : at + 5][0].bit_length()
        if name not in (_EBML, _SEGMENT) or length > 8:
            return None
        bits = 7 * length
        size = int.from_bytes(data[at + 4 : at + 4 + length], "big") & (1 << bits) - 1
        if name == _SEGMENT:
            return None if size in (0, (1 << bits) - 1) else _extent(data, at + 4 + length, size)
        at += 4 + length + size
    return None


def _voc(data: FilePart) -> Extent | None:
    end = _voc_end(data)
    return Extent(end, len(data)) if end > len(data) else None


def _voc_end(data: FilePart) -> int:
    """Return where the last block ends: at the byte 0, at a block of an unknown type, or beyond the file."""
    at = int.from_bytes(data[20:22], "little")
    while at > 0 and at + 4 <= len(data) and b"\0" < data[at : at + 1] <= b"\x09":
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "little")
    return at


def _sox(data: FilePart) -> Extent | None:
    order = "<" if data[:4] == b".SoX" else ">"
    if len(data) < 16:
        return None
    start, samples = data.numbers(f"{order}IQ", 4)  # samples of 32 bits, of all channels together
    return _extent(data, start + 4, 4 * samples) if 0 < samples < 2**60 else None


_CONTAINERS: Final[tuple[tuple[int, tuple[bytes, ...], Callable[[FilePart], Extent | _Gap | None]], ...]] = (
    (0, (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM"), _iff),
    (0, (_W64, _ASF), _guids),
    (0, (b"caff",), _caf),
    (4, _MP4_BOXES, _mp4),
    (0, (_EBML,), _matroska),
    (0, (_VOC,), _voc),
    (0, (b".SoX", b"XoS."), _sox),
    (0, (b"MMMD",), _smaf),
    (0, (b"FLV",), _flv),
)
"""Where a container's marks stand, the marks, and its reader."""


# -- parts that were overwritten --------------------------------------------------------------


def has_hole(data: FilePart) -> bool:
    """Return whether a packet of an AVI, ASF, FLV or VOC file lacks its head. FFmpeg passes over such packets.

    A hole within a packet does not show.
    """
    if data.startswith(b"AVI ", 8):
        lists = [chunk for chunk in _chunks(data, 12, "<4sI", align=2) if data.startswith(b"movi", chunk[1])]
        return any(_avi_hole(data, start + 4, min(start + size, len(data))) for _, start, size in lists)
    walks = ((_ASF, _asf_hole), (b"FLV\1", _flv_hole), (_VOC, _voc_hole))
    return any(walk(data) for mark, walk in walks if data.startswith(mark))


def _avi_hole(data: FilePart, at: int, end: int) -> bool:
    while at + 8 <= end:
        name, size = data.numbers("<4sI", at)
        if not (name.isascii() and name.decode().isprintable()):
            return True
        at += 12 if name == b"LIST" else 8 + size + size % 2
    return False


def _asf_hole(data: FilePart) -> bool:
    """Packets have one size. All begin with the flag of error correction, if the first does."""
    packet = 0
    for name, start, size in _chunks(data, 30, "<16sQ", counted=24):
        if name == _ASF_PROPERTIES and start + 76 <= len(data):
            (packet,) = data.numbers("<I", start + 72)
        elif name == _ASF_DATA:
            # If the size was left open, an index may follow the packets.
            end = min(start + size, len(data)) if size > 26 else start
            starts = range(start + 26, end, packet or len(data))
            flags = (data[at : at + 1] for at in starts)
            return next(flags, b"") == b"\x82" and any(flag != b"\x82" for flag in flags)
    return False


def _flv_hole(data: FilePart) -> bool:
    found, at = _flv(data), 13
    end = len(data) if found is None else found.present
    while at + 11 <= end:
        if data[at : at + 1][0] & 0x1F not in (8, 9, 15, 18):  # audio, video, data
            return True
        at += 15 + int.from_bytes(data[at + 1 : at + 4], "big")
    return False


def _voc_hole(data: FilePart) -> bool:
    """No more than tags may follow the block that ends a file."""
    end = _voc_end(data)
    return data[end : end + 1] > b"\x09" or end + _TAGS < len(data)
