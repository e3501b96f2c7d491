"""What the arrays of a file mean: as its manifest says. Files without one are `foreign`'s to understand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from embstore._engine.format.keys import Key
from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import STRING, offsets_name
from embstore._engine.format.values import crc32c_extend, encode_strings
from embstore.errors import KeyFormatError
from embstore.exchange.base import BLOCK_ROWS, Array, ArrayFile, Block, Found, Named, Table, Unreadable
from embstore.exchange.foreign import foreign_table
from embstore.exchange.manifest import Manifest
from embstore.exchange.wanted import Wanted, chosen_columns, chosen_fields

__all__ = ["table_of"]

_PARTS: Final = ("file_id", "class_name")


def table_of(file: ArrayFile, wanted: Wanted) -> Table:
    """Say what a file of arrays gives.

    Raises
    ------
    FileFormatError
        It can't be understood; says what was found, and what is expected.
    UnknownFieldError, UnknownColumnError
        It does not have what is wanted.
    """
    file.check_size()
    if file.document is None:
        return foreign_table(file, wanted)
    manifest = Manifest.from_json(file.document, file.path)
    names = chosen_fields(list(manifest.fields), wanted.field, file.path)
    columns = chosen_columns(list(manifest.columns), wanted.columns, file.path)
    return DeclaredTable(
        path=file.path,
        config=manifest.config,
        fields={name: manifest.fields[source] for name, source in names.items()},
        columns={name: manifest.columns[name] for name in columns},
        rows=manifest.rows,
        declared=True,
        file=file,
        sources=names,
        crc32c=manifest.crc32c,
    )


def rebatched(values: Iterator[Sequence[Any]]) -> Iterator[list[Any]]:
    """Put values into blocks of another size: two arrays of a file may come in different ones."""
    flat = itertools.chain.from_iterable(values)
    while block := list(itertools.islice(flat, BLOCK_ROWS)):
        yield block


@dataclass(kw_only=True)
class DeclaredTable(Table):
    """A file that embstore wrote: its manifest says what its arrays are, and what their checksums must be.

    Attributes
    ----------
    file : ArrayFile
    sources : dict of str to str
        What the file calls the fields.
    crc32c : mapping of str to int
    """

    file: ArrayFile
    sources: dict[str, str]
    crc32c: Mapping[str, int]

    def __post_init__(self) -> None:
        for name, source in self.sources.items():
            spec = self.fields[name]
            found = self._array(source, {spec.dtype, spec.zarr_dtype})
            size, expected = math.prod(found.shape), math.prod(spec.shape)
            ragged = found.ragged and not spec.ragged
            if size != expected or ragged or (not spec.ragged and found.rows != self.rows):
                raise self.file.wrong(f"its manifest says that {source!r} is {spec.shape} a row, found {found}")
            if spec.ragged and not found.ragged:
                self._offsets(source)
        for name in _PARTS:
            self._check_text(name)
        for name, dtype in self.columns.items():
            if dtype == STRING:
                self._check_text(name)
            elif (found := self._array(name, {dtype})).shape or found.ragged or found.rows != self.rows:
                raise self.file.wrong(f"column {name!r} is {found}, expected {self.rows} values")

    def _array(self, name: str, dtypes: set[str]) -> Found:
        found = self.file.arrays.get(name)
        if found is None:
            raise self.file.wrong(f"its manifest says that there is an array {name!r}, and there is none")
        if found.dtype not in dtypes:
            raise self.file.wrong(f"{name!r}: expected {' or '.join(sorted(dtypes))}, found {found.dtype}")
        return found

    def _offsets(self, name: str) -> None:
        offsets = self._array(offsets_name(name), {"int64"})
        if offsets.shape or offsets.rows != self.rows + 1:
            raise self.file.wrong(f"{offsets_name(name)!r}: expected {self.rows + 1} offsets, found {offsets}")

    def _check_text(self, name: str) -> None:
        found = self._array(name, {STRING, "uint8"})
        if found.dtype != STRING:
            self._offsets(name)
        if found.shape or found.ragged or (found.dtype == STRING and found.rows != self.rows):
            raise self.file.wrong(f"{name!r} is {found}, expected {self.rows} texts")

    def called(self) -> Iterator[list[Named]]:
        """Yield what rows are called."""
        pairs = zip(rebatched(self._strings("file_id")), rebatched(self._strings("class_name")), strict=True)
        for file_ids, class_names in pairs:
            block = zip(file_ids, class_names, strict=True)
            yield [_declared_key(file_id, class_name) for file_id, class_name in block]

    def field(self, name: str) -> Iterator[Block]:
        """Yield the rows of a field."""
        source, spec = self.sources[name], self.fields[name]
        seen, lengths, rows = 0, 0, 0
        for values, bad in self.file.ragged(source) if spec.ragged else self.file.numbers(source):
            if isinstance(values, Ragged):
                lengths = _extended(lengths, np.asarray(values.lengths, "<i8"))
                values = Ragged(_bits(values.values).reshape(-1, *spec.shape), values.offsets)
                seen = _extended(seen, values.values)
            else:
                values = _bits(values).reshape(-1, *spec.shape)
                seen = _extended(seen, values)
            rows += len(values)
            yield Block(values, bad)
        self._check(source, rows, seen)
        if spec.ragged:
            self._check(offsets_name(source), rows, lengths)

    def column(self, name: str) -> Iterator[Array | list[str]]:
        """Yield the values of a column."""
        if self.columns[name] == STRING:
            yield from self._strings(name)
            return
        seen, rows = 0, 0
        for values, _ in self.file.numbers(name):
            assert isinstance(values, np.ndarray)
            seen, rows = _extended(seen, values), rows + len(values)
            yield values
        self._check(name, rows, seen)

    def _strings(self, name: str) -> Iterator[list[str]]:
        seen, rows = 0, 0
        for texts in self.file.strings(name):
            try:
                seen, rows = crc32c_extend(seen, encode_strings(texts)), rows + len(texts)
            except UnicodeEncodeError as error:
                raise self.file.wrong(f"{name!r} is not valid Unicode text: {error}") from error
            yield texts
        self._check(name, rows, seen)

    def _check(self, name: str, rows: int, seen: int) -> None:
        if rows != self.rows:
            raise self.file.wrong(f"{name!r} has {rows} rows, expected {self.rows}")
        if self.crc32c.get(name, seen) != seen:
            raise self.file.wrong(f"the checksum of {name!r} does not match: the file was damaged, or changed")


def _declared_key(file_id: str, class_name: str) -> Named:
    """Return a key as it was written: here, "dog:v1.wav" is a sample of the class "v1.wav"."""
    text = f"{file_id}:{class_name}"
    try:
        return text, Key.parse(Key(file_id, class_name))
    except KeyFormatError as error:
        return Unreadable(text, error.reason)


def _bits(values: Any) -> Array:
    """Return numbers as they are stored: bfloat16, where NumPy has it from elsewhere, as its bits."""
    array = np.ascontiguousarray(values)
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _extended(checksum: int, values: Array) -> int:
    return crc32c_extend(checksum, np.ascontiguousarray(values)) if values.size else checksum
