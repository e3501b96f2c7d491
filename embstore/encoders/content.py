"""Undecoded samples as binary files, of which a decoder reads no more than it needs."""

from __future__ import annotations

import contextlib
import io
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from embstore.errors import SampleError

_HEAD: Final = 512
"""Bytes that show the kind of content."""

_BLOCK: Final = 2**16
"""Bytes that are searched at a time."""


_KINDS: Final[tuple[tuple[str, str], ...]] = (
    (r"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", "a HEIC image"),
    (r"....ftypavi[fs]", "an AVIF image"),
    (r"\xff\x0a|\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (r"\xff\xd8\xff", "a JPEG image"),
    (r"\x89PNG", "a PNG image"),
    (r"GIF8", "a GIF image"),
    (r"RIFF....WEBP", "a WebP image"),
    (r"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+", "a TIFF image or a camera's raw image"),
    (r"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!DOCTYPE svg[^>]*>\s*)*<svg", "an SVG drawing"),
    (r"\s*<(!doctype )?html", "a web page"),
    (r"%!PS", "a PostScript program"),
    (r"%PDF", "a PDF file"),
    (r"(RIFF|RIFX|RF64)....WAVE", "WAV sound"),
    (r"FORM....AIF", "AIFF sound"),
    (r"fLaC", "FLAC sound"),
    (r"OggS", "Ogg sound or video"),
    (r"\xff\xfe|\xfe\xff", "text in UTF-16"),
    (r"ID3|\xff[\xe2\xe3\xf2-\xf7\xfa-\xfd]", "MP3 sound"),
    (r"....ftyp", "MP4 sound or video"),
    (r"\x1a\x45\xdf\xa3", "Matroska or WebM sound or video"),
    (r"PK\x03\x04", "a ZIP archive"),
    (r"\x1f\x8b", "a gzip archive"),
    (r"version https://git-lfs", "a pointer of Git LFS"),
    (r"[\t\n\r\x20-\x7e]+$", "text"),
)
"""Patterns of the first bytes, as Latin-1, and the kind of content. The first that matches counts."""


def kind_of(start: bytes) -> str:
    r"""Return the kind of content that some first bytes indicate, as the end of a reason. Empty if unknown.

    Files of one kind have equal reasons, which a report can fold.

    Examples
    --------
    >>> kind_of(b"ID3\x03 and so on")
    '; it begins like MP3 sound'
    """
    text = start[:_HEAD].decode("latin-1")
    found = next((kind for pattern, kind in _KINDS if re.match(pattern, text, re.DOTALL | re.IGNORECASE)), None)
    return "" if found is None else f"; it begins like {found}"


def is_undecoded(content: Any) -> bool:
    """Return whether `opened` takes a content."""
    return isinstance(content, bytes | bytearray | memoryview | Mapping | io.RawIOBase | io.BufferedIOBase)


@contextlib.contextmanager
def opened(content: Any) -> Iterator[BinaryIO]:
    """Open an undecoded sample as a binary file that can be sought.

    Parameters
    ----------
    content : bytes, binary file or mapping
        A mapping is a sample of Hugging Face `datasets`. It has ``"bytes"``, or else the ``"path"`` of a file.

    Raises
    ------
    SampleError
        The file at the path can't be read.
    TypeError
        The mapping has neither "bytes" nor "path".
    """
    if isinstance(content, Mapping):
        if content.get("bytes") is None and content.get("path") is None:
            raise TypeError(f'expected a mapping with "bytes" or "path", found {sorted(map(str, content))}')
        if content.get("bytes") is None:
            path = Path(content["path"])
            try:
                with path.open("rb") as file:
                    yield file
            except OSError as error:
                raise SampleError(path, error.strerror or str(error)) from error
            return
        content = content["bytes"]
    yield io.BytesIO(content) if isinstance(content, bytes | bytearray | memoryview) else content


class FilePart:
    """A part of a binary file. It is sliced like bytes and read like a file, and keeps no content in memory.

    Parameters
    ----------
    file : binary file
    start, stop : int
        Bytes of the file. `stop` is the end of the file by default.
    """

    def __init__(self, file: BinaryIO, start: int = 0, stop: int | None = None) -> None:
        self._file = file
        self._start = start
        self._size = (file.seek(0, io.SEEK_END) if stop is None else stop) - start
        self._changes: tuple[tuple[int, bytes], ...] = ()
        self._at = 0

    def part(self, start: int, stop: int) -> FilePart:
        """Return a part of this part."""
        return FilePart(self._file, self._start + start, self._start + stop)

    def changed(self, *changes: tuple[int, bytes]) -> FilePart:
        """Return this part with other bytes at some places. The file stays as it is."""
        found = self.part(0, self._size)
        found._changes = changes
        return found

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        start, stop, _ = where.indices(self._size)
        self._file.seek(self._start + start)
        data = self._file.read(max(0, stop - start))
        for at, new in self._changes:
            first, last = max(at, start), min(at + len(new), stop)
            if first < last:
                data = data[: first - start] + new[first - at : last - at] + data[last - start :]
        return data

    def numbers(self, form: str, at: int) -> tuple[Any, ...]:
        """Return the values of a struct at a place."""
        return struct.unpack(form, self[at : at + struct.calcsize(form)])

    def startswith(self, marks: bytes | tuple[bytes, ...], at: int = 0) -> bool:
        """Return whether one of the marks stands at a place."""
        longest = len(marks) if isinstance(marks, bytes) else max(map(len, marks))
        return self[at : at + longest].startswith(marks)

    def find(self, mark: bytes, at: int = 0) -> int:
        """Return the place of the first mark from a place on, -1 if no mark follows."""
        while at + len(mark) <= self._size:
            found = self[at : at + _BLOCK].find(mark)
            if found >= 0:
                return at + found
            at += _BLOCK - len(mark) + 1
        return -1

    # -- as a file, for PyAV ------------------------------------------------------------------

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes. All that are left if the size is negative."""
        data = self[self._at : self._size if size < 0 else self._at + size]
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, and return it."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Return the present place."""
        return self._at
