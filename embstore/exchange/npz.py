"""``.npz``: a zip of ``.npy`` members, as NumPy reads and writes them.

Members are streamed through zipfile, stored ones too: it checks their CRC-32, and a map would not. NumPy's own
readers of headers are used, and no member that would need pickle is read.
Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from embstore._engine.format.record import STRING, offsets_name
from embstore._engine.format.values import MAX_STRING_BYTES
from embstore.errors import UnsafeFileError
from embstore.exchange.file_contents import Array, ArrayFile, ArrayInfo, CutFile, explained
from embstore.exchange.outgoing import Outgoing
from embstore.exchange.store_metadata import ENTRY, StoreMetadata

_NPY: Final = ".npy"
METADATA: Final = f"__{ENTRY}__"
"""The array that holds the metadata: no field or column can have this name."""
_MOST_METADATA: Final = 256 * 2**20  # bytes
_PIECE: Final = 4 * 2**20
_BROKEN: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    OSError,
    RuntimeError,  # encrypted
    NotImplementedError,  # packed in a way that zipfile does not know
    MemoryError,
    OverflowError,
    SyntaxError,  # a header
    tokenize.TokenError,
    RecursionError,
    TypeError,
    KeyError,
)
"""What zipfile and NumPy were seen to raise over broken files."""


def opened(path: Path) -> ArrayFile:
    """Open a file for reading.

    Raises
    ------
    FileFormatError
    """
    return NpzFile(path)


@dataclass(frozen=True, slots=True)
class _Member:
    """One array: its name in the zip, where its values begin in the member, and what they are."""

    name: str
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool


class NpzFile(CutFile):
    """A zip of arrays."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._members: dict[str, _Member] = {}
        with explained(path, *_BROKEN):
            self._archive = zipfile.ZipFile(path)
            for info in self._archive.infolist():
                if info.filename.endswith(_NPY):
                    self._look(info)
            if METADATA in self._members:
                self.metadata = StoreMetadata.from_json(self._text(METADATA), path)

    def _look(self, info: zipfile.ZipInfo) -> None:
        """Read a member's header."""
        with self._archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                return
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            start = file.tell()
        name = info.filename.removesuffix(_NPY)
        count = 1
        for size in shape:
            count *= size
        if min(shape, default=0) < 0 or (not dtype.hasobject and info.file_size != start + count * dtype.itemsize):
            raise self.wrong(f"{name!r} has {info.file_size - start:,} bytes, and claims to be {dtype} {shape}")
        self._members[name] = _Member(info.filename, start, dtype, shape, fortran and len(shape) > 1)
        is_text = dtype.kind in "US"
        kind = STRING if is_text else "objects" if dtype.hasobject else dtype.newbyteorder("=").name
        self.arrays[name] = ArrayInfo(
            dtype=kind, shape=shape[1:], rows=shape[0] if shape else 1, text_nbytes=max(1, dtype.itemsize)
        )

    def _text(self, name: str) -> str:
        member = self._members[name]
        if member.dtype.kind != "U" or member.shape or member.dtype.itemsize > _MOST_METADATA:
            raise self.wrong(f"{name!r} is not a text")
        with self._archive.open(member.name) as file:
            return str(np.frombuffer(file.read()[member.start :], member.dtype)[0])

    def read(self, name: str, cuts: Sequence[int]) -> Iterator[Array | list[str]]:
        """Yield what lies between each cut and the next."""
        member = self._members[name]
        if member.dtype.hasobject:
            hint = "save texts as np.array(…, dtype=str), and rows of one shape as numbers"
            raise UnsafeFileError(self.path, f"{name!r} holds Python objects, which only pickle can load; {hint}")
        if member.dtype.kind in "US" and member.dtype.itemsize > 4 * MAX_STRING_BYTES:
            raise self.wrong(f"{name!r} holds texts of {member.dtype.itemsize:,} bytes")
        if not member.shape:
            raise self.wrong(f"{name!r} is a single value, expected rows")
        for values in self._reordered(member, cuts) if member.fortran else self._streamed(member, cuts):
            yield (
                _texts(values, self)
                if member.dtype.kind in "US"
                else values.astype(values.dtype.newbyteorder("="), copy=False)
            )

    def _streamed(self, member: _Member, cuts: Sequence[int]) -> Iterator[Array]:
        with explained(self.path, *_BROKEN):
            file = self._archive.open(member.name)
        with contextlib.closing(file):
            self._fill(file, bytearray(member.start))
            row = np.empty((0, *member.shape[1:]), member.dtype)
            for start, stop in itertools.pairwise(cuts):
                values = np.empty((stop - start, *row.shape[1:]), member.dtype)
                if values.nbytes:
                    self._fill(file, values.reshape(-1).view(np.uint8).data)
                yield values
            with explained(self.path, *_BROKEN):
                if file.read(1):  # which also compares the checksum of the whole member
                    raise self.wrong(f"{member.name!r} is longer than it says")

    def _fill(self, file: IO[bytes], buffer: bytearray | memoryview) -> None:
        view = memoryview(buffer)
        with explained(self.path, *_BROKEN):
            while view:
                piece = file.read(min(len(view), _PIECE))
                if not piece:
                    raise EOFError("a member ends early")
                view[: len(piece)] = piece
                view = view[len(piece) :]

    def _reordered(self, member: _Member, cuts: Sequence[int]) -> Iterator[Array]:
        """Yield rows of an array that lies column by column: unpacked to a temporary file, and read across."""
        size = self._archive.getinfo(member.name).file_size - member.start
        with tempfile.TemporaryFile() as beside:
            with explained(self.path, *_BROKEN), self._archive.open(member.name) as file:
                file.read(member.start)
                while piece := file.read(_PIECE):
                    beside.write(piece)
            beside.flush()
            flat = np.memmap(beside, np.uint8, "r") if size else np.empty(0, np.uint8)
            values = flat.view(member.dtype).reshape(member.shape, order="F")
            for start, stop in itertools.pairwise(cuts):
                yield np.array(values[start:stop], order="C")

    def close(self) -> None:
        """Let go of the file."""
        self._archive.close()


