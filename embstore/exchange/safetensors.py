"""``.safetensors``: eight bytes of length, a JSON header, and the values of one tensor after the other.

The library checks the header of a file. The values are then read at the offsets of the header. Files are written here,
because `save_file` of the library needs all tensors in memory. The format has no texts: they are bytes and offsets.
Source: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.format.record import BFLOAT16, stored_dtype
from embstore._engine.io.folder import read_exactly
from embstore._engine.lazy import imported
from embstore.exchange.exporting import Outgoing
from embstore.exchange.file_contents import Array, ArrayFile, ArrayInfo, Unreadable, explained
from embstore.exchange.store_metadata import ENTRY

_DTYPES: Final = {"BOOL": "bool", "BF16": BFLOAT16} | {
    f"{kind[0].upper()}{bits}": f"{kind}{bits}"
    for kind, widths in {"int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "float": (16, 32, 64)}.items()
    for bits in widths
}
_NAMES: Final = {ours: theirs for theirs, ours in _DTYPES.items()}
_METADATA: Final = "__metadata__"
_LENGTH: Final = struct.Struct("<Q")
_MOST_HEADER: Final = 100_000_000  # as in the library


class File(ArrayFile):
    """A file of tensors, open for reading.

    Raises
    ------
    FileFormatError, MissingLibraryError
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        library = imported("safetensors", "exchange", "for .safetensors files")
        with explained(path, library.SafetensorError), library.safe_open(path, "np"):
            pass  # it refuses offsets that overlap, leave holes or leave the file
        self._file = path.open("rb", buffering=0)
        self._starts: dict[str, int] = {}
        with contextlib.ExitStack() as stack, explained(path):
            stack.callback(self._file.close)
            self._look()
            stack.pop_all()

    def _look(self) -> None:
        length = _LENGTH.unpack(self._file.read(_LENGTH.size))[0]
        if length > min(_MOST_HEADER, os.fstat(self._file.fileno()).st_size):
            raise self.wrong("its header is longer than the file")
        header = json.loads(read_exactly(self._file.fileno(), length, _LENGTH.size))
        notes = header.pop(_METADATA, {})
        metadata = notes.get(ENTRY)
        self.left_out += [
            Unreadable(f"@{name}", "metadata of the file") for name in notes if name not in (ENTRY, "format")
        ]
        if isinstance(metadata, str):
            self.state(metadata)
        for name, found in header.items():
            shape, (start, stop) = found["shape"], found["data_offsets"]
            if not shape:
                self.left_out.append(Unreadable(name, "it is a single value"))
                continue
            array = ArrayInfo(dtype=_DTYPES.get(found["dtype"], found["dtype"]), shape=tuple(shape[1:]), rows=shape[0])
            if array.dtype in _NAMES and stop - start != array.rows * array.row_nbytes:
                raise self.wrong(f"{name!r} has {stop - start:,} bytes, and claims to be {array}")
            self.arrays[name] = array
            self._starts[name] = _LENGTH.size + length + start

    def read(self, name: str, cuts: Sequence[int]) -> Iterator[Array | list[str]]:
        """Yield the rows between each cut and the next, bfloat16 as its bits."""
        array, place = self.arrays[name], self._starts[name]
        dtype = np.dtype(stored_dtype(array.dtype))
        for start, stop in itertools.pairwise(cuts):
            size = (stop - start) * array.row_nbytes
            raw = read_exactly(self._file.fileno(), size, place + start * array.row_nbytes)
            if len(raw) != size:
                raise self.wrong(f"{name!r} ends early")
            yield np.frombuffer(raw, dtype).reshape(stop - start, *array.shape)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write(path: Path, rows: Outgoing) -> None:
    """Write rows to a new file: the header, then the values."""
    imported("safetensors", "exchange", "for .safetensors files")
    members = list(rows.members(lambda texts: None, bfloat16=True))
    if _METADATA in (rows.names or ()):
        raise rows.refused(f"{_METADATA!r} is not the name of a tensor")
    # The widest dtype first, so that each tensor is aligned to its width, as in the files of the library.
    members.sort(key=lambda member: -_width(member.dtype))
    entries, end = {}, 0
    for name, dtype, shape, _ in members:
        start, end = end, end + _width(dtype) * math.prod(shape)
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    with path.open("xb") as file:
        file.write(_header(rows.metadata.to_json(), entries))
        for member in members:
            for block in member.blocks:
                file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)


def _width(dtype: str) -> int:
    return np.dtype(stored_dtype(dtype)).itemsize


def _header(metadata: str, entries: dict[str, Any]) -> bytes:
    text = json.dumps({_METADATA: {ENTRY: metadata}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text
