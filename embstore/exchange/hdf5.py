"""``.h5``, ``.hdf5``: a dataset for each array, through h5py.

Datasets are chunked, resizable, and have HDF5's own checksums (fletcher32). Links, virtual datasets and external
storage are not read: a file to import must not decide which other files are read.
Source: https://docs.h5py.org/en/stable/high/dataset.html
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.format.record import STRING
from embstore._engine.lazy import imported
from embstore.exchange.exporting import Member, Outgoing
from embstore.exchange.file_contents import Array, ArrayFile, ArrayInfo, Block, Unreadable, explained
from embstore.exchange.store_metadata import ENTRY

_PACKING: Final = ("scale_factor", "add_offset")
_FILL: Final = "_FillValue"
"""Attributes of netCDF: numbers to unpack others with, and the number that stands for a missing value.
Source: https://cfconventions.org/cf-conventions/cf-conventions.html#packed-data"""

_CHUNK_BYTES: Final = 2**20
_TEXT_CHUNK_ROWS: Final = 4096
_ID: Final = "original_id"
"""Attribute of an array that bio_embeddings named after a number or a digest: the id in the FASTA file."""

_OWN: Final = (ENTRY, _ID, "CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", "DIMENSION_LABELS")
"""Attributes that other parts of this module read, or that HDF5 writes itself."""


def _h5py() -> Any:
    return imported("h5py", "exchange", "for HDF5 files")


class File(ArrayFile):
    """A file of datasets, open for reading.

    Raises
    ------
    FileFormatError, MissingLibraryError
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._h5py = _h5py()
        self._noted: Counter[str] = Counter()
        with explained(path):
            self._file = self._h5py.File(path, "r", locking=False)
            self._look()
            found = self._file.attrs.get(ENTRY)
        self.left_out += [Unreadable(f"@{name}", f"an attribute of {n:,} parts") for name, n in self._noted.items()]
        if isinstance(found, str):
            self.state(found)

    def _look(self) -> None:
        """Describe the arrays of all groups. A "/" in a name makes a group: "sub/clip:dog" is in the group "sub"."""
        groups, seen = [("", self._file)], {self._file}
        self._note(self._file)
        while groups:
            before, group = groups.pop(0)
            for part in group:
                name, link = before + part, group.get(part, getlink=True)
                found = group[part] if isinstance(link, self._h5py.HardLink) else link
                if not isinstance(found, self._h5py.Group):
                    self._describe(name, found)
                elif found not in seen:  # groups may contain each other
                    seen.add(found)
                    self._note(found)
                    groups.append((f"{name}/", found))

    def _note(self, found: Any) -> None:
        """Count the attributes of a group or dataset, which are not read, but those of HDF5 and netCDF themselves."""
        self._noted.update(name for name in found.attrs if name not in _OWN and not name.startswith("_"))

    def _describe(self, name: str, found: Any) -> None:
        if not isinstance(found, self._h5py.Dataset):
            reason = f"a {type(found).__name__} is not read"
        elif found.is_virtual or found.external:
            reason = "its values are in other files, which are not read"
        elif packed := sorted({*_PACKING} & {*found.attrs}):
            reason = f"its numbers are packed, by {' and '.join(packed)}; write them unpacked"
        elif not found.shape:
            reason = "it has no values" if found.shape is None else "it is a single value"
        else:
            text = self._h5py.check_string_dtype(found.dtype) is not None
            kind = STRING if text else "objects" if found.dtype.hasobject else found.dtype.newbyteorder("=").name
            info = ArrayInfo(dtype=kind, shape=found.shape[1:], rows=found.shape[0], text_nbytes=8192)
            self.arrays[name] = replace(info, nullable=_FILL in found.attrs)
            self._note(found)
            if isinstance(stated := found.attrs.get(_ID), str):
                self.ids[name] = stated
            return
        self.left_out.append(Unreadable(name, reason))

    def read(self, name: str, cuts: Sequence[int]) -> Iterator[Array | list[str]]:
        """Yield the rows between each cut and the next."""
        is_text = self.arrays[name].dtype == STRING
        with explained(self.path):
            dataset = self._file[name].asstr() if is_text else self._file[name]
        for start, stop in itertools.pairwise(cuts):
            with explained(self.path):
                values = dataset[start:stop]
                if is_text:
                    yield [str(text) for text in values.tolist()]
                else:
                    yield values.astype(values.dtype.newbyteorder("="), copy=False)

    def numbers(self, name: str) -> Iterator[Block]:
        """Yield rows of numbers. Those with netCDF's number for a missing value are bad rows."""
        missing = self._file[name].attrs.get(_FILL)
        for block in super().numbers(name):
            found = np.asarray(block.values).reshape(len(block), -1)
            bad = [] if missing is None else np.flatnonzero((found == missing).any(1)).tolist()
            yield Block(block.values, dict.fromkeys(bad, "a number in it is missing"))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write(path: Path, rows: Outgoing) -> None:
    """Write rows to a new file."""
    h5py = _h5py()
    _check_names(rows)
    with h5py.File(path, "w-") as file:
        for member in rows.members(lambda texts: None if texts.has_nul else h5py.string_dtype("utf-8")):
            if rows.names is None:
                _write(file, member)
            else:
                file.create_dataset(member.name, data=next(member.blocks), track_times=False)
        file.attrs[ENTRY] = rows.metadata.to_json()


def _check_names(rows: Outgoing) -> None:
    """Raise LayoutError for names of arrays that HDF5 reads as paths to other places."""
    names = set(rows.names or ())
    for name in rows.names or ():
        folders = name.split("/")
        if not {"", "."}.isdisjoint(folders):
            raise rows.refused(f"HDF5 reads {name!r} as another name; export to .npz or .safetensors")
        for depth in range(1, len(folders)):
            if (group := "/".join(folders[:depth])) in names:
                raise rows.refused(f"HDF5 can't have {group!r} beside {name!r}; export to .npz or .safetensors")


def _write(file: Any, member: Member) -> None:
    dtype, shape = np.dtype(member.dtype), member.shape
    row_nbytes = max(1, dtype.itemsize * math.prod(shape[1:]))
    step = _TEXT_CHUNK_ROWS if dtype.hasobject else min(max(1, _CHUNK_BYTES // row_nbytes), 2**16)
    dataset = file.create_dataset(
        member.name,
        shape=shape,
        maxshape=(None, *shape[1:]),
        chunks=(max(1, min(step, shape[0])), *shape[1:]),
        dtype=dtype,
        fletcher32=not dtype.hasobject,  # it does not cover texts, which lie in the global heap
        track_times=False,
    )
    start = 0
    for block in member.blocks:
        dataset[start : start + len(block)] = block
        start += len(block)