def _texts(values: Array, file: NpzFile) -> list[str]:
    if values.dtype.kind == "U":
        try:
            return [str(text) for text in values.tolist()]
        except (ValueError, UnicodeDecodeError) as error:  # beyond Unicode
            raise file.wrong(f"it holds what is not text: {error}") from error
    try:
        return [raw.decode() for raw in values.tolist()]
    except UnicodeDecodeError as error:
        raise file.wrong(f"it holds bytes that are not UTF-8: {error}") from error


def write(path: Path, rows: Outgoing) -> None:
    """Write rows to a new file; each array is a member, stored as it is, so that others can map it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in rows.texts:
            _write_texts(archive, name, rows)
        for name, (dtype, shape) in rows.arrays().items():
            _write(archive, name, dtype, shape, rows.numbers(name))
        metadata = np.array(rows.metadata.to_json())
        _write(archive, METADATA, metadata.dtype, (), iter([metadata]))


def _write(archive: zipfile.ZipFile, name: str, dtype: Any, shape: tuple[int, ...], blocks: Iterator[Array]) -> None:
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype).newbyteorder("<"))
    with archive.open(zipfile.ZipInfo(name + _NPY), "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        for block in blocks:
            file.write(np.ascontiguousarray(block, np.dtype(dtype)).reshape(-1).view(np.uint8).data)


def _write_texts(archive: zipfile.ZipFile, name: str, rows: Outgoing) -> None:
    """Write texts as NumPy has them, or as bytes and offsets, where their padding would lose or waste."""
    texts = rows.measured(name)
    padded = 4 * texts.longest * rows.count
    if texts.ends_in_nul or padded > 8 * texts.nbytes + 64 * 2**20:
        _write(archive, name, "uint8", (texts.nbytes,), rows.utf8(name))
        _write(archive, offsets_name(name), "int64", texts.offsets.shape, iter([texts.offsets]))
        return
    dtype = f"<U{max(1, texts.longest)}"
    _write(archive, name, dtype, (rows.count,), (np.array(block, dtype) for block in rows.strings(name)))
