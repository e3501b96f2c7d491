"""``.npz``: a zip of ``.npy`` members, as NumPy reads and writes them.

Members are streamed through zipfile, uncompressed ones too: it checks their CRC-32, and a memory map would not. NumPy
reads the headers. Members that need pickle are not read.
Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from embstore._engine.format.record import STRING
from embstore._engine.format.values import MAX_STRING_BYTES
from embstore.errors import UnsafeFileError
from embstore.exchange.exporting import Member, Outgoing, Texts
from embstore.exchange.file_contents import Array, ArrayFile, ArrayInfo, Unreadable, explained
from embstore.exchange.store_metadata import ENTRY

_NPY: Final = ".npy"
METADATA: Final = f"__{ENTRY}__"
"""The array of the metadata. No field or column can have this name."""
_MOST_METADATA: Final = 256 * 2**20  # bytes
_PIECE: Final = 4 * 2**20


@dataclass(frozen=True, slots=True)
class _Member:
    """An array: its place in the zip, the offset of its values in the member, their dtype, shape and order."""

    info: zipfile.ZipInfo  # not its name: a zip may have several members of one name
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool


class File(ArrayFile):
    """A zip of arrays, open for reading.

    Raises
    ------
    FileFormatError
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._members: dict[str, _Member] = {}
        with explained(path):
            self._archive = zipfile.ZipFile(path)
            for info in self._archive.infolist():
                reason = "it is not an .npy array"
                if info.filename.endswith(_NPY):
                    reason = self._look(info)
                if reason and not info.is_dir():
                    self.left_out.append(Unreadable(info.filename.removesuffix(_NPY), reason))
            if METADATA in self._members:
                if (info := self._members[METADATA].info).file_size > _MOST_METADATA:
                    raise self.wrong(f"{METADATA!r} is too large for metadata")
                with self._archive.open(info) as file:
                    self.state(str(np.lib.format.read_array(file)))

    def _look(self, info: zipfile.ZipInfo) -> str:
        """Read a member's header. Return why the member is left out, or ""."""
        with self._archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                return f"its format version {version} is not read"
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            start = file.tell()
        name = info.filename.removesuffix(_NPY)
        nbytes = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or (not dtype.hasobject and info.file_size != start + nbytes):
            raise self.wrong(f"{name!r} has {info.file_size - start:,} bytes, and claims to be {dtype} {shape}")
        if name in self._members:
            return "another array has this name"
        self._members[name] = _Member(info, start, dtype, shape, fortran and len(shape) > 1)
        if not shape:
            return "" if name == METADATA else "it is a single value"
        is_text = dtype.kind in "US"
        kind = STRING if is_text else "objects" if dtype.hasobject else dtype.newbyteorder("=").name
        self.arrays[name] = ArrayInfo(dtype=kind, shape=shape[1:], rows=shape[0], text_nbytes=max(1, dtype.itemsize))
        return ""

    def read(self, name: str, cuts: Sequence[int]) -> Iterator[Array | list[str]]:
        """Yield the rows between each cut and the next."""
        member = self._members[name]
        if member.dtype.hasobject:
            hint = "save texts as np.array(…, dtype=str), and rows of one shape as numbers"
            raise UnsafeFileError(self.path, f"{name!r} holds Python objects, which only pickle can load; {hint}")
        if member.dtype.kind in "US" and member.dtype.itemsize > 4 * MAX_STRING_BYTES:
            raise self.wrong(f"{name!r} holds texts of {member.dtype.itemsize:,} bytes")
        for values in self._reordered(member, cuts) if member.fortran else self._streamed(member, cuts):
            if member.dtype.kind in "US":
                yield self._texts(values)
            else:
                yield values.astype(values.dtype.newbyteorder("="), copy=False)

    def _texts(self, values: Array) -> list[str]:
        try:
            return [text.decode() if isinstance(text, bytes) else str(text) for text in values.tolist()]
        except ValueError as error:  # not UTF-8, or a code point beyond Unicode
            raise self.wrong(f"it holds text that is not valid Unicode: {error}") from error

    def _streamed(self, member: _Member, cuts: Sequence[int]) -> Iterator[Array]:
        with explained(self.path):
            file = self._archive.open(member.info)
        with contextlib.closing(file):
            self._fill(file, bytearray(member.start))
            row = np.empty((0, *member.shape[1:]), member.dtype)
            for start, stop in itertools.pairwise(cuts):
                values = np.empty((stop - start, *row.shape[1:]), member.dtype)
                if values.nbytes:
                    self._fill(file, values.reshape(-1).view(np.uint8).data)
                yield values
            with explained(self.path):
                if file.read(1):  # reading the end also checks the CRC-32 of the member
                    raise self.wrong(f"{member.info.filename!r} is longer than its header states")

    def _fill(self, file: IO[bytes], buffer: bytearray | memoryview) -> None:
        for start in range(0, len(buffer), _PIECE):
            part = memoryview(buffer)[start : start + _PIECE]
            with explained(self.path):
                if file.readinto(part) != len(part):  # type: ignore[attr-defined]
                    raise EOFError("a member ends early")

    def _reordered(self, member: _Member, cuts: Sequence[int]) -> Iterator[Array]:
        """Yield rows of an array in Fortran order. It is unpacked to a temporary file and mapped."""
        size = member.info.file_size - member.start
        with tempfile.TemporaryFile() as beside:
            with explained(self.path), self._archive.open(member.info) as file:
                file.read(member.start)
                while piece := file.read(_PIECE):
                    beside.write(piece)
            beside.flush()
            flat = np.memmap(beside, np.uint8, "r") if size else np.empty(0, np.uint8)
            values = flat.view(member.dtype).reshape(member.shape, order="F")
            for start, stop in itertools.pairwise(cuts):
                yield np.array(values[start:stop], order="C")

    def close(self) -> None:
        """Close the file."""
        self._archive.close()


def write(path: Path, rows: Outgoing) -> None:
    """Write rows to a new file. Each array is an uncompressed member, which other programs can map.

    The metadata is left out beside one array a row: scripts take each array of such a file for a row.
    """
    metadata = np.array(rows.metadata.to_json())
    members = rows.members(lambda texts: _text_dtype(texts, len(rows.rows)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        own = [] if rows.names is not None else [Member(METADATA, metadata.dtype, (), iter([metadata]))]
        for name, given, shape, blocks in itertools.chain(members, own):
            dtype = np.dtype(given)
            descr = np.lib.format.dtype_to_descr(dtype.newbyteorder("<"))
            with archive.open(zipfile.ZipInfo(name + _NPY), "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
                for block in blocks:
                    file.write(np.ascontiguousarray(block, dtype).reshape(-1).view(np.uint8).data)


def _text_dtype(texts: Texts, count: int) -> str | None:
    """Return NumPy's dtype of texts, or None if its padding would lose NULs or waste memory."""
    if texts.has_nul or 4 * texts.longest * count > 8 * texts.offsets[-1] + 64 * 2**20:
        return None
    return f"<U{max(1, texts.longest)}"
